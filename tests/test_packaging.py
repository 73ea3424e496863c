"""What a user installs: the wheel runs on its own, from any folder; the README's commands are real."""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
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
