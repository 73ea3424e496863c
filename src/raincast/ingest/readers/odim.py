"""ODIM HDF5: composites of OPERA, DMI, RMI, SMHI, the Met Office and others, versions 2.0 to 2.4.

Format: EUMETNET OPERA weather radar information model for implementation with the HDF5 file format,
versions 2.0.1 (2010) to 2.4 (2021): the attributes of what and where, and the table of quantities.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.ingest.corners import CORNERS, grid_between
from raincast.ingest.readers import ALL, HDF5_SIGNATURE, Head, naming, starts_with
from raincast.ingest.readers.polar import POLAR_OBJECTS, refuse
from raincast.schema import Grid
from raincast.transforms import ZR, accumulation_to_rate

FORMAT = "ODIM HDF5"
RATE, ACCUMULATION = "RATE", "ACRR"
QUANTITIES = {RATE: "mm/h", ACCUMULATION: "mm", "DBZH": "dBZ", "TH": "dBZ"}
"""The quantities that are read, in the order of choice, and their units."""
MAP_OBJECTS = ("COMP", "IMAGE")  # the objects that are pixels on a map

Convert = Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]
"""From stored values to mm/h, of any shape."""

_BLOCK_ROWS = 512  # of an image that is not stored in chunks


@dataclass(frozen=True, eq=False)
class _Image:
    """One data group; its own attributes stand before those of its dataset, these before the file's."""

    name: str
    data: Any
    what: Mapping[str, Any]
    where: Mapping[str, Any]

    @property
    def quantity(self) -> str:
        return str(self.what.get("quantity", ""))


@dataclass(frozen=True)
class ODIM:
    """Composites → mm/h; conf/source/odim.yaml says what the arguments do.

    Undetected is 0, nodata is missing. A file may hold one image of the quantity for each of several times.
    """

    quantity: str = "auto"
    dataset: str | None = None
    valid_time: str = "end"
    step_minutes: float | None = None
    accumulation_minutes: float | None = None
    zr_a: float = 200.0
    zr_b: float = 1.6
    source: str | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown quantity or time."""
        if self.quantity not in ("auto", *QUANTITIES):
            raise ValueError(f"source.quantity={self.quantity} is none of auto, {', '.join(QUANTITIES)}.")
        if self.valid_time not in ("end", "nominal"):
            raise ValueError(f"source.valid_time={self.valid_time} is neither end nor nominal.")

    def recognises(self, path: Path) -> bool:
        """HDF5 with an ODIM object that is not polar."""
        import h5py

        if not starts_with(path, HDF5_SIGNATURE):
            return False
        try:
            with h5py.File(path) as file:
                return _attributes(file, "what").get("object", "PVOL") not in POLAR_OBJECTS
        except (OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError):
            return False

    def scan(self, path: Path) -> Head:
        """Times and grid; the format does not state the time between frames."""
        import h5py

        with naming(path, FORMAT), h5py.File(path) as file:
            images = self._choose(path, file)
            return Head(self._times(images), _file_grid(images), self.step_minutes)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """The frames numbered `frames`; a block of rows at a time, for continental images come as float64."""
        import h5py

        with naming(path, FORMAT), h5py.File(path) as file:
            images = self._choose(path, file)
            grid, quantity = _file_grid(images), images[0].quantity
            intervals = [self._interval(image) for image in images]
            step = self.step_minutes or step_minutes or intervals[0]
            if step is None:
                raise ValueError("it states no step. Give it with source.step_minutes=5")
            wanted = list(zip(images, intervals, strict=True))[frames]
            rain = np.empty((len(wanted), *grid.shape), np.float32)
            for frame, (image, interval) in zip(rain, wanted, strict=True):
                self._fill(frame, image, interval)
            return schema.rain_dataset(
                rain,
                self._times(images)[frames],
                grid,
                step_minutes=step,
                cell_methods="time: mean" if quantity == ACCUMULATION else "time: point",
                attrs=self._attrs(images[0]),
            )

    def _choose(self, path: Path, file: Any) -> list[_Image]:
        """The images of the quantity that is wanted, as told, else the first in the order of QUANTITIES."""
        kind = _attributes(file, "what").get("object")
        if kind in POLAR_OBJECTS:
            refuse(path, f"{FORMAT}, object {kind}")
        if kind not in MAP_OBJECTS:
            raise ValueError(f"what/object is {kind}: raincast reads {' and '.join(MAP_OBJECTS)}")
        images = list(_images(file))
        chosen = [image for image in images if self.dataset in (None, image.name.split("/")[0], image.name)]
        for quantity in QUANTITIES if self.quantity == "auto" else (self.quantity,):
            found = [image for image in chosen if image.quantity == quantity]
            if found:
                return self._check_times(found)
        listing = ", ".join(f"{image.quantity or 'no quantity'} in {image.name}" for image in images)
        known = ", ".join(f"{name} ({unit})" for name, unit in QUANTITIES.items())
        wanted = "" if self.dataset is None else f" in source.dataset={self.dataset}"
        wanted = f"source.quantity={self.quantity}{wanted}" if self.quantity != "auto" else f"rain{wanted}"
        raise ValueError(f"it holds no {wanted}; found: {listing or 'no images'}. raincast reads {known}")

    def _check_times(self, images: list[_Image]) -> list[_Image]:
        if np.unique(self._times(images)).size < len(images):
            listing = ", ".join(f"{image.name} ({image.what.get('product')})" for image in images)
            raise ValueError(
                f"{len(images)} images of {images[0].quantity} have the same time: {listing}. "
                f"Choose with source.dataset={images[0].name.split('/')[0]}"
            )
        return images

    def _times(self, images: list[_Image]) -> npt.NDArray[np.datetime64]:
        """The end of each image's interval, or the nominal time where that is wanted or nothing else stated."""
        return np.array([self._time(image.what) for image in images], "datetime64[ns]")

    def _time(self, what: Mapping[str, Any]) -> np.datetime64:
        end = None if self.valid_time == "nominal" else _time(what, "end")
        time = _time(what, "") if end is None else end
        if time is None:
            raise ValueError("it states neither an end nor a nominal time (what/enddate, what/date)")
        return time

    def _interval(self, image: _Image) -> float | None:
        """Minutes that an accumulation covers; None for what is no accumulation."""
        if image.quantity != ACCUMULATION:
            return None
        if self.accumulation_minutes is not None:
            return self.accumulation_minutes
        start, end = (_time(image.what, name) for name in ("start", "end"))
        if start is None or end is None:
            raise ValueError(
                f"{image.name} does not say over what time it gathers. Give it with source.accumulation_minutes=60"
            )
        if start >= end:
            raise ValueError(f"{image.name} starts at {start} and ends at {end}: no accumulation over a time")
        return float((end - start) / np.timedelta64(1, "m"))

    def _fill(self, frame: npt.NDArray[np.float32], image: _Image, interval: float | None) -> None:
        """Put the image, in mm/h, into `frame` (H, W)."""
        data = image.data
        if data.dtype.kind not in "iuf" or data.shape != frame.shape:
            raise ValueError(
                f"{image.name}/data is {data.shape} of {data.dtype}: numbers in {frame.shape} (ysize, xsize) "
                "are expected"
            )
        convert = self._converter(image.what, image.quantity, interval)
        if data.dtype.kind in "iu" and data.dtype.itemsize <= 2:
            convert = _by_table(convert, data.dtype)
        num_rows = data.chunks[0] if data.chunks else _BLOCK_ROWS
        for top in range(0, frame.shape[0], num_rows):
            frame[top : top + num_rows] = convert(data[top : top + num_rows])

    def _converter(self, what: Mapping[str, Any], quantity: str, interval: float | None) -> Convert:
        """A function from stored values (any shape) to mm/h."""
        # what the format has for absent ones
        gain, offset = float(what.get("gain", 1.0)), float(what.get("offset", 0.0))
        zr = ZR(self.zr_a, self.zr_b)

        def convert(raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
            missing = _equals(raw, what.get("nodata")) | (raw != raw)
            measured = ~(missing | _equals(raw, what.get("undetect")))
            rates = np.zeros(raw.shape, np.float32)
            rates[missing] = np.nan
            with np.errstate(over="ignore"):  # what is too large to be true is the quality limits' to cut
                values = raw[measured].astype(np.float64) * gain + offset
                if QUANTITIES[quantity] == "dBZ":
                    values = zr.to_rate(values)
                elif interval is not None:
                    values = accumulation_to_rate(values, interval)
                rates[measured] = values
            return rates

        return convert

    def _attrs(self, image: _Image) -> dict[str, Any]:
        attrs = {
            "source": self.source or f"ODIM {image.what.get('source', 'of unknown source')}",
            "title": " ".join(
                str(image.what[name]) for name in ("object", "product", "quantity") if name in image.what
            ),
        }
        if QUANTITIES[image.quantity] == "dBZ":
            return attrs | {"zr_a": self.zr_a, "zr_b": self.zr_b}
        return attrs


def _by_table(convert: Convert, dtype: np.dtype[Any]) -> Convert:
    """`convert` for integers of at most 16 bits: each code once."""
    lowest, highest = np.iinfo(dtype).min, np.iinfo(dtype).max
    table = convert(np.arange(lowest, highest + 1).astype(dtype))
    return lambda codes: table[codes.astype(np.intp) - lowest]


def _attributes(group: Any, name: str) -> dict[str, Any]:
    """The attributes of a subgroup as scalars, texts as str; none where there is no such subgroup."""
    if name not in group:
        return {}
    values = {key: np.ravel(value)[0] for key, value in group[name].attrs.items()}
    return {
        key: value.decode("ascii", "replace").strip("\0 ") if isinstance(value, bytes) else value
        for key, value in values.items()
    }


def _images(file: Any) -> Iterator[_Image]:
    """The data groups, in the order of their numbers."""
    for dataset in _numbered(file, "dataset"):
        for data in _numbered(file[dataset], "data"):
            groups = (file, file[dataset], file[dataset][data])
            what, where = ({k: v for g in groups for k, v in _attributes(g, n).items()} for n in ("what", "where"))
            if "data" in groups[-1]:
                yield _Image(f"{dataset}/{data}", groups[-1]["data"], what, where)


def _numbered(group: Any, word: str) -> list[str]:
    names = [name for name in group if re.fullmatch(rf"{word}\d+", name)]
    return sorted(names, key=lambda name: int(name.removeprefix(word)))


def _time(what: Mapping[str, Any], which: str) -> np.datetime64 | None:
    """The time of the attributes `which`date and `which`time; None where they are absent."""
    date, time = what.get(f"{which}date"), what.get(f"{which}time")
    if date is None or time is None:
        return None
    if not re.fullmatch(r"\d{8}", str(date)) or not re.fullmatch(r"\d{6}", str(time)):
        raise ValueError(f"what/{which}date={date}, {which}time={time} is no time like 20241126, 010500")
    d, t = str(date), str(time)
    return np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:]}T{t[:2]}:{t[2:4]}:{t[4:]}", "ns")


def _equals(raw: npt.NDArray[Any], code: Any) -> npt.NDArray[np.bool_]:
    """Where `raw` has the value `code`, in the type of the file: −9999000 is no byte, and 1e30 is a float32."""
    no_such = np.zeros(raw.shape, bool)
    if code is None:
        return no_such
    if raw.dtype.kind in "iu":
        info = np.iinfo(raw.dtype)
        is_one = info.min <= float(code) <= info.max and float(code) == int(code)
        return np.equal(raw, int(code)) if is_one else no_such
    with np.errstate(over="ignore"):
        same: npt.NDArray[np.bool_] = raw == np.asarray(float(code)).astype(raw.dtype)
    return same


def _file_grid(images: list[_Image]) -> Grid:
    """The grid of all `images`; ValueError where they differ."""
    grids = [_grid_of(image.where) for image in images]
    if any(grid is not grids[0] for grid in grids):
        names = ", ".join(image.name for image in images)
        raise ValueError(f"{names} are of different grids. Choose with source.dataset={names.split('/')[0]}")
    return grids[0]


def _grid_of(where: Mapping[str, Any]) -> Grid:
    missing = [name for name in ("projdef", "xsize", "ysize") if name not in where]
    if missing:
        raise ValueError(f"where has no {', '.join(missing)}: nobody can say where the image lies")
    corners = tuple(
        (name, float(where[f"{name}_lon"]), float(where[f"{name}_lat"]))
        for name in CORNERS
        if f"{name}_lon" in where and f"{name}_lat" in where
    )
    sizes = tuple((int(where[f"{axis}size"]), float(where.get(f"{axis}scale", 0.0))) for axis in ("y", "x"))
    return grid_between(str(where["projdef"]), corners, sizes)
