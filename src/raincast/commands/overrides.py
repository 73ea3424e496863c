"""Command-line arguments: quotes where Hydra's grammar needs them, and suggestions for mistyped keys."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

FILES = ("files", "input", "nwp", "path")
"""Keys, or their last parts, that take several patterns in one text."""


def quoted(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with quotes around each value that Hydra's grammar rejects.

    Such values are paths with `=`, `(`, `[0-2]` or non-ASCII letters, and several patterns for a key of `FILES`.
    With -m a comma separates values, so a value with a comma is left unchanged.
    """
    several = not {"-m", "--multirun"}.isdisjoint(arguments)
    parser = OverridesParser.create()
    return [_quoted(parser, argument, several) for argument in arguments]


def _quoted(parser: OverridesParser, argument: str, several: bool) -> str:
    key, equals, value = argument.partition("=")
    patterns = key.rpartition(".")[2] in FILES and "," in value and value[0] not in "['\""
    if argument.startswith("-") or not equals or (several and "," in value):
        return argument
    if not patterns and _parses(parser, argument):
        return argument
    # Hydra reads \' as a quote, and \\ as \ only before a quote or at the end
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    candidate = f"{key}='{escaped}'"
    return candidate if _parses(parser, candidate) else argument


def _parses(parser: OverridesParser, argument: str) -> bool:
    try:
        parser.parse_override(argument)
    except HydraException:
        return False
    return True


def suggestions(command: str, arguments: Sequence[str], conf: Path, version_base: str) -> Iterator[str]:
    """Yield, after Hydra has rejected the arguments, the keys that resemble each unknown one."""
    given = [argument for argument in arguments if not argument.startswith("-")]
    chosen = [argument for argument in given if _is_group(conf, argument.partition("=")[0])]
    with initialize_config_dir(str(conf), version_base=version_base):
        try:
            cfg = compose(command, chosen)
        except HydraException:
            return  # Hydra has already named the possible choices
    groups = [str(path.relative_to(conf)) for path in conf.rglob("*") if path.is_dir()]
    known = [*flat_keys(OmegaConf.to_container(cfg, resolve=False)), *groups]
    for argument in given:
        key = argument.partition("=")[0]
        if "=" not in argument:
            if not key.startswith("~"):
                yield f"{argument} is not key=value."
        elif key[:1] in ("+", "~") or key.startswith("hydra.") or key in known or _is_group(conf, key):
            continue  # added, removed, Hydra's own, or known
        else:
            near = _near(key, known)
            yield f"There is no key {key}." + (f" Did you mean {' or '.join(near)}?" if near else "")


def _is_group(conf: Path, key: str) -> bool:
    return bool(key) and (conf / key.lstrip("+").partition("@")[0]).is_dir()


def _near(key: str, known: Sequence[str]) -> list[str]:
    """Return up to three keys: first those that end with it (lr: optimizer.lr), then those spelled similarly."""
    last = {name: name.rpartition(".")[2] for name in known}
    ending = [name for name in known if last[name] == key]
    spelled = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    close = difflib.get_close_matches(key, set(last.values()), n=1, cutoff=0.8)
    alike = [name for name in known if last[name] in close]
    return list(dict.fromkeys([*ending, *spelled, *alike]))[:3]


def flat_keys(node: Any, prefix: str = "") -> list[str]:
    """Return the keys of all levels, joined by dots."""
    if not isinstance(node, dict):
        return []
    keys: list[str] = []
    for key, value in node.items():
        keys += [f"{prefix}{key}", *flat_keys(value, f"{prefix}{key}.")]
    return keys
