"""Tables of a forecast at named points and over polygons."""

import csv
import functools
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.forecasting.files.dataset import QUALITY, lead_minutes_of
from raincast.forecasting.files.products import MATCHED, ONSET
from raincast.schema import EXCEEDANCE, INIT_TIME, RAIN, THRESHOLD, TIME, Grid, X, Y
from raincast.system.files import atomic

log = logging.getLogger(__name__)

MOST_NAMED = 10
SUBPIXELS = 5
"""Sample points along y and x of a pixel, to estimate its share in a polygon."""

Ring = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Location:
    """A named point, (lon, lat) in degrees, or polygons of rings: the first is the outline, others are holes."""

    name: str
    point: tuple[float, float] | None = None
    polygons: tuple[tuple[Ring, ...], ...] = ()


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
    """The pixels of a place: a window of the grid, and their `weights` (h, w)."""

    y: slice
    x: slice
    weights: npt.NDArray[np.float64]


def pixels_of(place: Location, grid: Grid) -> Pixels | None:
    """The pixel of a point, or the share of each pixel in the polygons; None if the place is outside the grid."""
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
    return Pixels(rows, columns, weights) if weights.any() else None


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
    from matplotlib.path import Path as Outline
    from pyproj import Transformer

    y, x = _subpixels(grid.y, rows), _subpixels(grid.x, columns)
    to_degrees = Transformer.from_crs(grid.crs_wkt, "EPSG:4326", always_xy=True)
    columns_x, rows_y = (axis.ravel() for axis in np.meshgrid(x, y))
    lon, lat = to_degrees.transform(columns_x, rows_y)
    inside = np.zeros(lon.size, np.bool_)
    for rings in place.polygons:
        middle = rings[0][:, 0].mean()
        points = np.stack([lon - 360 * np.rint((lon - middle) / 360), lat], axis=1)
        within = Outline(rings[0]).contains_points(points)
        for hole in rings[1:]:
            within &= ~Outline(hole).contains_points(points)
        inside |= within
    blocks = inside.reshape(y.size // SUBPIXELS, SUBPIXELS, x.size // SUBPIXELS, SUBPIXELS)
    shares: npt.NDArray[np.float64] = blocks.mean(axis=(1, 3))
    return shares


def _subpixels(axis: npt.NDArray[np.float64], window: slice) -> npt.NDArray[np.float64]:
    step = (axis[-1] - axis[0]) / (axis.size - 1) if axis.size > 1 else 1.0
    offsets = (np.arange(SUBPIXELS) + 0.5) / SUBPIXELS - 0.5
    return (axis[window][:, None] + offsets * step).ravel()


def write_places(forecast: xr.Dataset, places: list[Location], path: Path) -> Path:
    """Write a CSV with a row per place and lead time, atomically; returns the path.

    Rates, depths and probabilities of polygons are means over their observed part, whose share is `observed`.
    `quality_flag` has the bits of any of the pixels. Columns are empty for places outside the grid.
    """
    wkt = str(schema.find_crs_wkt(forecast, RAIN))
    grid = Grid(forecast[Y].values, forecast[X].values, wkt)
    columns = _columns(forecast)
    with atomic(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = ("place", "init_time", "valid_time", "lead_minutes", "observed", QUALITY, *columns)
        writer.writerow(names)
        outside = []
        for place in places:
            pixels = pixels_of(place, grid)
            outside += [] if pixels else [place.name]
            writer.writerows(_rows(forecast, place, pixels, columns))
    if outside:
        _warn_of_outside(tuple(outside), f"y {grid.y[0]:g} to {grid.y[-1]:g}, x {grid.x[0]:g} to {grid.x[-1]:g}")
    return path


@functools.lru_cache(maxsize=16)  # once for all forecasts of a process
def _warn_of_outside(names: tuple[str, ...], reach: str) -> None:
    log.warning(
        "%d places are outside the grid (%s) and have empty rows: %s%s. Places are in degrees, longitude first in "
        "GeoJSON.", len(names), reach, ", ".join(names[:MOST_NAMED]), " …" if len(names) > MOST_NAMED else "",
    )  # fmt: skip


def _columns(forecast: xr.Dataset) -> dict[str, npt.NDArray[np.float32]]:
    """The maps of the columns: (lead, y, x), or (y, x) for all leads."""
    columns = {"rain_rate_mm_h": forecast[RAIN].values}
    if MATCHED in forecast:
        columns["rain_rate_matched_mm_h"] = forecast[MATCHED].values
    columns |= {f"{n}_mm": v.values for n, v in forecast.data_vars.items() if str(n).startswith("rain_amount_")}
    if ONSET in forecast:
        columns[f"{ONSET}_minutes"] = forecast[ONSET].values
    if EXCEEDANCE in forecast:
        for number, threshold in enumerate(forecast[THRESHOLD].values):
            columns[f"probability_of_{threshold:g}_mm_h"] = forecast[EXCEEDANCE].values[:, number]
    return columns


def _rows(
    forecast: xr.Dataset, place: Location, where: Pixels | None, columns: dict[str, npt.NDArray[np.float32]]
) -> Iterator[list[Any]]:
    init_time = _utc(forecast[INIT_TIME].values)
    for lead, minutes in enumerate(lead_minutes_of(forecast)):
        row = [place.name, init_time, _utc(forecast[TIME].values[lead]), f"{minutes:g}"]
        if where is None:
            yield [*row, "0", "", *[""] * len(columns)]
            continue
        window = (where.y, where.x)
        observed = np.where(np.isfinite(forecast[RAIN].values[lead][window]), where.weights, 0).sum()
        flags = forecast[QUALITY].values[lead][window][where.weights > 0] if QUALITY in forecast else [0]
        maps = (values[lead] if values.ndim == 3 else values for values in columns.values())
        means = [_mean(values[window], where.weights) for values in maps]
        yield [*row, f"{observed / where.weights.sum():.3g}", int(np.bitwise_or.reduce(flags)), *means]


def _mean(values: npt.NDArray[np.float32], weights: npt.NDArray[np.float64]) -> str:
    weights = np.where(np.isfinite(values), weights, 0)
    total = weights.sum()
    return f"{(np.nan_to_num(values) * weights).sum() / total:.4g}" if total > 0 else ""


def _utc(time: Any) -> str:
    return f"{np.datetime_as_string(time, unit='s')}Z"
