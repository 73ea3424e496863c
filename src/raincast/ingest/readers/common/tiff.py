"""Files that GDAL reads (GeoTIFF, GRIB2), through rasterio, which is an optional extra."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from raincast.ingest.readers.common.axes import crs_in_metres
from raincast.ingest.readers.common.packed import all_bytes
from raincast.schema import Grid

_CACHE_MB = 16  # GDAL would keep 5 % of the machine's memory in blocks that nobody reads twice


@contextmanager
def open_raster(path: Path, driver: str) -> Iterator[Any]:
    """The rasterio dataset of a file, gzipped or plain, read by GDAL's `driver` and no other.

    ValueError where rasterio is not installed, and for what GDAL says of a damaged file.
    """
    try:
        import rasterio  # type: ignore[import-untyped]
        from rasterio.errors import RasterioError  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError('it takes rasterio to read it: pip install -e ".[gis]"') from error
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=_CACHE_MB):
        # without a place on Earth it is refused in raster_grid
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        try:
            with rasterio.MemoryFile(all_bytes(path)) as memory, memory.open(driver=driver) as dataset:
                yield dataset
        except RasterioError as error:
            raise ValueError(str(error).replace(memory.name, path.name)) from error


def raster_grid(dataset: Any, decimals: int | None = None) -> Grid:
    """Where the pixels of a rasterio dataset lie; ValueError for a rotated one or one without a projection.

    `decimals`, where the format states corner and spacing to so many places, takes GDAL's rounding out.
    """
    transform = dataset.transform
    if dataset.crs is None:
        raise ValueError("it names no projection")
    if transform.b or transform.d:
        raise ValueError("its rows do not run along x: reproject it first, e.g. with gdalwarp")
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
    """The items zr_a and zr_b of GDAL's metadata, with or without ODIM's `how/`; those that are there."""
    tags = {**dataset.tags(), **dataset.tags(1)}
    return {key.removeprefix("how/"): value for key, value in tags.items() if key.endswith(("zr_a", "zr_b"))}
