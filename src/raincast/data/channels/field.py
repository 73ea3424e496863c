"""A variable of CF files as a channel: satellite, lightning, a weather model, terrain."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from raincast import schema
from raincast.data.channels import Fixed, Reader, Role, Site, Times, Values
from raincast.data.channels.carried import Carried, Layout, values_of
from raincast.data.channels.field_file import FLOAT32, FieldFile, field_files
from raincast.transforms import Transform

TimeMethod = Literal["previous", "nearest", "linear"]


@dataclass(frozen=True)
class Field:
    """The variable `variable` of the file, folder, glob or Zarr store `path`, on the grid of the archive.

    It has its own time step. `time_method` is `previous` (the value known at the time; always for the role past),
    `nearest`, or `linear` interpolation (the default for the role future). A value further away than
    `max_age_minutes`, by default 1.5 times the most frequent step of the files, counts as missing. `transform`
    converts it to the network's scale.
    """

    path: str
    variable: str
    role: Role
    transform: Transform
    vector: str | None = None
    time_method: TimeMethod | None = None
    max_age_minutes: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for invalid arguments, and for a time method that would use future values."""
        if self.role not in ("past", "future", "static"):
            raise ValueError(f"{self.variable}: role={self.role}: a variable of a file is past, future or static.")
        if self.time_method not in (None, "previous", "nearest", "linear"):
            raise ValueError(f"{self.variable}: time_method={self.time_method}: use previous, nearest or linear.")
        if self.role == "past" and self.time_method in ("nearest", "linear"):
            raise ValueError(
                f"{self.variable}: time_method={self.time_method} would use values from after the newest input "
                "frame, which no forecast has. Use previous, or role: future if it is known in advance."
            )
        if self.max_age_minutes is not None and not self.max_age_minutes > 0:
            raise ValueError(f"{self.variable}: max_age_minutes={self.max_age_minutes} must be over 0.")

    def bind(self, name: str, site: Site) -> Reader:
        """Open the files and check them against the grid. Raises ValueError or FileNotFoundError."""
        files = field_files(self.path, name)
        at_end = self.role == "past"  # until its period has ended, nobody knows a mean
        parts = [
            FieldFile.open(file, self.variable, name, site, num_files=len(files), at_end=at_end) for file in files
        ]
        if self.role == "static":
            return _static(parts, name)
        without = [part.path for part in parts if part.times is None]
        if without:
            raise ValueError(
                f"channels.{name}: {self.variable} of {without[0]} has no time axis, which role={self.role} "
                "needs. Use role: static."
            )
        method = self.time_method or ("previous" if self.role == "past" else "linear")
        return Series.of(sorted(parts, key=lambda part: part.first), method, self.max_age_minutes, name)


def _static(parts: Sequence[FieldFile], name: str) -> Reader:
    if len(parts) > 1 or (parts[0].times is not None and parts[0].times.size > 1):
        raise ValueError(
            f"channels.{name} is static, but {parts[0].path} has several times or is one of {len(parts)} files. "
            "Give one map, or set role: past or future."
        )
    part = parts[0]
    return Fixed(part.read_values(None if part.times is None else slice(0, 1), slice(None), slice(None))[0])


@dataclass(frozen=True, eq=False)
class Series:
    """Values of one or more files at their own times, which can be read at any time."""

    parts: Sequence[FieldFile]
    firsts: npt.NDArray[np.int64]
    times: Times
    method: TimeMethod
    max_age: np.timedelta64

    @classmethod
    def of(
        cls, parts: Sequence[FieldFile], method: TimeMethod, max_age_minutes: float | None, name: str
    ) -> "Series":
        """Join parts in order of time. Raises ValueError if they overlap."""
        each = [part.times for part in parts if part.times is not None]
        times = np.concatenate(each)
        gaps = np.diff(times)
        if (gaps <= np.timedelta64(0)).any():
            raise ValueError(f"channels.{name}: {parts[0].path} and the files beside it overlap in time.")
        if max_age_minutes is None:
            # a single time has no step: assume that its value holds for an hour
            steps, counts = np.unique(gaps, return_counts=True)
            minutes = 1.5 * float(steps[counts.argmax()] / np.timedelta64(1, "m")) if steps.size else 60.0
        else:
            minutes = max_age_minutes
        firsts = np.cumsum([0, *(own.size for own in each)])
        return cls(parts, firsts, times, method, schema.step_timedelta(minutes))

    def read(self, times: Times, y: slice, x: slice) -> Values:
        """Return values (T, H, W) at `times`; NaN if no value is near enough."""
        carried: Any = self.carry(times, y, x, self.layout(times))
        batch = {name: torch.from_numpy(part)[None] for name, part in carried.items()}
        values: Values = values_of(batch)[0].numpy()
        return values

    @cached_property
    def _dtype(self) -> np.dtype[Any]:
        kinds = {part.stored.carried for part in self.parts}
        return kinds.pop() if len(kinds) == 1 else FLOAT32

    def layout(self, times: Times) -> Layout:
        """Return the layout for windows as long as `times`: the frames within, one before, and maybe one after."""
        ends = np.searchsorted(self.times, self.times + (times[-1] - times[0]))
        within = int((ends - np.arange(ends.size)).max())
        means = self.method == "linear"
        before_and_after = 1 if self.method == "previous" else 2
        most = times.size * (2 if means else 1)
        return Layout(min(within + before_and_after, most), self._dtype, means)

    def carry(self, times: Times, y: slice, x: slice, layout: Layout) -> Carried:
        """Return the encoded window at `times`, in `layout`."""
        first, second, share = self._wanted(times)
        needed = np.unique(np.concatenate([first[first >= 0], second[share > 0]]))
        height, width = (len(range(*s.indices(size))) for s, size in zip((y, x), self.parts[0].shape, strict=True))
        frames = np.zeros((layout.num_frames, height, width), layout.dtype)
        packing = np.tile([1.0, 0.0, np.nan, np.nan], (layout.num_frames, 1))
        self._fill(frames, packing, needed, y, x)
        carried = Carried(frames=frames, first=np.where(first >= 0, np.searchsorted(needed, first), -1))
        if layout.dtype != FLOAT32:
            carried["packing"] = packing
        if layout.means:
            # if the share is 0, the later frame may be missing: use the first one twice
            carried["second"] = np.searchsorted(needed, np.where(share > 0, second, first))
            carried["share"] = share
        return carried

    def _wanted(
        self, times: Times
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return, for each time, the index of its value (−1: none near enough), the next index and its share."""
        wanted = times.astype("datetime64[ns]")
        before = np.searchsorted(self.times, wanted, side="right") - 1
        after = np.searchsorted(self.times, wanted, side="left")
        low, high = before.clip(0), after.clip(max=self.times.size - 1)
        near_low = (before >= 0) & (wanted - self.times[low] <= self.max_age)
        near_high = (after < self.times.size) & (self.times[high] - wanted <= self.max_age)
        share = np.zeros(wanted.size, np.float32)
        if self.method == "previous":
            return np.where(near_low, low, -1), low, share
        if self.method == "nearest":
            later = ~near_low | (near_high & (self.times[high] - wanted < wanted - self.times[low]))
            return np.where(near_low | near_high, np.where(later, high, low), -1), low, share
        span = (self.times[high] - self.times[low]) / np.timedelta64(1, "ns")
        passed = (wanted - self.times[low]) / np.timedelta64(1, "ns")
        use = near_low & near_high
        share[use] = (passed / np.maximum(span, 1))[use]
        whole = share >= 1  # rounded up: use the later one alone
        first = np.where(use, np.where(whole, high, low), -1)
        share[whole] = 0
        return first, high, share

    def _fill(
        self,
        frames: npt.NDArray[Any],
        packing: npt.NDArray[np.float64],
        numbers: npt.NDArray[np.int64],
        y: slice,
        x: slice,
    ) -> None:
        """Fill in the frames of ascending `numbers`; frames in between are read along with them."""
        for part, first, stop in zip(self.parts, self.firsts[:-1], self.firsts[1:], strict=True):
            own = np.flatnonzero((numbers >= first) & (numbers < stop))
            if own.size:
                there = numbers[own] - first
                read = part.read_values if frames.dtype == FLOAT32 else part.read
                frames[own] = read(slice(int(there[0]), int(there[-1]) + 1), y, x)[there - there[0]]
                if frames.dtype != FLOAT32:
                    packing[own] = part.stored.numbers

    def span(self) -> tuple[np.datetime64, np.datetime64]:
        """Return the times of the first and the last value."""
        return self.times[0], self.times[-1]
