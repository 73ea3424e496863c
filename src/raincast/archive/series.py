"""`Archive`: the files of an archive as one series of frames, read by window, without dask."""

import hashlib
import logging
import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.chunks import MOST_OPEN, Unpacked
from raincast.archive.head import Head, archive_files, check_fits, engine_of, read_coverage, read_head
from raincast.archive.lazy import lazy_dataset
from raincast.archive.open_part import UNPACKED_BYTES_OF_FILE, OpenPart, unpacked_bytes_of_file
from raincast.schema import Grid, Meaning
from raincast.system.files import sight_of

log = logging.getLogger(__name__)

Frames = TypeVar("Frames", npt.NDArray[np.float32], npt.NDArray[np.int16])


class _Part(NamedTuple):
    """One file as it was when the archive was opened; `first` is the number of its first frame in the whole."""

    path: Path
    first: int
    num_times: int
    sight: int


@dataclass(frozen=True, eq=False)
class _Opened:
    """An open file. `numbers` are where it has the part's frames, None if they are at their own places."""

    part: OpenPart
    sight: int
    numbers: npt.NDArray[np.intp] | None


@dataclass(frozen=True, eq=False, repr=False)
class Archive:
    """The frames of an archive as one regular series.

    Opened lazily in each process, so that it may be handed to data-loading workers. `times` is (T,),
    ascending, UTC; frames that are due and absent are in `missing_times`.
    """

    path: Path
    times: npt.NDArray[np.datetime64]
    grid: Grid
    step_minutes: float
    variable: str
    attrs: dict[str, Any]
    rain_attrs: dict[str, Any]
    parts: tuple[_Part, ...]
    coded: bool = False
    """Whether all of it lies on disk in the codes of `archive.codes`."""
    _told: set[int] = field(default_factory=set, repr=False)
    _open: dict[tuple[int, Path], _Opened] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> "Archive":
        """Open and check `path`; FileNotFoundError or ValueError say what is wrong and how to mend it."""
        path = Path(path)
        files = archive_files(path)
        heads = [read_head(file) for file in files]
        heads.sort(key=lambda head: head.times[0])
        first = heads[0]
        for head in heads[1:]:
            check_fits(first, head, path)
        times = np.concatenate([head.times for head in heads])
        if (np.diff(times) <= np.timedelta64(0)).any():
            raise ValueError(f"The files of {path} overlap in time. Ingest them into a new archive.")
        starts = np.cumsum([0, *(head.times.size for head in heads)])
        parts = tuple(
            _Part(head.path, int(start), head.times.size, head.sight)
            for head, start in zip(heads, starts, strict=False)
        )
        return cls(
            path=path,
            times=times,
            grid=first.grid,
            step_minutes=first.step_minutes,
            variable=first.variable,
            attrs=first.attrs,
            rain_attrs=first.rain_attrs,
            parts=parts,
            coded=all(head.coded for head in heads),
        )

    def __repr__(self) -> str:
        """One line: where, when, and on which grid."""
        first, last = (np.datetime_as_string(time, unit="m") for time in self.times[[0, -1]])
        return (
            f"Archive({str(self.path)!r}: {self.num_times} frames of {self.step_minutes:g} min, {first} to {last} "
            f"UTC, {self.grid!r})"
        )

    def _repr_html_(self) -> str:
        """As the Dataset of its frames, in a notebook."""
        return str(self.lazy()._repr_html_())

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files and what was read of them behind: each process opens its own."""
        made_anew = ("_unpacked", "_firsts")
        return {name: value for name, value in self.__dict__.items() if name not in made_anew} | {"_open": {}}

    @cached_property
    def _unpacked(self) -> Unpacked:
        num_parts = len(self.parts)
        return Unpacked(min(num_parts, MOST_OPEN) * unpacked_bytes_of_file(num_parts))

    @property
    def num_times(self) -> int:
        """Number of frames present."""
        return int(self.times.size)

    @property
    def meaning(self) -> Meaning:
        """What its rates are over time."""
        return schema.meaning_of(self.rain_attrs.get("cell_methods"), self.attrs, self.step_minutes)

    @property
    def step(self) -> np.timedelta64:
        """Time between frames."""
        return schema.step_timedelta(self.step_minutes)

    @cached_property
    def missing_times(self) -> npt.NDArray[np.datetime64]:
        """Times between the first and the last frame at which a frame is due and absent."""
        return schema.missing_times(self.times, self.step)

    @cached_property
    def identity(self) -> str:
        """A short hash of times, grid and step: changes when frames are added or another grid is used."""
        digest = hashlib.sha256()
        for array in (self.times.astype("datetime64[s]").astype(np.int64), self.grid.y, self.grid.x):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(f"{self.step_minutes} {self.variable}".encode())
        return digest.hexdigest()[:16]

    @cached_property
    def coverage(self) -> npt.NDArray[np.bool_] | None:
        """The pixels that any frame observed, (H, W); None for an archive whose files do not say it."""
        masks = [read_coverage(part.path) for part in self.parts]
        seen = [mask for mask in masks if mask is not None]
        return np.logical_or.reduce(seen) if len(seen) == len(masks) else None

    @property
    def unpacked_bytes(self) -> int:
        """What is kept unpacked of it in a process that has read all of it, but for the edges of chunks."""
        parts = [part for part in self.parts if engine_of(part.path) != "zarr"]
        of_file = unpacked_bytes_of_file(len(self.parts)) if self.coded else UNPACKED_BYTES_OF_FILE
        a_value = 2 if self.coded else 8  # bytes, of foreign ones at most
        return min(min(len(parts), MOST_OPEN) * of_file, self.num_times * math.prod(self.grid.shape) * a_value)

    def read(
        self, first: int, num_times: int, *, y: slice = slice(None), x: slice = slice(None)
    ) -> npt.NDArray[np.float32]:
        """Rain rates in mm/h, NaN for missing, of frames `first` to `first + num_times`: (T, H, W)."""
        pieces = [
            self._read(part, window, lambda opened, frames: opened.read(frames, y, x))
            for part, window in self._windows(first, num_times)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def read_codes(
        self,
        first: int,
        num_times: int,
        *,
        y: slice = slice(None),
        x: slice = slice(None),
        out: npt.NDArray[np.int16] | None = None,
    ) -> npt.NDArray[np.int16]:
        """The same as codes of 0.01 mm/h, `codes.MISSING_CODE` for missing: as they lie on disk, if they do.

        They are written into `out` (T, H, W), a view of any strides, if it is given.
        """
        windows = self._windows(first, num_times)
        if out is None:
            sides = (len(range(*side.indices(size))) for side, size in zip((y, x), self.grid.shape, strict=True))
            out = np.empty((num_times, *sides), np.int16)
        done = 0
        for part, window in windows:
            end = done + window.stop - window.start
            self._read_codes(part, window, y, x, out[done:end])
            done = end
        return out

    def read_stored(
        self, first: int, num_times: int, *, y: slice = slice(None), x: slice = slice(None)
    ) -> npt.NDArray[np.int16] | npt.NDArray[np.float32]:
        """Codes if the archive holds them (`coded`), else rain rates: what costs least to read and to carry."""
        return (self.read_codes if self.coded else self.read)(first, num_times, y=y, x=x)

    def _windows(self, first: int, num_times: int) -> list[tuple[_Part, slice]]:
        """The parts that hold the frames, and which of their own frames those are."""
        windows = []
        # a year has hundreds of parts: those before and behind are not looked at
        begin, end = bisect_right(self._firsts, first) - 1, bisect_left(self._firsts, first + num_times)
        for part in self.parts[max(begin, 0) : end]:
            start, stop = max(first, part.first), min(first + num_times, part.first + part.num_times)
            if start < stop:
                windows.append((part, slice(start - part.first, stop - part.first)))
        if not windows or sum(window.stop - window.start for _, window in windows) != num_times:
            raise IndexError(f"Frames {first} to {first + num_times} are not all in 0 to {self.num_times}.")
        return windows

    @cached_property
    def _firsts(self) -> list[int]:
        return [part.first for part in self.parts]

    def to_dataset(self, first: int, num_times: int) -> xr.Dataset:
        """Whole frames as a Dataset in the words of the archive contract."""
        return schema.rain_dataset(
            self.read(first, num_times),
            self.times[first : first + num_times],
            self.grid,
            step_minutes=self.step_minutes,
            cell_methods=str(self.rain_attrs.get("cell_methods", "time: point")),
            attrs=self.attrs,
        )

    def lazy(self) -> xr.Dataset:
        """All frames as a Dataset in the words of the archive contract; they are read when they are looked at.

        Give it `chunks` of your own (`.chunk({"time": 24})`) to work on it with dask.
        """
        return lazy_dataset(
            self._read_spans,
            self.times,
            self.grid,
            step_minutes=self.step_minutes,
            cell_methods=str(self.rain_attrs.get("cell_methods", "time: point")),
            attrs=self.attrs,
        )

    def _read_spans(self, frames: slice, y: slice, x: slice) -> npt.NDArray[np.float32]:
        return self.read(frames.start, frames.stop - frames.start, y=y, x=x)

    def _read_codes(self, part: _Part, window: slice, y: slice, x: slice, out: npt.NDArray[np.int16]) -> None:
        def read(opened: OpenPart, frames: slice) -> npt.NDArray[np.int16]:
            num_frames = frames.stop - frames.start
            target = out if num_frames == len(out) else np.empty((num_frames, *out.shape[1:]), np.int16)
            opened.read_codes(frames, y, x, out=target)
            return target

        found = self._read(part, window, read)
        if found is not out:
            out[...] = found

    def _read(self, part: _Part, window: slice, read: Callable[[OpenPart, slice], Frames]) -> Frames:
        """`read` frames of a part, found by their times if its file was replaced since the archive was opened."""
        while True:
            opened = self._part(part)
            if opened.numbers is None:
                numbers, frames = None, window
            else:
                numbers = opened.numbers[window]
                frames = slice(int(numbers[0]), int(numbers[-1]) + 1)
            try:
                found = read(opened.part, frames)
            except ValueError:
                if self._is_current(part, opened):
                    raise
                continue
            if self._is_current(part, opened):  # else a file closed for others may have been opened as the new one
                whole = numbers is None or numbers.size == frames.stop - frames.start
                return found if whole else found[numbers - frames.start]

    def _part(self, part: _Part) -> _Opened:
        # keyed by process: an HDF5 handle that crosses a fork reads garbage
        key = (os.getpid(), part.path)
        opened = self._open.get(key)
        while opened is None or not self._is_current(part, opened):
            self._open.pop(key, None)
            sight, numbers = part.sight, None
            times = self.times[part.first : part.first + part.num_times]
            if self._sight(part) != part.sight:
                try:
                    head = read_head(part.path)
                except ValueError as error:
                    raise ValueError(
                        f"{part.path} cannot be read: it changed while it was open. {error}"
                    ) from error
                sight, numbers, times = head.sight, self._numbers_in(head, part), head.times
            of_file = OpenPart.open(
                part.path, self.variable, self._unpacked, times=times, num_parts=len(self.parts)
            )
            opened = self._open[key] = _Opened(of_file, sight, numbers)
        return opened

    def _numbers_in(self, head: Head, part: _Part) -> npt.NDArray[np.intp]:
        """Where the frames of the part are in the file that took its place; ValueError where any is not."""
        wanted = self.times[part.first : part.first + part.num_times]
        numbers = np.searchsorted(head.times, wanted)
        there = np.isin(wanted, head.times)
        same = head.grid.same_as(self.grid) and head.variable == self.variable
        same = same and head.meaning.same_as(self.meaning)
        if not (there.all() and same):
            lacks = f"lacks the frame of {wanted[~there][0]}" if same else "has another grid, variable or meaning"
            raise ValueError(f"{part.path} was written anew while it was open, and {lacks}. Start again.")
        if head.sight not in self._told:
            self._told.add(head.sight)
            log.warning(
                "%s was written anew while it was open: its frames are found by their times. Frames that were "
                "added count once the archive is opened again.", part.path,
            )  # fmt: skip
        return numbers

    def _is_current(self, part: _Part, opened: _Opened) -> bool:
        return self._sight(part) == opened.sight

    def _sight(self, part: _Part) -> int:
        try:
            return sight_of(part.path)
        except OSError as error:
            raise ValueError(f"{part.path} is gone, or cannot be read any more: {error}") from error
