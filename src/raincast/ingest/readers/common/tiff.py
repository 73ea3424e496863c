"""GeoTIFF and GRIB2 through rasterio, an optional dependency; TIFF tags and GDAL's metadata items without it."""

import gzip
import html
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from raincast.archive.limits import check_bytes, check_image
from raincast.ingest.readers import starts_with
from raincast.ingest.readers.common.unpack import GZIP_SIGNATURE, all_bytes
from raincast.projection import crs_in_metres
from raincast.schema import Grid, check_spacing

_CACHE_MB = 16  # GDAL's default is 5 % of the memory, for blocks that are never read twice


@contextmanager
def open_raster(path: Path, driver: str) -> Iterator[Any]:
    """Yield the rasterio dataset of a file, gzipped or plain, opened with GDAL's `driver` only.

    Raises ValueError if rasterio is not installed, or with GDAL's message if the file is damaged.
    """
    try:
        import rasterio  # type: ignore[import-untyped]
        from rasterio.errors import RasterioError  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError('reading it needs rasterio: pip install -e ".[gis]"') from error
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=_CACHE_MB):
        # raster_grid refuses files without georeferencing
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        try:
            with rasterio.MemoryFile(all_bytes(path)) as memory, memory.open(driver=driver) as dataset:
                _check_size(dataset)
                yield dataset
        except RasterioError as error:
            raise ValueError(str(error).replace(memory.name, path.name)) from error


def _check_size(dataset: Any) -> None:
    """Raise ValueError if the image, or a block that GDAL unpacks at once, exceeds the limit."""
    check_image(dataset.height, dataset.width)
    together = dataset.count if dataset.profile.get("interleave") == "pixel" else 1
    for (height, width), dtype in zip(dataset.block_shapes, dataset.dtypes, strict=True):
        check_bytes(height * width * together * np.dtype(dtype).itemsize)


def raster_grid(dataset: Any, decimals: int | None = None) -> Grid:
    """Return the grid of a rasterio dataset. Raises ValueError if it is rotated or has no projection.

    `decimals` is the number of decimal places of corner and spacing in the format; it removes GDAL's rounding.
    """
    transform = dataset.transform
    if dataset.crs is None:
        raise ValueError("it names no projection")
    if transform.b or transform.d:
        raise ValueError("its rows are not parallel to x: reproject it first, e.g. with gdalwarp")
    wkt, factor = crs_in_metres(dataset.crs.to_wkt())
    y, x = (
        factor * _centres(first, spacing, number, decimals)
        for first, spacing, number in (
            (transform.f, transform.e, dataset.height),
            (transform.c, transform.a, dataset.width),
        )
    )
    grid = Grid(y=y, x=x, crs_wkt=wkt)
    check_spacing(grid)  # a file with a projection may lack the transform to it
    return grid


def _centres(edge: float, spacing: float, number: int, decimals: int | None) -> Any:
    first = edge + 0.5 * spacing
    if decimals is not None:
        first, spacing = round(first, decimals), round(spacing, decimals)
    return first + spacing * np.arange(number, dtype=np.float64)


def zr_items(dataset: Any) -> dict[str, str]:
    """Return the items zr_a and zr_b of GDAL's metadata, if present, with or without ODIM's prefix `how/`."""
    tags = {**dataset.tags(), **dataset.tags(1)}
    return {key.removeprefix("how/"): value for key, value in tags.items() if key.endswith(("zr_a", "zr_b"))}


TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GDAL_METADATA = 42112  # the tag
_MOST_ENTRIES, _MOST_BYTES = 4096, 2**20
_DAMAGE = (OSError, EOFError, zlib.error, struct.error, OverflowError, ValueError)


class Entry(NamedTuple):
    """A tag's value: the number of values, and the offset of the text, or the text itself if it is short."""

    num_values: int
    place: int
    short: bytes


def tiff_directory(path: Path) -> dict[int, Entry]:
    """Return the tags of a (Big)TIFF's first directory, gzipped or plain; empty for other or damaged files."""
    try:
        with _opened(path) as file:
            return _read_directory(file)
    except _DAMAGE:
        return {}


def tiff_items(path: Path) -> dict[str, str]:
    """Return the items of the tag GDAL_METADATA by name, plus 'NAME unit' for items with a unit.

    FMI wraps the XML of the items in another item, so GDAL escapes its brackets twice. Raises ValueError for a
    damaged header.
    """
    try:
        with _opened(path) as file:
            entry = _read_directory(file).get(GDAL_METADATA)
            content = b"" if entry is None else _read_text(file, entry)
    except _DAMAGE as error:
        raise ValueError(f"its TIFF header is damaged: {error or type(error).__name__}") from error
    text = content.split(b"\0")[0].decode("utf-8", "replace")
    items: dict[str, str] = {}
    for attributes, value in re.findall(r"<Item ([^>]*)>([^<]*)<", html.unescape(html.unescape(text))):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', attributes))
        name = pairs.get("name", "")
        items[name] = value.strip()
        if "unit" in pairs:
            items[f"{name} unit"] = pairs["unit"]
    return items


def find_items(path: Path) -> dict[str, str]:
    """Return the items as `tiff_items`; empty for other or damaged files."""
    try:
        return tiff_items(path)
    except ValueError:
        return {}


def _opened(path: Path) -> IO[bytes]:
    if starts_with(path, GZIP_SIGNATURE):
        return gzip.open(path)  # type: ignore[return-value]
    return path.open("rb")


def _read_directory(file: IO[bytes]) -> dict[int, Entry]:
    """Read the first directory of a TIFF 6.0 or BigTIFF; empty if the byte order or the version is unknown."""
    start = file.read(8)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None:
        return {}
    (version,) = struct.unpack(order + "H", start[2:4])
    if version not in (42, 43):
        return {}
    big = version == 43
    (place,) = struct.unpack(order + ("Q" if big else "I"), file.read(8) if big else start[4:])
    check_bytes(place)  # seeking in a gzip unpacks everything before
    file.seek(place)
    (number,) = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
    layout = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    content = file.read(layout.size * min(number, _MOST_ENTRIES))
    whole = len(content) - len(content) % layout.size
    return {
        tag: Entry(count, int.from_bytes(value, "little" if order == "<" else "big"), value)
        for tag, _, count, value in layout.iter_unpack(content[:whole])
    }


def _read_text(file: IO[bytes], entry: Entry) -> bytes:
    if entry.num_values <= len(entry.short):
        return entry.short[: entry.num_values]
    check_bytes(entry.place)
    file.seek(entry.place)
    return file.read(min(entry.num_values, _MOST_BYTES))
