"""A grid between corners that are known as longitude and latitude."""

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from raincast.ingest.readers.common.axes import crs_in_metres, is_geographic
from raincast.schema import Grid

CORNERS = ("LL", "UL", "UR", "LR")
"""Lower left and so on: how ODIM names them."""


@lru_cache(maxsize=16)
def grid_between(
    projdef: str, corners: tuple[tuple[str, float, float], ...], sizes: tuple[tuple[int, float], ...]
) -> Grid:
    """The grid with `corners` (name, longitude, latitude); `sizes` are number and scale of the pixels of y and x.

    ValueError for an unknown projection, too few corners, or corners that the sizes do not fit.
    """
    from pyproj import Transformer

    wkt, _ = crs_in_metres(projdef)
    # the format has longitudes and latitudes of WGS 84; PROJ shifts them if projdef says how (+towgs84)
    to_map = Transformer.from_crs("EPSG:4326", wkt, always_xy=True)
    places = {name: to_map.transform(lon, lat) for name, lon, lat in corners}
    (num_y, scale_y), (num_x, scale_x) = sizes
    if is_geographic(wkt):  # across the date line the eastern corners have the smaller numbers
        west = max((x for name, (x, _) in places.items() if name[1] == "L"), default=-np.inf)
        places = {name: (x + 360 if name[1] == "R" and x < west else x, y) for name, (x, y) in places.items()}
    y = _centres(_edges(places, "U", 1), _edges(places, "L", 1), num_y, scale_y, "y")
    x = _centres(_edges(places, "L", 0), _edges(places, "R", 0), num_x, scale_x, "x")
    return Grid(y=y, x=x, crs_wkt=wkt)


def _edges(places: Mapping[str, tuple[float, float]], side: str, axis: int) -> Sequence[float]:
    """The coordinates of a side (U, L of y; L, R of x): the mean of its corners, which come rounded, and each."""
    letter = 0 if axis else 1
    values = [place[axis] for name, place in places.items() if name[letter] == side]
    if not values or not np.isfinite(values).all():
        raise ValueError(
            f"where states too few corners ({', '.join(places) or 'none'}): it takes LL and UR at least"
        )
    return float(np.mean(values)), *values


def _centres(
    firsts: Sequence[float], lasts: Sequence[float], number: int, scale: float, axis: str
) -> npt.NDArray[np.float64]:
    """Pixel centres between two edges; `scale` (0: not stated) must agree with them.

    The corners are those of the image. Some services give the centres of the corner pixels: the scale tells. It
    also tells which corner is wrong: DMI's lower right one is 15 km off. MeteoSwiss has stated it in km.
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
        raise ValueError(f"{axis}size={number} pixels from {first:g} to {last:g} are no image")
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
    """How many pixels lie between the corners, all of them or one less; None where neither fits the scale."""
    for steps in (number, number - 1):
        if abs(width / scale - steps) <= 0.1:
            return steps
    return None
