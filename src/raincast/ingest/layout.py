"""The layout of an archive folder: one part per UTC day, all in one format."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raincast.archive import Archive, PartWriter, ZarrPartWriter
from raincast.archive.part import ENCODINGS

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
