"""The commands of README and docs, copied into a shell as they stand: each arrives as it was written, and is known."""

import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from running import REPO

from raincast.cli import HYDRA_VERSION_BASE, conf_dir
from raincast.commands.command_line import flat_keys, quoted

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:torchrun .*?|srun )?(?:python (?P<script>\w+)\.py|raincast (?P<command>\w+)|train\.py) ")


def commands(page: Path) -> list[str]:
    """Lines of code blocks, fenced or indented, that run raincast; with the lines that continue them."""
    text = page.read_text(encoding="utf-8").replace("\\\n", "")
    return [line.strip() for line in text.splitlines() if COMMAND.match(line.strip()) and "`" not in line]


def test_what_is_copied_into_a_shell_arrives_as_it_stands(tmp_path: Path) -> None:
    lines = [line for page in PAGES for line in commands(page)]
    assert len(lines) > 60
    stubs = "".join(
        f"{name}() {{ printf '%s\\0' {name} \"$@\"; }}\n" for name in ("python", "raincast", "torchrun", "srun")
    )
    script = stubs + "".join(f"{line}\nprintf '\\n'\n" for line in lines)
    ran = subprocess.run(["bash"], input=script, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0 and not ran.stderr, ran.stderr
    arrived = [line.split("\0")[:-1] for line in ran.stdout.splitlines()]
    for line, words in zip(lines, arrived, strict=True):
        assert words == shlex.split(line, comments=True), "the shell expands it"


@cache
def composed(command: str, chosen: tuple[str, ...]) -> set[str]:
    """The keys that a command has with these choices."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        return set(flat_keys(OmegaConf.to_container(compose(command, list(chosen)), resolve=False)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_in_a_command_is_there(page: Path) -> None:
    for line in commands(page):
        found = COMMAND.match(line)
        assert found
        if "--config-dir" in line:  # choices of a folder of one's own
            continue
        command = found["script"] or found["command"] or "train"
        given = [word for word in shlex.split(line[found.end() :], comments=True) if word[0] not in "-…"]
        overrides = OverridesParser.create().parse_overrides(quoted(given))
        several = " -m " in line
        groups = [word for word in given if (conf_dir() / word.lstrip("+").partition("=")[0]).is_dir()]
        # of several choices the first; launchers are packages that may not be installed
        chosen = tuple(w.partition(",")[0] if several else w for w in groups if not w.startswith("launcher="))
        keys = composed(command, chosen)
        for override, word in zip(overrides, given, strict=True):
            key = override.key_or_group
            assert several or not override.is_sweep_override(), f"{word} is taken for several values"
            if word not in groups and not word.startswith("+") and key.partition(".")[0] != "hydra":
                assert key in keys, f"{line}: {key}"
