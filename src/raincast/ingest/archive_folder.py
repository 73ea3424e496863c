"""The archive that ingest writes: its layout on disk, the settings that made it, and the report of an ingest.

Files store the settings as plain data, and each ingest checks that they are the same. The report is returned,
logged, and written next to the day files.
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
from raincast.ingest.scan import Times
from raincast.system.files import write_text

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

REPORT = "ingest_report.json"
MOST_LISTED = 10_000
"""Limit on missing times listed one by one: a single file with a wrong year causes millions."""
BLOCK = 2**16


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


@dataclass(frozen=True)
class IngestReport:
    """Counts of frames, and each frame or file that was left out, with the reason.

    `num_present` counts offered frames that were in the archive before; `num_capped` counts pixels. `duplicates`
    and `off_step` give time and file. `num_missing` counts the times between the first and the last offered frame
    that are not in the archive; `missing_times` lists the first `MOST_LISTED` of them. `empty_times` had a frame
    with every pixel missing. `failed_days` could not be written (disk or memory was full, for example) and are
    unchanged: run the same ingest again. `differing` frames changed since they were ingested, and `num_replaced`
    of them were replaced. `accompanying` files are READMEs, checksums and the like.
    """

    archive: Path
    num_written: int
    num_present: int
    num_capped: int
    duplicates: tuple[str, ...]
    off_step: tuple[str, ...]
    bad_files: Mapping[str, str]
    failed_days: Mapping[str, str]
    empty_times: tuple[str, ...]
    num_missing: int
    missing_times: tuple[str, ...]
    seconds: float
    differing: tuple[str, ...] = ()
    num_replaced: int = 0
    accompanying: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Return the path that `save` writes to."""
        return self.archive / REPORT

    @property
    def problems(self) -> int:
        """Return the number of bad files and failed days."""
        return len(self.bad_files) + len(self.failed_days)

    def save(self) -> None:
        """Write the report as JSON next to the day files."""
        content = dataclasses.asdict(self) | {"archive": str(self.archive)}
        write_text(self.path, json.dumps(content, indent=2) + "\n", sole=True)

    def reasons(self) -> str:
        """Return why frames were left out, in one line."""
        counts = {
            f"{len(self.failed_days)} days failed": self.failed_days,
            f"{len(self.bad_files)} bad files": self.bad_files,
            f"{len(self.empty_times)} frames with every pixel missing": self.empty_times,
            f"{len(self.off_step)} frames off the step": self.off_step,
            f"{len(self.duplicates)} duplicates": self.duplicates,
            self._differ(): self.differing,
            self._accompany(): self.accompanying,
        }
        parts = [words for words, what in counts.items() if what]
        first = next(iter([*self.failed_days.values(), *self.bad_files.values()]), "")
        return ", ".join(parts) + (f"; the first: {first}" if first else "")

    def _differ(self) -> str:
        what = f"{len(self.differing)} frames differ from the archive"
        return f"{what} and were replaced" if self.num_replaced else f"{what}: replace=true replaces them"

    def _accompany(self) -> str:
        names = ", ".join(Path(name).name for name in self.accompanying[:3])
        return f"{len(self.accompanying)} files without radar data ({names}{' …' * (len(self.accompanying) > 3)})"

    def __str__(self) -> str:
        """Return a summary for the user, in one line."""
        reasons = self.reasons()
        return (
            f"{self.archive}: {self.num_written} frames written, {self.num_present} already there, "
            f"{self.num_missing} times missing, {self.seconds:.1f} s" + (f" ({reasons})" if reasons else "")
        )


def missing_times(
    first: np.datetime64, last: np.datetime64, kept: Times, step: np.timedelta64
) -> tuple[int, Times]:
    """Return how many times from `first` to `last` are not in `kept`, and the first `MOST_LISTED` of them."""
    num_due = int((last - first) // step) + 1
    kept = kept[(kept >= first) & (kept <= last)]
    found = [kept[:0]]
    for start in range(0, num_due, BLOCK):
        due = first + step * np.arange(start, min(start + BLOCK, num_due))
        found.append(due[~np.isin(due, kept)])
        if sum(times.size for times in found) >= MOST_LISTED:
            break
    return num_due - kept.size, np.concatenate(found)[:MOST_LISTED]
