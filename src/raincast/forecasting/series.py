"""Anything with radar frames in it as one series: an archive, a folder, files of any format, a glob."""

import logging
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive import Archive
from raincast.ingest.files import find_files
from raincast.ingest.readers import Head, Reader, check_period
from raincast.schema import Grid

log = logging.getLogger(__name__)

Times = npt.NDArray[np.datetime64]


class Series(Protocol):
    """Frames of rain by their times: `times` ascending (UTC), `step_minutes` between frames."""

    @property
    def times(self) -> Times:
        """The frames there are, (T,)."""
        ...

    @property
    def step_minutes(self) -> float:
        """Time between frames; ValueError where it cannot be told."""
        ...

    @property
    def kept_bytes(self) -> int:
        """What stays in memory of frames that were read, but for those that the next forecast needs."""
        ...

    def read(self, wanted: Times) -> xr.Dataset:
        """The frames at `wanted`, which all have to be there, as `schema.rain_dataset` makes them.

        Where it is known which pixels are ever observed, that is the variable `coverage`.
        """
        ...


def open_series(source: str | Path, reader: Reader) -> Series:
    """The frames of an archive, or of radar files (one, a folder of them, a glob) that `reader` understands."""
    try:
        return ArchiveSeries(Archive.open(source))
    except (ValueError, FileNotFoundError):
        path = Path(source)
        folder = path.is_dir() and path.suffix != ".zarr"
        return FileSeries(reader, find_files(f"{source}/*" if folder else source))


class ArchiveSeries:
    """An archive as a series."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive

    @property
    def times(self) -> Times:
        """The frames there are, (T,)."""
        return self.archive.times

    @property
    def step_minutes(self) -> float:
        """Time between frames."""
        return self.archive.step_minutes

    @property
    def kept_bytes(self) -> int:
        """What the archive keeps unpacked."""
        return self.archive.unpacked_bytes

    def read(self, wanted: Times) -> xr.Dataset:
        """The frames at `wanted`, ascending, which are read together with what lies between them."""
        first = int(np.searchsorted(self.times, wanted[0]))
        stop = int(np.searchsorted(self.times, wanted[-1])) + 1
        frames = self.archive.to_dataset(first, stop - first)
        if self.archive.coverage is not None:
            frames = frames.assign({schema.COVERAGE: ((schema.Y, schema.X), self.archive.coverage)})
        return frames if stop - first == wanted.size else frames.sel({schema.TIME: wanted})


class FileSeries:
    """Radar files as one series, which may grow; only the frames asked for are read.

    Those of the last `read` are kept, since the next forecast of a range needs most of them again. A file that
    cannot be read is left out with a warning, so that its frames are missing; where none can, its error is raised.
    """

    kept_bytes = 0

    def __init__(self, reader: Reader, files: list[Path]) -> None:
        self.reader = reader
        self.heads: dict[Path, Head] = {}
        self.where: dict[np.datetime64, tuple[Path, int]] = {}
        self._kept: dict[tuple[Path, int], xr.Dataset] = {}
        self._period_checked = False
        bad: dict[Path, Exception] = {}
        for file in files:
            try:
                self.add(file)
            except Exception as error:  # whatever a library throws
                bad[file] = error
        if bad and not self.heads:
            raise next(iter(bad.values()))
        if bad:
            reason = next(iter(bad.values()))
            log.warning(
                "%d of %d files cannot be read and are left out, the first: %s", len(bad), len(files), reason
            )

    def add(self, file: Path) -> Head:
        """One more file; ValueError where it cannot be read. Of frames with the same time the last added stays."""
        head = self.reader.scan(file)
        self.heads[file] = head
        self._kept = {place: frame for place, frame in self._kept.items() if place[0] != file}
        for number, time in enumerate(head.times):
            self.where[time.astype("datetime64[ns]")] = (file, number)
        return head

    @property
    def times(self) -> Times:
        """The frames there are, (T,)."""
        return np.array(sorted(self.where), dtype="datetime64[ns]")

    @property
    def step_minutes(self) -> float:
        """As the files state it, or the commonest time between frames."""
        stated = {head.step_minutes for head in self.heads.values() if head.step_minutes}
        if len(stated) == 1:
            return float(stated.pop())
        times = self.times
        gaps, counts = np.unique(np.diff(times), return_counts=True)
        if gaps.size == 0:
            raise ValueError(
                f"One frame only, {times[0]}: give as many files as the network needs frames."
                if times.size
                else "There is no frame yet."
            )
        return float(gaps[counts.argmax()] / np.timedelta64(1, "m"))

    def read(self, wanted: Times) -> xr.Dataset:
        """The frames at `wanted`, in that order."""
        step_minutes = self.step_minutes
        self._check_period(step_minutes)
        asked = [self.where[time] for time in wanted]
        self._kept = {place: self._frame(place, step_minutes) for place in asked}
        pieces = [self._kept[place] for place in asked]
        newest = pieces[-1]
        return schema.rain_dataset(
            np.concatenate([piece[schema.RAIN].values for piece in pieces]),
            wanted,
            grid_of(newest),
            step_minutes=step_minutes,
            cell_methods=str(newest[schema.RAIN].attrs["cell_methods"]),
            attrs={key: value for key, value in newest.attrs.items() if key != schema.STEP_MINUTES},
        )

    def _check_period(self, step_minutes: float) -> None:
        """Ask for the period of depths that state none; warn once where the step is taken for it."""
        unstated = [path for path, head in self.heads.items() if head.meaning and head.meaning.lacks_period]
        if unstated and not self._period_checked:
            check_period(self.reader, unstated[0], self.heads[unstated[0]].meaning, self.times, step_minutes)
            self._period_checked = True

    def _frame(self, place: tuple[Path, int], step_minutes: float) -> xr.Dataset:
        if place in self._kept:
            return self._kept[place]
        file, number = place
        return self.reader.read(file, slice(number, number + 1), step_minutes=step_minutes)


def grid_of(frames: xr.Dataset) -> Grid:
    """Where the frames lie on Earth."""
    wkt = schema.find_crs_wkt(frames, schema.RAIN)
    return Grid(frames[schema.Y].values, frames[schema.X].values, str(wkt))
