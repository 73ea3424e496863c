"""DWD RADOLAN and RADVOR composites in their binary format: an ASCII header up to ETX, then the pixels.

Format: DWD, RADOLAN/RADVOR-OP Kompositformat, as documented by wradlib (Heistermann et al. 2013) and its RADOLAN
guide. Grids and the two Earth models: DWD, Radarkomposits - Projektionen und Gitter, 1.01 (2022).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.ingest.readers import ALL, Head, naming
from raincast.ingest.readers.common.unpack import (
    Stream,
    at_end,
    first_bytes_inside,
    in_member,
    read_exactly,
    unpacked,
)
from raincast.ingest.readers.common.values import choose_zr
from raincast.projection import crs_in_metres
from raincast.schema import Grid, Meaning
from raincast.transforms import ZR, accumulation_to_rate

FORMAT = "DWD RADOLAN"
REFLECTIVITY = ("RX", "WX", "EX", "WN")
DEPTH = (*("RY", "RZ", "YW", "RV", "EY", "EZ"), *("RW", "RH", "RB", "RL", "RU", "RQ", "EW", "EH", "EB"))
ZR_DWD = ZR(256.0, 1.42)
COMPOSITE = "10000"  # in the field that has a radar's WMO number in other products

# masks of a two-byte pixel; bit 13 (from a second source, such as gauges in RW) is ignored
VALUE, NO_DATA, NEGATIVE, CLUTTER = 0x0FFF, 0x2000, 0x4000, 0x8000
CLUTTER_CODE = 2490  # the value of clutter pixels without a measurement
CODES_OF_A_BYTE = 249  # one-byte codes from here on are clutter, no data or unused

# (rows, columns) of 1 km pixels → how many of them are south and west of the reference point
REFERENCE = 9.0, 51.0  # longitude and latitude, the same on both Earth models
GRIDS = {(900, 900): (450, 450), (1100, 900): (550, 370), (1200, 1100): (600, 470), (1500, 1400): (800, 600)}
PIXEL = 1000.0
SPHERE, WGS84 = "+R=6370040", "+datum=WGS84"
FIRST_WGS84_VERSION = 5

_ETX = b"\x03"
_MOST_HEADER_BYTES = 2048
_START = re.compile(rb"[A-Z]{2}\d{15}BY *\d")
_HEADER = re.compile(
    r"(?P<product>[A-Z]{2})(?P<day>\d\d)(?P<hour>\d\d)(?P<minute>\d\d)(?P<site>\d{5})(?P<month>\d\d)(?P<year>\d\d)"
    r"BY *\d+VS *(?P<version>\d+)SW.{1,12}?PR *(?P<precision>E[+-]\d\d)"
    r"INT *(?P<interval>\d+)(?:U *(?P<unit>\d))?GP *(?P<rows>\d+)x *(?P<columns>\d+)(?P<rest>.*)"
)


@dataclass(frozen=True)
class RADOLAN:
    """Reads a depth or reflectivity product per file, or several in a tar, in mm/h; see conf/source/radolan.yaml.

    The header's time is the end of a depth's period. Hourly depths may come every 10 min: their rates are running
    means over more than the step, which the archive's `accumulation_minutes` records. Forecasts (VV above 0) in a
    tar are left out; a file that holds only forecasts is refused.
    """

    step_minutes: float | None = None
    keep_clutter: bool = False
    zr_a: float | None = None
    zr_b: float | None = None
    source: str = "DWD"

    def recognises(self, path: Path) -> bool:
        """Return True if the file, or a member of a tar, begins with a RADOLAN header."""
        return any(_START.match(start) for start in first_bytes_inside(path, 32))

    def scan(self, path: Path) -> Head:
        """Return the times, the grid and the step; the step of hourly depths is unknown."""
        with naming(path, FORMAT), unpacked(path) as files:
            headers = [header for _, header, _ in _analyses(files)]
            return Head(
                np.array([header.time for header in headers]),
                _grid(headers[0].shape, headers[0].earth),
                self.step_minutes or (headers[0].minutes if headers[0].minutes < 60 else None),
                headers[0].meaning,
            )

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read the products numbered `frames`; a compressed tar is unpacked up to the last of them."""
        with naming(path, FORMAT), unpacked(path) as files:
            products = _analyses(files)
            first = next(products)
            header = first[1]
            zr, said = choose_zr({}, self.zr_a, self.zr_b, default=ZR_DWD)
            read = [
                (own.time, _rates(name, own, stream, zr, self.keep_clutter))
                for name, own, stream in islice(chain([first], products), frames.start, frames.stop, frames.step)
            ]
            step = self.step_minutes or step_minutes or header.minutes
            attrs = {"source": self.source, "title": f"{header.product} composite"}
            return schema.rain_dataset(
                np.array([rates for _, rates in read], np.float32).reshape(-1, *header.shape),
                np.array([time for time, _ in read], "datetime64[ns]"),
                _grid(header.shape, header.earth),
                step_minutes=step,
                cell_methods=header.meaning.cell_methods,
                attrs=attrs | header.meaning.attrs(step) | ({} if header.is_depth else said),
            )


@dataclass(frozen=True)
class _Header:
    """The header, `size` bytes before the pixels. A value times `precision` is in mm, or in steps of 0.5 dBZ."""

    product: str
    time: np.datetime64
    shape: tuple[int, int]
    pixel_bytes: int
    size: int
    earth: str
    precision: float
    minutes: float
    lead_minutes: int

    @property
    def is_depth(self) -> bool:
        return self.product in DEPTH

    @property
    def meaning(self) -> Meaning:
        if self.is_depth:
            return Meaning("depth", self.minutes, self.product)
        return Meaning("momentary", quantity=self.product, from_reflectivity=True)

    @property
    def kind(self) -> str:
        """Return the properties that all products in one file must share."""
        return f"{self.product}, {self.shape[0]}x{self.shape[1]}, {self.minutes:g} min, {self.earth}"


def _analyses(files: Iterator[tuple[str, Stream]]) -> Iterator[tuple[str, _Header, Stream]]:
    """Yield the products that are not forecasts, each with its stream at the first pixel. ValueError if none."""
    first: _Header | None = None
    leads = []
    for name, stream in files:
        with in_member(name):
            header = _parse(stream.read(_MOST_HEADER_BYTES))
            if header.lead_minutes:
                leads.append(header.lead_minutes)
                continue
            first = first or header
            if header.kind != first.kind:
                raise ValueError(f"it is {header.kind}, but the first is {first.kind}: split the tar")
            stream.seek(header.size)
        yield name, header, stream
    if first is None and leads:
        raise ValueError(f"it holds only forecasts (VV {min(leads)} min and more), not observed rain")
    if first is None:
        raise ValueError("it is a tar without files")


def _parse(start: bytes) -> _Header:
    text, etx, _ = start.partition(_ETX)
    match = _HEADER.fullmatch(text.decode("ascii", "replace"))
    if match is None or not etx:
        raise ValueError(
            f"it begins with {start[:40]!r}: not a RADOLAN header like RW010050100000119BY1620130VS 3SW …"
        )
    said = match.groupdict()
    product, shape = said["product"], (int(said["rows"]), int(said["columns"]))
    _check(product, said["site"], shape)
    lead = re.search(r"VV *(\d+)", said["rest"].partition("MS")[0])
    return _Header(
        product=product,
        time=np.datetime64("20{year}-{month}-{day}T{hour}:{minute}".format(**said), "ns"),
        shape=shape,
        pixel_bytes=1 if product in REFLECTIVITY and product != "WN" else 2,
        size=len(text) + len(etx),
        earth=WGS84 if int(said["version"]) >= FIRST_WGS84_VERSION else SPHERE,
        precision=_precision(said["precision"]),
        minutes=_minutes(int(said["interval"]), said["unit"]),
        lead_minutes=int(lead[1]) if lead else 0,
    )


def _check(product: str, site: str, shape: tuple[int, int]) -> None:
    """Raise ValueError for products other than rain, single radars, and unknown grids."""
    if product == "DX":
        raise ValueError("it is a sweep of one radar (DX): use source=polar to see how to grid such files")
    if product not in REFLECTIVITY + DEPTH:
        raise ValueError(f"it is the product {product}: raincast reads {', '.join(REFLECTIVITY + DEPTH)}")
    if site != COMPOSITE:
        raise ValueError(f"it is from the radar {site}: raincast reads only composites ({COMPOSITE})")
    if shape not in GRIDS:
        known = ", ".join(f"{rows}x{columns}" for rows, columns in GRIDS)
        raise ValueError(f"its grid is {shape[0]}x{shape[1]} (GP): raincast knows {known}")


def _precision(text: str) -> float:
    """Parse 'E-01' to 0.1."""
    if text not in ("E+00", "E-00", "E-01", "E-02", "E-03"):
        raise ValueError(f"its precision is {text} (PR), not E-00 to E-03")
    return float(f"1{text}")


def _minutes(interval: int, unit: str | None) -> float:
    if unit not in (None, "0") or not 0 < interval <= 60:
        raise ValueError(f"its interval is {interval}, unit {unit or 0} (INT, U): raincast reads up to 60 min")
    return float(interval)


def _rates(name: str, header: _Header, stream: Stream, zr: ZR, keep_clutter: bool) -> npt.NDArray[np.float32]:
    """Return the rates (H, W) in mm/h, NaN for missing."""
    height, width = header.shape
    with in_member(name):
        content = read_exactly(stream, height * width * header.pixel_bytes)
        if not at_end(stream):
            raise ValueError("it continues after its last pixel")
    codes = np.frombuffer(content, f"<u{header.pixel_bytes}").reshape(header.shape)
    scale = header.precision, header.minutes if header.is_depth else None
    rates: npt.NDArray[np.float32] = _table(header.pixel_bytes, *scale, zr, keep_clutter)[codes]
    return rates


@lru_cache(maxsize=4)
def _table(
    pixel_bytes: int, precision: float, minutes: float | None, zr: ZR, keep_clutter: bool
) -> npt.NDArray[np.float32]:
    """Return the rate of every code; without `minutes`, codes are steps of 0.5 dBZ from −32.5 dBZ (RVP6)."""
    codes = np.arange(256**pixel_bytes)
    values = codes & VALUE
    if minutes is None:
        rates = zr.to_rate(0.5 * precision * values - 32.5)
    else:
        rates = accumulation_to_rate(precision * values, minutes)
    if pixel_bytes == 1:
        rates[codes >= CODES_OF_A_BYTE] = np.nan
    else:
        clutter = (codes & CLUTTER) > 0
        rates[(codes & (NO_DATA | NEGATIVE)) > 0] = np.nan
        rates[clutter & (values == CLUTTER_CODE) if keep_clutter else clutter] = np.nan
    return rates.astype(np.float32)


@lru_cache(maxsize=8)
def _grid(shape: tuple[int, int], earth: str) -> Grid:
    """Return the polar stereographic grid, true at 60° N, with rows from south to north as in the files."""
    from pyproj import Proj

    proj4 = f"+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 {earth} +units=m"
    x, y = Proj(proj4)(*REFERENCE)
    num_south, num_west = GRIDS[shape]
    return Grid(
        y=y + PIXEL * (np.arange(shape[0], dtype=np.float64) + 0.5 - num_south),
        x=x + PIXEL * (np.arange(shape[1], dtype=np.float64) + 0.5 - num_west),
        crs_wkt=crs_in_metres(proj4)[0],
    )
