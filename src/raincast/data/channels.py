"""What a network may see beside the rain: the channels that `data.channels` declares, and how each is read.

A channel has a role. `past`: seen at the times of the input frames. `future`: known in advance (a weather model),
and seen at the times of the forecast frames too. `static`: does not change. `time`: follows from time and place
alone. The rain itself is the `target`, and comes first. Values are in the channel's own unit, NaN where there is
none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
import numpy.typing as npt

from raincast.archive import Archive
from raincast.data.sky import day_maps, distance_km, season_factors, sun_factors, sun_maps
from raincast.schema import Grid
from raincast.transforms import LinearScaling, Transform

Role = Literal["past", "future", "static", "time"]
ROLES: tuple[Role, ...] = ("past", "future", "static", "time")
Times = npt.NDArray[np.datetime64]
Values = npt.NDArray[np.float32]
AS_IT_IS = LinearScaling()
HUNDRED_KM = LinearScaling(scale=100.0)


class Covariates(TypedDict):
    """The channels of a window, float32: past (T_in, P, H, W), static (S, H, W), future (T_out, F, H, W).

    `past` holds the channels of the roles past, time and future, in the order in which they are declared. What no
    channel needs is left out.
    """

    past: NotRequired[Values]
    static: NotRequired[Values]
    future: NotRequired[Values]


@dataclass(frozen=True, eq=False)
class Site:
    """Where a channel is to be read: a grid, its coverage if that is known, and what to call it in messages."""

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

    role: Role = field(default="past", init=False)
    transform: Transform = field(default=AS_IT_IS, init=False)
    vector: str | None = field(default=None, init=False)

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
    role: Role = field(default="static", init=False)
    transform: Transform = field(default=AS_IT_IS, init=False)
    vector: str | None = field(default=None, init=False)

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
    role: Role = field(default="static", init=False)
    vector: str | None = field(default=None, init=False)

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

    role: Role = field(default="time", init=False)
    transform: Transform = field(default=AS_IT_IS, init=False)
    vector: str | None = field(default=None, init=False)

    def bind(self, name: str, site: Site) -> Reader:
        """Computed from the maps of sines and cosines of latitude and longitude."""
        return Products(sun_maps(site.grid), sun_factors)


@dataclass(frozen=True)
class DayAngle:
    """The sine or cosine (`part`) of the local mean solar time, as an angle that is 0 at midnight."""

    part: Literal["sin", "cos"]
    role: Role = field(default="time", init=False)
    transform: Transform = field(default=AS_IT_IS, init=False)
    vector: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Refuse another part."""
        _check_part(self.part)

    def bind(self, name: str, site: Site) -> Reader:
        """Computed from maps of the longitude."""
        return Products(*day_maps(site.grid, self.part))


@dataclass(frozen=True)
class SeasonAngle:
    """The sine or cosine (`part`) of the time of the year, as an angle that is 0 at the turn of the year."""

    part: Literal["sin", "cos"]
    role: Role = field(default="time", init=False)
    transform: Transform = field(default=AS_IT_IS, init=False)
    vector: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Refuse another part."""
        _check_part(self.part)

    def bind(self, name: str, site: Site) -> Reader:
        """The same everywhere."""
        return Products(np.ones((1, *site.grid.shape), np.float32), lambda times: season_factors(times, self.part))


def _check_part(part: str) -> None:
    if part not in ("sin", "cos"):
        raise ValueError(f"part={part}: take sin or cos, best a channel of each.")


@dataclass(frozen=True, eq=False)
class Channels:
    """The declared channels by name, checked, in the order in which a network takes them."""

    declared: Mapping[str, Channel]

    def __post_init__(self) -> None:
        """Refuse what has no role, and vectors of one component."""
        for name, channel in self.declared.items():
            if not isinstance(channel, Channel):
                raise ValueError(
                    f"data.channels.{name}={channel} is no channel: it needs a _target_, see conf/data/channels."
                )
            if channel.role not in ROLES:
                raise ValueError(f"data.channels.{name}.role={channel.role}: take one of {', '.join(ROLES)}.")
        for group in (self.past, self.static, self.future):
            self._pairs(group)

    @cached_property
    def observed(self) -> bool:
        """Whether the network is told where the rain was observed."""
        return any(isinstance(channel, Observed) for channel in self.declared.values())

    def _named(self, *roles: Role) -> tuple[str, ...]:
        return tuple(
            name
            for name, channel in self.declared.items()
            if channel.role in roles and not isinstance(channel, Observed)
        )

    @cached_property
    def past(self) -> tuple[str, ...]:
        """What is read at the times of the input frames."""
        return self._named("past", "time", "future")

    @cached_property
    def static(self) -> tuple[str, ...]:
        """What is read once."""
        return self._named("static")

    @cached_property
    def future(self) -> tuple[str, ...]:
        """What is also read at the times of the forecast frames."""
        return self._named("future")

    @property
    def read_any(self) -> bool:
        """Whether a window holds more than rain."""
        return bool(self.past or self.static)

    def pairs(self) -> dict[str, list[tuple[int, int]]]:
        """Of each group (past, static, future) the numbers of the x and y components that turn together."""
        return {name: self._pairs(getattr(self, name)) for name in ("past", "static", "future")}

    def _pairs(self, group: Sequence[str]) -> list[tuple[int, int]]:
        parts: dict[str, dict[str, int]] = {}
        for number, name in enumerate(group):
            vector = self.declared[name].vector
            if vector is None:
                continue
            whole, _, axis = vector.rpartition(".")
            if not whole or axis not in ("x", "y") or axis in parts.get(whole, {}):
                raise ValueError(
                    f"data.channels.{name}.vector={vector}: write wind.x for the component along x and wind.y for "
                    "that along y, once each."
                )
            parts.setdefault(whole, {})[axis] = number
        single = [whole for whole, found in parts.items() if len(found) < 2]
        if single:
            raise ValueError(
                f"Of the vector {single[0]} of data.channels one component is declared, or each in another "
                "role: when crops are turned, one becomes the other. Declare both alike, or leave `vector` out "
                "and set data.augment=false."
            )
        return [(found["x"], found["y"]) for found in parts.values()]

    def bind(self, site: Site) -> "BoundChannels":
        """The channels on one grid."""
        return BoundChannels(
            self, {name: self.declared[name].bind(name, site) for name in (*self.past, *self.static)}, site.grid
        )

    def describe(self) -> list[dict[str, Any]]:
        """Plain data that say what a network sees, in its order: rain, where it was observed, past, static."""
        seen: list[dict[str, Any]] = [{"name": "rain", "role": "target"}]
        if self.observed:
            seen.append({"name": "observed", "role": "past"})
        for name in (*self.past, *self.static):
            channel = self.declared[name]
            transform: Any = channel.transform
            cls = type(transform)
            plain = {"_target_": f"{cls.__module__}.{cls.__qualname__}", **asdict(transform)}
            seen.append({"name": name, "role": channel.role, "transform": plain})
        return seen


@dataclass(frozen=True, eq=False)
class BoundChannels:
    """The channels of one grid."""

    channels: Channels
    readers: Mapping[str, Reader]
    grid: Grid

    def read(self, times: Times, input_steps: int, y: slice = slice(None), x: slice = slice(None)) -> Covariates:
        """The channels of a window, whose `times` (T_in + T_out,) begin with those of the input frames."""
        c = self.channels
        series = {
            name: self.readers[name].read(times if name in c.future else times[:input_steps], y, x)
            for name in c.past
        }
        found = Covariates()
        if c.past:
            found["past"] = np.stack([series[name][:input_steps] for name in c.past], axis=1)
        if c.future and times.size > input_steps:
            found["future"] = np.stack([series[name][input_steps:] for name in c.future], axis=1)
        if c.static:
            found["static"] = np.concatenate([self.readers[name].read(times[:1], y, x) for name in c.static])
        return found


def orient_vectors(
    values: Values, pairs: Sequence[tuple[int, int]], quarters: int, *, mirrored: bool, signs: tuple[float, float]
) -> None:
    """Turn the vectors of maps (…, C, H, W) that were turned by so many quarters, then mirrored along x, in place.

    `pairs` are the channels of x and y components; `signs` are the directions in which x and y grow with the
    column and the row: (1, −1) where the first row is the northernmost.
    """
    for x, y in pairs:
        column, row = values[..., x, :, :] * signs[0], values[..., y, :, :] * signs[1]
        for _ in range(quarters % 4):
            # what lay at (row, column) lies at (−column, row) after np.rot90
            column, row = row, -column
        values[..., x, :, :] = (-column if mirrored else column) * signs[0]
        values[..., y, :, :] = row * signs[1]
