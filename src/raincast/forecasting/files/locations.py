"""Named points and polygons, read from a file, and the pixels of a grid that they lie in."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raincast.schema import Grid

SUBPIXELS = 5
"""Sample points along y and x of a pixel, to estimate its share in a polygon."""

LATTICE = 200
"""Points along each axis of a polygon's bounding box, to estimate its share within the grid."""

Ring = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Location:
    """A named point, (lon, lat) in degrees, or polygons of rings: the first is the outline, others are holes."""

    name: str
    point: tuple[float, float] | None = None
    polygons: tuple[tuple[Ring, ...], ...] = ()

    @property
    def middle(self) -> tuple[float, float]:
        """(lon, lat) in degrees of the point, or of the mean of the outlines' corners."""
        if self.point is not None:
            return self.point
        outline = np.concatenate([rings[0] for rings in self.polygons])
        return float(outline[:, 0].mean()), float(outline[:, 1].mean())


def read_places(path: str | Path) -> list[Location]:
    """Read the points and polygons of a GeoJSON file, or the points of a CSV with columns name, lat and lon.

    ValueError if the file is neither, or has no place.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} of places: give a GeoJSON, or a CSV with name,lat,lon.")
    try:
        places = list(_from_csv(path) if path.suffix.lower() == ".csv" else _from_geojson(path))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{path} holds no places: {type(error).__name__} {error}. Give a GeoJSON of points and polygons in "
            "degrees (longitude first), or a CSV with the columns name, lat, lon."
        ) from error
    if not places:
        raise ValueError(f"{path} holds neither a point nor a polygon.")
    return places


def _from_csv(path: Path) -> Iterator[Location]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            yield Location(row["name"], (float(row["lon"]), float(row["lat"])))


def _from_geojson(path: Path) -> Iterator[Location]:
    content = json.loads(path.read_text(encoding="utf-8"))
    features = content["features"] if content["type"] == "FeatureCollection" else [content]
    for number, feature in enumerate(features, start=1):
        geometry = feature.get("geometry", feature)
        properties = feature.get("properties") or {}
        names = (properties.get(key) for key in ("name", "NAME", "Name", "id"))
        name = str(next((n for n in names if n is not None), feature.get("id", f"place {number}")))
        kind, coordinates = geometry["type"], geometry["coordinates"]
        if kind == "Point":
            yield Location(name, (float(coordinates[0]), float(coordinates[1])))
        elif kind in ("Polygon", "MultiPolygon"):
            polygons = [coordinates] if kind == "Polygon" else coordinates
            yield Location(name, polygons=tuple(tuple(_ring(ring) for ring in rings) for rings in polygons))
        else:
            raise ValueError(f"{name} is a {kind}, not a Point, Polygon or MultiPolygon")


def _ring(points: Any) -> Ring:
    ring = np.array([point[:2] for point in points], np.float64).reshape(-1, 2)
    ring[:, 0] = np.unwrap(ring[:, 0], period=360)  # on over the date line
    return ring


@dataclass(frozen=True, eq=False)
class Pixels:
    """The pixels of a place: a window of the grid, and their `weights` (h, w).

    `inside` is the share of the place that lies within the grid.
    """

    y: slice
    x: slice
    weights: npt.NDArray[np.float64]
    inside: float = 1.0


def pixels_of(place: Location, grid: Grid) -> Pixels | None:
    """Return the pixel of a point, or the share of each pixel in the polygons; None outside the grid."""
    from pyproj import Transformer

    to_grid = Transformer.from_crs("EPSG:4326", grid.crs_wkt, always_xy=True)
    if place.point is not None:
        x, y = to_grid.transform(*place.point)
        row, column = _nearest(grid.y, y), _nearest(grid.x, float(grid.near(np.array([x]))[0]))
        if row is None or column is None:
            return None
        return Pixels(slice(row, row + 1), slice(column, column + 1), np.ones((1, 1)))
    outline = np.concatenate([rings[0] for rings in place.polygons])
    x, y = to_grid.transform(outline[:, 0], outline[:, 1])
    rows, columns = _window(grid.y, y), _window(grid.x, grid.near(x))
    if rows is None or columns is None:
        return None
    weights = _shares(place, grid, rows, columns)
    if not weights.any():
        return None
    return Pixels(rows, columns, weights, 1.0 if _inside(grid, x, y).all() else _share_within(place, grid))


def _inside(grid: Grid, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    inside = np.isfinite(x) & np.isfinite(y)
    for axis, values in ((grid.x, grid.near(x)), (grid.y, y)):
        half = 0.5 * _spacing(axis)
        inside &= (values >= axis.min() - half) & (values <= axis.max() + half)
    return inside


def _share_within(place: Location, grid: Grid) -> float:
    """The share of the polygons' area that lies in the grid."""
    from pyproj import Transformer

    outline = np.concatenate([rings[0] for rings in place.polygons])
    (west, south), (east, north) = outline.min(axis=0), outline.max(axis=0)
    parts = (np.arange(LATTICE) + 0.5) / LATTICE
    lon, lat = (v.ravel() for v in np.meshgrid(west + parts * (east - west), south + parts * (north - south)))
    own = _in_polygons(place, lon, lat)
    x, y = Transformer.from_crs("EPSG:4326", grid.crs_wkt, always_xy=True).transform(lon[own], lat[own])
    area = np.cos(np.deg2rad(lat[own]))
    return float(area[_inside(grid, x, y)].sum() / area.sum()) if own.any() else 1.0


def _nearest(axis: npt.NDArray[np.float64], value: float) -> int | None:
    number = int(np.abs(axis - value).argmin())
    half = 0.5 * _spacing(axis)
    return number if np.isfinite(value) and abs(axis[number] - value) <= half else None


def _spacing(axis: npt.NDArray[np.float64]) -> float:
    return float(abs(axis[-1] - axis[0]) / (axis.size - 1)) if axis.size > 1 else np.inf


def _window(axis: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> slice | None:
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    margin = _spacing(axis)
    inside = np.flatnonzero((axis >= values.min() - margin) & (axis <= values.max() + margin))
    return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else None


def _shares(place: Location, grid: Grid, rows: slice, columns: slice) -> npt.NDArray[np.float64]:
    """The share of each pixel in the polygons, 0 to 1. Edges are straight in degrees, as in GeoJSON."""
    from pyproj import Transformer

    y, x = _subpixels(grid.y, rows), _subpixels(grid.x, columns)
    to_degrees = Transformer.from_crs(grid.crs_wkt, "EPSG:4326", always_xy=True)
    columns_x, rows_y = (axis.ravel() for axis in np.meshgrid(x, y))
    lon, lat = to_degrees.transform(columns_x, rows_y)
    inside = _in_polygons(place, lon, lat)
    blocks = inside.reshape(y.size // SUBPIXELS, SUBPIXELS, x.size // SUBPIXELS, SUBPIXELS)
    shares: npt.NDArray[np.float64] = blocks.mean(axis=(1, 3))
    return shares


def _subpixels(axis: npt.NDArray[np.float64], window: slice) -> npt.NDArray[np.float64]:
    step = (axis[-1] - axis[0]) / (axis.size - 1) if axis.size > 1 else 1.0
    offsets = (np.arange(SUBPIXELS) + 0.5) / SUBPIXELS - 0.5
    return (axis[window][:, None] + offsets * step).ravel()


def _in_polygons(
    place: Location, lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Whether each point (n,) in degrees lies in the polygons."""
    from matplotlib.path import Path as Outline

    inside = np.zeros(lon.size, np.bool_)
    for rings in place.polygons:
        middle = rings[0][:, 0].mean()
        points = np.stack([lon - 360 * np.rint((lon - middle) / 360), lat], axis=1)
        within = Outline(rings[0]).contains_points(points)
        for hole in rings[1:]:
            within &= ~Outline(hole).contains_points(points)
        inside |= within
    return inside
