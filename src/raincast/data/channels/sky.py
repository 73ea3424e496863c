"""Maps of a grid computed from latitude and longitude, and the factors of time to multiply them with."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from raincast.schema import Grid

EARTH_RADIUS_KM = 6371.0
Maps = npt.NDArray[np.float32]
Factors = npt.NDArray[np.float64]
Times = npt.NDArray[np.datetime64]


def latitude_longitude(grid: Grid) -> tuple[Maps, Maps]:
    """Return latitude and longitude of each pixel in radians, (H, W) each."""
    from pyproj import Transformer

    to_degrees = Transformer.from_crs(grid.crs_wkt, 4326, always_xy=True)
    latitude, longitude = np.empty((2, *grid.shape), np.float32)
    for first in range(0, grid.y.size, 64):  # in bands: the grid may have tens of millions of pixels
        rows = slice(first, first + 64)
        x, y = np.meshgrid(grid.x, grid.y[rows])
        lon, lat = to_degrees.transform(x, y)
        latitude[rows], longitude[rows] = np.radians(lat), np.radians(lon)
    # corners of some projections are not on Earth
    return np.nan_to_num(latitude, posinf=0, neginf=0), np.nan_to_num(longitude, posinf=0, neginf=0)


def distance_km(grid: Grid, points: Sequence[Sequence[float]]) -> Maps:
    """Return the great-circle distance in km of each pixel, (H, W), to the nearest of `points` (lat, lon in °)."""
    latitude, longitude = latitude_longitude(grid)
    nearest = np.full(grid.shape, np.inf, np.float32)
    for lat, lon in np.radians(points):
        # the haversine is accurate for short distances, where the cosine formula is not
        h = (
            np.sin((latitude - lat) / 2) ** 2
            + np.cos(latitude) * math.cos(lat) * np.sin((longitude - lon) / 2) ** 2
        )
        np.minimum(nearest, 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(h.clip(0, 1))), out=nearest)
    return nearest


def sun_maps(grid: Grid) -> Maps:
    """Return sin φ, cos φ cos λ, cos φ sin λ of latitude φ and longitude λ, (3, H, W)."""
    latitude, longitude = latitude_longitude(grid)
    return np.stack([np.sin(latitude), np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude)])


def sun_factors(times: Times) -> Factors:
    """Return factors (T, 3) at `times` (T,), UTC; multiplied with `sun_maps` they give the sine of sun elevation.

    sin(elevation) = sin φ sin δ + cos φ cos δ cos(H + λ), with declination δ and Greenwich hour angle H from the
    Astronomical Almanac's low-precision formula (0.01° from 1950 to 2050).
    """
    days = _days_since(times, "2000-01-01T12:00")
    mean = np.radians(280.460 + 0.9856474 * days)
    anomaly = np.radians(357.528 + 0.9856003 * days)
    longitude = mean + np.radians(1.915 * np.sin(anomaly) + 0.020 * np.sin(2 * anomaly))
    tilt = np.radians(23.439 - 4e-7 * days)
    declination = np.arcsin(np.sin(tilt) * np.sin(longitude))
    ascension = np.arctan2(np.cos(tilt) * np.sin(longitude), np.cos(longitude))
    sidereal = np.radians(15 * (18.697374558 + 24.06570982441908 * days))
    hour = sidereal - ascension
    cosine = np.cos(declination)
    return np.stack([np.sin(declination), cosine * np.cos(hour), -cosine * np.sin(hour)], axis=1)


def day_maps(grid: Grid, part: Literal["sin", "cos"]) -> tuple[Maps, Callable[[Times], Factors]]:
    """Return maps (2, H, W) of the longitude, and factors that turn them into the sine or cosine of local time."""
    longitude = latitude_longitude(grid)[1]
    maps: Maps = np.stack([np.cos(longitude), np.sin(longitude)])

    def factors(times: Times) -> Factors:
        angle = 2 * np.pi * (_days_since(times, "2000-01-01T00:00") % 1)
        sine, cosine = np.sin(angle), np.cos(angle)
        return np.stack([sine, cosine] if part == "sin" else [cosine, -sine], axis=1)

    return maps, factors


def season_factors(times: Times, part: Literal["sin", "cos"]) -> Factors:
    """Return the sine or cosine of the elapsed share of the year as an angle, (T, 1) for `times` (T,)."""
    year = times.astype("datetime64[Y]")
    begin = year.astype("datetime64[s]")
    share = (times.astype("datetime64[s]") - begin) / ((year + 1).astype("datetime64[s]") - begin)
    angle = 2 * np.pi * share.astype(np.float64)
    return np.array(np.sin(angle) if part == "sin" else np.cos(angle))[:, None]


def _days_since(times: Times, start: str) -> Factors:
    days: Factors = (times.astype("datetime64[s]") - np.datetime64(start, "s")) / np.timedelta64(1, "D")
    return days
