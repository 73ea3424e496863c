"""All channels of `data.channels`: their order, vectors, and values on one grid."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from raincast.data.channels import ROLES, Channel, Observed, Reader, Role, Site, Times, Values
from raincast.data.channels.carried import Carried, Carrier, Layout
from raincast.schema import Grid

ALL = slice(None)


class Covariates(TypedDict):
    """The channels of a window, float32: past (T_in, P, H, W), static (S, H, W), future (T_out, F, H, W).

    `past` has the channels of the roles past, time and future, in order of declaration. Groups without channels
    are left out.
    """

    past: NotRequired[Values]
    static: NotRequired[Values]
    future: NotRequired[Values]


@dataclass(frozen=True, eq=False)
class Channels:
    """The declared channels by name, checked, in the order of the network's input."""

    declared: Mapping[str, Channel]

    def __post_init__(self) -> None:
        """Raise ValueError for objects that are not channels, unknown roles, and vectors with one component."""
        for name, channel in self.declared.items():
            if not isinstance(channel, Channel):
                raise ValueError(
                    f"data.channels.{name}={channel} is not a channel: it needs a _target_ (conf/data/channels)."
                )
            if channel.role not in ROLES:
                raise ValueError(f"data.channels.{name}.role={channel.role}: use one of {', '.join(ROLES)}.")
        for group in (self.past, self.static, self.future):
            self._pairs(group)

    @cached_property
    def observed(self) -> bool:
        """Return True if the network sees the mask of observed pixels."""
        return any(isinstance(channel, Observed) for channel in self.declared.values())

    def _named(self, *roles: Role) -> tuple[str, ...]:
        return tuple(
            name
            for name, channel in self.declared.items()
            if channel.role in roles and not isinstance(channel, Observed)
        )

    @cached_property
    def past(self) -> tuple[str, ...]:
        """Return the channels that are read at the times of the input frames."""
        return self._named("past", "time", "future")

    @cached_property
    def static(self) -> tuple[str, ...]:
        """Return the channels that are read once."""
        return self._named("static")

    @cached_property
    def future(self) -> tuple[str, ...]:
        """Return the channels that are also read at the lead times."""
        return self._named("future")

    @property
    def read_any(self) -> bool:
        """Return True if a window has more than rain."""
        return bool(self.past or self.static)

    @cached_property
    def pairs(self) -> dict[str, list[tuple[int, int]]]:
        """Return the indices of the x and y components of vectors, by group (past, static, future)."""
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
                f"The vector {single[0]} of data.channels needs both components in the same role, because rotated "
                "crops turn one into the other. Declare both, or leave `vector` out and set "
                "data.sampling.augment=false."
            )
        return [(found["x"], found["y"]) for found in parts.values()]

    def bind(self, site: Site) -> "BoundChannels":
        """Bind the channels to one grid."""
        return BoundChannels(
            self, {name: self.declared[name].bind(name, site) for name in (*self.past, *self.static)}, site.grid
        )

    def describe(self) -> list[dict[str, Any]]:
        """Return the network's inputs in order as plain data: rain, mask of observed pixels, past, static."""
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
    """The channels on one grid."""

    channels: Channels
    readers: Mapping[str, Reader]
    grid: Grid

    def read(self, times: Times, input_steps: int, y: slice = slice(None), x: slice = slice(None)) -> Covariates:
        """Read the channels of a window; `times` (T_in + T_out,) begin with those of the input frames."""
        c = self.channels
        series = {name: self.readers[name].read(self._times(name, times, input_steps), y, x) for name in c.past}
        found = Covariates()
        if c.past:
            found["past"] = np.stack([series[name][:input_steps] for name in c.past], axis=1)
        if c.future and times.size > input_steps:
            found["future"] = np.stack([series[name][input_steps:] for name in c.future], axis=1)
        if c.static:
            found["static"] = self.static_maps()[:, y, x]
        return found

    def carry(
        self, times: Times, input_steps: int, y: slice, x: slice, layouts: Mapping[str, Layout]
    ) -> dict[str, Carried]:
        """Return the encoded channels of a window by name, input and lead times together, without static ones."""
        carried = {}
        for name in self.channels.past:
            reader, own = self.readers[name], self._times(name, times, input_steps)
            if isinstance(reader, Carrier):
                carried[name] = reader.carry(own, y, x, layouts[name])
            else:
                carried[name] = Carried(frames=reader.read(own, y, x))
        return carried

    def layouts(self, times: Times, input_steps: int) -> dict[str, Layout]:
        """Return the layouts for windows as long as `times`."""
        readers = {name: self.readers[name] for name in self.channels.past}
        return {
            name: reader.layout(self._times(name, times, input_steps))
            for name, reader in readers.items()
            if isinstance(reader, Carrier)
        }

    def static_maps(self) -> Values:
        """Return the maps of the static channels, (S, H, W)."""
        newest = np.zeros(1, "datetime64[ns]")  # any time, since they are constant
        return np.concatenate([self.readers[name].read(newest, ALL, ALL) for name in self.channels.static])

    def _times(self, name: str, times: Times, input_steps: int) -> Times:
        return times if name in self.channels.future else times[:input_steps]


Arrays = dict[str, npt.NDArray[np.float32]]


def read_covariates(channels: Channels, site: Site, times: Times, step: np.timedelta64, lead_steps: int) -> Arrays:
    """Read the covariates of a forecast from frames at `times` (T_in,), as in a `forecaster.Query` with B = 1.

    Raises ValueError if a channel is absent, or has no value at a step.
    """
    all_times = np.concatenate([times, times[-1] + step * np.arange(1, lead_steps + 1)])
    try:
        bound = channels.bind(site)
        found = bound.read(all_times, times.size)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{error}\nSet the path of a channel for a forecast: +channels.NAME.path=…") from error
    _check_there(bound, found, all_times, times.size)
    past = [found["past"]] if "past" in found else []
    if "static" in found:
        past.append(np.broadcast_to(found["static"], (times.size, *found["static"].shape)))
    covariates: Arrays = {"past": np.concatenate(past, axis=1)[None]}
    if "future" in found:
        covariates["future"] = found["future"][None]
    return covariates


def _check_there(bound: BoundChannels, found: Covariates, times: Times, input_steps: int) -> None:
    """Raise ValueError if a whole step of a channel has no value, which the network would take for the mean."""
    groups: dict[str, Any] = {**found}
    for group, offset in (("past", 0), ("future", input_steps)):
        empty = np.isnan(groups[group]).all(axis=(-2, -1)) if group in groups else np.zeros((0, 0), bool)
        for step, number in np.argwhere(empty)[:1]:
            name = getattr(bound.channels, group)[number]
            span: Any = getattr(bound.readers[name], "span", None)
            has = " to ".join(str(time.astype("datetime64[m]")) for time in span()) if span else "nothing"
            raise ValueError(
                f"The channel {name}, which the network was trained with, has no value at "
                f"{times[offset + step].astype('datetime64[m]')}; its files hold {has}. Use files that cover "
                f"it: +channels.{name}.path=…"
            )
