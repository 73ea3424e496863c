"""`Archive`: the files of an archive as one series of frames, read by window, without dask."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.codes import CODE_MM_H, MISSING_CODE, encode
from raincast.schema import Grid

DAMAGE = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class _Part:
    """One file of an archive, and the number of its first frame within the whole."""

    path: Path
    first: int
    num_times: int


@dataclass(frozen=True, eq=False)
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
    _open: dict[tuple[int, Path], "_OpenPart"] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> "Archive":
        """Open and check `path`; FileNotFoundError or ValueError say what is wrong and how to mend it."""
        path = Path(path)
        files = archive_files(path)
        heads = [_read_head(file) for file in files]
        heads.sort(key=lambda head: head.times[0])
        first = heads[0]
        for head in heads[1:]:
            _check_fits(first, head, path)
        times = np.concatenate([head.times for head in heads])
        if (np.diff(times) <= np.timedelta64(0)).any():
            raise ValueError(f"The files of {path} overlap in time. Ingest them into a new archive.")
        starts = np.cumsum([0, *(head.times.size for head in heads)])
        parts = tuple(
            _Part(head.path, int(start), head.times.size) for head, start in zip(heads, starts, strict=False)
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

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind: each process opens its own."""
        return self.__dict__ | {"_open": {}}

    @property
    def num_times(self) -> int:
        """Number of frames present."""
        return int(self.times.size)

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
        masks = [_read_coverage(part.path) for part in self.parts]
        seen = [mask for mask in masks if mask is not None]
        return np.logical_or.reduce(seen) if len(seen) == len(masks) else None

    def read(
        self, first: int, num_times: int, *, y: slice = slice(None), x: slice = slice(None)
    ) -> npt.NDArray[np.float32]:
        """Rain rates in mm/h, NaN for missing, of frames `first` to `first + num_times`: (T, H, W)."""
        pieces = [part.read(window, y, x) for part, window in self._windows(first, num_times)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def read_codes(
        self, first: int, num_times: int, *, y: slice = slice(None), x: slice = slice(None)
    ) -> npt.NDArray[np.int16]:
        """The same as codes of 0.01 mm/h, `codes.MISSING_CODE` for missing: as they lie on disk, if they do."""
        pieces = [part.read_codes(window, y, x) for part, window in self._windows(first, num_times)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def read_stored(
        self, first: int, num_times: int, *, y: slice = slice(None), x: slice = slice(None)
    ) -> npt.NDArray[np.int16] | npt.NDArray[np.float32]:
        """Codes if the archive holds them (`coded`), else rain rates: what costs least to read and to carry."""
        return (self.read_codes if self.coded else self.read)(first, num_times, y=y, x=x)

    def _windows(self, first: int, num_times: int) -> list[tuple["_OpenPart", slice]]:
        """The open parts that hold the frames, and which of their own frames those are."""
        windows = []
        for part in self.parts:
            start, stop = max(first, part.first), min(first + num_times, part.first + part.num_times)
            if start < stop:
                windows.append((self._part(part), slice(start - part.first, stop - part.first)))
        if not windows or sum(window.stop - window.start for _, window in windows) != num_times:
            raise IndexError(f"Frames {first} to {first + num_times} are not all in 0 to {self.num_times}.")
        return windows

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

    def _part(self, part: _Part) -> "_OpenPart":
        # keyed by process: an HDF5 handle that crosses a fork reads garbage
        key = (os.getpid(), part.path)
        if key not in self._open:
            self._open[key] = _OpenPart.open(part.path, self.variable)
        return self._open[key]


@dataclass(frozen=True, eq=False)
class _OpenPart:
    """An open file and the table from its codes to mm/h."""

    array: xr.Variable
    table: npt.NDArray[np.float32] | None
    fills: tuple[float, ...]
    scale: float
    offset: float
    to_mm_h: float
    path: Path

    @classmethod
    def open(cls, path: Path, variable: str) -> "_OpenPart":
        dataset = _open_dataset(path, mask_and_scale=False)
        array = dataset[variable].variable
        attrs = array.attrs
        scale = float(attrs.get("scale_factor", 1.0))
        offset = float(attrs.get("add_offset", 0.0))
        # a file may have both, and several missing values
        fills = tuple(
            float(f) for name in ("_FillValue", "missing_value") for f in np.atleast_1d(attrs.get(name, []))
        )
        to_mm_h = schema.MM_H_PER_UNIT[attrs["units"]]
        part = cls(array, None, fills, scale, offset, to_mm_h, path)
        if array.dtype.kind in "iu" and array.dtype.itemsize <= 2:
            # every code decoded once, in float64: 50 × 0.01 is then exactly the float32 nearest 0.5,
            # so a rate that stands at a threshold is at the threshold
            info = np.iinfo(array.dtype)
            codes = np.arange(info.min, info.max + 1)
            return cls(array, part._decode(codes), fills, scale, offset, to_mm_h, path)
        return part

    def read(self, time: slice, y: slice, x: slice) -> npt.NDArray[np.float32]:
        with _naming(self.path):
            raw = self.array[time, y, x].values
        if self.table is None:
            return self._decode(raw)
        return self.table[raw.astype(np.intp) - np.iinfo(raw.dtype).min]

    def read_codes(self, time: slice, y: slice, x: slice) -> npt.NDArray[np.int16]:
        ours = (np.dtype(np.int16), (float(MISSING_CODE),), CODE_MM_H, 0.0, 1.0)
        if (self.array.dtype, self.fills, self.scale, self.offset, self.to_mm_h) == ours:
            with _naming(self.path):
                codes: npt.NDArray[np.int16] = self.array[time, y, x].values
            return codes
        return np.stack([encode(frame) for frame in self.read(time, y, x)])

    def _decode(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        values = raw.astype(np.float64)
        missing = ~np.isfinite(values)
        for fill in self.fills:
            missing |= values == fill
        rates = (values * self.scale + self.offset) * self.to_mm_h
        missing |= rates < 0  # as in an ingest: a negative rate says nothing, least of all that it was dry
        return np.where(missing, np.nan, rates).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Head:
    """What a file says without its frames being read."""

    path: Path
    times: npt.NDArray[np.datetime64]
    grid: Grid
    step_minutes: float
    variable: str
    attrs: dict[str, Any]
    rain_attrs: dict[str, Any]
    coded: bool


def archive_files(path: Path) -> list[Path]:
    """The files of the archive at `path`, sorted; FileNotFoundError with the remedy where there are none."""
    if path.is_file() or path.suffix == ".zarr" or is_zarr(path):
        files = [path] if path.exists() else []
    else:
        files = sorted(path.glob("*.nc")) or sorted(path.glob("*.zarr"))
    if not files:
        what = "holds no .nc or .zarr file" if path.is_dir() else "does not exist"
        near = sorted(p.name for p in path.parent.glob("*") if p.is_dir()) if path.parent.is_dir() else []
        beside = f" Beside it: {', '.join(near[:8])}." if near else ""
        raise FileNotFoundError(
            f"The archive {path} {what}.{beside} Make one from radar files with: "
            f"python ingest.py source=auto files='…' archive={path}"
        )
    return files


def _engine(path: Path) -> str:
    return "zarr" if path.suffix == ".zarr" or path.is_dir() else "netcdf4"


def _open_dataset(path: Path, *, mask_and_scale: bool = True) -> xr.Dataset:
    engine = _engine(path)
    options: dict[str, Any] = {"consolidated": False} if engine == "zarr" else {}
    try:
        dataset = xr.open_dataset(path, engine=engine, chunks=None, mask_and_scale=mask_and_scale, **options)
        return schema.regular_part(dataset)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be opened as {engine}: {error}") from error


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr store."""
    return any((path / name).exists() for name in ("zarr.json", ".zgroup"))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever the libraries throw at a damaged file into a ValueError that names it."""
    try:
        yield
    except (*DAMAGE, OSError) as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        raise ValueError(
            f"{path} cannot be read: {str(error) or type(error).__name__}. If it is damaged, remove it and ingest "
            "its frames again."
        ) from error


def _read_head(path: Path) -> _Head:
    with _naming(path), _open_dataset(path) as dataset:
        schema.check_archive(dataset, str(path))
        variable = schema.find_rain_variable(dataset)
        grid = Grid(
            y=dataset[schema.Y].values.astype(np.float64),
            x=dataset[schema.X].values.astype(np.float64),
            crs_wkt=str(schema.find_crs_wkt(dataset, variable)),
        )
        return _Head(
            path=path,
            times=dataset[schema.TIME].values.astype("datetime64[ns]"),
            grid=grid,
            step_minutes=schema.find_step_minutes(dataset),
            variable=variable,
            attrs=dict(dataset.attrs),
            rain_attrs=dict(dataset[variable].attrs),
            coded=_is_coded(dataset[variable]),
        )


def _is_coded(rain: xr.DataArray) -> bool:
    """Whether a variable, opened with its codes decoded, lies on disk in ours."""
    names = ("dtype", "scale_factor", "add_offset", "_FillValue", "missing_value")
    dtype, scale, offset, *fills = (rain.encoding.get(name) for name in names)
    same = dtype == np.int16 and scale == CODE_MM_H and offset in (None, 0.0)
    in_mm_h = schema.MM_H_PER_UNIT.get(rain.attrs["units"]) == 1.0
    return same and in_mm_h and {float(f) for f in fills if f is not None} == {float(MISSING_CODE)}


def _read_coverage(path: Path) -> npt.NDArray[np.bool_] | None:
    with _naming(path), _open_dataset(path, mask_and_scale=False) as dataset:
        if schema.COVERAGE not in dataset:
            return None
        return np.asarray(dataset[schema.COVERAGE].values, np.bool_)


def _check_fits(first: _Head, other: _Head, path: Path) -> None:
    if not first.grid.same_as(other.grid):
        raise ValueError(
            f"{path} mixes grids: {first.path.name} is {first.grid.shape}, {other.path.name} is "
            f"{other.grid.shape}, or their coordinates differ. Ingest each grid into its own archive."
        )
    if first.variable != other.variable:
        raise ValueError(
            f"{path} mixes variables: {first.variable} in {first.path.name}, {other.variable} in "
            f"{other.path.name}. Rename one of them, or ingest the files into one archive."
        )
    if first.step_minutes != other.step_minutes:
        raise ValueError(
            f"{path} mixes steps: {first.step_minutes} min in {first.path.name}, "
            f"{other.step_minutes} min in {other.path.name}."
        )
    if (other.times[0] - first.times[0]) % schema.step_timedelta(first.step_minutes):
        raise ValueError(f"{other.path.name} is off the step of {first.step_minutes} min of {path}.")
