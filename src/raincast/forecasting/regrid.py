"""Model fields on a radar's grid: smooth where the model is coarser, area means where it is finer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raincast.ingest.reproject import weights_between
from raincast.projection import is_geographic
from raincast.schema import Grid

Floats = npt.NDArray[np.float64]
Maps = npt.NDArray[np.float32]

FINER = 1.5
"""Ratio of target to source pixel size above which a target pixel gets the mean over its area."""


@dataclass(frozen=True, eq=False)
class Scattered:
    """A curvilinear grid: latitude and longitude of each point in degrees, (h, w)."""

    lat: Floats
    lon: Floats

    @property
    def shape(self) -> tuple[int, int]:
        """Return (h, w)."""
        return self.lat.shape[0], self.lat.shape[1]


class Regrid:
    """Interpolation from `source` to `target`, NaN outside the source; the weights are computed once.

    It is linear between the points of a coarser grid. From a regular grid with pixels smaller than the target's by
    the factor `FINER` it takes area means.
    """

    def __init__(self, source: Grid | Scattered, target: Grid) -> None:
        self.target = target
        self._mean = None
        if isinstance(source, Scattered):
            self._corners, self._weights = _in_triangles(source, target)
        elif source.pixel_km * FINER < target.pixel_km:
            self._mean = weights_between(source, target).mean
        else:
            self._corners, self._weights = _in_cells(source, target)

    def __call__(self, field: npt.NDArray[Any]) -> Maps:
        """Interpolate a field (h, w) to (H, W)."""
        if self._mean is not None:
            return self._mean(np.ascontiguousarray(field, np.float32))
        found = np.zeros(self.target.shape[0] * self.target.shape[1], np.float32)
        values = np.asarray(field, np.float32).ravel()
        for corner, weight in zip(self._corners, self._weights, strict=True):
            # a corner without weight may be missing
            found += np.where(weight == 0, np.float32(0), weight * values[corner])
        return found.reshape(self.target.shape)


Corners = tuple[npt.NDArray[np.intp], Maps]


def _in_cells(source: Grid, target: Grid) -> Corners:
    """Return the four points around each target pixel, (4, H·W), and their weights; NaN outside."""
    x, y = _places(target, source.crs_wkt)
    height, width = source.shape
    row = _index(source.y, y)
    column = _index(source.x, source.near(x))
    around = _goes_around(source)
    if around:
        column %= width
    # up to the edge of the outermost pixels it is theirs
    outside = ~((row >= -0.5) & (row <= height - 0.5))
    outside |= ~(np.isfinite(column) if around else (column >= -0.5) & (column <= width - 0.5))
    row = np.clip(np.nan_to_num(row), 0, height - 1)
    column = np.nan_to_num(column) if around else np.clip(np.nan_to_num(column), 0, width - 1)
    top, left = np.floor(row).astype(np.intp), np.floor(column).astype(np.intp)
    down, right = row - top, column - left
    below = np.minimum(top + 1, height - 1)
    beside = (left + 1) % width if around else np.minimum(left + 1, width - 1)
    left %= width
    corners = np.stack([i * width + j for i in (top, below) for j in (left, beside)])
    weights = np.stack([v * u for v in (1 - down, down) for u in (1 - right, right)]).astype(np.float32)
    weights[:, outside] = np.nan
    return corners, weights


def _goes_around(source: Grid) -> bool:
    """Return True if the columns reach around the Earth."""
    step = abs(source.x[-1] - source.x[0]) / max(1, source.x.size - 1)
    return is_geographic(source.crs_wkt) and abs(step * source.x.size - 360) < 0.5 * step


def _index(axis: Floats, values: Floats) -> Floats:
    step = (axis[-1] - axis[0]) / (axis.size - 1) if axis.size > 1 else 1.0
    return np.asarray((values - axis[0]) / step)


def _places(target: Grid, crs_wkt: str) -> tuple[Floats, Floats]:
    """Return x and y (H·W,) of the pixels of `target` in another projection; NaN where it has none."""
    from pyproj import Transformer

    x, y = (axis.ravel() for axis in np.meshgrid(target.x, target.y))
    new_x, new_y = Transformer.from_crs(target.crs_wkt, crs_wkt, always_xy=True).transform(x, y)
    off = ~(np.isfinite(new_x) & np.isfinite(new_y))
    new_x[off] = new_y[off] = np.nan
    return new_x, new_y


def _in_triangles(source: Scattered, target: Grid) -> Corners:
    """Return the three points around each target pixel, (3, H·W), and their weights; NaN outside."""
    from pyproj import Transformer
    from scipy.spatial import Delaunay

    to_target = Transformer.from_crs("EPSG:4326", target.crs_wkt, always_xy=True)
    x, y = to_target.transform(source.lon.ravel(), source.lat.ravel())
    x = target.near(np.asarray(x))
    margin = _margin(x.reshape(source.shape), np.asarray(y).reshape(source.shape))
    near = np.isfinite(x) & np.isfinite(y)
    for axis, values in ((target.x, x), (target.y, y)):
        near &= (values >= axis.min() - margin) & (values <= axis.max() + margin)
    numbers = np.flatnonzero(near)
    count = target.shape[0] * target.shape[1]
    if numbers.size < 3:
        return np.zeros((3, count), np.intp), np.full((3, count), np.nan, np.float32)
    origin, scale = np.array([target.x[0], target.y[0]]), margin or 1.0
    triangles = Delaunay((np.stack([x, y], axis=1)[numbers] - origin) / scale)
    wanted = np.stack([axis.ravel() for axis in np.meshgrid(target.x, target.y)], axis=1)
    wanted = (wanted - origin) / scale
    found = triangles.find_simplex(wanted)
    to_weights = triangles.transform[found]
    two = np.einsum("nij,nj->ni", to_weights[:, :2], wanted - to_weights[:, 2])
    weights = np.concatenate([two, 1 - two.sum(axis=1, keepdims=True)], axis=1).astype(np.float32)
    weights[found < 0] = np.nan
    return numbers[triangles.simplices[found]].T.astype(np.intp), weights.T.copy()


def _margin(x: Floats, y: Floats) -> float:
    """Return three times the median distance of neighbouring points."""
    steps = [np.hypot(np.diff(x, axis=axis), np.diff(y, axis=axis)).ravel() for axis in (0, 1)]
    known = np.concatenate(steps)
    known = known[np.isfinite(known)]
    return 3.0 * float(np.median(known)) if known.size else 0.0
