"""Grids that are defined by the longitudes and latitudes of their corners."""

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from raincast.archive.limits import check_image
from raincast.projection import crs_in_metres, is_geographic
from raincast.schema import Grid

CORNERS = ("LL", "UL", "UR", "LR")
"""ODIM's names: lower left, upper left, upper right, lower right."""


@lru_cache(maxsize=16)
def grid_between(
    projdef: str, corners: tuple[tuple[str, float, float], ...], sizes: tuple[tuple[int, float], ...]
) -> Grid:
    """Return the grid with `corners` (name, longitude, latitude); `sizes` are number and scale of pixels in y, x.

    Raises ValueError for an unknown projection, too few corners, or corners that contradict the sizes.
    """
    from pyproj import Transformer

    wkt, _ = crs_in_metres(projdef)
    # longitudes and latitudes are WGS 84; PROJ shifts the datum if projdef defines it (+towgs84)
    to_map = Transformer.from_crs("EPSG:4326", wkt, always_xy=True)
    places = {name: to_map.transform(lon, lat) for name, lon, lat in corners}
    (num_y, scale_y), (num_x, scale_x) = sizes
    check_image(num_y, num_x)
    if is_geographic(wkt):  # across the date line the eastern corners have smaller longitudes
        west = max((x for name, (x, _) in places.items() if name[1] == "L"), default=-np.inf)
        places = {name: (x + 360 if name[1] == "R" and x < west else x, y) for name, (x, y) in places.items()}
    y = _centres(_edges(places, "U", 1), _edges(places, "L", 1), num_y, scale_y, "y")
    x = _centres(_edges(places, "L", 0), _edges(places, "R", 0), num_x, scale_x, "x")
    return Grid(y=y, x=x, crs_wkt=wkt)


def _edges(places: Mapping[str, tuple[float, float]], side: str, axis: int) -> Sequence[float]:
    """Return the coordinates of a side (U, L for y; L, R for x): the mean of its rounded corners, then each."""
    letter = 0 if axis else 1
    values = [place[axis] for name, place in places.items() if name[letter] == side]
    if not values or not np.isfinite(values).all():
        raise ValueError(
            f"where states too few corners ({', '.join(places) or 'none'}): at least LL and UR are needed"
        )
    return float(np.mean(values)), *values


def _centres(
    firsts: Sequence[float], lasts: Sequence[float], number: int, scale: float, axis: str
) -> npt.NDArray[np.float64]:
    """Return pixel centres between two edges, which must agree with `scale` (0: not stated).

    The corners should be those of the image, but some services give the centres of the corner pixels. The scale
    shows which, and also which corner is wrong: DMI's lower right one is 15 km off. MeteoSwiss states it in km.
    """
    first, last = firsts[0], lasts[0]
    if scale > 0 and abs(abs(last - first) / (1000.0 * scale) / max(number, 1) - 1) <= 0.02:
        scale *= 1000.0
    if scale > 0:
        pairs = itertools.product(firsts, lasts)
        fits = ((a, b) for a, b in pairs if _steps(abs(b - a), number, scale) is not None)
        first, last = next(fits, (first, last))
    width = abs(last - first)
    if number < 1 or first == last:
        raise ValueError(f"{axis}size={number} pixels from {first:g} to {last:g} are not an image")
    steps = number if scale <= 0 else _steps(width, number, scale)
    if steps is None and abs(width / scale / number - 1) > 0.02:
        raise ValueError(
            f"its corners are {width:g} apart in {axis}, but {axis}size × {axis}scale is {number * scale:g}: "
            "where/projdef, the corners or the scale are wrong"
        )
    steps = steps or number
    pixel = (last - first) / steps
    if scale > 0 and abs(width - steps * scale) <= 0.1 * scale:
        pixel = float(np.copysign(scale, pixel))
    centre = 0.5 * (first + last)
    return centre + pixel * (np.arange(number, dtype=np.float64) - 0.5 * (number - 1))


def _steps(width: float, number: int, scale: float) -> int | None:
    """Return the number of pixels between the corners, `number` or one less; None if neither fits the scale."""
    for steps in (number, number - 1):
        if abs(width / scale - steps) <= 0.1:
            return steps
    return None
