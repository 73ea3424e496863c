"""FMI: composites of the Finnish radar network as PGM (gzipped or plain) and as GeoTIFF.

PGM: metadata in the comments of the header (SmartMet qdtools, docs/pgm2qd.md: obstime, param, projection,
multiplier and offset); the largest grey value is no data. The default scale, 0.5·v − 32 dBZ, is from FMI's open
data manual. The Earth's radius is from pysteps, `import_fmi_pgm`; with it the distance of the corners agrees with
the stated metersperpixel. GeoTIFF: Observation time, Quantity, Gain, Offset, Nodata, Undetect and Accumulation
time as XML in the tag GDAL_METADATA.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.limits import check_image
from raincast.ingest.readers import ALL, Head, known_step, naming
from raincast.ingest.readers.common.tiff import TIFF_SIGNATURES, find_items, open_raster, raster_grid, tiff_items
from raincast.ingest.readers.common.unpack import all_bytes, first_bytes
from raincast.ingest.readers.common.values import check_gain, choose_zr
from raincast.projection import crs_in_metres
from raincast.schema import Grid, Meaning
from raincast.transforms import ZR, accumulation_to_rate

FORMAT = "FMI PGM or GeoTIFF"
EARTH_RADIUS = 6_371_288.0  # m
GAIN, OFFSET = 0.5, -32.0  # from grey values to dBZ
UNITS = {"dbz": "dBZ", "mm/h": "mm/h", "mm": "mm"}
ZR_RAIN = ZR(223.0, 1.53)  # FMI's relation for rain
_HEADER_BYTES = 8192


@dataclass(frozen=True)
class _Image:
    """The single image of a file: `codes` is (H, W) or None, `unit` is the unit of offset + gain · code."""

    time: np.datetime64
    grid: Grid
    unit: str
    gain: float
    offset: float
    nodata: float | None
    undetect: float | None
    accumulation_minutes: float | None = None
    title: str = ""
    codes: npt.NDArray[Any] | None = None

    @property
    def meaning(self) -> Meaning:
        if self.unit == "mm":
            return Meaning("depth", self.accumulation_minutes, self.title)
        return Meaning("momentary", quantity=self.title, from_reflectivity=self.unit == "dBZ")


@dataclass(frozen=True)
class FMI:
    """Reads one frame per file (reflectivity, rate or depth) in mm/h; conf/source/fmi.yaml has the arguments."""

    step_minutes: float | None = None
    zr_a: float | None = None
    zr_b: float | None = None
    source: str = "FMI"

    def recognises(self, path: Path) -> bool:
        """Return True for a PGM with an observation time in its header, or a TIFF with one in GDAL metadata."""
        start = first_bytes(path, _HEADER_BYTES)
        is_pgm = start.startswith(b"P5") and b"obstime" in start
        return is_pgm or "Observation time" in find_items(path)

    def scan(self, path: Path) -> Head:
        """Return the time and the grid. The format does not state the time between frames."""
        with naming(path, FORMAT):
            image = _read(path, pixels=False)
            return Head(np.array([image.time]), image.grid, self.step_minutes, image.meaning)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read the file's single frame, or none if `frames` is empty."""
        with naming(path, FORMAT):
            image = _read(path, pixels=True)
            step = known_step(self.step_minutes, step_minutes, image.accumulation_minutes)
            zr, said = choose_zr({}, self.zr_a, self.zr_b, default=ZR_RAIN)
            attrs = {"source": self.source, "title": image.title}
            return schema.rain_dataset(
                _rates(image, zr)[None][frames],
                np.array([image.time])[frames],
                image.grid,
                step_minutes=step,
                cell_methods=image.meaning.cell_methods,
                attrs=attrs | image.meaning.attrs(step) | (said if image.unit == "dBZ" else {}),
            )


def _rates(image: _Image, zr: ZR) -> npt.NDArray[np.float32]:
    """Return the rates (H, W) in mm/h, NaN for missing."""
    assert image.codes is not None
    if image.codes.dtype.kind != "u" or image.codes.dtype.itemsize > 2 or image.codes.shape != image.grid.shape:
        raise ValueError(
            f"its pixels are {image.codes.shape} of {image.codes.dtype}, not {image.grid.shape} of bytes"
        )
    check_gain(image.gain, image.offset)
    codes = np.arange(np.iinfo(image.codes.dtype).max + 1)
    values = image.offset + image.gain * codes
    if image.unit == "dBZ":
        with np.errstate(over="ignore"):  # codes that do not occur may overflow
            values = zr.to_rate(values).astype(np.float32)
    elif image.accumulation_minutes is not None:
        values = accumulation_to_rate(values, image.accumulation_minutes)
    values[codes == image.undetect] = 0.0
    values[codes == image.nodata] = np.nan
    rates: npt.NDArray[np.float32] = values.astype(np.float32)[image.codes]
    return rates


def _read(path: Path, *, pixels: bool) -> _Image:
    start = first_bytes(path, 4)
    if start.startswith(TIFF_SIGNATURES):
        return _read_tiff(path, pixels=pixels)
    if start.startswith(b"P5"):
        return _read_pgm(path)
    raise ValueError(f"it begins with {start!r}: neither a PGM (P5) nor a TIFF, plain or gzipped")


def _read_pgm(path: Path) -> _Image:
    content = all_bytes(path)
    said, (width, height, largest), first = _pgm_header(content)
    if "reflectivity" not in said.get("param", "").lower():
        found = said.get("param", "a quantity that its header does not name (param)")
        raise ValueError(f"it holds {found}: raincast reads only reflectivity from PGM")
    if not 0 < largest < 65536:
        raise ValueError(f"its largest grey value is {largest}, not 1 to 65535")
    check_image(height, width)
    kind = np.dtype(">u2" if largest > 255 else "u1")
    if len(content) - first < width * height * kind.itemsize:
        raise ValueError(f"it ends early: {len(content) - first} bytes of {height} × {width} pixels")
    codes = np.frombuffer(content, kind, width * height, first).reshape(height, width)
    if codes.max() > largest:
        raise ValueError(f"it has the grey value {codes.max()}, but states {largest} as the largest")
    return _Image(
        time=_parse_time(said.get("obstime", "none")),
        grid=_pgm_grid(tuple(said.get(name, "") for name in _PROJECTION), (height, width)),
        unit="dBZ",
        gain=float(said.get("multiplier", GAIN)),
        offset=float(said.get("offset", OFFSET)),
        nodata=largest,
        undetect=0,
        title=" ".join(said[name] for name in ("productname", "producttype", "param") if name in said),
        codes=codes.astype(kind.newbyteorder("=")),
    )


def _pgm_header(content: bytes) -> tuple[dict[str, str], list[int], int]:
    """Return the comments by key, the numbers width, height and largest value, and the offset of the pixels."""
    said: dict[str, str] = {}
    numbers: list[int] = []
    end = content.index(b"\n") + 1
    while len(numbers) < 3:
        start, end = end, content.index(b"\n", end) + 1
        line = content[start:end].decode("latin-1").strip()
        if line.startswith("#"):
            key, _, value = line[1:].strip().partition(" ")
            said.setdefault(key, value.strip())
        else:
            numbers += map(int, line.split())
        if end > _HEADER_BYTES:
            raise ValueError("its header does not end")
    if len(numbers) > 3 or min(numbers) < 1:
        raise ValueError(f"width, height and largest value are {numbers}")
    return said, numbers, end


_PROJECTION = ("type", "centrallongitude", "centrallatitude", "truelatitude", "bottomleft", "topright")


@lru_cache(maxsize=16)
def _pgm_grid(projection: tuple[str, ...], shape: tuple[int, int]) -> Grid:
    """Return the grid between two outer corners, given as longitude and latitude on the sphere."""
    from pyproj import Proj

    said = dict(zip(_PROJECTION, projection, strict=True))
    if said["type"] != "stereographic":
        raise ValueError(f"its projection is {said['type'] or 'not stated'}: raincast reads only stereographic")
    proj4 = (
        f"+proj=stere +lat_0={float(said['centrallatitude'])} +lat_ts={float(said['truelatitude'])} "
        f"+lon_0={float(said['centrallongitude'])} +R={EARTH_RADIUS} +units=m"
    )
    wkt, _ = crs_in_metres(proj4)
    to_map = Proj(proj4)
    corners = [tuple(map(float, said[name].split())) for name in _PROJECTION[-2:]]
    (west, south), (east, north) = (to_map(lon, lat) for lon, lat in corners)
    if not np.isfinite([west, south, east, north]).all() or west >= east or south >= north:
        raise ValueError(f"its corners {said['bottomleft']} and {said['topright']} span no image")
    height, width = shape
    return Grid(
        y=north - (north - south) / height * (np.arange(height, dtype=np.float64) + 0.5),
        x=west + (east - west) / width * (np.arange(width, dtype=np.float64) + 0.5),
        crs_wkt=wkt,
    )


def _read_tiff(path: Path, *, pixels: bool) -> _Image:
    said = tiff_items(path)
    missing = [name for name in ("Observation time", "Quantity") if name not in said]
    if missing:
        raise ValueError(
            f"its tag GDAL_METADATA has no {', '.join(missing)} (found: {', '.join(said) or 'nothing'})"
        )
    with open_raster(path, "GTiff") as dataset:
        if dataset.count != 1:
            raise ValueError(f"it has {dataset.count} bands, not one")
        unit = _tiff_unit(said)
        return _Image(
            time=_parse_time(said["Observation time"]),
            grid=raster_grid(dataset),
            unit=unit,
            gain=float(said.get("Gain", GAIN if unit == "dBZ" else 0.01)),
            offset=float(said.get("Offset", OFFSET if unit == "dBZ" else 0.0)),
            nodata=float(said["Nodata"]) if "Nodata" in said else dataset.nodata,
            undetect=float(said["Undetect"]) if "Undetect" in said else None,
            accumulation_minutes=_tiff_minutes(said) if unit == "mm" else None,
            title=said["Quantity"],
            codes=dataset.read(1) if pixels else None,
        )


def _tiff_unit(said: Mapping[str, str]) -> str:
    unit = said.get("Quantity unit", "").strip().lower()
    if unit not in UNITS:
        found, known = said.get("Quantity unit", "no unit"), ", ".join(UNITS.values())
        raise ValueError(f"it holds {said['Quantity']} in {found}: raincast reads {known}")
    return UNITS[unit]


def _tiff_minutes(said: Mapping[str, str]) -> float:
    """Return the accumulation period of a depth in minutes."""
    minutes_per = {"h": 60.0, "hour": 60.0, "min": 1.0, "minutes": 1.0}
    unit = said.get("Accumulation time unit", "")
    if "Accumulation time" not in said or unit not in minutes_per:
        raise ValueError(
            f"its Accumulation time is {said.get('Accumulation time', 'absent')} in {unit or 'no unit'}: "
            f"raincast knows {', '.join(minutes_per)}"
        )
    minutes = float(said["Accumulation time"]) * minutes_per[unit]
    if minutes <= 0:
        raise ValueError(f"its Accumulation time is {minutes:g} min: not a valid accumulation period")
    return minutes


def _parse_time(text: str) -> np.datetime64:
    """Parse '201609281445' to datetime64."""
    match = re.fullmatch(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)", text)
    if match is None:
        raise ValueError(f"the observation time {text!r} is not like 201609281445")
    return np.datetime64("{}-{}-{}T{}:{}".format(*match.groups()), "ns")
