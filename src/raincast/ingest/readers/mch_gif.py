"""MeteoSwiss GIF: accumulations of the Swiss composite (AQC, CPC), one colour per code.

The file states neither the scale of the codes nor the grid; both are from pysteps, `import_mch_gif` (Pulkkinen et
al. 2019). Product, time and accumulation period are in the file's comment and in its name.
"""

import io
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.limits import read_all
from raincast.ingest.readers import ALL, Head, naming
from raincast.ingest.readers.common.unpack import first_bytes
from raincast.projection import crs_in_metres
from raincast.schema import Grid, Meaning
from raincast.transforms import ZR, accumulation_to_rate

FORMAT = "MeteoSwiss GIF"
PRODUCTS = ("AQC", "CPC")
SHAPE = (640, 710)
WEST, NORTH, PIXEL = 255_000.0, 480_000.0, 1000.0  # outer edges, m of CH1903 / LV03
CRS_CODE = "EPSG:21781"
NO_DATA, FIRST_WET, LAST_WET = 255, 2, 250

# codes are steps of 0.5 dBZ; R in Z = 316·R^1.5 is here the depth in mm over 5 min
SCALE = ZR(a=316.0, b=1.5, dry_dbz=-100.0)
MINUTES = 5.0  # the scale for other periods is not published
MEANING = Meaning("depth", MINUTES)


@dataclass(frozen=True)
class MCHGif:
    """Reads one 5 min accumulation per file as the mean rate in mm/h over the interval that ends at its time.

    Set `step_minutes` for files that are further apart.
    """

    step_minutes: float | None = None
    source: str = "MeteoSwiss"

    def recognises(self, path: Path) -> bool:
        """Return True for a GIF with MeteoSwiss' comment or the size of its composite."""
        start = first_bytes(path, 4096)
        if not start.startswith((b"GIF87a", b"GIF89a")) or len(start) < 10:
            return False
        width, height = (int.from_bytes(start[i : i + 2], "little") for i in (6, 8))
        return (height, width) == SHAPE or b"meteoswiss" in start.lower()

    def scan(self, path: Path) -> Head:
        """Return the time, grid and step of the file."""
        with naming(path, FORMAT), _open(path) as image:
            times = np.array([_time(path, image)])
            quality = quality_in_name(path.name)
            meaning = replace(MEANING, quantity=path.name[:3])
            return Head(times, _grid(), self.step_minutes or MINUTES, meaning, quality)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read the file's single frame, or none if `frames` is empty."""
        with naming(path, FORMAT), _open(path) as image:
            step = self.step_minutes or MINUTES
            return schema.rain_dataset(
                _rates(image)[None][frames],
                np.array([_time(path, image)])[frames],
                _grid(),
                step_minutes=step,
                cell_methods=MEANING.cell_methods,
                attrs={"source": self.source, "zr_a": SCALE.a, "zr_b": SCALE.b} | MEANING.attrs(step),
            )


def quality_in_name(name: str) -> float:
    """Return the quality digit of a CombiPrecip name, CPC2335513304_00060.001.h5: 0 to 9, the best; else 0."""
    match = re.match(r"CPC\d{9}(\d)_\d{5}\.", name, re.IGNORECASE)
    return float(match[1]) if match else 0.0


def _open(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with path.open("rb") as file:
            image = Image.open(io.BytesIO(read_all(file)), formats=("GIF",))
    except UnidentifiedImageError as error:
        raise ValueError("it is not a GIF, or its beginning is damaged") from error
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    if (image.height, image.width) != SHAPE:
        raise ValueError(
            f"it has {image.height} × {image.width} pixels, the Swiss composite {SHAPE[0]} × {SHAPE[1]}. The file "
            "does not state its grid"
        )
    return image


def _time(path: Path, image: Any) -> np.datetime64:
    """Return the end of the accumulation, from the comment or the name. Raises ValueError for other products."""
    comment = image.info.get("comment", b"")
    comment = comment.decode("latin-1") if isinstance(comment, bytes) else str(comment)
    stamp = re.search(r"PRDT=([A-Z]{3})(\d{2})(\d{3})(\d{2})(\d{2})", comment)
    stamp = stamp or re.match(r"([A-Z]{3})(\d{2})(\d{3})(\d{2})(\d{2})", path.name)
    minutes = re.search(r"ACCUm=(\d+)", comment) or re.search(r"_(\d{5})\.", path.name)
    if stamp is None or minutes is None:
        raise ValueError(
            "neither its comment nor its name states product, time and minutes, as in AQC151351545F_00005.801.gif "
            "(AQC, 2015, day 135, 15:45, 5 min)"
        )
    if stamp[1] not in PRODUCTS:
        raise ValueError(f"it is the product {stamp[1]}, on another scale: raincast reads {', '.join(PRODUCTS)}")
    if int(minutes[1]) != MINUTES:
        raise ValueError(f"it accumulates over {int(minutes[1])} min: raincast reads depths over {MINUTES:g} min")
    return _parse_time(*map(int, stamp.groups()[1:]))


def _parse_time(year: int, day: int, hour: int, minute: int) -> np.datetime64:
    """Convert a two-digit year, the day of the year (from 1), hour and minute to datetime64."""
    new_year = np.datetime64(f"20{year:02d}-01-01", "ns")
    time = new_year + np.timedelta64(day - 1, "D") + np.timedelta64(60 * hour + minute, "m")
    if day < 1 or hour > 23 or minute > 59 or time >= np.datetime64(f"20{year + 1:02d}-01-01", "ns"):
        raise ValueError(f"day {day}, {hour}:{minute} is not a time in 20{year:02d}")
    return time


def _rates(image: Any) -> npt.NDArray[np.float32]:
    """Return the rates (H, W) in mm/h, NaN for missing."""
    if image.mode != "P":
        raise ValueError(f"its pixels have mode {image.mode}, not a palette of colours")
    indices = np.asarray(image)
    codes = np.arange(256)
    wet = (codes >= FIRST_WET) & (codes <= LAST_WET)
    depth_mm = np.where(wet, SCALE.to_rate((codes - 71.5) / 2), 0.0)
    table = accumulation_to_rate(depth_mm, MINUTES).astype(np.float32)
    table[NO_DATA] = np.nan
    rates: npt.NDArray[np.float32] = table[_codes_of_palette(image, indices)][indices]
    return rates


def _codes_of_palette(image: Any, indices: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
    """Return the code of each palette entry, shape (256,): white to red is 0 to 254, black is no data.

    MeteoSwiss' palette is in the order of the codes. A file that was saved again keeps only the colours.
    """
    flat = image.getpalette("RGB") or []
    colours = np.full((256, 3), -1, np.intp)
    colours[: len(flat) // 3] = np.reshape(flat, (-1, 3))
    red, green, blue = colours.T
    is_black, is_red = (colours == 0).all(axis=1), (red == 255) & (green == blue)
    unknown = np.unique(indices[~(is_black | is_red)[indices]])
    if unknown.size:
        raise ValueError(
            f"its colours are not those of MeteoSwiss' scale, e.g. {tuple(map(int, colours[unknown[0]]))}"
        )
    return np.where(is_red, 255 - green, NO_DATA)


@lru_cache(maxsize=1)
def _grid() -> Grid:
    """Return the grid of the Swiss radar domain, rows from north to south."""
    height, width = SHAPE
    return Grid(
        y=NORTH - PIXEL * (np.arange(height, dtype=np.float64) + 0.5),
        x=WEST + PIXEL * (np.arange(width, dtype=np.float64) + 0.5),
        crs_wkt=crs_in_metres(CRS_CODE)[0],
    )
