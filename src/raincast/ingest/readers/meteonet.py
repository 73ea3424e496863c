"""MeteoNet npz: rainfall of Météo-France for the north-west and the south-east of France, 2016 to 2018.

Layout (G. Larvor et al. 2020, MeteoNet, docs on rain radar): `data` (T, H, W) int16 in 1/100 mm over 5 min, −1
missing; `dates` (T,) of datetime.datetime, UTC, taken as the ends of the 5 min; `miss_dates`. The files
radar_coords_NW.npz and radar_coords_SE.npz have the pixel centres' latitudes and longitudes, `lats` and `lons`.
"""

import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.ingest.readers import ALL, Head, naming, starts_with
from raincast.ingest.readers.common.axes import even_axis
from raincast.ingest.readers.common.pickled import unpickle_dates
from raincast.projection import crs_in_metres
from raincast.schema import Grid, Meaning
from raincast.transforms import accumulation_to_rate

FORMAT = "MeteoNet npz"
DATA, DATES, LATS, LONS = "data.npy", "dates.npy", "lats.npy", "lons.npy"
RAINFALL, DBZ_MISSING = "rainfall", 255
COORDINATES = "radar_coords_*.npz"
LEVELS_ABOVE = 4  # folders to search for the coordinates, upwards from a month's files
STEP_MINUTES, MM = 5.0, 0.01
MEANING = Meaning("depth", STEP_MINUTES)
NORTH_WEST = {(565, 784): (51.896, -5.842), (515, 784): (46.25, 2.0)}
"""Centre of the first pixel of NW and SE (MeteoNet, coordinates_and_projection.py), used if no file states it."""
SPACING = 0.01  # degrees
MAX_PIXELS, MAX_DATES_BYTES = 10**7, 2**24  # far more than any file has: larger means a damaged header
DEFLATE_RATIO = 1100  # deflate compresses by a factor of 1032 at most
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, pickle.UnpicklingError, NotImplementedError)


@dataclass(frozen=True)
class MeteoNet:
    """Reads rainfall over 5 min as the mean rate in mm/h; conf/source/meteonet.yaml documents the arguments."""

    coordinates: str | None = None
    quantity: str = "auto"
    source: str = "Météo-France, MeteoNet"

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown quantity."""
        if self.quantity not in ("auto", RAINFALL):
            raise ValueError(f"source.quantity={self.quantity} is none of auto, {RAINFALL}.")

    def recognises(self, path: Path) -> bool:
        """Return True for an npz with the arrays of frames or of coordinates; the latter has no frames."""
        if not starts_with(path, b"PK\x03\x04"):
            return False
        try:
            with zipfile.ZipFile(path) as file:
                names = set(file.namelist())
        except (*_DAMAGE, OSError, ValueError):
            return False
        return {DATA, DATES} <= names or {LATS, LONS} <= names

    def scan(self, path: Path) -> Head:
        """Return the times and grid without reading the frames; a file of coordinates has no times."""
        with _opened(path) as file:
            if DATA not in file.namelist() and LATS in file.namelist():
                return Head(
                    np.array([], "datetime64[ns]"), _stated_grid(path, *_identity(path)), STEP_MINUTES, MEANING
                )
            layout = _layout(file)
            self._check_quantity(path, layout)
            shape = layout.shape
            return Head(_dates(file, shape[0]), self._grid(path, shape[1:]), STEP_MINUTES, MEANING)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read the frames numbered `frames`; frames before them are unpacked too, but not kept."""
        with _opened(path) as file:
            layout = _layout(file)
            self._check_quantity(path, layout)
            times = _dates(file, layout.shape[0])
            start, stop, _ = frames.indices(layout.shape[0])
            codes = _Frames.of(path).read(layout, start, max(start, stop))
            return schema.rain_dataset(
                _rates(codes[:: frames.step or 1]),
                times[frames],
                self._grid(path, layout.shape[1:]),
                step_minutes=STEP_MINUTES,
                cell_methods=MEANING.cell_methods,
                attrs={"source": self.source, "title": "MeteoNet rainfall"},
            )

    def _check_quantity(self, path: Path, layout: "_Layout") -> None:
        """Raise ValueError for reflectivity, which MeteoNet has in the same layout: dBZ, 255 for missing.

        The file name tells them apart. For other names, the code of missing pixels in the first frame does.
        """
        if self.quantity == RAINFALL or path.name.lower().startswith(RAINFALL):
            return
        named = path.name.lower().startswith("reflectivity")
        first = np.array([], np.int16) if named or not layout.shape[0] else _Frames.of(path).read(layout, 0, 1)
        if named or (first.size and first.min() >= 0 and first.max() == DBZ_MISSING):
            raise ValueError(
                "it holds reflectivity (dBZ, 255 for missing): raincast reads MeteoNet's rainfall. Take the files "
                "rainfall_NW_*.npz and rainfall_SE_*.npz"
            )
        if not first.size or first.min() >= 0:
            raise ValueError(
                "neither its name nor its first frame shows whether it is rainfall (1/100 mm, −1 for missing) or "
                f"reflectivity (dBZ, 255 for missing). If it is rainfall, set source.quantity={RAINFALL}"
            )

    def _grid(self, path: Path, shape: tuple[int, ...]) -> Grid:
        """Return the grid from `coordinates`, a file of this shape beside or above `path`, or the known corner."""
        if self.coordinates is not None:
            candidates = [Path(self.coordinates).expanduser()]
        else:
            folders = path.absolute().parents[: LEVELS_ABOVE + 1]
            candidates = [found for folder in folders for found in sorted(folder.glob(COORDINATES))]
        for candidate in candidates:
            grid = _stated_grid(candidate, *_identity(candidate))
            if grid.shape == shape:
                return grid
        if self.coordinates is None and shape in NORTH_WEST:
            return _zone_grid((shape[0], shape[1]))
        seen = f"{', '.join(map(str, candidates)) or f'no {COORDINATES} beside or above it'}"
        raise ValueError(
            f"it is unknown where its {shape[0]} × {shape[1]} pixels lie ({seen}). Name MeteoNet's file with "
            "source.coordinates=radar_coords_NW.npz"
        )


@dataclass(frozen=True)
class _Layout:
    """Layout of `data`: shape (T, H, W), dtype, and the offset of the first number in the unpacked member."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    first: int

    @property
    def frame_bytes(self) -> int:
        return self.shape[1] * self.shape[2] * self.dtype.itemsize


class _Frames:
    """The unpacked `data` of one file, kept open so that reading frame by frame unpacks it only once."""

    def __init__(self, path: Path) -> None:
        self.zip = zipfile.ZipFile(path)
        self.stream = self.zip.open(DATA)

    def __del__(self) -> None:
        """Close the file when another one replaces it in the cache."""
        for file in (getattr(self, "stream", None), getattr(self, "zip", None)):
            if file is not None:
                file.close()

    @staticmethod
    def of(path: Path) -> "_Frames":
        """Return the cached frames of the file in its current state."""
        return _frames(path, *_identity(path))

    def read(self, layout: _Layout, start: int, stop: int) -> npt.NDArray[Any]:
        """Read the stored codes of the frames from `start` to `stop`, (stop − start, H, W)."""
        size = (stop - start) * layout.frame_bytes
        try:
            self.stream.seek(layout.first + start * layout.frame_bytes)
            content = self.stream.read(size)
        except Exception:
            _frames.cache_clear()  # the position of the stream is unknown now
            raise
        if len(content) != size:
            raise ValueError(f"data ends early: {len(content)} of {size} bytes of the frames from {start} on")
        return np.frombuffer(content, layout.dtype).reshape(stop - start, *layout.shape[1:])


@lru_cache(maxsize=1)
def _frames(path: Path, size: int, changed: int) -> _Frames:
    return _Frames(path)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Yield the zip file. Raises ValueError with its name for damage, also while it is read."""
    with naming(path, FORMAT):
        try:
            with zipfile.ZipFile(path) as file:
                yield file
        except _DAMAGE as error:
            raise ValueError(str(error) or type(error).__name__) from error


@contextmanager
def _member(file: zipfile.ZipFile, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any], int]]:
    """Yield an array as a stream at its first number, its shape, its dtype and the stated number of bytes left."""
    if name not in file.namelist():
        raise ValueError(f"it holds no {name}; found: {', '.join(file.namelist()) or 'nothing'}")
    info = file.getinfo(name)
    if info.file_size > DEFLATE_RATIO * info.compress_size:
        raise ValueError(f"{name} claims {info.file_size} bytes out of {info.compress_size}")
    with file.open(info) as stream:
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(np.lib.format.read_magic(stream))
        if read_header is None:
            raise ValueError(f"{name} has an npy version that MeteoNet does not use")
        shape, fortran_order, dtype = read_header(stream)
        if fortran_order and len(shape) > 1:
            raise ValueError(f"{name} is in Fortran order, unlike MeteoNet's arrays")
        yield stream, shape, dtype, info.file_size - stream.tell()


def _rates(codes: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the rates (T, H, W) in mm/h, NaN for missing."""
    rates = np.empty(codes.shape, np.float32)
    for frame, of_frame in zip(rates, codes, strict=True):
        if of_frame.min() < -1:
            raise ValueError(f"data goes down to {of_frame.min()}: rainfall has −1 for missing and nothing below")
        frame[...] = accumulation_to_rate(of_frame * MM, STEP_MINUTES)
        frame[of_frame == -1] = np.nan
    return rates


def _layout(file: zipfile.ZipFile) -> _Layout:
    if {"prob.npy", "height.npy"} & set(file.namelist()):
        raise ValueError("it holds reflectivity: raincast reads MeteoNet's rainfall")
    with _member(file, DATA) as (stream, shape, dtype, size):
        layout = _Layout(shape, dtype, stream.tell())
    if len(shape) != 3 or dtype.kind != "i":
        raise ValueError(f"data is {dtype} {shape}, not int16 (time, y, x): raincast reads MeteoNet's rainfall")
    if not 0 < shape[1] * shape[2] <= MAX_PIXELS or layout.frame_bytes * shape[0] != size:
        raise ValueError(f"data states {shape} of {dtype}, but has {size} bytes")
    return layout


def _dates(file: zipfile.ZipFile, number: int) -> npt.NDArray[np.datetime64]:
    with _member(file, DATES) as (stream, shape, dtype, size):
        if shape != (number,) or size > MAX_DATES_BYTES:
            raise ValueError(f"dates are {shape} in {size} bytes, not one for each of {number} frames")
        content = stream.read(size)
    if dtype.kind == "M":
        dates = np.frombuffer(content, dtype)
    elif dtype.hasobject:
        dates = np.array(unpickle_dates(content), "datetime64[ns]")
    else:
        raise ValueError(f"dates are {dtype}, not datetime objects")
    if dates.shape != (number,) or np.isnat(dates).any():
        raise ValueError(f"it has {dates.size} valid dates for {number} frames")
    return dates.astype("datetime64[ns]")


@lru_cache(maxsize=16)
def _stated_grid(path: Path, size: int, changed: int) -> Grid:
    """Return the grid of a file of coordinates."""
    axes = []
    with _opened(path) as file:
        for name, axis in ((LATS, 0), (LONS, 1)):
            with _member(file, name) as (stream, shape, dtype, _):
                number = math.prod(shape)
                if dtype.kind != "f" or len(shape) not in (1, 2) or not 0 < number <= MAX_PIXELS:
                    raise ValueError(f"{name} is {dtype} {shape}, not coordinates")
                values = np.frombuffer(stream.read(number * dtype.itemsize), dtype).reshape(shape)
            if values.ndim == 2:
                values = np.moveaxis(values, axis, 0)
                if np.ptp(values, axis=1).max() > 0.02 * SPACING:
                    raise ValueError(f"{name} varies along both axes: its grid is not regular in degrees")
                values = values[:, 0]
            axes.append(even_axis(values, name))
    return Grid(y=axes[0], x=axes[1], crs_wkt=crs_in_metres("EPSG:4326")[0])


@lru_cache(maxsize=4)
def _zone_grid(shape: tuple[int, int]) -> Grid:
    north, west = NORTH_WEST[shape]
    return Grid(
        y=north - SPACING * np.arange(shape[0], dtype=np.float64),
        x=west + SPACING * np.arange(shape[1], dtype=np.float64),
        crs_wkt=crs_in_metres("EPSG:4326")[0],
    )
