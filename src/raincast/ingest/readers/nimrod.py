"""UK Met Office NIMROD: rain-rate composites, as big-endian Fortran records of a header and the pixels.

Format: Met Office, NIMROD file format 2.6-4 (at CEDA, with the data), which numbers the header's elements from 1.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.limits import check_image
from raincast.ingest.readers import ALL, Head, known_step, naming
from raincast.ingest.readers.common.unpack import (
    Stream,
    at_end,
    first_bytes_inside,
    in_member,
    read_exactly,
    unpacked,
)
from raincast.projection import crs_in_metres
from raincast.schema import Grid, Meaning

FORMAT = "NIMROD"
RAIN_RATE = (213, 63)  # field codes: radar composite, and rate of precipitation
MAXIMUM, MINIMUM, AVERAGED = 8192, 4096, 128  # bits of element 31: processing over time
OTHER_TITLES = re.compile(r"\b(max|min|prob|accum|total|depth|type|fraction)", re.IGNORECASE)
NATIONAL_GRID, CRS_CODE = 0, "EPSG:27700"
TYPES = {(0, 4): ">f4", (1, 1): ">i1", (1, 2): ">i2", (1, 4): ">i4", (2, 1): ">i1"}
"""Dtypes of pixels by kind (real, integer, byte) and length in bytes."""

_HEADER_BYTES = 512
_MARKER = struct.Struct(">i")  # the length of a Fortran record, written before and after it
_START_BYTES = _HEADER_BYTES + 3 * _MARKER.size  # the header's record, and the length of the pixels' record


@dataclass(frozen=True)
class NIMROD:
    """Reads rain rates in mm/h from files with one field, several fields, or a tar of files with one field each.

    Negative pixels and those with the header's missing value are missing. Other quantities and forecasts are left
    out; a file without observed rain rates is refused. conf/source/nimrod.yaml documents the arguments.
    """

    step_minutes: float | None = None
    source: str = "UK Met Office"

    def recognises(self, path: Path) -> bool:
        """Return True if a record of 512 bytes is followed by another record."""
        return any(_is_header(start) for start in first_bytes_inside(path, _START_BYTES))

    def scan(self, path: Path) -> Head:
        """Return the times and the grid. The format does not state the time between frames."""
        with naming(path, FORMAT), unpacked(path) as files:
            headers = [header for _, header, _ in _fields(files)]
            return Head(
                np.array([header.time for header in headers]),
                _grid(*headers[0].place),
                self.step_minutes,
                headers[0].meaning,
            )

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read the fields numbered `frames`; the pixels of others are skipped."""
        with naming(path, FORMAT), unpacked(path) as files:
            step = known_step(self.step_minutes, step_minutes)
            fields = _fields(files)
            first = next(fields)
            header = first[1]
            read = [
                (own.time, _rates(name, own, stream))
                for name, own, stream in islice(chain([first], fields), frames.start, frames.stop, frames.step)
            ]
            return schema.rain_dataset(
                np.array([rates for _, rates in read], np.float32).reshape(-1, *header.shape),
                np.array([time for time, _ in read], "datetime64[ns]"),
                _grid(*header.place),
                step_minutes=step,
                cell_methods=header.meaning.cell_methods,
                attrs={"source": self.source, "title": header.title} | header.meaning.attrs(step),
            )


_Place = tuple[tuple[float, float, int], tuple[float, float, int]]
"""Centre of the first pixel, signed spacing and number of pixels, along y and x."""


@dataclass(frozen=True)
class _Header:
    """The header of a field. A pixel divided by `per_unit` is in mm/h."""

    time: np.datetime64
    place: _Place
    dtype: str
    missing: float
    per_unit: float
    title: str
    meaning: Meaning

    @property
    def shape(self) -> tuple[int, int]:
        return self.place[0][2], self.place[1][2]

    @property
    def num_bytes(self) -> int:
        return int(self.shape[0] * self.shape[1] * np.dtype(self.dtype).itemsize)


class _Elements:
    """The elements of a header by number. Raises ValueError if `start` is not the start of a field."""

    def __init__(self, start: bytes) -> None:
        if not _is_header(start):
            raise ValueError(
                f"it begins with {start[:8]!r}: not a NIMROD header, a record of {_HEADER_BYTES} bytes"
            )
        self._numbers = struct.unpack_from(">31h28f", start, _MARKER.size)
        self.units, self.source, self.title = (
            text.decode("latin-1").split("\0")[0].strip()
            for text in struct.unpack_from("8s24s24s", start, _MARKER.size + 354)
        )
        (self.record_bytes,) = _MARKER.unpack_from(start, _START_BYTES - _MARKER.size)
        if self.record_bytes < 0:
            raise ValueError(f"its record of pixels states a length of {self.record_bytes} bytes")

    def integer(self, element: int) -> int:
        return int(self._numbers[element - 1])

    def real(self, element: int) -> float:
        return float(self._numbers[element - 1])

    def time(self, element: int, num: int) -> np.datetime64:
        """Parse a time from the `num` numbers year, month, … from `element` on."""
        year, *rest = (self.integer(element + i) for i in range(num))
        if not 1970 <= year < 2200:
            raise ValueError(f"its year is {year}")
        month, day, hour, minute = rest[:4]
        second = rest[4] if num > 5 and rest[4] > 0 else 0  # often stated as missing
        return np.datetime64(f"{year}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}", "ns")


def _is_header(start: bytes) -> bool:
    marker = _MARKER.pack(_HEADER_BYTES)
    behind = start[_MARKER.size + _HEADER_BYTES : _START_BYTES - _MARKER.size]
    return len(start) == _START_BYTES and start.startswith(marker) and behind == marker


def _fields(files: Iterator[tuple[str, Stream]]) -> Iterator[tuple[str, _Header, Stream]]:
    """Yield fields of observed rain, each with its stream at the first pixel. Raises ValueError if there is none.

    Only the first field of each member of a tar is read, because a second one can be found only by unpacking it.
    """
    first: _Header | None = None
    left_out: list[str] = []
    for name, stream in files:
        end = 0
        with in_member(name):
            while start := stream.read(_START_BYTES):
                elements = _Elements(start)
                end += _START_BYTES + elements.record_bytes + _MARKER.size
                reason = _why_not(elements)
                if reason:
                    left_out.append(reason)
                else:
                    header = _header(elements)
                    first = first or header
                    if header.place != first.place:
                        raise ValueError("its fields are on more than one grid: split the file")
                    if not header.meaning.same_as(first.meaning):
                        raise ValueError(f"its fields are {first.meaning} and {header.meaning}: split the file")
                    yield name, header, stream
                if name:
                    break
                if stream.tell() < end:
                    stream.seek(end - _MARKER.size)
                    _check_end(stream, elements.record_bytes)
    if first is None:
        raise ValueError(
            f"it holds no observed rain rates, but {', '.join(sorted(set(left_out))) or 'nothing'}. Use "
            "the composites of rain rates: …_nimrod_ng_radar_rainrate_composite_1km_UK"
        )


def _why_not(elements: _Elements) -> str | None:
    """Return why a field is left out, in a few words; None if it is to be read."""
    code, processing = elements.integer(19), max(elements.integer(31), 0)  # negative where it is not stated
    name = f"field code {code} ({elements.title or 'no title'})"
    if code not in RAIN_RATE:
        return name
    if processing & (MAXIMUM | MINIMUM):
        return f"{name}: an extreme over {elements.integer(26)} min"
    if OTHER_TITLES.search(elements.title):
        return f"{name}: not a rain rate, by its title"
    try:
        is_forecast = bool(elements.time(7, 5) < elements.time(1, 6))
    except ValueError:  # without a data time it counts as observed
        return None
    return "forecasts" if is_forecast else None


def _header(elements: _Elements) -> _Header:
    kind = elements.integer(12), elements.integer(13)
    if kind not in TYPES:
        known = ", ".join(f"{a} of {b}" for a, b in TYPES)
        raise ValueError(f"its pixels are of type {kind[0]} of {kind[1]} bytes: raincast reads {known}")
    header = _Header(
        time=elements.time(1, 6),
        place=_place(elements),
        dtype=TYPES[kind],
        missing=elements.real(38) if kind[0] == 0 else elements.integer(25),
        per_unit=_per_unit(elements.units),
        title=elements.title,
        meaning=_meaning(elements),
    )
    if header.num_bytes != elements.record_bytes:
        height, width = header.shape
        raise ValueError(
            f"its record of pixels has {elements.record_bytes} bytes, but {height} × {width} pixels of {kind[1]} "
            f"bytes take {header.num_bytes}"
        )
    if elements.real(40) not in (0.0, -32767.0):
        raise ValueError(f"its pixels have the offset {elements.real(40):g} (element 40): raincast reads only 0")
    return header


def _meaning(elements: _Elements) -> Meaning:
    """Return momentary, or mean over the period of element 26 if element 31 marks the field as averaged."""
    minutes = elements.integer(26)
    if elements.integer(31) > 0 and elements.integer(31) & AVERAGED and 0 < minutes < 32767:
        return Meaning("mean", float(minutes), elements.title)
    return Meaning("momentary", quantity=elements.title)


def _per_unit(units: str) -> float:
    """Parse the scale from the unit: 'mm/h*32' gives 32. Element 39, also a scale, is 0 in the composites."""
    match = re.fullmatch(r"mm/hr?(?:\*([1-9]\d*))?", units)
    if match is None:
        raise ValueError(f"its unit is {units or 'not stated'}: raincast reads mm/h and multiples such as mm/h*32")
    return float(match[1] or 1)


def _place(elements: _Elements) -> _Place:
    grid, origin = elements.integer(15), elements.integer(24)
    if grid != NATIONAL_GRID:
        raise ValueError(f"its grid is of type {grid} (element 15), not type 0, the British National Grid")
    if origin not in (0, 1):
        raise ValueError(f"it begins in corner {origin} (element 24), not 0, top left, or 1, bottom left")
    height, width = elements.integer(16), elements.integer(17)
    if min(height, width) < 1:
        raise ValueError(f"it has {height} × {width} pixels: not an image")
    check_image(height, width)
    north, dy, east, dx = (elements.real(i) for i in (34, 35, 36, 37))
    if not np.isfinite([north, east]).all() or not (0 < dy < 1e6 and 0 < dx < 1e6):
        raise ValueError(f"its pixels are {dy:g} by {dx:g} m from {north:g}, {east:g} on: not a valid grid")
    return (north, dy if origin else -dy, height), (east, dx, width)


def _check_end(stream: Stream, num_bytes: int) -> None:
    if read_exactly(stream, _MARKER.size) != _MARKER.pack(num_bytes):
        raise ValueError("its record of pixels does not end where it should: the file is damaged")


def _rates(name: str, header: _Header, stream: Stream) -> npt.NDArray[np.float32]:
    """Return the rates (H, W) in mm/h, NaN for missing."""
    with in_member(name):
        content = read_exactly(stream, header.num_bytes)
        _check_end(stream, header.num_bytes)
        if not at_end(stream) and name:
            raise ValueError("it holds several fields: unpack the tar")
    pixels = np.frombuffer(content, header.dtype).reshape(header.shape)
    rates = (pixels / header.per_unit).astype(np.float32)
    rates[(pixels == header.missing) | (pixels < 0)] = np.nan
    return rates


@lru_cache(maxsize=8)
def _grid(y: tuple[float, float, int], x: tuple[float, float, int]) -> Grid:
    centres = [first + step * np.arange(number, dtype=np.float64) for first, step, number in (y, x)]
    return Grid(y=centres[0], x=centres[1], crs_wkt=crs_in_metres(CRS_CODE)[0])
