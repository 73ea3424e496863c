"""How an archive lies in its folder: a part a UTC day, all of one format."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raincast.archive import Archive, PartWriter, ZarrPartWriter
from raincast.archive.part import ENCODINGS

SUFFIXES = {"netcdf": ".nc", "zarr": ".zarr"}


@dataclass(frozen=True)
class PartLayout:
    """The folder `archive` with a file or store `YYYY-MM-DD.SUFFIX` a day, `format` netcdf or zarr.

    `encoding` is how new netCDF files are packed, zstd or zlib.
    """

    archive: Path
    format: str = "netcdf"
    encoding: str = "zstd"

    def __post_init__(self) -> None:
        """ValueError where the archive is not a folder of parts of this format, or not to be."""
        archive = self.archive
        if self.format not in SUFFIXES:
            raise ValueError(f"format={self.format} is none of {', '.join(SUFFIXES)}.")
        if self.encoding not in ENCODINGS or (self.format == "zarr" and self.encoding != ENCODINGS[0]):
            raise ValueError(
                f"encoding={self.encoding} with format={self.format}: zstd or zlib pack netCDF, zstd alone Zarr."
            )
        if archive.is_file() or archive.suffix in SUFFIXES.values():
            raise ValueError(f"archive={archive} must be a folder: ingest writes a file a day into it.")
        for name, suffix in SUFFIXES.items():
            parts = sorted(path.stem for path in archive.glob(f"[!.]*{suffix}"))
            if parts and name != self.format:
                raise ValueError(
                    f"{archive} is an archive in {name}: go on with format={name}, or choose another folder."
                )
            others = [part for part in parts if not _is_day(part)]
            if others:
                raise ValueError(
                    f"{archive} holds {others[0]}{suffix}, which is no day file (YYYY-MM-DD{suffix}). "
                    "Choose another folder."
                )

    def open(self) -> Archive | None:
        """What is there already."""
        return Archive.open(self.archive) if any(self.archive.glob(f"[!.]*{SUFFIXES[self.format]}")) else None

    def part(self, day: np.datetime64) -> Path:
        """Where the frames of a day are."""
        return self.archive / f"{day}{SUFFIXES[self.format]}"


def writer_of(part: Path) -> type[PartWriter]:
    """What writes the part of this name."""
    return ZarrPartWriter if part.suffix == SUFFIXES["zarr"] else PartWriter


def _is_day(name: str) -> bool:
    try:
        return str(np.datetime64(name, "D")) == name
    except ValueError:
        return False
