"""MRMS GRIB2: PrecipRate of NOAA's Multi-Radar/Multi-Sensor System, gzipped or plain.

Values: NSSL's table of local GRIB2 parameters (UserTable_MRMS), discipline 209, category 6, number 1: PrecipRate
in mm/h, −3 no coverage, −1 missing.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.ingest.readers import ALL, Head, known_step, naming
from raincast.ingest.readers.common.tiff import open_raster, raster_grid
from raincast.ingest.readers.common.unpack import first_bytes
from raincast.schema import MOMENTARY

FORMAT = "MRMS GRIB2"
PRECIP_RATE = (209, 6, 1)  # discipline, category, number
CATEGORIES = {2: "lightning", 3: "convection", 6: "precipitation", 8: "quality", 9: "reflectivity"}
CATEGORIES |= {10: "reflectivity", 11: "reflectivity"}
"""Contents of MRMS' own categories. Category 6 also has depths (QPE) and classes (PrecipFlag)."""
ANGLE_DECIMALS = 6  # GRIB2 states corners and spacing in 1e-6 degrees


@dataclass(frozen=True)
class MRMS:
    """Reads PrecipRate in mm/h, one frame per GRIB message; conf/source/mrms.yaml documents the arguments.

    Pixels without coverage are missing. A frame of the whole United States takes 100 MB, and 200 MB more while
    GDAL unpacks it.
    """

    step_minutes: float | None = None
    source: str = "NOAA MRMS"

    def recognises(self, path: Path) -> bool:
        """Return True for GRIB edition 2 with MRMS' own discipline."""
        start = first_bytes(path, 8)
        return len(start) == 8 and start.startswith(b"GRIB") and (start[6], start[7]) == (PRECIP_RATE[0], 2)

    def scan(self, path: Path) -> Head:
        """Return the times and the grid. The format does not state the time between frames."""
        with naming(path, FORMAT), open_raster(path, "GRIB") as dataset:
            times = [_time(dataset, band) for band in _bands(path, dataset)]
            return Head(_as_times(times), raster_grid(dataset, ANGLE_DECIMALS), self.step_minutes, MOMENTARY)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read the messages numbered `frames`; only these are unpacked."""
        with naming(path, FORMAT), open_raster(path, "GRIB") as dataset:
            step = known_step(self.step_minutes, step_minutes, example=2)
            bands = _bands(path, dataset)[frames]
            return schema.rain_dataset(
                _rates(dataset, bands),
                _as_times([_time(dataset, band) for band in bands]),
                raster_grid(dataset, ANGLE_DECIMALS),
                step_minutes=step,
                cell_methods=MOMENTARY.cell_methods,
                attrs={"source": self.source, "title": "PrecipRate"},
            )


def _bands(path: Path, dataset: Any) -> list[int]:
    """Return the numbers of the messages with rain rates. Raises ValueError if there is none."""
    parameters = {band: _parameter(dataset, band) for band in dataset.indexes}
    wanted = [band for band, parameter in parameters.items() if parameter == PRECIP_RATE]
    if not wanted:
        found = {f"{CATEGORIES.get(p[1], 'no rain')} {p}" for p in parameters.values()}
        product = re.search(r"([A-Za-z][A-Za-z0-9_]*?)_\d\d\.\d\d_", path.name.removeprefix("MRMS_"))
        named = f" By its file name it is {product[1]}." if product else ""
        raise ValueError(
            f"it holds no PrecipRate {PRECIP_RATE}; found: {', '.join(sorted(found)) or 'nothing'}.{named} Use "
            "the rain rates: MRMS_PrecipRate_00.00_*.grib2"
        )
    return wanted


def _parameter(dataset: Any, band: int) -> tuple[int, ...]:
    """Return the discipline, category and number of a message."""
    tags = dataset.tags(band)
    # the product definition template begins with category and number
    words = [tags["GRIB_DISCIPLINE"], *tags["GRIB_PDS_TEMPLATE_NUMBERS"].split()[:2]]
    return tuple(map(int, words))


def _time(dataset: Any, band: int) -> np.datetime64:
    """Return the valid time. GDAL gives seconds since 1970; older releases append a unit."""
    seconds = int(dataset.tags(band)["GRIB_VALID_TIME"].split()[0])
    return np.datetime64(seconds, "s")


def _as_times(times: list[np.datetime64]) -> npt.NDArray[np.datetime64]:
    return np.array(times, "datetime64[ns]")


def _rates(dataset: Any, bands: list[int]) -> npt.NDArray[np.float32]:
    """Return the rates (T, H, W) in mm/h, NaN for missing."""
    rates = np.empty((len(bands), dataset.height, dataset.width), np.float32)
    for frame, band in zip(rates, bands, strict=True):
        dataset.read(band, out=frame)
        nodata = dataset.nodatavals[band - 1]
        if nodata is not None:
            frame[frame == np.float32(nodata)] = np.nan
        frame[frame < 0] = np.nan  # no coverage and missing
    return rates
