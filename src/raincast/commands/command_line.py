"""The command line: quotes where Hydra's grammar needs them, suggestions for mistyped keys, and `--help`."""

import difflib
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from raincast.system.paths import as_typed

FILES = ("files", "input", "nwp", "path")
"""Keys, or their last parts, that take several patterns in one text."""

WIDTH = 100
_KEY = re.compile(r"(?P<indent> *)(?P<item>- )?(?P<key>[\w.]+):(?P<rest>.*)")


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


def flat_keys(node: Any) -> list[str]:
    """Return the keys of all levels, joined by dots."""
    return [key for key, _ in flat_items(node)]


def flat_items(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of all levels, joined by dots, and their values."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}", value
        yield from flat_items(value, f"{prefix}{key}.")


def help_text(command: str, what: str, arguments: Sequence[str], conf: Path, version_base: str) -> str:
    """Return everything that can be set, with the values that `arguments` compose.

    Raises HydraException if Hydra refuses the arguments.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    with initialize_config_dir(str(conf), version_base=version_base):
        cfg = compose(command, overrides)
        loader = GlobalHydra.instance().config_loader()
        used = loader.compute_defaults_list(command, overrides, RunMode.RUN).defaults
    files = [(conf / f"{one.config_path}.yaml", one.package or "") for one in used if one.config_path]
    comments: dict[str, str] = {}
    for path, package in files:
        if not path.is_file() or package.startswith("hydra"):
            continue
        prefix = "" if package in ("", "_global_") else f"{package}."
        for key, said in _comments(path.read_text(encoding="utf-8")):
            meaning = comments.get(f"{prefix}{key}")
            # an experiment's comment gives the reason for its value, not the meaning of the key
            reason = path.parent.name in ("experiment", "debug") and meaning
            comments[f"{prefix}{key}"] = f"{meaning} (here: {said})" if reason else said
    header = _header(conf / f"{command}.yaml")
    groups = sorted({str(path.parent.relative_to(conf)) for path, _ in files} | _all_groups(conf, command))
    parts = [
        f"{what}\n",
        *(f"  {line}" for line in header),
        "\nFlags: --help, -m (one run per value of key=a,b,c), --cfg job (the composed config), --hydra-help\n",
        "Choices (group=choice):",
        *(line for group in groups if not group.startswith((".", "hydra")) for line in _choices(conf, group)),
        "\nKeys (key=value, with a dot between levels: optimizer.lr=1e-4):",
        *_annotated(OmegaConf.to_container(cfg, resolve=False), comments),
    ]
    return as_typed("\n".join(parts) + "\n")


def _all_groups(conf: Path, command: str) -> set[str]:
    """Return the groups that the command's own file names, including those without a choice."""
    text = (conf / f"{command}.yaml").read_text(encoding="utf-8")
    named = re.findall(r"^  - (?:override )?/?([\w/]+)(?:@[\w.]+)?:", text, flags=re.MULTILINE)
    return {name for name in named if not name.startswith("hydra") and (conf / name).is_dir()}


def _choices(conf: Path, group: str) -> Iterator[str]:
    """Yield a line for each file of a group, with the beginning of its header."""
    for path in sorted((conf / group).glob("*.yaml")):
        about = textwrap.shorten(" ".join(_header(path)), WIDTH - 37, placeholder=" …")
        yield f"  {f'{group}={path.stem}':<34} {about}".rstrip()


def _header(path: Path) -> list[str]:
    """Return the comment at the beginning of a file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").strip())
    return lines


def _comments(text: str) -> Iterator[tuple[str, str]]:
    """Yield each key of a YAML file with its comment: after the value, and on the lines that follow."""
    key, comment = "", ""
    parents: list[tuple[int, str]] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            if comment:
                comment += f" {line.lstrip('# ').rstrip()}"
            continue
        if comment:
            yield key, comment
        comment = ""
        if found := _KEY.match(line):
            key = _path(found, parents)
            comment = found["rest"].partition(" #")[2].strip()
    if comment:
        yield key, comment


def _path(found: re.Match[str], parents: list[tuple[int, str]]) -> str:
    """Return the dotted key of a line; `parents` are the enclosing keys with their indentation."""
    indent = len(found["indent"]) + len(found["item"] or "")
    while parents and parents[-1][0] >= indent:
        parents.pop()
    parents.append((indent, found["key"]))
    return ".".join(name for _, name in parents)


def _annotated(node: Any, comments: dict[str, str]) -> Iterator[str]:
    """Yield the YAML of `node`; a comment follows its key on the same line if there is room, else precedes it."""
    parents: list[tuple[int, str]] = []
    for line in yaml.dump(node, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000).splitlines():
        found = _KEY.match(line)
        comment = comments.get(_path(found, parents), "") if found else ""
        if not comment:
            yield line
        elif len(line) + len(comment) + 4 <= WIDTH:
            yield f"{line}  # {comment}"
        else:
            start = f"{' ' * (len(line) - len(line.lstrip()))}# "
            yield from textwrap.wrap(comment, WIDTH, initial_indent=start, subsequent_indent=start)
            yield line


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    """A dumper that writes lists of plain values in one line."""


_Dumper.add_representer(
    list,
    lambda dumper, values: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", values, flow_style=not any(isinstance(value, list | dict) for value in values)
    ),
)
