"""Channels: covariates of the rain, and readers for them. `declared` combines them.

Each channel has a role. `past`: known at the times of the input frames. `future`: known in advance (a weather
model), so also at the lead times. `static`: constant in time. `time`: computed from time and place alone. The rain
itself is the `target`, and comes first. Values are in the channel's own unit, NaN for missing.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from raincast.archive import Archive
from raincast.schema import Grid
from raincast.transforms import LinearScaling, Transform

Role = Literal["past", "future", "static", "time"]
ROLES: tuple[Role, ...] = ("past", "future", "static", "time")
Times = npt.NDArray[np.datetime64]
Values = npt.NDArray[np.float32]
AS_IT_IS = LinearScaling()
HUNDRED_KM = LinearScaling(scale=100.0)


@dataclass(frozen=True, eq=False)
class Site:
    """The place where a channel is read: a grid, its coverage if known, and its name in messages."""

    grid: Grid
    coverage: Callable[[], npt.NDArray[np.bool_] | None]
    label: str

    @classmethod
    def of(cls, archive: Archive) -> "Site":
        """Return the site of an archive."""
        return cls(archive.grid, lambda: archive.coverage, str(archive.path))


class Reader(Protocol):
    """A channel on one grid."""

    def read(self, times: Times, y: slice, x: slice) -> Values:
        """Return values (T, H, W) at `times` (T,), in the channel's unit, NaN for missing."""


@runtime_checkable
class Channel(Protocol):
    """A declared channel, not yet bound to a grid; `vector` is NAME.x or NAME.y for a component along x or y."""

    role: Role
    transform: Transform
    vector: str | None

    def bind(self, name: str, site: Site) -> Reader:
        """Return the reader on the grid of `site`. Raises ValueError or FileNotFoundError if there is none."""


@dataclass(frozen=True)
class Observed:
    """Mask of observed (1) and missing (0) pixels of each input frame, computed from the rain on the device."""

    role: Role = dataclasses.field(default="past", init=False)
    transform: Transform = dataclasses.field(default=AS_IT_IS, init=False)
    vector: str | None = dataclasses.field(default=None, init=False)

    def bind(self, name: str, site: Site) -> Reader:
        """Never called: the mask is computed from the rain."""
        raise AssertionError(f"{name} is computed from the rain.")


@dataclass(frozen=True, eq=False)
class Fixed:
    """One map (H, W), constant in time."""

    values: Values

    def read(self, times: Times, y: slice, x: slice) -> Values:
        """Return the map once, (1, H, W), whatever the number of times."""
        return self.values[None, y, x]


@dataclass(frozen=True, eq=False)
class Products:
    """Sums of maps (K, H, W) weighted with factors (T, K), which are a function of the times (T,)."""

    maps: Values
    factors: Callable[[Times], npt.NDArray[np.float64]]

    def read(self, times: Times, y: slice, x: slice) -> Values:
        """Return the weighted sums (T, H, W); all trigonometry is in the maps, so this is cheap."""
        values: Values = np.tensordot(self.factors(times).astype(np.float32), self.maps[:, y, x], axes=1)
        return values


@dataclass(frozen=True)
class Coverage:
    """Mask of pixels that any frame of an archive observed, 1 or 0. `path` is another archive on the same grid."""

    path: str | None = None
    role: Role = dataclasses.field(default="static", init=False)
    transform: Transform = dataclasses.field(default=AS_IT_IS, init=False)
    vector: str | None = dataclasses.field(default=None, init=False)

    def bind(self, name: str, site: Site) -> Reader:
        """Return the coverage. Raises ValueError if the archive does not state it, or is on another grid."""
        if self.path is not None:
            other = Archive.open(self.path)
            if not other.grid.same_as(site.grid):
                raise ValueError(f"channels.{name}.path={self.path} has another grid than {site.label}.")
            site = Site.of(other)
        mask = site.coverage()
        if mask is None:
            raise ValueError(
                f"{site.label} does not state its coverage, which the channel {name} needs. Name an archive on "
                f"its grid that does, channels.{name}.path=…, or create one: python ingest.py source=archive "
                "files=… archive=…"
            )
        return Fixed(mask.astype(np.float32))


MOST_REACH_KM = 500.0
"""No weather radar sees further."""


@dataclass(frozen=True)
class RadarDistance:
    """The distance in km to the nearest radar; `radars` are their [latitude, longitude] in degrees."""

    radars: Sequence[Sequence[float]]
    transform: Transform = HUNDRED_KM
    role: Role = dataclasses.field(default="static", init=False)
    vector: str | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        """Raise ValueError for coordinates that are not on Earth."""
        if not self.radars or any(len(p) != 2 or abs(p[0]) > 90 or abs(p[1]) > 360 for p in self.radars):
            given = [list(place) for place in self.radars]
            raise ValueError(f"radars={given}: give [latitude, longitude] of each radar in degrees.")

    def bind(self, name: str, site: Site) -> Reader:
        """Compute the distances once. Raises ValueError if no pixel is within reach of a radar."""
        distances = distance_km(site.grid, self.radars)
        if distances.min() > MOST_REACH_KM:
            raise ValueError(
                f"channels.{name}: every pixel is {distances.min():.0f} km or more from the radars "
                f"{[list(place) for place in self.radars]}: give [latitude, longitude] of each, in this order."
            )
        return Fixed(distances)


@dataclass(frozen=True)
class Sun:
    """The sine of the sun's elevation: 1 in the zenith, 0 on the horizon, negative at night."""

    role: Role = dataclasses.field(default="time", init=False)
    transform: Transform = dataclasses.field(default=AS_IT_IS, init=False)
    vector: str | None = dataclasses.field(default=None, init=False)

    def bind(self, name: str, site: Site) -> Reader:
        """Return products of maps of latitude and longitude with factors of time."""
        return Products(sun_maps(site.grid), sun_factors)


@dataclass(frozen=True)
class _Angle:
    """The sine or cosine (`part`) of an angle that depends on time."""

    part: Literal["sin", "cos"]
    role: Role = dataclasses.field(default="time", init=False)
    transform: Transform = dataclasses.field(default=AS_IT_IS, init=False)
    vector: str | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        """Raise ValueError for another part."""
        if self.part not in ("sin", "cos"):
            raise ValueError(f"part={self.part}: use sin or cos, preferably one channel of each.")


class DayAngle(_Angle):
    """The sine or cosine (`part`) of the local mean solar time as an angle, 0 at midnight."""

    def bind(self, name: str, site: Site) -> Reader:
        """Return products of maps of the longitude with factors of time."""
        return Products(*day_maps(site.grid, self.part))


class SeasonAngle(_Angle):
    """The sine or cosine (`part`) of the time of year as an angle, 0 at the turn of the year."""

    def bind(self, name: str, site: Site) -> Reader:
        """Return a channel that is the same at all pixels."""
        return Products(np.ones((1, *site.grid.shape), np.float32), lambda times: season_factors(times, self.part))


EARTH_RADIUS_KM = 6371.0
Maps = npt.NDArray[np.float32]
Factors = npt.NDArray[np.float64]


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
