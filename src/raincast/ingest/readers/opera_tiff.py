"""OPERA's composites as cloud-optimised GeoTIFF: as in ODIM HDF5, with ODIM's attributes as GDAL metadata.

Layout, from public readers of EUMETNET's 24 h cache (2026): the description of band 1 names its quantity (CIRRUS:
DBZH, NIMBUS: RATE, ACRR), band 2 is its quality. Pixels are −9999000 without coverage and NaN where a radar
detected nothing (`undetect`). The stated corner is half a pixel too far north-west, as if ODIM's corner were the
centre of a pixel: OPERA's grid has a corner at 0, 0 and pixels of 1 or 2 km.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.rates import bands
from raincast.ingest.readers import ALL, Head, known_step, naming
from raincast.ingest.readers.common.odim_file import nominal_time, scan_attrs, stated_time
from raincast.ingest.readers.common.tiff import find_items, open_raster, raster_grid, zr_items
from raincast.ingest.readers.common.values import choose_zr, equals, rate_of_dbz
from raincast.ingest.readers.odim import ACCUMULATION, QUANTITIES
from raincast.schema import Grid, Meaning
from raincast.transforms import ZR, accumulation_to_rate

FORMAT = "OPERA GeoTIFF"


@dataclass(frozen=True)
class OperaTiff:
    """Reads a composite (reflectivity, rate or depth) in mm/h; conf/source/opera_tiff.yaml has the arguments."""

    step_minutes: float | None = None
    zr_a: float | None = None
    zr_b: float | None = None
    source: str = "EUMETNET OPERA"

    def recognises(self, path: Path) -> bool:
        """Return True for a TIFF with the GDAL metadata of an OPERA composite."""
        said = find_items(path)
        return said.get("object") == "COMP" and "OPERA" in said.get("prodname", "")

    def scan(self, path: Path) -> Head:
        """Return the time and the grid. The format does not state the time between frames."""
        with naming(path, FORMAT), open_raster(path, "GTiff") as dataset:
            quantity = _quantity(dataset)
            times = np.array([_time(dataset, quantity)])
            return Head(times, _grid(dataset), self.step_minutes, _meaning(dataset, quantity))

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read the file's single frame, or none if `frames` is empty."""
        with naming(path, FORMAT), open_raster(path, "GTiff") as dataset:
            quantity = _quantity(dataset)
            time, meaning = _time(dataset, quantity), _meaning(dataset, quantity)
            step = known_step(self.step_minutes, step_minutes, meaning.minutes)
            attrs: dict[str, Any] = {"source": self.source, "title": dataset.tags().get("prodname", quantity)}
            if QUANTITIES[quantity] == "dBZ":
                attrs |= self._zr(dataset)[1]
            return schema.rain_dataset(
                self._rates(dataset, quantity, meaning.minutes)[None][frames],
                np.array([time])[frames],
                _grid(dataset),
                step_minutes=step,
                cell_methods=meaning.cell_methods,
                attrs=attrs | meaning.attrs(step) | scan_attrs(_what(dataset), time),
            )

    def _rates(self, dataset: Any, quantity: str, minutes: float | None) -> npt.NDArray[np.float32]:
        """Return the rates (H, W) in mm/h, NaN for missing, computed in blocks of rows to limit float64 memory."""
        pixels = dataset.read(1)
        if pixels.dtype.kind != "f":
            raise ValueError(f"its pixels are {pixels.dtype}, not floats")
        nodata, undetect = dataset.nodata, float(_item(dataset, "undetect"))
        if nodata is None:
            raise ValueError("it does not state the value of pixels without coverage (GDAL_NODATA)")
        rates = np.empty(pixels.shape, np.float32)
        with np.errstate(over="ignore"):  # `Quality` caps values that are too large
            for rows in bands(pixels.shape):
                part = pixels[rows]
                values = part.astype(np.float64)
                if QUANTITIES[quantity] == "dBZ":
                    values = rate_of_dbz(self._zr(dataset)[0], values)
                elif minutes is not None:
                    values = accumulation_to_rate(values, minutes)
                values[equals(part, undetect)] = 0.0
                values[equals(part, nodata)] = np.nan
                rates[rows] = values
        return rates

    def _zr(self, dataset: Any) -> tuple[ZR, dict[str, Any]]:
        """Return the Z-R relation for the composite, and the attributes that record it in the archive."""
        return choose_zr(zr_items(dataset), self.zr_a, self.zr_b)


def _item(dataset: Any, name: str) -> str:
    """Return an item of GDAL's metadata, of the first band or else of the file."""
    for tags in (dataset.tags(1), dataset.tags()):
        if name in tags:
            return str(tags[name])
    raise ValueError(f"its metadata have no {name}")


def _quantity(dataset: Any) -> str:
    quantity = str((dataset.descriptions or ("",))[0])
    if quantity not in QUANTITIES:
        raise ValueError(f"its first band is {quantity or 'not named'}: raincast reads {', '.join(QUANTITIES)}")
    return quantity


def _meaning(dataset: Any, quantity: str) -> Meaning:
    if quantity != ACCUMULATION:
        return Meaning("momentary", quantity=quantity, from_reflectivity=QUANTITIES[quantity] == "dBZ")
    return Meaning("depth", _minutes(dataset), quantity)


def _time(dataset: Any, quantity: str) -> np.datetime64:
    time = nominal_time(_what(dataset), is_depth=quantity == ACCUMULATION)
    if time is None:
        raise ValueError("its metadata have no enddate and endtime")
    return time


def _what(dataset: Any) -> dict[str, str]:
    """Return the items with dates and times; those of the first band take precedence over the file's."""
    said = dataset.tags() | dataset.tags(1)
    return {
        name: said[name]
        for which in ("", "start", "end")
        for part in ("date", "time")
        if (name := f"{which}{part}") in said
    }


def _minutes(dataset: Any) -> float:
    start, end = (stated_time(_what(dataset), which) for which in ("start", "end"))
    if start is None or end is None:
        raise ValueError("it does not state its accumulation period (startdate, enddate)")
    if end <= start:
        raise ValueError(f"it accumulates from {start} to {end}: not a valid accumulation period")
    return float((end - start) / np.timedelta64(1, "m"))


def _grid(dataset: Any) -> Grid:
    grid = raster_grid(dataset)
    axes = []
    for centres, pixel in ((grid.y, dataset.transform.e), (grid.x, dataset.transform.a)):
        edge = centres[0] - 0.5 * pixel
        # shifted if the edges lie at half pixels
        is_shifted = abs((edge / pixel) % 1.0 - 0.5) < 0.1
        axes.append(np.round(centres + (0.5 * pixel if is_shifted else 0.0)).astype(np.float64))
    return Grid(y=axes[0], x=axes[1], crs_wkt=grid.crs_wkt)
