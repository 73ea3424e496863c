"""ODIM HDF5: composites of OPERA, DMI, DWD, MeteoSwiss, RMI, SMHI and others, versions 2.0 to 2.4.

Format: EUMETNET OPERA weather radar information model for implementation with the HDF5 file format,
versions 2.0.1 (2010) to 2.4 (2021), sections on the attributes of what and where, and the table of quantities.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.packing import warn_once
from raincast.ingest.readers import ALL, HDF5_SIGNATURE, Head, known_step, naming, starts_with
from raincast.ingest.readers.common.odim_file import (
    Image,
    attributes,
    h5py_files,
    images,
    is_odim,
    nominal_time,
    scan_attrs,
)
from raincast.ingest.readers.common.unpack import in_member
from raincast.ingest.readers.common.values import check_gain, choose_zr, equals, is_nan, rate_of_dbz
from raincast.ingest.readers.mch_gif import quality_in_name
from raincast.ingest.readers.polar import POLAR_OBJECTS, refuse
from raincast.schema import Grid, Meaning
from raincast.transforms import ZR, accumulation_to_rate

FORMAT = "ODIM HDF5"
RATE, ACCUMULATION = "RATE", "ACRR"
QUANTITIES = {RATE: "mm/h", ACCUMULATION: "mm", "DBZH": "dBZ", "TH": "dBZ"}
"""Supported quantities, in order of preference, and their units."""
MAP_OBJECTS = ("COMP", "IMAGE")  # objects on a map grid

Convert = Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]
"""A function from stored values to mm/h, of any shape."""

_BLOCK_ROWS = 512  # rows read at once from an image without chunks


@dataclass(frozen=True, eq=False)
class _Frame:
    """An image to read: `name` in the HDF5 file number `file`; `nominal` is the nominal time of that file."""

    file: int
    name: str
    time: np.datetime64
    end: np.datetime64
    nominal: np.datetime64 | None
    meaning: Meaning
    grid: Grid
    quantity: str
    attrs: Mapping[str, Any]


@dataclass(frozen=True)
class ODIM:
    """Reads composites in mm/h; conf/source/odim.yaml documents the arguments.

    `undetect` becomes 0, `nodata` missing. A file may hold images of several times, a tar several files. Forecasts
    are left out, and a file that holds only forecasts is refused.
    """

    quantity: str = "auto"
    dataset: str | None = None
    valid_time: str = "nominal"
    step_minutes: float | None = None
    accumulation_minutes: float | None = None
    zr_a: float | None = None
    zr_b: float | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown quantity or kind of time."""
        if self.quantity not in ("auto", *QUANTITIES):
            raise ValueError(f"source.quantity={self.quantity} is none of auto, {', '.join(QUANTITIES)}.")
        if self.valid_time not in ("end", "nominal"):
            raise ValueError(f"source.valid_time={self.valid_time} is neither end nor nominal.")

    def recognises(self, path: Path) -> bool:
        """Return True for HDF5 with an ODIM object that is not polar; plain, gzipped, bzipped or in a tar."""
        return is_odim(path, without=POLAR_OBJECTS)

    def scan(self, path: Path) -> Head:
        """Return the times and the grid. The format does not state the time between frames."""
        with naming(path, FORMAT):
            frames = self._frames(path)
            quality = quality_in_name(path.name)
            return Head(_times(frames), frames[0].grid, self.step_minutes, frames[0].meaning, quality)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read the frames numbered `frames`, in blocks of rows because continental images are float64."""
        with naming(path, FORMAT):
            listed = self._frames(path)
            first, wanted = listed[0], listed[frames]
            step = known_step(self.step_minutes, step_minutes, first.meaning.minutes)
            rain = np.empty((len(wanted), *first.grid.shape), np.float32)
            with h5py_files(path, {frame.file for frame in wanted}) as files:
                for number, name, file in files:
                    with in_member(name):
                        found = {image.name: image for image in images(file)}
                        for frame, values in zip(wanted, rain, strict=True):
                            if frame.file == number:
                                self._fill(values, found[frame.name], frame.meaning.minutes)
            return schema.rain_dataset(
                rain,
                _times(wanted),
                first.grid,
                step_minutes=step,
                cell_methods=first.meaning.cell_methods,
                attrs={**first.attrs, **first.meaning.attrs(step)},
            )

    def _frames(self, path: Path) -> list[_Frame]:
        """Return the frames to read, in the order of the file; the list of a packed file is cached."""
        if starts_with(path, HDF5_SIGNATURE):
            return self._list(path)
        status = path.stat()
        return _listed(self, path, status.st_size, status.st_mtime_ns)

    def _list(self, path: Path) -> list[_Frame]:
        frames: list[_Frame] = []
        num_images = 0
        with h5py_files(path) as files:
            for number, name, file in files:
                with in_member(name):
                    chosen = self._choose(path, file)
                    num_images += len(chosen)
                    frames += [
                        self._frame(number, image, time)
                        for image, time in zip(chosen, self._times(chosen), strict=True)
                        if not image.is_forecast
                    ]
        # files of one model run share the nominal time of its start: images that end later are forecasts
        runs = Counter(nominal for _, nominal in {(frame.file, frame.nominal) for frame in frames})
        frames = [f for f in frames if f.nominal is None or runs[f.nominal] == 1 or f.end <= f.nominal]
        if not frames:
            raise ValueError(
                f"it holds only forecasts ({num_images}), not observed rain" if num_images else "it is empty"
            )
        kinds = sorted({f"{frame.meaning} on {frame.grid.shape}" for frame in frames})
        if len(kinds) > 1 or any(frame.grid is not frames[0].grid for frame in frames):
            names = ", ".join(dict.fromkeys(frame.name for frame in frames))
            raise ValueError(
                f"{names} have different grids or kinds ({', '.join(kinds)}). Choose one with "
                f"source.dataset={names.split('/')[0]}"
            )
        return frames

    def _frame(self, number: int, image: Image, time: np.datetime64) -> _Frame:
        _gain_and_offset(image)
        end = image.time("end")
        return _Frame(
            file=number,
            name=image.name,
            time=time,
            end=time if end is None else end,
            nominal=image.time(""),
            meaning=self._meaning(image),
            grid=image.grid(),
            quantity=image.quantity,
            attrs=self._attrs(image) | scan_attrs(image.what, time),
        )

    def _choose(self, path: Path, file: Any) -> list[Image]:
        """Return the images of the configured quantity, or of the first in QUANTITIES that the file holds."""
        kind = attributes(file, "what").get("object")
        if kind in POLAR_OBJECTS:
            refuse(path, f"{FORMAT}, object {kind}")
        if kind not in MAP_OBJECTS:
            raise ValueError(f"what/object is {kind}: raincast reads {' and '.join(MAP_OBJECTS)}")
        all_images = list(images(file))
        chosen = [image for image in all_images if self.dataset in (None, image.name.split("/")[0], image.name)]
        for quantity in QUANTITIES if self.quantity == "auto" else (self.quantity,):
            found = [image for image in chosen if image.quantity == quantity]
            if found:
                return found
        listing = ", ".join(f"{image.quantity or 'no quantity'} in {image.name}" for image in all_images)
        known = ", ".join(f"{name} ({unit})" for name, unit in QUANTITIES.items())
        wanted = "" if self.dataset is None else f" in source.dataset={self.dataset}"
        wanted = f"source.quantity={self.quantity}{wanted}" if self.quantity != "auto" else f"rain{wanted}"
        raise ValueError(f"it holds no {wanted}; found: {listing or 'no images'}. raincast reads {known}")

    def _times(self, found: list[Image]) -> list[np.datetime64]:
        """Return the time of each image of a file. Raises ValueError if two are equal."""
        times = [self._time(image) for image in found]
        if len(set(times)) < len(times):  # they share the file's nominal time: use the ends of their intervals
            times = [
                end if (end := image.time("end")) is not None else time
                for image, time in zip(found, times, strict=True)
            ]
        if len(set(times)) < len(times):
            listing = ", ".join(f"{image.name} ({image.what.get('product')})" for image in found)
            raise ValueError(
                f"{len(found)} images of {found[0].quantity} have the same time: {listing}. "
                f"Choose one with source.dataset={found[0].name.split('/')[0]}"
            )
        return times

    def _time(self, image: Image) -> np.datetime64:
        """Return the nominal time, or the end of the interval if configured or if no nominal time is stated."""
        time = image.time("end") if self.valid_time == "end" else None
        if time is None:
            time = nominal_time(image.what, is_depth=image.quantity == ACCUMULATION)
        if time is None:
            raise ValueError("it states neither an end nor a nominal time (what/enddate, what/date)")
        return time

    def _meaning(self, image: Image) -> Meaning:
        """Return momentary, or for ACRR depth over the configured minutes or those from start to end."""
        if image.quantity != ACCUMULATION:
            is_dbz = QUANTITIES[image.quantity] == "dBZ"
            return Meaning("momentary", quantity=image.quantity, from_reflectivity=is_dbz)
        if self.accumulation_minutes is not None:
            return Meaning("depth", self.accumulation_minutes, image.quantity)
        start, end = image.time("start"), image.time("end")
        if start is None or end is None:
            raise ValueError(
                f"{image.name} does not state its accumulation period. Set source.accumulation_minutes=60"
            )
        if start >= end:
            raise ValueError(f"{image.name} starts at {start} and ends at {end}: not a valid accumulation period")
        return Meaning("depth", float((end - start) / np.timedelta64(1, "m")), image.quantity)

    def _fill(self, frame: npt.NDArray[np.float32], image: Image, interval: float | None) -> None:
        """Write the image in mm/h into `frame` (H, W)."""
        data = image.data
        if data.dtype.kind not in "iuf" or data.shape != frame.shape:
            raise ValueError(
                f"{image.name}/data is {data.shape} of {data.dtype}: expected numbers in {frame.shape} "
                "(ysize, xsize)"
            )
        convert = self._converter(image, interval)
        if data.dtype.kind in "iu" and data.dtype.itemsize <= 2:
            convert = _by_table(convert, data.dtype)
        num_rows = data.chunks[0] if data.chunks else _BLOCK_ROWS
        for top in range(0, frame.shape[0], num_rows):
            frame[top : top + num_rows] = convert(data[top : top + num_rows])

    def _converter(self, image: Image, interval: float | None) -> Convert:
        """Return the function from stored values (any shape) to mm/h."""
        gain, offset = _gain_and_offset(image)
        nodata, undetect = image.what.get("nodata"), image.what.get("undetect")
        is_dbz = QUANTITIES[image.quantity] == "dBZ"
        zr = choose_zr(image.how, self.zr_a, self.zr_b)[0] if is_dbz else ZR()
        if nodata is not None and undetect is not None and float(nodata) == float(undetect):
            warn_once(
                f"nodata and undetect of {image.quantity} are both {float(nodata):g}: pixels without echo count "
                "as missing, as those without coverage do"
            )

        def convert(raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
            missing, undetected = equals(raw, nodata), equals(raw, undetect)
            if not is_nan(undetect) or is_nan(nodata):  # NaN is missing unless it only means undetect
                missing |= raw != raw
            measured = ~(missing | undetected)
            rates = np.zeros(raw.shape, np.float32)
            rates[missing] = np.nan
            with np.errstate(over="ignore"):  # `Quality` caps values that are too large
                values = raw[measured].astype(np.float64) * gain + offset
                if is_dbz:
                    # where missing is told by nodata, an undeclared code of no echo remains
                    values = rate_of_dbz(zr, values) if nodata is None else zr.to_rate(values)
                elif interval is not None:
                    values = accumulation_to_rate(values, interval)
                rates[measured] = values
            return rates

        return convert

    def _attrs(self, image: Image) -> dict[str, Any]:
        attrs = {
            "source": self.source or f"ODIM {image.what.get('source', 'of unknown source')}",
            "title": " ".join(
                str(image.what[name]) for name in ("object", "product", "quantity") if name in image.what
            ),
        }
        if QUANTITIES[image.quantity] == "dBZ":
            return attrs | choose_zr(image.how, self.zr_a, self.zr_b)[1]
        return attrs


def _gain_and_offset(image: Image) -> tuple[float, float]:
    """Return gain and offset, 1 and 0 if not stated. Raises ValueError for a gain of 0."""
    gain, offset = float(image.what.get("gain", 1.0)), float(image.what.get("offset", 0.0))
    check_gain(gain, offset)
    return gain, offset


def _times(frames: list[_Frame]) -> npt.NDArray[np.datetime64]:
    return np.array([frame.time for frame in frames], "datetime64[ns]")


@lru_cache(maxsize=4)
def _listed(reader: ODIM, path: Path, size: int, changed: int) -> list[_Frame]:
    """Return the frames of a file; `size` and `changed` (its modification time) are cache keys."""
    return reader._list(path)


def _by_table(convert: Convert, dtype: np.dtype[Any]) -> Convert:
    """Return `convert` as a lookup table, for integers of at most 16 bits."""
    lowest, highest = np.iinfo(dtype).min, np.iinfo(dtype).max
    table = convert(np.arange(lowest, highest + 1).astype(dtype))
    return lambda codes: table[codes.astype(np.intp) - lowest]
