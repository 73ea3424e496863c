"""`Archive`: the files of an archive as one series of frames, read by window without dask."""

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
from raincast.system.remote import as_path, prefetch

log = logging.getLogger(__name__)

Frames = TypeVar("Frames", npt.NDArray[np.float32], npt.NDArray[np.int16])


class _Part(NamedTuple):
    """One file as it was when the archive was opened; `first` is the index of its first frame in the archive."""

    path: Path
    first: int
    num_times: int
    sight: int


@dataclass(frozen=True, eq=False)
class _Opened:
    """An open file. `numbers` are the indices of the part's frames in it, None if they are unchanged."""

    part: OpenPart
    sight: int
    numbers: npt.NDArray[np.intp] | None


@dataclass(frozen=True, eq=False, repr=False)
class Archive:
    """The frames of an archive as one regular series.

    Files are opened lazily in each process, so an archive can be passed to data-loading workers. `times` is (T,),
    ascending, UTC; `missing_times` are the times of the step without a frame.
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
    """True if all files store the codes of `archive.rates`."""
    _told: set[int] = field(default_factory=set, repr=False)
    _open: dict[tuple[int, Path], _Opened] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> "Archive":
        """Open and check `path`. Raises FileNotFoundError or ValueError with the problem and its remedy."""
        path = as_path(path)
        files = archive_files(path)
        prefetch(files)
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
        """Return path, frames, period and grid in one line."""
        first, last = (np.datetime_as_string(time, unit="m") for time in self.times[[0, -1]])
        return (
            f"Archive({str(self.path)!r}: {self.num_times} frames of {self.step_minutes:g} min, {first} to {last} "
            f"UTC, {self.grid!r})"
        )

    def _repr_html_(self) -> str:
        """Return the HTML of the archive as a Dataset, for notebooks."""
        return str(self.lazy()._repr_html_())

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files and their caches out of the pickle: each process opens its own."""
        made_anew = ("_unpacked", "_firsts")
        return {name: value for name, value in self.__dict__.items() if name not in made_anew} | {"_open": {}}

    @cached_property
    def _unpacked(self) -> Unpacked:
        num_parts = len(self.parts)
        return Unpacked(min(num_parts, MOST_OPEN) * unpacked_bytes_of_file(num_parts))

    @property
    def num_times(self) -> int:
        """Return the number of frames present."""
        return int(self.times.size)

    @property
    def meaning(self) -> Meaning:
        """Return what the rates are over time."""
        return schema.meaning_of(self.rain_attrs.get("cell_methods"), self.attrs, self.step_minutes)

    @property
    def step(self) -> np.timedelta64:
        """Return the time between frames."""
        return schema.step_timedelta(self.step_minutes)

    @cached_property
    def missing_times(self) -> npt.NDArray[np.datetime64]:
        """Return the times of the step, between the first and the last frame, that have no frame."""
        return schema.missing_times(self.times, self.step)

    @cached_property
    def identity(self) -> str:
        """Return a short hash of times, grid and step, which changes when frames are added."""
        digest = hashlib.sha256()
        for array in (self.times.astype("datetime64[s]").astype(np.int64), self.grid.y, self.grid.x):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(f"{self.step_minutes} {self.variable}".encode())
        return digest.hexdigest()[:16]

    @cached_property
    def coverage(self) -> npt.NDArray[np.bool_] | None:
        """Return the mask of pixels that any frame observed, (H, W); None if not all files state it."""
        masks = [read_coverage(part.path) for part in self.parts]
        seen = [mask for mask in masks if mask is not None]
        return np.logical_or.reduce(seen) if len(seen) == len(masks) else None

    @property
    def unpacked_bytes(self) -> int:
        """Return about how many bytes of unpacked chunks a process keeps after reading the whole archive."""
        parts = [part for part in self.parts if engine_of(part.path) != "zarr"]
        of_file = unpacked_bytes_of_file(len(self.parts)) if self.coded else UNPACKED_BYTES_OF_FILE
        a_value = 2 if self.coded else 8  # bytes; 8 is the maximum for other archives
        return min(min(len(parts), MOST_OPEN) * of_file, self.num_times * math.prod(self.grid.shape) * a_value)

    def read(
        self, first: int, num_times: int, *, y: slice = slice(None), x: slice = slice(None)
    ) -> npt.NDArray[np.float32]:
        """Return rain rates (T, H, W) in mm/h, NaN for missing, of frames `first` to `first + num_times`.

        Raises IndexError if frames are outside the archive, ValueError if a file is damaged or was replaced.
        """
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
        """Return the frames as codes of 0.01 mm/h (T, H, W), `codes.MISSING_CODE` for missing.

        Codes are read directly if the archive stores them, else encoded. If `out` (T, H, W) is given, a view with
        any strides, they are written into it.
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

    def read_stored(self, first: int, num_times: int) -> npt.NDArray[np.int16] | npt.NDArray[np.float32]:
        """Return codes if the archive stores them (`coded`), else rain rates: the cheapest form to read."""
        return (self.read_codes if self.coded else self.read)(first, num_times)

    def _windows(self, first: int, num_times: int) -> list[tuple[_Part, slice]]:
        """Return the parts that contain the frames, each with its slice of own frames. Raises IndexError."""
        windows = []
        # a year has hundreds of parts: skip those before and after by bisection
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
        """Return whole frames as a Dataset that fulfils the archive contract."""
        return schema.rain_dataset(
            self.read(first, num_times),
            self.times[first : first + num_times],
            self.grid,
            step_minutes=self.step_minutes,
            cell_methods=str(self.rain_attrs.get("cell_methods", "time: point")),
            attrs=self.attrs,
        )

    def lazy(self) -> xr.Dataset:
        """Return all frames as a Dataset that fulfils the archive contract; they are read on access.

        To use dask, set chunks yourself: `.chunk({"time": 24})`.
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
        """Call `read` on frames of a part. If its file was replaced since opening, frames are found by time."""
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
            if self._is_current(part, opened):  # else the file manager may have reopened the path as the new file
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
        """Find the part's frames in the file that replaced it, by index. Raises ValueError if one is missing."""
        wanted = self.times[part.first : part.first + part.num_times]
        numbers = np.searchsorted(head.times, wanted)
        there = np.isin(wanted, head.times)
        same = head.grid.same_as(self.grid) and head.variable == self.variable
        same = same and head.meaning.same_as(self.meaning)
        if not (there.all() and same):
            lacks = f"lacks the frame of {wanted[~there][0]}" if same else "has another grid, variable or meaning"
            raise ValueError(f"{part.path} was rewritten while it was open, and {lacks}. Start again.")
        if head.sight not in self._told:
            self._told.add(head.sight)
            log.warning(
                "%s was rewritten while it was open: its frames are now found by time. Added frames are used "
                "when the archive is opened again.", part.path,
            )  # fmt: skip
        return numbers

    def _is_current(self, part: _Part, opened: _Opened) -> bool:
        return self._sight(part) == opened.sight

    def _sight(self, part: _Part) -> int:
        try:
            return sight_of(part.path)
        except OSError as error:
            raise ValueError(f"{part.path} was removed or cannot be read any more: {error}") from error
