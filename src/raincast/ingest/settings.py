"""The settings that made an archive, stored in its files as plain data, and the check that they stay the same."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raincast import schema
from raincast.archive import Archive
from raincast.ingest.quality import Quality
from raincast.ingest.readers import Limited, Reader
from raincast.ingest.region import Region

ATTR = schema.SETTINGS
_OWN_ATTRS = (
    ATTR,
    schema.STEP_MINUTES,
    schema.CAPPED_PIXELS,
    schema.REGULAR_START,
    "Conventions",
    "raincast_version",
)
# comes from the files or the user; either way it is compared with the archive's step elsewhere
_CHECKED_ELSEWHERE = ("step_minutes",)


def describe(
    reader: Reader, quality: Quality, region: Region, attrs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return all settings that affect the archived frames, by the keys of conf/ingest.yaml, as JSON types."""
    settings = {
        "source": _plain(reader.reader if isinstance(reader, Limited) else reader),
        "max_rate": quality.max_rate,
        "min_rate": quality.min_rate,
        "speck_pixels": quality.speck_pixels,
        "clutter_share": quality.clutter and quality.clutter.share,
        "clutter_pixels": quality.clutter and quality.clutter.identity,
        "grid": _plain(region),
        "attrs": _plain(attrs or {}),
    }
    del settings["grid"]["_target_"]
    restored: dict[str, Any] = json.loads(json.dumps(settings))
    return restored


def check_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that are not None. Raises ValueError for one that ingest sets itself."""
    given = {name: value for name, value in attrs.items() if value is not None}
    for name, value in given.items():
        if name in _OWN_ATTRS or not isinstance(value, str | int | float):
            raise ValueError(
                f"attrs.{name}={value} cannot be given: attributes are strings or numbers, and ingest sets "
                f"{', '.join(_OWN_ATTRS)} itself."
            )
    return given


def check_same(archive: Archive, settings: Mapping[str, Any]) -> None:
    """Raise ValueError with a list of the differences if `archive` was made with other settings.

    For a source that combines several readers, only the readers that both sources have are compared.
    """
    try:
        before = json.loads(archive.attrs.get(ATTR, ""))
    except ValueError:
        return  # the archive has no record of its settings
    (sources, others), (old_sources, old_others) = _by_reader(settings), _by_reader(before)
    differences = _differences(old_others, others)
    for name in old_sources.keys() & sources.keys():
        differences += _differences(old_sources[name], sources[name], f"source={name} ")
    if not old_sources.keys() & sources.keys():
        names = (", ".join(sorted(of)) for of in (old_sources, sources))
        differences.append("source: {} in the archive, {} now".format(*names))
    if differences:
        raise ValueError(
            f"{archive.path} was made with another configuration:\n  " + "\n  ".join(differences) + "\n"
            "Repeat the archive's settings, or choose another archive."
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return one line per key that both have with different values; raincast versions may differ in their keys."""
    both = [key for key in before if key in now and key not in _CHECKED_ELSEWHERE]
    return [
        f"{prefix}{key}: {_text(before[key])} in the archive, {_text(now[key])} now"
        for key in both
        if before[key] != now[key]
        and _text(before[key]) != _text(now[key])  # NaN != NaN, but it is the same setting
    ]


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # spelled as in YAML: null, true


def _by_reader(settings: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the flattened settings of each reader, by class name, and all other settings, flattened."""
    readers = {str(r.get("_target_")).rpartition(".")[2]: r for r in _readers(settings.get("source", {}))}
    sources = {name: dict(_flat({k: v for k, v in r.items() if k != "_target_"})) for name, r in readers.items()}
    return sources, dict(_flat({key: value for key, value in settings.items() if key != "source"}))


def _readers(source: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "readers" not in source:
        yield source
        return
    for reader in source["readers"].values():
        yield from _readers(reader)


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _plain(value: Any) -> Any:
    """Convert a dataclass to a dict of its class and fields, recursively."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"_target_": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value) if isinstance(value, Path) else f"{type(value).__module__}.{type(value).__qualname__}"
