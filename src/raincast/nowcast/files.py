"""What a forecast leaves in a folder: its netCDF file, and an animation beside it."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from raincast import schema
from raincast.nowcast.series import grid_of
from raincast.output.forecast_file import write_forecast


def forecast_name(init_time: np.datetime64) -> str:
    """The name of a forecast's files without their suffix: forecast_20100826T0600."""
    return f"forecast_{np.datetime_as_string(init_time, unit='m').replace('-', '').replace(':', '')}"


def write_outputs(
    forecast: xr.Dataset, frames: xr.Dataset, folder: Path, *, animation: bool = False, overwrite: bool = False
) -> dict[str, Path]:
    """Write what is asked for, each file whole or not at all; their paths by kind ("forecast", "animation").

    The netCDF file comes last: where it is, the others are.
    """
    init_time: Any = forecast[schema.INIT_TIME].values[()]
    path = folder / f"{forecast_name(init_time)}.nc"
    written: dict[str, Path] = {}
    if animation:
        from raincast.output.animation import forecast_animation

        written["animation"] = forecast_animation(
            frames[schema.RAIN].values,
            forecast[schema.RAIN].values,
            grid=grid_of(frames),
            init_time=init_time,
            step_minutes=float(forecast.attrs[schema.STEP_MINUTES]),
            path=path.with_suffix(".gif"),
        )
    return {"forecast": write_forecast(forecast, path, overwrite=overwrite)} | written
