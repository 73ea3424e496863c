"""KNMI HDF5: accumulations of the Dutch composite (RAD_NL25_*, HDF5 tag version 3).

Format: H. Roozekrans and I. Holleman, KNMI HDF5 data format specification, v3.5.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.limits import check_image, open_hdf5
from raincast.ingest.readers import ALL, Head, hdf5_has, naming
from raincast.ingest.readers.common.values import check_gain
from raincast.projection import crs_in_metres
from raincast.schema import Grid, Meaning
from raincast.transforms import accumulation_to_rate

FORMAT = "KNMI HDF5"
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_METRES = {"KM": 1000.0, "M": 1.0}


@dataclass(frozen=True)
class KNMI:
    """Reads one accumulation per file as the mean rate in mm/h over the interval that ends at its time.

    Pixels with the code for missing data or for out-of-image are missing.
    """

    image: str = "image1"
    step_minutes: float | None = None
    source: str = "KNMI"

    def recognises(self, path: Path) -> bool:
        """Return True for HDF5 with KNMI's groups."""
        names = ("overview", "geographic/map_projection", self.image)
        return hdf5_has(path, lambda file: all(name in file for name in names))

    def scan(self, path: Path) -> Head:
        """Return the time, grid and step of the file."""
        with naming(path, FORMAT), open_hdf5(path) as file:
            _check_product(file, self.image)
            start, end = _interval(file)
            interval = _minutes(start, end)
            meaning = Meaning("depth", interval, _product(file))
            return Head(np.array([end]), _file_grid(file), self.step_minutes or interval, meaning)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read the file's single frame, or none if `frames` is empty. The file states its own step."""
        with naming(path, FORMAT), open_hdf5(path) as file:
            _check_product(file, self.image)
            start, end = _interval(file)
            interval = _minutes(start, end)
            meaning, step = Meaning("depth", interval), self.step_minutes or interval
            rain = _rates(file[self.image], interval)
            return schema.rain_dataset(
                rain[None][frames],
                np.array([end])[frames],
                _file_grid(file),
                step_minutes=step,
                cell_methods=meaning.cell_methods,
                attrs={"source": self.source, "title": _product(file)} | meaning.attrs(step),
            )


def _value(group: Any, name: str) -> Any:
    """Return an attribute as a scalar; KNMI writes some as arrays of one element."""
    if name not in group.attrs:
        raise ValueError(f"the group {group.name} has no attribute {name}")
    return np.ravel(group.attrs[name])[0]


def _text(group: Any, name: str) -> str:
    value = _value(group, name)
    return value.decode("ascii").strip("\0 ") if isinstance(value, bytes) else str(value)


def _product(file: Any) -> str:
    return _text(file["overview"], "product_group_name")


def _check_product(file: Any, name: str) -> None:
    """Raise ValueError for nowcasts and for products other than depths: reflectivity (PCP), echo tops (ETH).

    A nowcast (RAD_NL25_RAC_FM) has one depth per lead time, while the file's times are those of the run.
    """
    quantity = _text(file[name], "image_geo_parameter")
    if "[MM]" not in quantity.upper():
        overview = file["overview"]
        product = _text(overview, "product_group_name") if "product_group_name" in overview.attrs else "not named"
        raise ValueError(
            f"{file[name].name} holds {quantity} (product {product}): raincast reads KNMI's accumulations in "
            "[MM]. Use RAD_NL25_RAC or RAD_NL25_RAP"
        )
    images = [file[name] for name in file if re.fullmatch(r"image\d+", name)]
    valid = [image.name for image in images if "image_datetime_valid" in image.attrs]
    if len(valid) > 1:
        raise ValueError(
            f"it holds {len(valid)} images with their own valid times: these are forecasts, not observed rain"
        )


def _interval(file: Any) -> tuple[np.datetime64, np.datetime64]:
    """Return the start and end of the accumulation."""
    overview = file["overview"]
    start, end = (_parse_time(_text(overview, f"product_datetime_{name}")) for name in ("start", "end"))
    if start >= end:
        raise ValueError(f"it starts at {start} and ends at {end}: not a valid accumulation period")
    return start, end


def _parse_time(text: str) -> np.datetime64:
    """Parse '26-AUG-2010;07:35:00.000' to datetime64. A table has the months, because %b depends on the locale."""
    match = re.fullmatch(r"(\d+)-([A-Z]{3})-(\d{4});(\d\d:\d\d:\d\d(?:\.\d+)?)", text.upper())
    if match is None or match[2] not in _MONTHS:
        raise ValueError(f"{text!r} is not a time like 26-AUG-2010;07:35:00.000")
    month = _MONTHS.index(match[2]) + 1
    return np.datetime64(f"{match[3]}-{month:02d}-{int(match[1]):02d}T{match[4]}", "ns")


def _minutes(start: np.datetime64, end: np.datetime64) -> float:
    return float((end - start) / np.timedelta64(1, "m"))


def _rates(image: Any, interval_minutes: float) -> npt.NDArray[np.float32]:
    """Return the rates (H, W) in mm/h, NaN for missing."""
    data = image["image_data"]
    if data.dtype not in (np.uint8, np.uint16) or data.ndim != 2:
        raise ValueError(f"image_data is {data.ndim}-D {data.dtype}, not 2-D uint8 or uint16")
    check_image(*data.shape)
    codes = data[()]
    calibration = image["calibration"]
    scale, offset = _parse_formula(_text(calibration, "calibration_formulas"))
    # compute in float64, then round to the nearest float32, so that a rate equal to a threshold reaches it
    depth_mm = np.arange(np.iinfo(codes.dtype).max + 1) * scale + offset
    table: npt.NDArray[np.float32] = accumulation_to_rate(depth_mm, interval_minutes).astype(np.float32)
    for name in ("missing_data", "out_of_image"):
        table[int(_value(calibration, f"calibration_{name}"))] = np.nan
    rates: npt.NDArray[np.float32] = table[codes]
    return rates


def _parse_formula(text: str) -> tuple[float, float]:
    """Parse 'GEO=0.01*PV+0.0' to (0.01, 0.0)."""
    number = r"[-+]?[\d.]+(?:[eE][-+]?\d+)?"
    match = re.fullmatch(rf"GEO=({number})\*PV(?:\+?({number}))?", text.replace(" ", ""))
    if match is None:
        raise ValueError(f"the calibration formula {text!r} is not like GEO=0.01*PV+0.0")
    scale, offset = float(match[1]), float(match[2] or 0.0)
    check_gain(scale, offset)
    return scale, offset


def _file_grid(file: Any) -> Grid:
    geographic = file["geographic"]
    units = _text(geographic, "geo_dim_pixel").upper().split(",")
    if not set(units) <= set(_METRES):
        raise ValueError(f"geo_dim_pixel is {units}: raincast knows {', '.join(_METRES)}")
    axes = tuple(
        (
            float(_value(geographic, f"geo_{line}_offset")),
            float(_value(geographic, f"geo_pixel_size_{axis}")) * _METRES[unit],
            int(_value(geographic, f"geo_number_{line}s")),
        )
        for line, axis, unit in (("row", "y", units[-1]), ("column", "x", units[0]))
    )
    check_image(*(number for _, _, number in axes))
    corner = 0.5 if _text(geographic, "geo_pixel_def").upper() == "LU" else 0.0
    return _grid(axes, corner, _text(geographic["map_projection"], "projection_proj4_params"))


@lru_cache(maxsize=16)
def _grid(axes: tuple[tuple[float, float, int], ...], corner: float, proj4: str) -> Grid:
    """Return the grid in metres. Offsets count pixels from the projection's origin to the first one's `corner`."""
    y, x = (size * (offset + corner + np.arange(number, dtype=np.float64)) for offset, size, number in axes)
    # some products write 'y_0=0' without the plus
    return Grid(y=y, x=x, crs_wkt=crs_in_metres(" ".join(f"+{word.lstrip('+')}" for word in proj4.split()))[0])
