"""The covariates of one forecast of whole frames."""

from typing import Any

import numpy as np
import numpy.typing as npt

from raincast.data.channels import Site, Times
from raincast.data.channels.declared import BoundChannels, Channels, Covariates

Arrays = dict[str, npt.NDArray[np.float32]]


def read_covariates(channels: Channels, site: Site, times: Times, step: np.timedelta64, lead_steps: int) -> Arrays:
    """The covariates of a forecast from frames of `times` (T_in,), as in a `forecaster.Query` with B = 1.

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
    covariates: Arrays = {"past": np.concatenate(past, axis=1)[None]}
    if "future" in found:
        covariates["future"] = found["future"][None]
    return covariates


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
