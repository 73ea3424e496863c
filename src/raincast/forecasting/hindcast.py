"""The init times of a range, the forecasts that exist already, and a single forecast."""

import functools
import json
import logging
from pathlib import Path

import numpy as np
import xarray as xr

from raincast import schema
from raincast.forecasting.files.outputs import Outputs, what_came, write_outputs
from raincast.forecasting.fit import parse_init_time
from raincast.forecasting.pipeline import ForecastPipeline
from raincast.forecasting.series import Series, Times
from raincast.plain import differences, read_config

log = logging.getLogger(__name__)

INCIDENTAL = (
    *("checkpoint", "init_time", "every", "folder", "overwrite", "workers", "device", "memory_gib"),
    *("max_megapixels", "paths", "watch", "site", "site_hours", "live"),
)
"""Settings that leave a forecast's files as they are; checkpoints are compared by their content."""


def init_times(text: str, times: Times, step_minutes: float, every: int = 1) -> Times:
    """Parse init times: latest, a time, or a range A/B with both ends, in every `every`-th step.

    Either end of a range may be omitted; it is then the first or last frame of the series. Raises ValueError for a
    range without a time.
    """
    if every < 1:
        raise ValueError(f"every={every}: give a whole number of steps, at least 1.")
    if not times.size:
        raise ValueError("The input holds no frame.")
    if text == "latest":
        return times[-1:]
    first, slash, last = str(text).partition("/")
    if not slash:
        return np.array([parse_init_time(first)], "datetime64[ns]")
    start = parse_init_time(first) if first else times[0]
    stop = parse_init_time(last) if last else times[-1]
    if start > stop:
        raise ValueError(f"init_time={text}: the range ends before it begins.")
    step = schema.step_timedelta(step_minutes)
    # counted from the frames of the series, at whatever minute the range begins
    first_step = -((times[0] - start) // step)
    due = np.arange(times[0] + first_step * step, stop + np.timedelta64(1, "ns"), every * step)
    if not due.size:
        raise ValueError(f"init_time={text} contains no time step of the input ({step_minutes:g} min).")
    return due


def is_complete(path: Path, checkpoint_sha256: str | None, lead_steps: int, config: str | None = None) -> bool:
    """Return True if `path` is a complete forecast by this network, over as many lead steps, and by this config.

    Raises ValueError if it is by another network or config: continuing would mix them.
    """
    if not path.exists():
        return False
    try:
        with xr.open_dataset(path, engine="netcdf4", decode_times=False) as file:
            theirs, leads = file.attrs.get("checkpoint_sha256"), file.sizes.get(schema.LEAD_TIME)
            made_by = file.attrs.get("forecast_config")
    except (OSError, ValueError):
        log.warning("%s cannot be read and is written again.", path)
        path.unlink()
        return False
    if theirs != checkpoint_sha256 or leads != lead_steps:
        raise ValueError(
            f"{path} is a forecast by another network or over {leads} steps. Choose another folder=…, or replace "
            "the existing forecasts with overwrite=true."
        )
    if config is not None and made_by is not None and (others := _changed(str(made_by), config)):
        raise ValueError(
            f"{path} was made with other settings: {'; '.join(others)}. Give the same, choose another folder=…, "
            "or replace the existing forecasts with overwrite=true."
        )
    return True


@functools.lru_cache(maxsize=8)  # the files of one run have the same text
def _changed(before: str, now: str) -> tuple[str, ...]:
    """Return the settings of both configs that differ, each with both values, but for `INCIDENTAL` ones."""
    old = {key: value for key, value in read_config(before).items() if key not in INCIDENTAL}
    return tuple(
        f"{key} was {json.dumps(was)}, is {json.dumps(found)}"
        for key, was, found in differences(old, read_config(now), common=True)
    )


def forecast_one(
    pipeline: ForecastPipeline,
    series: Series,
    init_time: str | np.datetime64,
    folder: Path,
    outputs: Outputs,
    *,
    source: str,
    overwrite: bool = False,
) -> tuple[xr.Dataset, dict[str, Path]]:
    """Make a forecast and write its files; return it and the paths by kind.

    Raises NoInput if all input is missing.
    """
    frames = pipeline.frames(series, init_time, source=source)
    forecast = pipeline(frames)
    observed = what_came(series, forecast) if outputs.shows_observed else None
    return forecast, write_outputs(forecast, frames, folder, outputs, observed=observed, overwrite=overwrite)
