"""Channels: covariates of the rain, and how each one is read. `declared` combines them.

A channel has a role. `past`: seen at the times of the input frames. `future`: known in advance (a weather model),
and seen at the times of the forecast frames too. `static`: does not change. `time`: follows from time and place
alone. The rain itself is the `target`, and comes first. Values are in the channel's own unit, NaN where there is
none.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from raincast.archive import Archive
from raincast.data.channels.sky import day_maps, distance_km, season_factors, sun_factors, sun_maps
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
        """The grid of an archive."""
        return cls(archive.grid, lambda: archive.coverage, str(archive.path))


class Reader(Protocol):
    """A channel on one grid."""

    def read(self, times: Times, y: slice, x: slice) -> Values:
        """(T, H, W) at `times` (T,), in the channel's unit, NaN where there is no value."""


@runtime_checkable
class Channel(Protocol):
    """A channel as it is declared, of no grid yet; `vector` is NAME.x or NAME.y for a component along x or y."""

    role: Role
    transform: Transform
    vector: str | None

    def bind(self, name: str, site: Site) -> Reader:
        """The channel on the grid of `site`; ValueError or FileNotFoundError where there is none."""


@dataclass(frozen=True)
class Observed:
    """Where the rain was observed: 1, and missing: 0, at each input frame. Made of the rain on the device."""

    role: Role = dataclasses.field(default="past", init=False)
    transform: Transform = dataclasses.field(default=AS_IT_IS, init=False)
    vector: str | None = dataclasses.field(default=None, init=False)

    def bind(self, name: str, site: Site) -> Reader:
        """Nothing is read."""
        raise AssertionError(f"{name} is made of the rain.")


@dataclass(frozen=True, eq=False)
class Fixed:
    """One map (H, W), the same at all times."""

    values: Values

    def read(self, times: Times, y: slice, x: slice) -> Values:
        """The map once: who reads a static channel needs no copy a time."""
        return self.values[None, y, x]


@dataclass(frozen=True, eq=False)
class Products:
    """Sums of maps (K, H, W) with factors that follow from the time: (T,) → (T, K)."""

    maps: Values
    factors: Callable[[Times], npt.NDArray[np.float64]]

    def read(self, times: Times, y: slice, x: slice) -> Values:
        """Cheap: a product and a sum a pixel, however much trigonometry the maps took."""
        values: Values = np.tensordot(self.factors(times).astype(np.float32), self.maps[:, y, x], axes=1)
        return values


@dataclass(frozen=True)
class Coverage:
    """The pixels that any frame of an archive observed: 1 and 0. `path` is another archive of the same grid."""

    path: str | None = None
    role: Role = dataclasses.field(default="static", init=False)
    transform: Transform = dataclasses.field(default=AS_IT_IS, init=False)
    vector: str | None = dataclasses.field(default=None, init=False)

    def bind(self, name: str, site: Site) -> Reader:
        """ValueError where nothing says the coverage."""
        if self.path is not None:
            other = Archive.open(self.path)
            if not other.grid.same_as(site.grid):
                raise ValueError(f"channels.{name}.path={self.path} has another grid than {site.label}.")
            site = Site.of(other)
        mask = site.coverage()
        if mask is None:
            raise ValueError(
                f"{site.label} does not say its coverage, which the channel {name} needs. Give an archive of its "
                f"grid that does, channels.{name}.path=…, or make one: python ingest.py source=archive files=… "
                "archive=…"
            )
        return Fixed(mask.astype(np.float32))


@dataclass(frozen=True)
class RadarDistance:
    """The distance in km to the nearest radar; `radars` are their [latitude, longitude] in degrees."""

    radars: Sequence[Sequence[float]]
    transform: Transform = HUNDRED_KM
    role: Role = dataclasses.field(default="static", init=False)
    vector: str | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        """Refuse what is no place on Earth."""
        if not self.radars or any(len(p) != 2 or abs(p[0]) > 90 or abs(p[1]) > 360 for p in self.radars):
            given = [list(place) for place in self.radars]
            raise ValueError(f"radars={given}: give [latitude, longitude] of each, in degrees.")

    def bind(self, name: str, site: Site) -> Reader:
        """Computed once."""
        return Fixed(distance_km(site.grid, self.radars))


@dataclass(frozen=True)
class Sun:
    """The sine of the sun's elevation: 1 in the zenith, 0 on the horizon, below 0 at night."""

    role: Role = dataclasses.field(default="time", init=False)
    transform: Transform = dataclasses.field(default=AS_IT_IS, init=False)
    vector: str | None = dataclasses.field(default=None, init=False)

    def bind(self, name: str, site: Site) -> Reader:
        """Computed from the maps of sines and cosines of latitude and longitude."""
        return Products(sun_maps(site.grid), sun_factors)


@dataclass(frozen=True)
class _Angle:
    """The sine or cosine (`part`) of an angle that follows from the time."""

    part: Literal["sin", "cos"]
    role: Role = dataclasses.field(default="time", init=False)
    transform: Transform = dataclasses.field(default=AS_IT_IS, init=False)
    vector: str | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        """Refuse another part."""
        if self.part not in ("sin", "cos"):
            raise ValueError(f"part={self.part}: take sin or cos, best a channel of each.")


class DayAngle(_Angle):
    """The sine or cosine (`part`) of the local mean solar time, as an angle that is 0 at midnight."""

    def bind(self, name: str, site: Site) -> Reader:
        """Computed from maps of the longitude."""
        return Products(*day_maps(site.grid, self.part))


class SeasonAngle(_Angle):
    """The sine or cosine (`part`) of the time of the year, as an angle that is 0 at the turn of the year."""

    def bind(self, name: str, site: Site) -> Reader:
        """The same everywhere."""
        return Products(np.ones((1, *site.grid.shape), np.float32), lambda times: season_factors(times, self.part))
