"""The input frames of a forecast, and how gaps in them are filled."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.forecaster import Rain
from raincast.forecasting.series import Times

DRY_BELOW = 0.01
"""Input whose rates in mm/h never exceed this is dry; the smallest rate that archives and forecast files hold."""


class NoInput(ValueError):
    """There is no input for a forecast."""


@dataclass(frozen=True, eq=False)
class Past:
    """Input frames, (T, H, W) in mm/h with NaN for missing.

    `absent` (T,) marks frames that do not exist or have no observed pixel.
    """

    rain: Rain
    absent: npt.NDArray[np.bool_]
    times: Times

    @property
    def num_absent(self) -> int:
        """Number of missing frames."""
        return int(self.absent.sum())

    @property
    def dry(self) -> bool:
        """True if there is no rain in any frame."""
        return not (self.rain > DRY_BELOW).any()

    def fits(self, max_missing: int) -> bool:
        """Return True if at most `max_missing` frames are missing, and not the newest."""
        return self.num_absent <= max_missing and not self.absent[-1]

    def newest(self) -> Rain:
        """Return each pixel's last observation, (H, W) in mm/h; NaN where nothing was observed."""
        newest: Rain = self.rain[-1].copy()
        for frame in self.rain[-2::-1]:
            np.copyto(newest, frame, where=np.isnan(newest))
        return newest

    def filled(self) -> Rain:
        """Fill gaps as in training: a missing frame repeats the previous one.

        Missing first frames stay missing.
        """
        if not self.num_absent:
            return self.rain
        filled = self.rain.copy()
        for step in range(1, len(filled)):
            if self.absent[step]:
                filled[step] = filled[step - 1]
        return filled


def past_of(frames: xr.Dataset) -> Past:
    """Return the `Past` of `frames`, which have a frame at each step."""
    rain = frames[schema.RAIN].values
    absent = ~np.array([np.isfinite(frame).any() for frame in rain])
    return Past(rain, absent, frames[schema.TIME].values)


def on_times(frames: xr.Dataset, wanted: Times, step_minutes: float) -> xr.Dataset:
    """Select the times `wanted` from `frames`; missing frames are NaN."""
    times = frames[schema.TIME].values.astype("datetime64[ns]")
    if np.array_equal(times, wanted):
        return frames
    rain = np.full((wanted.size, *frames[schema.RAIN].shape[1:]), np.nan, np.float32)
    there = np.isin(wanted, times)
    rain[there] = frames[schema.RAIN].values[np.searchsorted(times, wanted[there])]
    attrs = {k: v for k, v in frames.attrs.items() if k not in (schema.STEP_MINUTES, "Conventions")}
    put = schema.rain_dataset(
        rain,
        wanted,
        schema.grid_of(frames),
        step_minutes=step_minutes,
        cell_methods=str(frames[schema.RAIN].attrs.get("cell_methods", "time: point")),
        attrs=attrs,
    )
    return put.assign({name: frames[name] for name in (schema.COVERAGE,) if name in frames})
