"""Archives: parts of ours, and any CF netCDF or Zarr that keeps the archive contract, to be written anew."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from raincast import schema
from raincast.archive import Archive
from raincast.archive.limits import check_image
from raincast.ingest.readers import ALL, Head, naming
from raincast.ingest.readers.cf import CF

FORMAT = "an archive"
BEFORE = "rewritten_from"
"""The attribute with the settings that made the archive that was read, and those before it, a line each."""
_OF_THE_FILE = (
    "Conventions",
    schema.STEP_MINUTES,
    schema.REGULAR_START,
    schema.CAPPED_PIXELS,
    "raincast_version",
    "max_rate_mm_h",
    "min_rate_mm_h",
)


@dataclass(frozen=True)
class ArchiveReader:
    """Frames of an archive as they are: rates, times, `cell_methods`, projection, the attributes of its source.

    Where `CF` finds out what a file may mean, this takes what keeps the contract (`schema.check_archive`), so
    that codes of 0.01 mm/h come out as they went in.
    """

    def recognises(self, path: Path) -> bool:
        """CF netCDF or a Zarr store; whether it is an archive too is seen when it is read."""
        return CF().recognises(path)

    def scan(self, path: Path) -> Head:
        """Times, grid and step of a part."""
        archive = self._open(path)
        return Head(archive.times, archive.grid, archive.step_minutes, archive.meaning)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """The frames numbered `frames`: only they are loaded."""
        archive = self._open(path)
        start, stop, _ = frames.indices(archive.num_times)
        with naming(path, FORMAT):
            dataset = archive.to_dataset(start, stop - start)
        dataset.attrs = {schema.STEP_MINUTES: archive.step_minutes} | _attrs(archive)
        return dataset

    def _open(self, path: Path) -> Archive:
        with naming(path, FORMAT):
            archive = Archive.open(path)
            check_image(*archive.grid.shape)
            return archive


def _attrs(archive: Archive) -> dict[str, Any]:
    """What the archive says of its source, and how it was made itself."""
    attrs = {name: value for name, value in archive.attrs.items() if name not in _OF_THE_FILE}
    made_by = [attrs.pop(name) for name in (schema.SETTINGS, BEFORE) if name in attrs]
    return attrs | ({BEFORE: "\n".join(made_by)} if made_by else {})
