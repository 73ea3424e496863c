"""Reproject rain by area means: each new pixel gets the mean over the old pixels that it covers."""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raincast.projection import crs_in_metres, is_geographic
from raincast.schema import Grid

Floats = npt.NDArray[np.float64]
Axis = tuple[float, float, int]
GridKey = tuple[str, Axis, Axis]

LEAST_POINTS = 4
"""Minimum sampling points along each axis of a new pixel: area shares are resolved to a sixteenth."""
POINTS_PER_PIXEL = 2
"""Minimum sampling points along each axis of an old pixel: its area is resolved to about a quarter."""
TILE_POINTS = 2**20
"""Points transformed at once, about 50 MB."""
MOST_PIXELS = 10**8
_LATTICE = 400  # points along each axis where a sample of the grid is enough
_SLACK = 0.05
"""Share of a new pixel that may exceed the area, so that shifting coordinates by a metre does not add a row."""


def target_grid(source: Grid, crs: str, spacing: float, bounds: tuple[float, ...] | None = None) -> Grid:
    """Return a grid in the projection `crs` with square pixels of `spacing` and descending y.

    `bounds` are [y0, y1, x0, x1], from low to high; x1 < x0 in degrees crosses the date line. Without bounds the
    grid covers all of `source`, with edges at multiples of the spacing. `spacing` and `bounds` are in units of
    `crs`; the grid is in metres or degrees. Raises ValueError for fewer than 2 × 2 pixels, or too many.
    """
    wkt, factor = crs_in_metres(crs)
    size = spacing * factor
    if bounds is None:
        area = _extent(source, wkt)
        low_y, low_x = (math.floor(low / size + _SLACK) * size for low in area[::2])
        high_y, high_x = (math.ceil(high / size - _SLACK) * size for high in area[1::2])
    else:
        area = bounds[0] * factor, bounds[1] * factor, bounds[2] * factor, bounds[3] * factor
        low_y, high_y, low_x, high_x = area
        if high_x <= low_x and is_geographic(wkt):
            high_x += 360  # across the date line
    height, width = (math.ceil((high - low) / size - _SLACK) for low, high in ((low_y, high_y), (low_x, high_x)))
    if min(height, width) < 2 or height * width > MOST_PIXELS:
        unit = "degrees" if is_geographic(wkt) else "units of the projection"
        raise ValueError(
            f"grid.spacing={spacing:g} ({unit}) makes {height} × {width} pixels of the area from y={area[0]:g} to "
            f"{area[1]:g} and x={area[2]:g} to {area[3]:g}. Choose another: at least 2 × 2 pixels, at most "
            f"{MOST_PIXELS:.0e} in all."
        )
    # halves are exact in floating point, so the coordinates are round numbers
    y: Floats = high_y - size * np.arange(0.5, height)
    x: Floats = low_x + size * np.arange(0.5, width)
    return Grid(y=y, x=x, crs_wkt=wkt)


def _extent(source: Grid, crs_wkt: str) -> tuple[float, float, float, float]:
    """Return the extent of `source` in another projection: lowest and highest y, lowest and highest x."""
    frame = _Frame.of(source)
    y, x = (np.linspace(0, n, min(n, _LATTICE) + 1) for n in source.shape)
    own_x, own_y = np.meshgrid(frame.x0 + frame.dx * x, frame.y0 + frame.dy * y)
    new_x, new_y = _transform(own_x, own_y, source.crs_wkt, crs_wkt)
    if is_geographic(crs_wkt):
        # keep longitudes continuous across 180°
        new_x = _turned(new_x, new_x[new_x.shape[0] // 2, new_x.shape[1] // 2])
    known = np.isfinite(new_x) & np.isfinite(new_y)
    if not known.any():
        raise ValueError("The images lie outside the projection grid.reproject. Choose one for their region.")
    new_y, new_x = new_y[known], new_x[known]
    return float(new_y.min()), float(new_y.max()), float(new_x.min()), float(new_x.max())


def weights_between(source: Grid, target: Grid) -> "Weights":
    """Return the weights from one grid to another. The most recent ones are cached in each process."""
    return _weights(_key(source), _key(target))


def _key(grid: Grid) -> GridKey:
    y, x = ((float(axis[0]), float(axis[-1]), axis.size) for axis in (grid.y, grid.x))
    return grid.crs_wkt, y, x


@functools.lru_cache(maxsize=1)
def _weights(source: GridKey, target: GridKey) -> "Weights":
    one, other = (Grid(np.linspace(*y), np.linspace(*x), wkt) for wkt, y, x in (source, target))
    return Weights(one, other)


@dataclass(frozen=True, eq=False)
class _Tile:
    """Weights of a part of the new grid, in CSR form: point counts of the pixels of the old window `used`."""

    part: tuple[slice, slice]
    used: tuple[slice, slice]
    counts: npt.NDArray[np.integer]
    indices: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int32]


class Weights:
    """Weights for area means on `target` of images on `source`, prepared once for all frames.

    The rate of a new pixel is the mean over a square lattice of points within it; each point has the rate of the
    old pixel that contains it. A constant field stays constant, an image on its own grid stays the same, and total
    rain is conserved up to the lattice's error in areas: tenths of a percent for some hundred pixels. Only
    observed points count; a pixel is missing if fewer than half of its points were observed.
    """

    def __init__(self, source: Grid, target: Grid) -> None:
        self.shape = target.shape
        self.source = _Frame.of(source)
        self.points = _num_points(self.source, target)
        # tiles are nearly square: on a rotated or curved grid long ones would need large windows of the old image
        length = max(1, math.isqrt(TILE_POINTS // self.points**2))
        rows, columns = (
            [slice(start, min(start + length, size)) for start in range(0, size, length)] for size in self.shape
        )
        tiles = (self._tile(target, part) for part in itertools.product(rows, columns))
        self._tiles = [tile for tile in tiles if tile is not None]

    @property
    def nbytes(self) -> int:
        """Return the size of the weights in bytes."""
        return sum(tile.counts.nbytes + tile.indices.nbytes + tile.starts.nbytes for tile in self._tiles)

    def mean(self, rain: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Map `rain` (H, W) in mm/h from the source grid to means on the target grid; NaN for missing in both."""
        from scipy.sparse import csr_array

        means = np.full(self.shape, np.nan, np.float32)
        for tile in self._tiles:
            rates = rain[tile.used].ravel()
            observed = ~np.isnan(rates)
            size = tile.starts.size - 1, rates.size
            # counts are small integers, so their float32 sums are exact
            count = csr_array((tile.counts.astype(np.float32), tile.indices, tile.starts), shape=size)
            weight = count @ observed.astype(np.float32)
            total = count @ np.where(observed, rates, np.float32(0))
            enough = 2 * weight >= self.points**2
            part = means[tile.part]
            part[enough.reshape(part.shape)] = total[enough] / weight[enough]
        return means

    def _tile(self, target: Grid, part: tuple[slice, slice]) -> _Tile | None:
        """Return the weights of a part; None if no point lies in an old pixel."""
        y, x = (
            axis[of_part.start : of_part.stop + 1]
            for axis, of_part in zip(_Frame.of(target).corners(), part, strict=True)
        )
        pixels = _pixels(*self.source.places(target.crs_wkt, y, x), self.points, self.source.shape)
        # sort each pixel's points by the old pixel that contains them: each run is one weight
        pixels.sort(axis=1)
        begins = np.ones(pixels.shape, bool)
        begins[:, 1:] = pixels[:, 1:] != pixels[:, :-1]
        at = np.flatnonzero(begins)
        counts = np.diff(at, append=pixels.size)
        values = pixels.ravel()[at]
        inside = values >= 0
        if not inside.any():
            return None
        used, indices = _window(*np.divmod(values[inside], self.source.shape[1]))
        per_pixel = np.bincount(at[inside] // pixels.shape[1], minlength=pixels.shape[0])
        starts = np.concatenate([[0], np.cumsum(per_pixel)]).astype(np.int32)
        kind = np.uint8 if self.points**2 < 256 else np.uint32
        return _Tile(part, used, counts[inside].astype(kind), indices, starts)


def _window(
    rows: npt.NDArray[np.int32], columns: npt.NDArray[np.int32]
) -> tuple[tuple[slice, slice], npt.NDArray[np.int32]]:
    """Return the smallest window that contains these pixels, and their flat indices in it."""
    used = slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1)
    width = used[1].stop - used[1].start
    return used, ((rows - used[0].start) * width + columns - used[1].start).astype(np.int32)


def _pixels(row: Floats, column: Floats, points: int, shape: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Return the flat index of the old pixel that contains each point, −1 for none: (new pixels, points²).

    `row` and `column` (h + 1, w + 1) are the fractional positions of the corners. Points between corners are
    interpolated linearly; for pixels of 2 km the error is 0.1 m (2 km squared, divided by eight Earth radii).
    """
    height, width = row.shape[0] - 1, row.shape[1] - 1
    pixels = np.empty((points**2, height * width), np.int32)
    for number in range(points**2):
        down, right = ((part + 0.5) / points for part in divmod(number, points))
        at_row, at_column = (_between(corner, down, right) for corner in (row, column))
        inside = (at_row >= 0) & (at_row < shape[0]) & (at_column >= 0) & (at_column < shape[1])  # False for NaN
        numbers = np.full(inside.shape, -1, np.int32)
        numbers[inside] = at_row[inside].astype(np.int32) * shape[1] + at_column[inside].astype(np.int32)
        pixels[number] = numbers.ravel()
    return np.ascontiguousarray(pixels.T)


def _between(corners: Floats, down: float, right: float) -> Floats:
    """Interpolate bilinearly to one point in each pixel, at the fractions `down` and `right` of its sides."""
    upper = (1 - right) * corners[:-1, :-1] + right * corners[:-1, 1:]
    lower = (1 - right) * corners[1:, :-1] + right * corners[1:, 1:]
    return (1 - down) * upper + down * lower


@dataclass(frozen=True, eq=False)
class _Frame:
    """A grid given by its outer corner: row 0 covers y0 to y0 + dy, row 1 the next dy; columns likewise."""

    y0: float
    dy: float
    x0: float
    dx: float
    shape: tuple[int, int]
    crs_wkt: str

    @classmethod
    def of(cls, grid: Grid) -> "_Frame":
        dy, dx = _spacing(grid.y, grid.x), _spacing(grid.x, grid.y)
        return cls(float(grid.y[0]) - dy / 2, dy, float(grid.x[0]) - dx / 2, dx, grid.shape, grid.crs_wkt)

    def corners(self) -> tuple[Floats, Floats]:
        """Return the edges of the rows (H + 1,) and of the columns (W + 1,)."""
        height, width = self.shape
        y = self.y0 + self.dy * np.arange(height + 1, dtype=np.float64)
        x = self.x0 + self.dx * np.arange(width + 1, dtype=np.float64)
        return y, x

    def places(self, crs_wkt: str, y: Floats, x: Floats) -> tuple[Floats, Floats]:
        """Return the fractional rows and columns of the lattice `y` × `x` in `crs_wkt`; NaN if undefined."""
        own_x, own_y = _transform(*np.meshgrid(x, y), crs_wkt, self.crs_wkt)
        if is_geographic(self.crs_wkt):
            own_x = _turned(own_x, self.x0 + self.dx * self.shape[1] / 2)
            # a pixel with corners on both sides of the seam would span the Earth
            own_x[:, 1:][np.abs(np.diff(own_x, axis=1)) > 180] = np.nan
            own_x[1:][np.abs(np.diff(own_x, axis=0)) > 180] = np.nan
        return (own_y - self.y0) / self.dy, (own_x - self.x0) / self.dx


def _transform(x: Floats, y: Floats, from_wkt: str, to_wkt: str) -> tuple[Floats, Floats]:
    """Transform coordinates to another projection; NaN where that is undefined."""
    if from_wkt == to_wkt:
        return x, y
    new = _transformer(from_wkt, to_wkt).transform(x, y)
    for axis in new:
        axis[~np.isfinite(axis)] = np.nan
    return new[0], new[1]


@functools.lru_cache(maxsize=4)
def _transformer(from_wkt: str, to_wkt: str) -> Any:
    from pyproj import Transformer

    return Transformer.from_crs(from_wkt, to_wkt, always_xy=True)


def _turned(longitude: Floats, middle: float) -> Floats:
    """Wrap longitudes to within 180° of `middle`."""
    turned: Floats = (longitude - middle + 180) % 360 - 180 + middle
    return turned


def _spacing(axis: Floats, other: Floats) -> float:
    """Return the signed spacing; an axis of one pixel takes that of the other."""
    longer = axis if axis.size > 1 else other
    return float(longer[-1] - longer[0]) / (longer.size - 1) if longer.size > 1 else 1.0


def _num_points(source: _Frame, target: Grid) -> int:
    """Return the number of points along each axis of a new pixel, from its length in old pixels."""
    steps = [max(1, n // _LATTICE) for n in target.shape]
    y, x = (axis[::step] for axis, step in zip(_Frame.of(target).corners(), steps, strict=True))
    row, column = source.places(target.crs_wkt, y, x)
    inside = (row >= 0) & (row <= source.shape[0]) & (column >= 0) & (column <= source.shape[1])
    lengths = [0.0]
    for axis, step in enumerate(steps):
        length = np.hypot(np.diff(row, axis=axis), np.diff(column, axis=axis)) / step
        known = length[np.delete(inside, -1, axis) & np.isfinite(length)]
        lengths += [float(np.median(known))] if known.size else []
    return max(LEAST_POINTS, int(np.ceil(POINTS_PER_PIXEL * max(lengths) - 1e-6)))
