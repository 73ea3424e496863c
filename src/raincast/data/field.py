"""A variable of CF files as a channel: satellite, lightning, a weather model, terrain."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.data.channels import Fixed, Reader, Role, Site, Times, Values
from raincast.schema import Grid
from raincast.transforms import Transform

TimeMethod = Literal["previous", "nearest", "linear"]
DAMAGE = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Field:
    """The variable `variable` of the file, folder, glob or Zarr store `path`, on the grid of the archive.

    Its time step is its own: at a time the `previous` value is taken (what was known then: always for the role
    past), the `nearest`, or a `linear` mean of both sides (by default for the role future). A value farther away
    than `max_age_minutes`, by default one and a half of the most frequent step of the files, counts as missing.
    `transform` brings it to the network's scale.
    """

    path: str
    variable: str
    role: Role
    transform: Transform
    vector: str | None = None
    time_method: TimeMethod | None = None
    max_age_minutes: float | None = None

    def __post_init__(self) -> None:
        """Refuse what would look ahead of the newest input frame."""
        if self.role not in ("past", "future", "static"):
            raise ValueError(f"{self.variable}: role={self.role}: a variable of a file is past, future or static.")
        if self.time_method not in (None, "previous", "nearest", "linear"):
            raise ValueError(f"{self.variable}: time_method={self.time_method}: take previous, nearest or linear.")
        if self.role == "past" and self.time_method in ("nearest", "linear"):
            raise ValueError(
                f"{self.variable}: time_method={self.time_method} would take values from after the newest input "
                "frame, which no forecast has. Take previous, or role: future if it is known in advance."
            )
        if self.max_age_minutes is not None and not self.max_age_minutes > 0:
            raise ValueError(f"{self.variable}: max_age_minutes={self.max_age_minutes} must be over 0.")

    def bind(self, name: str, site: Site) -> Reader:
        """The files, opened and checked against the grid."""
        parts = [_Part.open(file, self.variable, name, site) for file in _files(self.path, name)]
        if self.role == "static":
            return _static(parts, name)
        without = [part.path for part in parts if part.times is None]
        if without:
            raise ValueError(
                f"channels.{name}: {self.variable} of {without[0]} has no time axis, which role={self.role} "
                "needs. Take role: static."
            )
        method = self.time_method or ("previous" if self.role == "past" else "linear")
        return Series.of(sorted(parts, key=lambda part: part.first), method, self.max_age_minutes, name)


def _files(path: str, name: str) -> list[Path]:
    found = Path(path)
    if found.is_dir() and found.suffix != ".zarr" and not (found / "zarr.json").exists():
        files = sorted(found.glob("*.nc")) or sorted(found.glob("*.zarr"))
    else:
        # as in a shell: a path that exists may hold a *, and a pattern may be absolute
        files = [found] if found.exists() else sorted(map(Path, glob.glob(path)))  # noqa: PTH207
    if not files:
        raise FileNotFoundError(
            f"channels.{name}.path={path}: there is no such file, and no .nc or .zarr in it. Give the files that "
            "hold the channel."
        )
    return files


@dataclass(eq=False)
class _Part:
    """One file: the variable on the archive's grid, opened anew in each process."""

    path: Path
    variable: str
    times: Times | None
    flips: tuple[slice, slice]
    shape: tuple[int, int]
    _open: dict[int, xr.Variable] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: Path, variable: str, name: str, site: Site) -> "_Part":
        """ValueError for no such variable and another grid."""
        try:
            with _open(path) as dataset:
                if variable not in dataset.data_vars:
                    there = ", ".join(map(str, dataset.data_vars)) or "nothing"
                    raise ValueError(
                        f"there is no variable {variable}, but {there}. Set channels.{name}.variable=…"
                    )
                array = dataset[variable].squeeze(_lengths_of_one(dataset[variable]), drop=True)
                time = _time_axis(array)
                y, x = _space_axes(array, time)
                flips = _flips(dataset, array, (y, x), site)
                times = None if time is None else array[time].values.astype("datetime64[ns]")
        except DAMAGE as error:
            raise ValueError(f"channels.{name}: {path}: {error}") from error
        if times is not None and (np.diff(times) <= np.timedelta64(0)).any():
            raise ValueError(f"channels.{name}: the times of {path} do not ascend, or repeat.")
        return cls(path, variable, times, flips, site.grid.shape)

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind: an HDF5 handle that crosses a fork reads garbage."""
        return self.__dict__ | {"_open": {}}

    @property
    def first(self) -> np.datetime64:
        """The time of its first value."""
        assert self.times is not None
        first: np.datetime64 = self.times[0]
        return first

    def read(self, times: slice | None, y: slice, x: slice) -> Values:
        """(T, H, W), or (1, H, W) where there is no time axis."""
        process = os.getpid()
        if process not in self._open:
            array = _open(self.path)[self.variable]
            self._open[process] = array.squeeze(_lengths_of_one(array), drop=True).variable
        rows, columns = (
            _flipped(s, flip, size) for s, flip, size in zip((y, x), self.flips, self.shape, strict=True)
        )
        try:
            found = self._open[process][(rows, columns) if times is None else (times, rows, columns)].values
        except DAMAGE as error:
            raise ValueError(f"{self.path} cannot be read: {error}") from error
        values: Values = np.asarray(found, np.float32)[..., self.flips[0], self.flips[1]]
        return values[None] if times is None else values


def _open(path: Path) -> xr.Dataset:
    engine = "zarr" if path.is_dir() else "netcdf4"
    options: dict[str, Any] = {"consolidated": False} if engine == "zarr" else {}
    return xr.open_dataset(path, engine=engine, chunks=None, **options)


def _time_axis(array: xr.DataArray) -> str | None:
    found = [str(d) for d in array.dims if d in array.coords and np.issubdtype(array[d].dtype, np.datetime64)]
    return found[0] if found else None


def _lengths_of_one(array: xr.DataArray) -> list[str]:
    """Axes of one level or one member; of a time, which may be the only one, the axis stays."""
    time = _time_axis(array)
    space = [str(d) for d in array.dims if str(d) != time][-2:]
    return [str(d) for d in array.dims if array.sizes[d] == 1 and str(d) != time and str(d) not in space]


def _space_axes(array: xr.DataArray, time: str | None) -> tuple[str, str]:
    space = [str(d) for d in array.dims if str(d) != time]
    if (
        len(space) != 2
        or (time is not None and array.dims[0] != time)
        or any(d not in array.coords for d in space)
    ):
        raise ValueError(
            f"{array.name} has the axes {array.dims}: it has to be (time, y, x) or (y, x), with coordinates. "
            "Choose a level, and write it anew."
        )
    return space[0], space[1]


def _flips(dataset: xr.Dataset, array: xr.DataArray, axes: tuple[str, str], site: Site) -> tuple[slice, slice]:
    """How rows and columns are put in the archive's order; ValueError where the pixels are others."""
    y, x = (
        array[axis].values.astype(np.float64) * (1000.0 if array[axis].attrs.get("units") == "km" else 1.0)
        for axis in axes
    )
    wkt = (
        schema.find_crs_wkt(dataset, str(array.name)) or site.grid.crs_wkt
    )  # many say none: then it is the archive's
    for rows in (slice(None), slice(None, None, -1)):
        for columns in (slice(None), slice(None, None, -1)):
            if site.grid.same_as(Grid(y[rows], x[columns], wkt)):
                return rows, columns
    raise ValueError(
        f"{array.name} is on a grid of {y.size}×{x.size} pixels from {y[0]:g}, {x[0]:g} to {y[-1]:g}, {x[-1]:g}; "
        f"{site.label} has {site.grid.y.size}×{site.grid.x.size} from {site.grid.y[0]:g}, {site.grid.x[0]:g} to "
        f"{site.grid.y[-1]:g}, {site.grid.x[-1]:g}. Bring it onto the archive's grid first, for example with "
        "rioxarray's reproject_match."
    )


def _flipped(wanted: slice, flip: slice, size: int) -> slice:
    start, stop, _ = wanted.indices(size)
    return slice(start, stop) if flip.step is None else slice(size - stop, size - start)


def _static(parts: Sequence[_Part], name: str) -> Reader:
    if len(parts) > 1 or (parts[0].times is not None and parts[0].times.size > 1):
        raise ValueError(
            f"channels.{name} is static, but {parts[0].path} has several times or is one of {len(parts)} files. "
            "Give one map, or role: past or future."
        )
    part = parts[0]
    return Fixed(part.read(None if part.times is None else slice(0, 1), slice(None), slice(None))[0])


@dataclass(frozen=True, eq=False)
class Series:
    """The values of one or more files at times of their own, read at any time."""

    parts: Sequence[_Part]
    firsts: npt.NDArray[np.int64]
    times: Times
    method: TimeMethod
    max_age: np.timedelta64

    @classmethod
    def of(cls, parts: Sequence[_Part], method: TimeMethod, max_age_minutes: float | None, name: str) -> "Series":
        """Parts in the order of time; ValueError where they overlap."""
        each = [part.times for part in parts if part.times is not None]
        times = np.concatenate(each)
        gaps = np.diff(times)
        if (gaps <= np.timedelta64(0)).any():
            raise ValueError(f"channels.{name}: {parts[0].path} and the files beside it overlap in time.")
        if max_age_minutes is None:
            # of one time alone nobody knows how long it holds: an hour
            steps, counts = np.unique(gaps, return_counts=True)
            minutes = 1.5 * float(steps[counts.argmax()] / np.timedelta64(1, "m")) if steps.size else 60.0
        else:
            minutes = max_age_minutes
        firsts = np.cumsum([0, *(own.size for own in each)])
        return cls(parts, firsts, times, method, schema.step_timedelta(minutes))

    def read(self, times: Times, y: slice, x: slice) -> Values:
        """(T, H, W) at `times`; NaN where no value is near enough."""
        wanted = times.astype("datetime64[ns]")
        before = np.searchsorted(self.times, wanted, side="right") - 1
        after = np.searchsorted(self.times, wanted, side="left")
        low, high = before.clip(0), after.clip(max=self.times.size - 1)
        near_low = (before >= 0) & (wanted - self.times[low] <= self.max_age)
        near_high = (after < self.times.size) & (self.times[high] - wanted <= self.max_age)
        if self.method == "previous":
            share, use = np.zeros(wanted.size), near_low
        elif self.method == "nearest":
            later = (~near_low) | (near_high & (self.times[high] - wanted < wanted - self.times[low]))
            share, use = later.astype(np.float64), near_low | near_high
        else:
            span = (self.times[high] - self.times[low]) / np.timedelta64(1, "ns")
            share = np.where(
                span > 0, (wanted - self.times[low]) / np.timedelta64(1, "ns") / np.maximum(span, 1), 0.0
            )
            use = near_low & near_high
        return self._mix(low, high, share, use, y, x)

    def _mix(
        self,
        low: npt.NDArray[np.int64],
        high: npt.NDArray[np.int64],
        share: npt.NDArray[np.float64],
        use: npt.NDArray[np.bool_],
        y: slice,
        x: slice,
    ) -> Values:
        needed = np.unique(np.concatenate([low[use & (share < 1)], high[use & (share > 0)]]))
        height, width = (len(range(*s.indices(size))) for s, size in zip((y, x), self.parts[0].shape, strict=True))
        out = np.full((low.size, height, width), np.nan, np.float32)
        if needed.size == 0:
            return out
        values = dict(zip(needed.tolist(), self._frames(needed, y, x), strict=True))
        for step in np.flatnonzero(use):
            part = np.float32(share[step])
            if part == 0:
                out[step] = values[int(low[step])]
            elif part == 1:
                out[step] = values[int(high[step])]
            else:
                out[step] = (1 - part) * values[int(low[step])] + part * values[int(high[step])]
        return out

    def _frames(self, numbers: npt.NDArray[np.int64], y: slice, x: slice) -> list[Values]:
        """The values of ascending numbers; what lies between them in a file is read with them."""
        frames: list[Values] = []
        for part, first, stop in zip(self.parts, self.firsts[:-1], self.firsts[1:], strict=True):
            own = numbers[(numbers >= first) & (numbers < stop)] - first
            if own.size:
                block = part.read(slice(int(own[0]), int(own[-1]) + 1), y, x)
                frames += [block[number] for number in own - own[0]]
        return frames

    def span(self) -> tuple[np.datetime64, np.datetime64]:
        """The times of the first and the last value."""
        return self.times[0], self.times[-1]
