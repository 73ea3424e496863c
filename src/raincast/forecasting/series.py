"""Archives, folders, radar files and globs as one series of frames."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive import Archive
from raincast.archive.find import accompanies, find_files
from raincast.ingest.readers import Head, Reader, check_period, fetching
from raincast.ingest.scan import place
from raincast.schema import Grid
from raincast.system.faults import MachineError

log = logging.getLogger(__name__)

Times = npt.NDArray[np.datetime64]


class Series(Protocol):
    """Rain frames by time: `times` in UTC, ascending, `step_minutes` apart."""

    @property
    def times(self) -> Times:
        """Times of the frames, (T,)."""
        ...

    @property
    def step_minutes(self) -> float:
        """Time between frames in minutes; raises ValueError if it is unknown."""
        ...

    @property
    def kept_bytes(self) -> int:
        """Bytes of earlier frames that stay in memory."""
        ...

    def read(self, wanted: Times) -> xr.Dataset:
        """Read the frames at `wanted`, which must all exist, as `schema.rain_dataset` makes them.

        If the set of pixels that are ever observed is known, it is in the variable `coverage`.
        """
        ...


def open_series(source: str | Path | Sequence[str | Path], reader: Reader) -> Series:
    """Open an archive, or radar files that `reader` understands: a file, a folder, a glob, or a list of them."""
    if isinstance(source, str | Path):
        with suppress(ValueError, FileNotFoundError):
            return ArchiveSeries(Archive.open(source))
    return FileSeries(reader, find_files(source, "input"))


class ArchiveSeries:
    """An archive as a series."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive

    @property
    def times(self) -> Times:
        """Times of the frames, (T,)."""
        return self.archive.times

    @property
    def step_minutes(self) -> float:
        """Time between frames in minutes."""
        return self.archive.step_minutes

    @property
    def kept_bytes(self) -> int:
        """Bytes that the archive keeps unpacked."""
        return self.archive.unpacked_bytes

    def read(self, wanted: Times) -> xr.Dataset:
        """Read the frames at `wanted`, ascending, together with those in between."""
        first = int(np.searchsorted(self.times, wanted[0]))
        stop = int(np.searchsorted(self.times, wanted[-1])) + 1
        frames = self.archive.to_dataset(first, stop - first)
        if self.archive.coverage is not None:
            frames = frames.assign({schema.COVERAGE: ((schema.Y, schema.X), self.archive.coverage)})
        return frames if stop - first == wanted.size else frames.sel({schema.TIME: wanted})


class FileSeries:
    """Radar files as one series, which may grow. Only the requested frames are read.

    The frames of the last `read` are kept, since the next forecast of a range needs most of them again. Unreadable
    files, and files on a different grid from the newest, are left out with a warning, so that their frames are
    missing; if no file is readable, the first error is raised. Rows and columns follow the order of the newest
    file.
    """

    kept_bytes = 0

    def __init__(self, reader: Reader, files: list[Path]) -> None:
        self.reader = fetching(reader, files)
        self.heads: dict[Path, Head] = {}
        self.where: dict[np.datetime64, tuple[Path, int]] = {}
        self._kept: dict[np.datetime64, xr.Dataset] = {}
        self._period_checked = False
        self._fitting: dict[np.datetime64, tuple[Path, int]] | None = None
        self._foreign: set[Path] = set()
        bad: dict[Path, Exception] = {}
        for file in files:
            try:
                self.add(file)
            except MachineError:
                raise
            except Exception as error:  # libraries may raise anything
                if not accompanies(file) or reader.recognises(file):
                    bad[file] = error
        if files and not self.heads:
            raise next(iter(bad.values()), ValueError(f"There is no radar file among {len(files)} files."))
        if bad:
            reason = next(iter(bad.values()))
            log.warning(
                "%d of %d files cannot be read and are left out, the first: %s", len(bad), len(files), reason
            )

    def add(self, file: Path) -> Head:
        """Add a file; raises ValueError if it cannot be read.

        Of frames with the same time, the one of better quality is kept, otherwise the one added last.
        """
        head = self.reader.scan(file)
        self.where = {time: place for time, place in self.where.items() if place[0] != file}
        self.heads[file] = head
        self._fitting = None
        for time in self._place(file, self.where):
            self._kept.pop(time, None)
        return head

    def _place(self, file: Path, where: dict[np.datetime64, tuple[Path, int]]) -> list[np.datetime64]:
        """Enter the frames of a file in `where`, unless they are there in better quality; return their times."""
        head, entered = self.heads[file], []
        for number, time in enumerate(head.times.astype("datetime64[ns]")):
            if time not in where or self.heads[where[time][0]].quality <= head.quality:
                where[time] = (file, number)
                entered.append(time)
        return entered

    @property
    def times(self) -> Times:
        """Times of the frames, (T,)."""
        return np.array(sorted(self._on_one_grid()), dtype="datetime64[ns]")

    @property
    def step_minutes(self) -> float:
        """The step that the files state, or the most common time between frames."""
        times = self.times  # first, since it finds out which files are foreign
        ours = (head for file, head in self.heads.items() if file not in self._foreign)
        stated = {head.step_minutes for head in ours if head.step_minutes}
        if len(stated) == 1:
            return float(stated.pop())
        gaps, counts = np.unique(np.diff(times), return_counts=True)
        if gaps.size == 0:
            if not times.size:
                raise ValueError("There is no frame yet.")
            only = np.datetime_as_string(times[0], unit="m")
            raise ValueError(
                f"There is only one frame, {only} UTC: give as many files as the network needs frames."
            )
        return float(gaps[counts.argmax()] / np.timedelta64(1, "m"))

    def read(self, wanted: Times) -> xr.Dataset:
        """Read the frames at `wanted`, in that order."""
        step_minutes = self.step_minutes
        self._check_period(step_minutes)
        self._kept = {time: self._frame(time, step_minutes) for time in wanted.astype("datetime64[ns]")}
        pieces = list(self._kept.values())
        newest = pieces[-1]
        # including the periods that become known with the step
        methods = ((piece[schema.RAIN].attrs["cell_methods"], piece.attrs) for piece in pieces)
        kinds = {str(schema.meaning_of(said, attrs, step_minutes)) for said, attrs in methods}
        if len(kinds) > 1:
            raise ValueError(f"The frames mix {' and '.join(sorted(kinds))}: give files of one kind.")
        grid = schema.grid_of(newest)
        return schema.rain_dataset(
            np.concatenate([_turned(piece, grid) for piece in pieces]),
            wanted,
            grid,
            step_minutes=step_minutes,
            cell_methods=str(newest[schema.RAIN].attrs["cell_methods"]),
            attrs={key: value for key, value in newest.attrs.items() if key != schema.STEP_MINUTES},
        )

    def _check_period(self, step_minutes: float) -> None:
        """Ask for the period of depths that state none; warn once if the step is assumed."""
        unstated = [path for path, head in self.heads.items() if head.meaning and head.meaning.lacks_period]
        if unstated and not self._period_checked:
            check_period(self.reader, unstated[0], self.heads[unstated[0]].meaning, self.times, step_minutes)
            self._period_checked = True

    def _frame(self, time: np.datetime64, step_minutes: float) -> xr.Dataset:
        if time in self._kept:
            return self._kept[time]
        file, number = self._on_one_grid()[time]
        frame = self._read(file, number, step_minutes)
        if not _is_of(frame, time):  # the file was replaced since it was scanned
            log.warning("%s was replaced: its frames are looked up by their times again.", file)
            self.add(file)
            file, number = self._on_one_grid().get(time, (file, number))
            frame = self._read(file, number, step_minutes)
            if not _is_of(frame, time):
                raise ValueError(f"{file} was replaced and no longer has the frame of {time}.")
        return frame

    def _read(self, file: Path, number: int, step_minutes: float) -> xr.Dataset:
        return self.reader.read(file, slice(number, number + 1), step_minutes=step_minutes)

    def _on_one_grid(self) -> dict[np.datetime64, tuple[Path, int]]:
        """Return the frames whose files are on the grid of the newest; the others are reported once."""
        if self._fitting is None:
            newest = self.heads[self.where[max(self.where)][0]] if self.where else None
            foreign = {file for file, head in self.heads.items() if newest and not _fits(head, newest)}
            if newest and foreign - self._foreign:
                first = self.heads[min(foreign)]
                other_grid = first.grid.turn_to(newest.grid) is None
                what = "grid" if other_grid else "meaning"
                own, theirs = (place(h.grid) if other_grid else h.meaning for h in (first, newest))
                log.warning(
                    "%d of %d files are left out: their %s (%s) is not that of the newest (%s): %s",
                    len(foreign), len(self.heads), what, own, theirs, ", ".join(map(str, sorted(foreign))),
                )  # fmt: skip
            self._foreign, self._fitting = foreign, dict(self.where)
            if foreign:  # they may have taken the times of others
                self._fitting = {}
                for file in (file for file in self.heads if file not in foreign):
                    self._place(file, self._fitting)
        return self._fitting


def _fits(head: Head, newest: Head) -> bool:
    """Return True if the frames of two files can form one series: same pixels, and rates of the same meaning."""
    if head.grid.turn_to(newest.grid) is None:
        return False
    one, other = head.meaning, newest.meaning
    if one is None or other is None:
        return True
    if one.is_averaged and other.is_averaged and (one.minutes is None or other.minutes is None):
        return True  # the period is requested elsewhere
    return one.same_as(other)


def _is_of(frame: xr.Dataset, time: np.datetime64) -> bool:
    times = frame[schema.TIME].values
    return times.size == 1 and bool(times[0] == time)


def _turned(frame: xr.Dataset, grid: Grid) -> npt.NDArray[np.float32]:
    """Return the frame's rain (1, H, W) in the row and column order of `grid`."""
    turn = schema.grid_of(frame).turn_to(grid)
    if turn is None:
        raise ValueError(f"The frame of {frame[schema.TIME].values[0]} is on another grid than the newest.")
    rain: npt.NDArray[np.float32] = frame[schema.RAIN].values[:, *turn]
    return rain
