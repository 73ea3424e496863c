"""GeoTIFF: a series of plain rasters of rain rate, depth or reflectivity, one frame a file.

Such files do not say what their numbers are, and say when in their names: both are the user's to state.
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
from raincast.archive.codes import bands
from raincast.ingest.readers import ALL, Head, naming
from raincast.ingest.readers.common.tiff import open_raster, raster_grid, zr_items
from raincast.ingest.readers.common.tiff_items import tiff_directory
from raincast.ingest.readers.common.values import check_gain, choose_zr, equals
from raincast.ingest.readers.fmi import FMI
from raincast.ingest.readers.opera_tiff import OperaTiff
from raincast.schema import MOMENTARY, Grid, Meaning
from raincast.transforms import ZR, accumulation_to_rate
from raincast.units import parse_unit

FORMAT = "GeoTIFF"
RATE, ACCUMULATION, REFLECTIVITY = "rate", "accumulation", "reflectivity"
QUANTITIES = (RATE, ACCUMULATION, REFLECTIVITY)
GEO_KEYS = 34735  # the tag GeoKeyDirectory (OGC GeoTIFF 1.1): what makes a TIFF a GeoTIFF
MAX_PIXELS = 10**8  # four times the United States in 0.01 degrees: more is a spoilt size
DIRECTIVES = {"Y": r"\d{4}", "j": r"\d{3}"} | dict.fromkeys("mdHMSy", r"\d{2}")
"""Digits of each directive of a time format: words (%b) would depend on the user's language."""
YEARS = range(1900, 2200)  # other digits count something else


@dataclass(frozen=True)
class GeoTIFF:
    """One raster a file → mm/h; conf/source/geotiff.yaml says what the arguments do."""

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
        """Refuse an unknown quantity, and a time format that no digits could fill."""
        if self.quantity not in (None, *QUANTITIES):
            raise ValueError(f"source.quantity={self.quantity} is none of {', '.join(QUANTITIES)}.")
        _time_pattern(self.time_format)

    def recognises(self, path: Path) -> bool:
        """A TIFF, gzipped or plain, that knows where it lies, and not one of FMI's or OPERA's."""
        others = FMI(), OperaTiff()
        return GEO_KEYS in tiff_directory(path) and not any(reader.recognises(path) for reader in others)

    def scan(self, path: Path) -> Head:
        """Time and grid; the format does not state the time between frames."""
        with naming(path, FORMAT), open_raster(path, "GTiff") as dataset:
            meaning = self._meaning(self._quantity(dataset))
            return Head(np.array([self._time(path, dataset)]), _grid(dataset), self.step_minutes, meaning)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """The file's one frame (`frames` may leave none)."""
        with naming(path, FORMAT), open_raster(path, "GTiff") as dataset:
            quantity = self._quantity(dataset)
            step = self.step_minutes or step_minutes or self.accumulation_minutes
            if step is None:
                raise ValueError("it states no step. Give it with source.step_minutes=5")
            grid = _grid(dataset)
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
        """As told, or as the unit of the band says; ValueError where neither does, or where they differ."""
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
                "it does not say what its values are (mm/h, mm or dBZ): set "
                f"source.quantity={'|'.join(QUANTITIES)}"
            )
        return self.quantity

    def _meaning(self, quantity: str) -> Meaning:
        """What the values are over time; of depths only the user can say the period."""
        return Meaning("depth", self.accumulation_minutes) if quantity == ACCUMULATION else MOMENTARY

    def _time(self, path: Path, dataset: Any) -> np.datetime64:
        """The valid time: of the tag that is named, else of the file's name."""
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
                "Set one that fits, with what stands beside it if need be: source.time_format='rain_%Y%m%d_%H%M'"
            )
        return np.datetime64(times[0] + timedelta(minutes=self.time_offset_minutes), "ns")

    def _rates(self, dataset: Any, quantity: str, interval: float) -> npt.NDArray[np.float32]:
        """(H, W) in mm/h, NaN where missing; a few rows at a time, for in float64 an image takes much room."""
        band = self._band(dataset)
        scale = dataset.scales[band - 1] if self.scale is None else self.scale
        offset = dataset.offsets[band - 1] if self.offset is None else self.offset
        nodata = dataset.nodatavals[band - 1] if self.nodata is None else self.nodata
        check_gain(scale, offset)
        unit = parse_unit(dataset.units[band - 1])
        factor = 1.0 if unit is None else unit.factor
        pixels = dataset.read(band)
        if pixels.dtype.kind not in "iuf":
            raise ValueError(f"its pixels are {pixels.dtype}, no numbers of rain")
        zr = self._zr(dataset)[0] if quantity == REFLECTIVITY else ZR()
        rates = np.empty(pixels.shape, np.float32)
        with np.errstate(over="ignore"):  # of fill values that nobody stated: infinite is missing in an archive
            for rows in bands(pixels.shape):
                values = (offset + scale * pixels[rows].astype(np.float64)) * factor
                if quantity == REFLECTIVITY:
                    values = zr.to_rate(values)
                elif quantity == ACCUMULATION:
                    values = accumulation_to_rate(values, interval)
                values[equals(pixels[rows], self.undetect)] = 0.0
                values[equals(pixels[rows], nodata)] = np.nan
                rates[rows] = values
        return rates

    def _band(self, dataset: Any) -> int:
        band = self.band or 1
        if self.band is None and dataset.count != 1:
            raise ValueError(f"it has {dataset.count} bands: choose one with source.band=1")
        if not 1 <= band <= dataset.count:
            raise ValueError(f"it has no band {band}, but {dataset.count}: set source.band")
        return band

    def _zr(self, dataset: Any) -> tuple[ZR, dict[str, Any]]:
        """The Z-R relation of a reflectivity, and what an archive says of it."""
        return choose_zr(zr_items(dataset), self.zr_a, self.zr_b)


def _grid(dataset: Any) -> Grid:
    if dataset.height * dataset.width > MAX_PIXELS:
        raise ValueError(f"its size is {dataset.height} × {dataset.width}: at most {MAX_PIXELS} pixels are read")
    return raster_grid(dataset)


def _time_pattern(time_format: str) -> str:
    """The regular expression of a time format like %Y%m%d%H%M; ValueError for other than digits."""
    pattern, named = "", set()
    for match in re.finditer(r"%(.?)|([^%]+)", time_format):
        directive, literal = match.groups()
        if literal is not None or directive == "%":
            pattern += re.escape(literal or "%")
        elif directive in DIRECTIVES:
            pattern += DIRECTIVES[directive]
            named.add(directive)
        else:
            raise ValueError(
                f"source.time_format={time_format}: known are %{', %'.join(DIRECTIVES)}, not %{directive}."
            )
    if not named & {"Y", "y"} or not ("j" in named or {"m", "d"} <= named):
        raise ValueError(f"source.time_format={time_format} names no day: write it like %Y%m%d%H%M.")
    return pattern


def _find_times(text: str, time_format: str) -> list[datetime]:
    """The different times in `text`: those that no digit touches, or else the first."""
    pattern = _time_pattern(time_format)
    for before, after in ((r"(?<!\d)", r"(?!\d)"), ("", "")):
        times: list[datetime] = []
        for match in re.finditer(rf"(?={before}({pattern}){after})", text):  # they may overlap
            try:
                time = datetime.strptime(match[1], time_format)
            except ValueError:  # digits that are no date
                continue
            if time not in times and time.year in YEARS:
                times.append(time)
        if times:
            return times if before else times[:1]
    return []
