"""The archive's grid: the service's own, optionally cropped, averaged to larger pixels, or reprojected."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raincast.archive.rates import bands
from raincast.ingest.reproject import target_grid, weights_between
from raincast.projection import crs_in_metres, is_geographic
from raincast.schema import Grid


@dataclass(frozen=True)
class Region:
    """Crop, coarsen and reproject, in this order; the default does none of them.

    `crop` is [y0, y1, x0, x1] in pixels of the service's images, counted from 0, end excluded: it keeps rows y0
    to y1 − 1 in the order of the file, whichever way its axes run. `coarsen` is the number of pixels along each
    axis that become one; rows and columns at the far ends that do not fill a pixel are dropped. `reproject` is any
    projection that pyproj accepts (EPSG:3035, a PROJ string, WKT). Its pixels are squares of `spacing` within
    `bounds` [y0, y1, x0, x1], both in the projection's units; without bounds they cover the whole image.
    """

    crop: tuple[int, int, int, int] | None = None
    coarsen: int = 1
    reproject: str | int | None = None
    spacing: float | None = None
    bounds: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for arguments that no grid can fulfil."""
        given = self.crop
        if given is not None:
            crop = tuple(self.crop) if isinstance(self.crop, list | tuple) else ()
            object.__setattr__(self, "crop", crop)  # YAML gives a list
            numbers = len(crop) == 4 and all(isinstance(number, int) for number in crop)
            if not numbers or not (0 <= crop[0] < crop[1] and 0 <= crop[2] < crop[3]):
                raise ValueError(
                    f"grid.crop={given} must be [y0,y1,x0,x1] in whole pixels, 0 ≤ y0 < y1 and "
                    "0 ≤ x0 < x1: rows y0 to y1 − 1 and columns x0 to x1 − 1 are kept. null keeps all."
                )
        if not isinstance(self.coarsen, int) or self.coarsen < 1:
            raise ValueError(
                f"grid.coarsen={self.coarsen} must be a whole number from 1: the number of pixels along each axis "
                "that become one. 1 leaves the grid as it is."
            )
        self._check_projection()

    def _check_projection(self) -> None:
        if isinstance(self.reproject, int):
            object.__setattr__(self, "reproject", f"EPSG:{self.reproject}")
        if self.reproject is None:
            for name, value in (("spacing", self.spacing), ("bounds", self.bounds)):
                if value is not None:
                    raise ValueError(
                        f"grid.{name}={value} needs another projection: name it with grid.reproject=EPSG:3035, or "
                        "leave this key out. grid.crop and grid.coarsen are in the service's own pixels."
                    )
            return
        if not isinstance(self.spacing, int | float) or not self.spacing > 0:
            raise ValueError(
                f"grid.spacing={self.spacing} must be over 0: the side of a pixel in the units of "
                f"grid.reproject={self.reproject}, e.g. grid.spacing=1000 for metres, 0.01 for degrees."
            )
        crs_in_metres(self.reproject)
        if self.bounds is not None:
            bounds = tuple(self.bounds) if isinstance(self.bounds, list | tuple) else ()
            numbers = len(bounds) == 4 and all(isinstance(number, int | float) for number in bounds)
            in_degrees = is_geographic(crs_in_metres(self.reproject)[0])
            crosses = numbers and in_degrees and -180 <= bounds[3] < bounds[2] <= 180
            if not numbers or not (bounds[0] < bounds[1] and (bounds[2] < bounds[3] or crosses)):
                raise ValueError(
                    f"grid.bounds={self.bounds} must be [y0,y1,x0,x1] in units of "
                    f"grid.reproject={self.reproject}, y0 < y1 and x0 < x1 (x0 > x1 for degrees across the date "
                    "line). null covers the whole image."
                )
            object.__setattr__(self, "bounds", bounds)

    def window(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        """Return the rows and columns used of an image of `shape`. Raises ValueError if they exceed it."""
        y0, y1, x0, x1 = self.crop or (0, shape[0], 0, shape[1])
        if y1 > shape[0] or x1 > shape[1]:
            raise ValueError(
                f"grid.crop={[y0, y1, x0, x1]} reaches beyond the images of {shape[0]} × {shape[1]} pixels."
            )
        height, width = ((n // self.coarsen) * self.coarsen for n in (y1 - y0, x1 - x0))
        if not height or not width:
            raise ValueError(
                f"grid.coarsen={self.coarsen} leaves no pixel of {y1 - y0} × {x1 - x0}. Choose a smaller value."
            )
        return slice(y0, y0 + height), slice(x0, x0 + width)

    def grid(self, source: Grid) -> Grid:
        """Return the archive's grid for images on `source`; `source` itself if nothing changes."""
        own = self._own_grid(source)
        if self.reproject is None:
            return own
        assert self.spacing is not None
        return target_grid(own, str(self.reproject), self.spacing, self.bounds)

    def rain(self, rain: npt.NDArray[np.float32], source: Grid, grid: Grid) -> npt.NDArray[np.float32]:
        """Map `rain`, the `window` of an image on `source`, to the archive's `grid`; mm/h, NaN for missing."""
        means = self.mean(rain)
        return means if self.reproject is None else weights_between(self._own_grid(source), grid).mean(means)

    def _own_grid(self, source: Grid) -> Grid:
        """Return the cropped and coarsened grid in the service's own projection."""
        if self.crop is None and self.coarsen == 1:
            return source
        y, x = (
            axis[window].reshape(-1, self.coarsen).mean(axis=1)
            for axis, window in zip((source.y, source.x), self.window(source.shape), strict=True)
        )
        return Grid(y=y, x=x, crs_wkt=source.crs_wkt)

    def mean(self, rain: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return area means of `rain` (H, W); H and W are multiples of `coarsen`.

        A mean covers the observed pixels; it is missing if fewer than half of them were observed. All pixels have
        the same weight: on a grid in degrees, the areas within one mean differ by less than 0.1 %.
        """
        k = self.coarsen
        if k == 1:
            return rain
        height, width = rain.shape[0] // k, rain.shape[1] // k
        means = np.empty((height, width), np.float32)
        for rows in bands((height, width, k, k)):
            pixels = rain[rows.start * k : rows.stop * k].reshape(-1, k, width, k)
            observed = ~np.isnan(pixels)
            count = observed.sum(axis=(1, 3))
            total = np.where(observed, pixels, 0).sum(axis=(1, 3), dtype=np.float64)
            means[rows] = np.where(2 * count >= k * k, total / np.maximum(count, 1), np.nan)
        return means
