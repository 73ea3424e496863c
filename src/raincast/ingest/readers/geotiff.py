"""GeoTIFF: a series of plain rasters of rain rate, depth or reflectivity, one frame per file.

Such files do not state their quantity, and have their time in the file name: the user configures both.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.packing import unapplied_scale, warn_once
from raincast.archive.rates import bands
from raincast.ingest.readers import ALL, Head, known_step, naming
from raincast.ingest.readers.common.tiff import open_raster, raster_grid, tiff_directory, zr_items
from raincast.ingest.readers.common.values import check_gain, choose_zr, equals, rate_of_dbz
from raincast.ingest.readers.fmi import FMI
from raincast.ingest.readers.opera_tiff import OperaTiff
from raincast.schema import Meaning
from raincast.transforms import ZR, accumulation_to_rate
from raincast.units import parse_unit

FORMAT = "GeoTIFF"
RATE, ACCUMULATION, REFLECTIVITY = "rate", "accumulation", "reflectivity"
QUANTITIES = (RATE, ACCUMULATION, REFLECTIVITY)
GEO_KEYS = 34735  # the tag GeoKeyDirectory (OGC GeoTIFF 1.1), which every GeoTIFF has
DIRECTIVES = {"Y": r"\d{4}", "j": r"\d{3}"} | dict.fromkeys("mdHMSy", r"\d{2}")
"""Pattern of each directive of a time format; names of months (%b) would depend on the locale."""
YEARS = range(1900, 2200)  # digits that give other years are not a time


@dataclass(frozen=True)
class GeoTIFF:
    """Reads one raster per file in mm/h; conf/source/geotiff.yaml documents the arguments."""

    quantity: str | None = None
    time_format: str = "%Y%m%d%H%M"
    time_tag: str | None = None
    time_offset_minutes: float = 0.0
    step_minutes: float | None = None
    accumulation_minutes: float | None = None
    band: int | None = None
    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None
    undetect: float | None = None
    zr_a: float | None = None
    zr_b: float | None = None
    source: str = "GeoTIFF"

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown quantity or a time format that cannot give a date."""
        if self.quantity not in (None, *QUANTITIES):
            raise ValueError(f"source.quantity={self.quantity} is none of {', '.join(QUANTITIES)}.")
        _time_pattern(self.time_format)

    def recognises(self, path: Path) -> bool:
        """Return True for a georeferenced TIFF, gzipped or plain, that is not FMI's or OPERA's."""
        others = FMI(), OperaTiff()
        return GEO_KEYS in tiff_directory(path) and not any(reader.recognises(path) for reader in others)

    def scan(self, path: Path) -> Head:
        """Return the time and the grid. The format does not state the time between frames."""
        with naming(path, FORMAT), open_raster(path, "GTiff") as dataset:
            meaning = self._meaning(self._quantity(dataset))
            return Head(np.array([self._time(path, dataset)]), raster_grid(dataset), self.step_minutes, meaning)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read the file's single frame, or none if `frames` is empty."""
        with naming(path, FORMAT), open_raster(path, "GTiff") as dataset:
            quantity = self._quantity(dataset)
            step = known_step(self.step_minutes, step_minutes, self.accumulation_minutes)
            grid = raster_grid(dataset)
            meaning = self._meaning(quantity).over(step)
            rates = self._rates(dataset, quantity, meaning.minutes or step)
            return schema.rain_dataset(
                rates[None][frames],
                np.array([self._time(path, dataset)])[frames],
                grid,
                step_minutes=step,
                cell_methods=meaning.cell_methods,
                attrs={"source": self.source, "title": f"GeoTIFF {quantity}"}
                | meaning.attrs(step)
                | (self._zr(dataset)[1] if quantity == REFLECTIVITY else {}),
            )

    def _quantity(self, dataset: Any) -> str:
        """Return the quantity, configured or by the band's unit. Raises ValueError if unknown or contradictory."""
        text = dataset.units[self._band(dataset) - 1]
        unit = parse_unit(text)
        if unit is not None and self.quantity not in (None, unit.quantity):
            raise ValueError(
                f"its band is in {text}, a {unit.quantity}, but source.quantity={self.quantity}: set "
                f"source.quantity={unit.quantity}"
            )
        if self.quantity is None and unit is not None:
            return unit.quantity
        if self.quantity is None:
            raise ValueError(
                "it does not state what its values are (mm/h, mm or dBZ): set "
                f"source.quantity={'|'.join(QUANTITIES)}"
            )
        return self.quantity

    def _meaning(self, quantity: str) -> Meaning:
        """Return what the values are over time; only the user knows the period of depths."""
        if quantity == ACCUMULATION:
            return Meaning("depth", self.accumulation_minutes)
        return Meaning("momentary", from_reflectivity=quantity == REFLECTIVITY)

    def _time(self, path: Path, dataset: Any) -> np.datetime64:
        """Return the valid time from the configured tag, or from the file's name."""
        text = path.name
        if self.time_tag is not None:
            tags = dataset.tags()
            if self.time_tag not in tags:
                raise ValueError(f"it has no tag {self.time_tag}; found: {', '.join(sorted(tags)) or 'none'}")
            text = str(tags[self.time_tag])
        times = _find_times(text, self.time_format)
        if len(times) != 1:
            found = " and ".join(map(str, times)) or "none"
            raise ValueError(
                f"{text!r} should hold one time like source.time_format={self.time_format}, found: {found}. "
                "Set a format that fits, with the text around it if needed: source.time_format='rain_%Y%m%d_%H%M'"
            )
        return np.datetime64(times[0] + timedelta(minutes=self.time_offset_minutes), "ns")

    def _rates(self, dataset: Any, quantity: str, interval: float) -> npt.NDArray[np.float32]:
        """Return the rates (H, W) in mm/h, NaN for missing, computed in blocks of rows to limit float64 memory."""
        band = self._band(dataset)
        scale = dataset.scales[band - 1] if self.scale is None else self.scale
        offset = dataset.offsets[band - 1] if self.offset is None else self.offset
        nodata = dataset.nodatavals[band - 1] if self.nodata is None else self.nodata
        check_gain(scale, offset)
        self._check_scale(dataset, band)
        unit = parse_unit(dataset.units[band - 1])
        factor = 1.0 if unit is None else unit.factor
        pixels = dataset.read(band)
        if pixels.dtype.kind not in "iuf":
            raise ValueError(f"its pixels are {pixels.dtype}, not integers or floats")
        if (
            nodata is not None
            and offset + scale * nodata == 0
            and quantity != REFLECTIVITY
            and self.undetect is None
        ):
            warn_once(
                f"The files' code of missing pixels is {nodata:g}, a rate of 0, so pixels without rain count as "
                f"missing. If it means no rain, set source=geotiff source.undetect={nodata:g}"
            )
        outside = self._outside(dataset, band)
        zr = self._zr(dataset)[0] if quantity == REFLECTIVITY else ZR()
        rates = np.empty(pixels.shape, np.float32)
        with np.errstate(over="ignore"):  # undeclared fill values may overflow; infinite is missing in an archive
            for rows in bands(pixels.shape):
                values = (offset + scale * pixels[rows].astype(np.float64)) * factor
                if quantity == REFLECTIVITY:
                    values = rate_of_dbz(zr, values)
                elif quantity == ACCUMULATION:
                    values = accumulation_to_rate(values, interval)
                values[equals(pixels[rows], nodata)] = np.nan
                values[equals(pixels[rows], self.undetect)] = 0.0  # as configured, even if the file says missing
                values[outside[rows]] = np.nan
                rates[rows] = values
        return rates

    def _outside(self, dataset: Any, band: int) -> npt.NDArray[np.bool_]:
        """Return the pixels that a mask or an alpha band of the file leaves out, (H, W)."""
        from rasterio.enums import MaskFlags  # type: ignore[import-untyped]

        if MaskFlags.per_dataset not in dataset.mask_flag_enums[band - 1]:
            return np.zeros(dataset.shape, bool)
        left_out: npt.NDArray[np.bool_] = dataset.read_masks(band) == 0
        return left_out

    def _check_scale(self, dataset: Any, band: int) -> None:
        """Raise ValueError for integers whose tags state a scale that GDAL does not know."""
        if (
            self.scale is not None
            or dataset.scales[band - 1] != 1.0
            or np.dtype(dataset.dtypes[band - 1]).kind == "f"
        ):
            return
        tags = dataset.tags() | dataset.tags(band)
        if found := unapplied_scale({name.lower(): text for name, text in tags.items()}):
            name, value = found
            raise ValueError(
                f"its tag {name} is {value:g}, but its band states no scale: set source.scale={value:g}, or "
                "source.scale=1 if its pixels are scaled already"
            )

    def _band(self, dataset: Any) -> int:
        band = self.band or 1
        if self.band is None and dataset.count != 1:
            raise ValueError(f"it has {dataset.count} bands: choose one with source.band=1")
        if not 1 <= band <= dataset.count:
            raise ValueError(f"it has no band {band}, only {dataset.count}: set source.band")
        return band

    def _zr(self, dataset: Any) -> tuple[ZR, dict[str, Any]]:
        """Return the Z-R relation for reflectivity, and the attributes that record it in the archive."""
        return choose_zr(zr_items(dataset), self.zr_a, self.zr_b)


def _time_pattern(time_format: str) -> str:
    """Return the regex of a time format like %Y%m%d%H%M. Raises ValueError for directives other than digits."""
    pattern, named = "", set()
    for match in re.finditer(r"%(.?)|([^%]+)", time_format):
        directive, literal = match.groups()
        if literal is not None or directive == "%":
            pattern += re.escape(literal or "%")
        elif directive in DIRECTIVES:
            pattern += DIRECTIVES[directive]
            named.add(directive)
        else:
            raise ValueError(f"source.time_format={time_format}: use %{', %'.join(DIRECTIVES)}, not %{directive}.")
    if not named & {"Y", "y"} or not ("j" in named or {"m", "d"} <= named):
        raise ValueError(f"source.time_format={time_format} has no date: write it like %Y%m%d%H%M.")
    return pattern


def _find_times(text: str, time_format: str) -> list[datetime]:
    """Return the distinct times in `text` that no further digit touches; if there is none, the first of all."""
    pattern = _time_pattern(time_format)
    for before, after in ((r"(?<!\d)", r"(?!\d)"), ("", "")):
        times: list[datetime] = []
        for match in re.finditer(rf"(?={before}({pattern}){after})", text):  # matches may overlap
            try:
                time = datetime.strptime(match[1], time_format)
            except ValueError:  # digits that are not a date
                continue
            if time not in times and time.year in YEARS:
                times.append(time)
        if times:
            return times if before else times[:1]
    return []
