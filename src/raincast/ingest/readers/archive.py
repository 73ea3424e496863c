"""Reader of archives: raincast's own, and any CF netCDF or Zarr that fulfils the archive contract."""

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
"""The attribute with the settings of the archive that was read and of its predecessors, one per line."""
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
    """Reads the frames of an archive unchanged: rates, times, `cell_methods`, projection and source attributes.

    `CF` interprets arbitrary files. This reader accepts only archives that fulfil the contract
    (`schema.check_archive`), so codes of 0.01 mm/h come out unchanged.
    """

    def recognises(self, path: Path) -> bool:
        """Return True for CF netCDF or a Zarr store; the contract is checked on reading."""
        return CF().recognises(path)

    def scan(self, path: Path) -> Head:
        """Return the times, grid and step of a part."""
        archive = self._open(path)
        return Head(archive.times, archive.grid, archive.step_minutes, archive.meaning)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read the frames numbered `frames`; only these are loaded."""
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
    """Return the archive's attributes about its source, and the settings that made it."""
    attrs = {name: value for name, value in archive.attrs.items() if name not in _OF_THE_FILE}
    made_by = [attrs.pop(name) for name in (schema.SETTINGS, BEFORE) if name in attrs]
    return attrs | ({BEFORE: "\n".join(made_by)} if made_by else {})
