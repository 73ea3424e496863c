"""What a user installs: the wheel runs on its own, from any folder; the README's commands are real."""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from running import REPO, TINY, compose_config

README = (REPO / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(
    r"(?:^|&& )python (train|evaluate|forecast|ingest|export)\.py(?: +(.*?))?\s*(?:#.*)?$", README, re.MULTILINE
)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without isolation, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(REPO),
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
    ]
    built = subprocess.run([*build, "--quiet"], capture_output=True, text=True, timeout=200)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("raincast-*.whl"))


def test_the_wheel_carries_the_configs_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "raincast/conf/experiment/radar.yaml" in names
    assert "raincast/py.typed" in names
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"raincast"}


def test_the_wheel_trains_from_another_folder(wheel: Path, tiny_archive: Path, tmp_path: Path) -> None:
    """In an environment that holds the wheel and its dependencies, but not this checkout."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=100)
    python = environment / "bin" / "python"
    site = Path(
        subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    # a line in a .pth is a folder to look in; editable installs there are .pth files, which do not count
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*install, "--quiet", str(wheel)], check=True, timeout=100, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    where = subprocess.check_output(
        [python, "-c", "import raincast; print(raincast.__file__)"], cwd=elsewhere, env=clean, text=True
    )
    assert str(site) in where
    step = ["trainer.max_steps=1", "trainer.max_epochs=1", f"data.archive={tiny_archive}"]
    ran = subprocess.run(
        [environment / "bin" / "raincast", "train", *TINY, *step], cwd=elsewhere, env=clean,
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert len(list(elsewhere.glob("outputs/train/*/*/checkpoints/last.ckpt"))) == 1


def test_the_readme_shows_every_command() -> None:
    assert {command for command, _ in COMMANDS} == {"train", "evaluate", "forecast", "ingest", "export"}


@pytest.mark.parametrize(("command", "arguments"), COMMANDS)
def test_the_commands_of_the_readme_compose(command: str, arguments: str, tmp_path: Path) -> None:
    overrides = [word for word in shlex.split(arguments) if word != "-m"]
    first_of_sweep = [re.sub(r"^([\w./]+=[^,\[\]]+),[^\[\]]*$", r"\1", word) for word in overrides]
    # … stands for what only the user knows; Hydra's grammar has no such sign
    compose_config(command, tmp_path, *(word.replace("…", "x") for word in first_of_sweep))


REFUSED = {
    "torch": ["2.5.1", "2.6.0", "2.9.1", "2.10.0"],  # CVE-2025-32434, CVE-2026-24747, CVE-2026-4538
    "lightning": ["2.6.2", "2.6.3", "2.6.5"],  # GHSA-w37p-236h-pfx3, GHSA-qqmf-gpg7-g8gw
    "hydra-core": ["1.3.2", "1.3.6"],  # CVE-2026-68508, CVE-2026-106439
    "pillow": ["10.0.0", "12.3.0"],  # GHSA-5x8w-8jj5-q52h
    "filelock": ["3.12.0", "3.20.2"],  # CVE-2025-68146, CVE-2026-22701
    "jinja2": ["3.1.5"],  # CVE-2025-27516
}


def core() -> dict[str, SpecifierSet]:
    """The core dependencies by name."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [Requirement(line) for line in project["dependencies"]]
    return {canonicalize_name(one.name): one.specifier for one in found}


@pytest.mark.parametrize("name", REFUSED)
def test_releases_with_known_vulnerabilities_are_not_installed(name: str) -> None:
    for version in REFUSED[name]:
        assert version not in core()[name], f"{name} {version} would be installed"


def test_the_core_install_is_pinned_with_hashes() -> None:
    text = (REPO / "requirements" / "core.txt").read_text(encoding="utf-8")
    assert "://" not in text and "index-url" not in text, "no address of a registry"
    pinned: dict[str, list[str]] = {}
    for block in re.split(r"\n(?=[a-z0-9])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)):
        name, _, rest = block.partition("==")
        assert "--hash=sha256:" in rest, f"{name} has no hash"
        pinned.setdefault(canonicalize_name(name), []).append(rest.split()[0])
    for name, specifier in core().items():
        if name != "torch":
            assert name in pinned, f"{name} is not pinned: make lock"
            assert all(version in specifier for version in pinned[name]), f"{name}: make lock"
