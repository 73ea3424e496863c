"""One file of a field: its variable on the archive's grid, read as stored."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.find import find_files
from raincast.archive.head import DAMAGE, engine_of, is_zarr, open_plain
from raincast.archive.open_part import RawVariable
from raincast.archive.packing import Packing
from raincast.archive.times import valid_times
from raincast.data.channels import Site, Times, Values
from raincast.data.channels.carried import CODE_DTYPES
from raincast.schema import Grid
from raincast.system.files import sight_of

UNREADABLE = (*DAMAGE, OSError)
FLOAT32 = np.dtype(np.float32)
MOST_FILLS = 2


def field_files(path: str, name: str) -> list[Path]:
    """Return the sorted files of the field `name` at `path`. Raises FileNotFoundError if there is none.

    A folder stands for its netCDF files, or else for its Zarr stores. Patterns work as in ingest.
    """
    found = Path(path).expanduser()
    if found.is_dir() and found.suffix != ".zarr" and not is_zarr(found):
        if files := sorted(found.glob("*.nc")) or sorted(found.glob("*.zarr")):
            return files
        raise FileNotFoundError(f"channels.{name}.path={path} is a folder without .nc files and .zarr stores.")
    return [found] if found.exists() else find_files(path, f"channels.{name}.path")


@dataclass(frozen=True)
class _Stored:
    """Storage of a variable: its packing and axes (None, or the index that is read of an axis of length 1)."""

    axes: tuple[int | None, ...]
    packing: Packing

    @classmethod
    def of(cls, array: xr.DataArray, squeezed: list[str]) -> "_Stored":
        """Return the storage of a variable. Raises ValueError if it does not hold numbers."""
        try:
            packing = Packing.of(array)
        except ValueError as error:
            raise ValueError(f"{array.name} cannot be a channel: {error}") from error
        return cls(tuple(0 if dim in squeezed else None for dim in array.dims), packing)

    @property
    def carried(self) -> np.dtype[Any]:
        """Return the dtype in which it is sent to the device."""
        packing = self.packing
        as_stored = packing.dtype in CODE_DTYPES and len(packing.fills) <= MOST_FILLS and not packing.has_limits
        return packing.dtype if as_stored else FLOAT32

    @property
    def numbers(self) -> npt.NDArray[np.float64]:
        """Return scale, offset and codes for missing, as in `carried.Carried`."""
        fills = self.packing.fills
        return np.array([self.packing.scale, self.packing.offset, *fills, *[np.nan] * (MOST_FILLS - len(fills))])

    def values(self, raw: npt.NDArray[Any], name: str) -> Values:
        """Decode stored numbers to the variable's unit, NaN for missing."""
        plain = self.packing == Packing(FLOAT32)
        found: Values = raw if plain else self.packing.decode(raw, name).astype(np.float32)
        return found


@dataclass(eq=False)
class FieldFile:
    """One file with the variable on the archive's grid, opened separately in each process."""

    path: Path
    variable: str
    times: Times | None
    flips: tuple[slice, slice]
    shape: tuple[int, int]
    stored: _Stored
    sight: int
    num_files: int = 1
    at_end: bool = False
    _open: dict[int, Any] = field(default_factory=dict, repr=False)
    _seen: dict[int, int] = field(default_factory=dict, repr=False)

    @classmethod
    def open(
        cls, path: Path, variable: str, name: str, site: Site, *, num_files: int = 1, at_end: bool = False
    ) -> "FieldFile":
        """Open one of `num_files` of a field; `at_end`: a value that covers a period is dated at its end.

        Raises ValueError if the variable is absent or the grid differs.
        """
        try:
            sight = sight_of(path)
            with _open(path) as dataset:
                if variable not in dataset.data_vars:
                    there = ", ".join(map(str, dataset.data_vars)) or "nothing"
                    raise ValueError(
                        f"there is no variable {variable}, but {there}. Set channels.{name}.variable=…"
                    )
                whole = dataset[variable]
                single = _lengths_of_one(whole)
                stored = _Stored.of(whole, single)
                array = whole.squeeze(single, drop=True)
                time = _time_axis(array)
                y, x = _space_axes(array, time)
                flips = _flips(dataset, array, (y, x), site)
                times = _times(dataset, array, at_end)
        except UNREADABLE as error:
            raise ValueError(f"channels.{name}: {path}: {error}") from error
        if times is not None and (np.diff(times) <= np.timedelta64(0)).any():
            raise ValueError(f"channels.{name}: the times of {path} are not ascending, or repeat.")
        return cls(path, variable, times, flips, site.grid.shape, stored, sight, num_files, at_end)

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files out of the pickle: an HDF5 handle that crosses a fork reads garbage."""
        return self.__dict__ | {"_open": {}, "_seen": {}}

    @property
    def first(self) -> np.datetime64:
        """Return the time of the first value."""
        assert self.times is not None
        first: np.datetime64 = self.times[0]
        return first

    def read_values(self, times: slice | None, y: slice, x: slice) -> Values:
        """Return values (T, H, W) in the variable's unit, NaN for missing; (1, H, W) without a time axis."""
        return self.stored.values(self.read(times, y, x), f"{self.path}, {self.variable}")

    def read(self, times: slice | None, y: slice, x: slice) -> npt.NDArray[Any]:
        """Return the stored numbers (T, H, W), or (1, H, W) without a time axis."""
        rows, columns = (
            _flipped(s, flip, size) for s, flip, size in zip((y, x), self.flips, self.shape, strict=True)
        )
        wanted = iter((rows, columns) if times is None else (times, rows, columns))
        index = tuple(next(wanted) if number is None else number for number in self.stored.axes)
        try:
            found = self._read(index)
            while self._was_replaced():  # also if it was replaced during the read
                found = self._read(index)
        except UNREADABLE as error:
            raise ValueError(f"{self.path} cannot be read: {error}") from error
        raw = np.ascontiguousarray(self.stored.packing.numbers(found)[..., *self.flips])
        return raw[None] if times is None else raw

    def _was_replaced(self) -> bool:
        """Return True if the open file was replaced.

        Raises ValueError unless the new file has the same packing and shape, and begins with the same times.
        """
        process, sight = os.getpid(), sight_of(self.path)
        if self._seen.get(process, self.sight) == sight:
            return False
        with _open(self.path) as dataset:
            whole = dataset[self.variable]
            single = _lengths_of_one(whole)
            array = whole.squeeze(single, drop=True)
            times = _times(dataset, array, self.at_end)
            same = _Stored.of(whole, single) == self.stored and array.shape[-2:] == self.shape
        if self.times is not None:
            same = same and times is not None and np.array_equal(times[: self.times.size], self.times)
        if not same:
            raise ValueError("it was rewritten while it was open, with other times or numbers. Start again")
        self._open.pop(process, None)
        self._seen[process] = sight
        return True

    def _read(self, index: tuple[slice | int, ...]) -> npt.NDArray[Any]:
        process = os.getpid()
        if process not in self._open:
            if engine_of(self.path) == "netcdf4":
                self._open[process] = RawVariable.of(self.path, self.variable, self.num_files)
            else:
                self._open[process] = _open(self.path, mask_and_scale=False)[self.variable].variable
        source = self._open[process]
        found: npt.NDArray[Any] = (
            source.read(*index) if isinstance(source, RawVariable) else np.asarray(source[index].values)
        )
        return found


def _open(path: Path, *, mask_and_scale: bool = True) -> xr.Dataset:
    # keep a variable in minutes as numbers
    plain = open_plain(path, mask_and_scale=mask_and_scale, decode_timedelta=False)
    return schema.continuous_longitudes(plain)


def _time_axis(array: xr.DataArray) -> str | None:
    found = [str(d) for d in array.dims if d in array.coords and np.issubdtype(array[d].dtype, np.datetime64)]
    return found[0] if found else None


def _times(dataset: xr.Dataset, array: xr.DataArray, at_end: bool) -> Times | None:
    """Return the times of a field, or the ends of its time bounds if `at_end`; None without a time axis."""
    time = _time_axis(array)
    if time is None:
        return None
    if at_end:
        return valid_times(dataset, array.rename({time: schema.TIME}))[0]
    times: Times = array[time].values.astype("datetime64[ns]")
    return times


def _lengths_of_one(array: xr.DataArray) -> list[str]:
    """Return the axes of length 1, such as a single level or member, except time, y and x."""
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
            f"{array.name} has the axes {array.dims}: it must be (time, y, x) or (y, x), with coordinates. "
            "Select a level, and write the file again."
        )
    return space[0], space[1]


def _flips(dataset: xr.Dataset, array: xr.DataArray, axes: tuple[str, str], site: Site) -> tuple[slice, slice]:
    """Return the flips that put rows and columns in the archive's order. Raises ValueError for another grid."""
    definition = schema.find_crs(dataset, str(array.name)) or site.grid.crs_wkt  # many files state no projection
    remedy = ". Reproject it to the archive's grid first, for example with rioxarray's reproject_match"
    grid = schema.grid_on(array[axes[0]], array[axes[1]], definition, remedy=remedy)
    y, x, wkt = grid.y, grid.x, grid.crs_wkt
    for rows in (slice(None), slice(None, None, -1)):
        for columns in (slice(None), slice(None, None, -1)):
            if site.grid.same_as(Grid(y[rows], x[columns], wkt)):
                return rows, columns
    raise ValueError(
        f"{array.name} is on a grid of {y.size}×{x.size} pixels from {y[0]:g}, {x[0]:g} to {y[-1]:g}, {x[-1]:g}; "
        f"{site.label} has {site.grid.y.size}×{site.grid.x.size} from {site.grid.y[0]:g}, {site.grid.x[0]:g} to "
        f"{site.grid.y[-1]:g}, {site.grid.x[-1]:g}. Reproject it to the archive's grid first, for example with "
        "rioxarray's reproject_match."
    )


def _flipped(wanted: slice, flip: slice, size: int) -> slice:
    start, stop, _ = wanted.indices(size)
    return slice(start, stop) if flip.step is None else slice(size - stop, size - start)
