"""The archive that ingest writes: its layout on disk, and the settings that made it.

Files store the settings as plain data, and each ingest checks that they are the same.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raincast import schema
from raincast.archive import Archive, PartWriter, ZarrPartWriter
from raincast.archive.part import ENCODINGS
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
SUFFIXES = {"netcdf": ".nc", "zarr": ".zarr"}


@dataclass(frozen=True)
class PartLayout:
    """The folder `archive` with one file or store `YYYY-MM-DD.SUFFIX` per day; `format` is netcdf or zarr.

    `encoding` is the compression of new netCDF files, zstd or zlib.
    """

    archive: Path
    format: str = "netcdf"
    encoding: str = "zstd"

    def __post_init__(self) -> None:
        """Raise ValueError if `archive` is not, or cannot become, a folder of parts in this format."""
        archive = self.archive
        if self.format not in SUFFIXES:
            raise ValueError(f"format={self.format} is none of {', '.join(SUFFIXES)}.")
        if self.encoding not in ENCODINGS or (self.format == "zarr" and self.encoding != ENCODINGS[0]):
            raise ValueError(
                f"encoding={self.encoding} with format={self.format}: zstd or zlib pack netCDF, zstd alone Zarr."
            )
        if archive.is_file() or archive.suffix in SUFFIXES.values():
            raise ValueError(f"archive={archive} must be a folder: ingest writes one file per day into it.")
        for name, suffix in SUFFIXES.items():
            parts = sorted(path.stem for path in archive.glob(f"[!.]*{suffix}"))
            if parts and name != self.format:
                raise ValueError(
                    f"{archive} is an archive in {name}. Continue with format={name}, or choose another folder."
                )
            others = [part for part in parts if not _is_day(part)]
            if others:
                raise ValueError(
                    f"{archive} contains {others[0]}{suffix}, which is not a day file (YYYY-MM-DD{suffix}). "
                    "Choose another folder."
                )

    def open(self) -> Archive | None:
        """Open the existing archive; return None if the folder has no parts."""
        return Archive.open(self.archive) if any(self.archive.glob(f"[!.]*{SUFFIXES[self.format]}")) else None

    def part(self, day: np.datetime64) -> Path:
        """Return the path of a day's part."""
        return self.archive / f"{day}{SUFFIXES[self.format]}"


def writer_of(part: Path) -> type[PartWriter]:
    """Return the writer class for `part`, by its suffix."""
    return ZarrPartWriter if part.suffix == SUFFIXES["zarr"] else PartWriter


def _is_day(name: str) -> bool:
    try:
        return str(np.datetime64(name, "D")) == name
    except ValueError:
        return False


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
