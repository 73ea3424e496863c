"""Files that GDAL reads (GeoTIFF, GRIB2), through rasterio, an optional dependency."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from raincast.archive.limits import check_bytes, check_image
from raincast.ingest.readers.common.axes import crs_in_metres
from raincast.ingest.readers.common.packed import all_bytes
from raincast.schema import Grid

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
    return Grid(y=y, x=x, crs_wkt=wkt)


def _centres(edge: float, spacing: float, number: int, decimals: int | None) -> Any:
    first = edge + 0.5 * spacing
    if decimals is not None:
        first, spacing = round(first, decimals), round(spacing, decimals)
    return first + spacing * np.arange(number, dtype=np.float64)


def zr_items(dataset: Any) -> dict[str, str]:
    """Return the items zr_a and zr_b of GDAL's metadata, if present, with or without ODIM's prefix `how/`."""
    tags = {**dataset.tags(), **dataset.tags(1)}
    return {key.removeprefix("how/"): value for key, value in tags.items() if key.endswith(("zr_a", "zr_b"))}
