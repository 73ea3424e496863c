"""The channels beside the rain, for one forecast of whole frames."""

from typing import Any

import numpy as np
import numpy.typing as npt

from raincast.data.channels import Site, Times
from raincast.data.channels.declared import BoundChannels, Channels, Covariates

Arrays = dict[str, npt.NDArray[np.float32]]


def read_beside(channels: Channels, site: Site, times: Times, step: np.timedelta64, lead_steps: int) -> Arrays:
    """What a forecast from frames of `times` (T_in,) sees beside the rain, a batch of one: `forecaster.Beside`.

    ValueError where a channel is not there, or has no value at a step.
    """
    all_times = np.concatenate([times, times[-1] + step * np.arange(1, lead_steps + 1)])
    try:
        bound = channels.bind(site)
        found = bound.read(all_times, times.size)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{error}\nWhere a channel lies for a forecast: +channels.NAME.path=…") from error
    _check_there(bound, found, all_times, times.size)
    past = [found["past"]] if "past" in found else []
    if "static" in found:
        past.append(np.broadcast_to(found["static"], (times.size, *found["static"].shape)))
    beside: Arrays = {"past": np.concatenate(past, axis=1)[None]}
    if "future" in found:
        beside["future"] = found["future"][None]
    return beside


def stacked(rain: npt.NDArray[np.float32], beside: Arrays) -> npt.NDArray[np.float32]:
    """Rain (T, H, W), and the maps of all channels and steps behind it, so that they are cut in tiles as one."""
    if not beside:
        return rain
    return np.concatenate([rain, *(values.reshape(-1, *rain.shape[1:]) for values in beside.values())])


def unstacked(
    maps: npt.NDArray[np.float32], num_frames: int, beside: Arrays
) -> tuple[npt.NDArray[np.float32], Arrays]:
    """The rain of a tile of `stacked`, and what is beside it there."""
    parts: Arrays = {}
    first = num_frames
    for name, values in beside.items():
        shape = values.shape[:3]
        stop = first + shape[1] * shape[2]
        parts[name] = maps[first:stop].reshape(*shape, *maps.shape[1:])
        first = stop
    return maps[:num_frames], parts


def _check_there(bound: BoundChannels, found: Covariates, times: Times, input_steps: int) -> None:
    """A pixel may lack a value; a whole step may not: it would be taken for the mean."""
    groups: dict[str, Any] = {**found}
    for group, offset in (("past", 0), ("future", input_steps)):
        empty = np.isnan(groups[group]).all(axis=(-2, -1)) if group in groups else np.zeros((0, 0), bool)
        for step, number in np.argwhere(empty)[:1]:
            name = getattr(bound.channels, group)[number]
            span: Any = getattr(bound.readers[name], "span", None)
            has = " to ".join(str(time.astype("datetime64[m]")) for time in span()) if span else "nothing"
            raise ValueError(
                f"The channel {name}, which the network was trained with, has no value at "
                f"{times[offset + step].astype('datetime64[m]')}; its files hold {has}. Give files that reach "
                f"there: +channels.{name}.path=…"
            )
