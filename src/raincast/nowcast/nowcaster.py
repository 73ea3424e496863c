"""A loaded network that takes Datasets of frames and gives Datasets of forecasts."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from raincast import schema
from raincast.forecaster import NetworkForecaster
from raincast.nowcast.series import Series, Times, grid_of
from raincast.output.forecast_file import forecast_dataset, with_exceedance

log = logging.getLogger(__name__)

KEPT_ATTRS = ("license", "institution", "references")
"""Attributes of the input that its forecast carries on."""


class Nowcaster:
    """A network with everything that a forecast file says of it.

    `thresholds` (mm/h, increasing) ask for probabilities; `attrs` become global attributes of every forecast;
    `grid_spacing` is (y, x) of the pixels it was trained on.
    """

    def __init__(
        self,
        forecaster: NetworkForecaster,
        *,
        lead_steps: int | None = None,
        thresholds: Sequence[float] = (),
        grid_spacing: Sequence[float] = (),
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        if lead_steps is not None and lead_steps < 1:
            raise ValueError(f"lead_steps={lead_steps}: give a whole number from 1 up.")
        self.forecaster = forecaster
        self.lead_steps = lead_steps or forecaster.lead_steps
        self.thresholds = list(thresholds)
        self.grid_spacing = tuple(grid_spacing)
        self.attrs = dict(attrs or {})
        self._told_of_grid = False

    def frames(
        self, series: Series, init_time: str | np.datetime64 = "latest", *, source: str = "the input"
    ) -> xr.Dataset:
        """The frames of `series` that a forecast from `init_time` (or the newest) is made of.

        ValueError where the step is another, where one of the frames is absent, or where all are missing;
        `source` names the series in them.
        """
        self._check_step(series.step_minutes, source)
        wanted = self.wanted_times(series.times, init_time)
        absent = np.setdiff1d(wanted, series.times)
        if absent.size:
            raise ValueError(
                f"The network needs {wanted.size} frames from {wanted[0]} to {wanted[-1]}; {source} lacks "
                f"{', '.join(str(t.astype('datetime64[m]')) for t in absent)}. It has {series.times.size} frames "
                f"from {series.times[0]} to {series.times[-1]}: give more files, or another init_time=…"
            )
        frames = series.read(wanted)
        if not np.isfinite(frames[schema.RAIN].values).any():
            raise ValueError(f"All pixels of the frames from {wanted[0]} to {wanted[-1]} of {source} are missing.")
        return frames

    def wanted_times(self, times: Times, init_time: str | np.datetime64) -> Times:
        """The times of the input frames of a forecast from `init_time`, or from the last of `times`."""
        last = times[-1] if isinstance(init_time, str) and init_time == "latest" else parse_init_time(init_time)
        step = schema.step_timedelta(self.forecaster.step_minutes)
        wanted: Times = last - step * np.arange(self.forecaster.input_steps)[::-1]
        return wanted

    def __call__(self, frames: xr.Dataset) -> xr.Dataset:
        """Frames as `Series.read` gives them → a forecast as `output.forecast_file` writes it."""
        self._warn_of_other_grid(frames)
        past = frames[schema.RAIN].values
        rates, probabilities = self.forecaster.forecast_with_exceedance(
            past[None, :, None], self.lead_steps, self.thresholds
        )
        rain, exceedance = rates[0, :, 0], probabilities[0]
        never = np.isnan(past).all(axis=0)  # nobody ever looked there
        rain[:, never] = exceedance[:, :, never] = np.nan
        dataset = forecast_dataset(
            rain,
            init_time=frames[schema.TIME].values[-1],
            step_minutes=self.forecaster.step_minutes,
            grid=grid_of(frames),
            cell_methods=str(frames[schema.RAIN].attrs["cell_methods"]),
            attrs=self._attrs_with(frames),
        )
        if not self.thresholds:
            return dataset
        return with_exceedance(dataset, exceedance, self.thresholds, comment=self._calibrated_on())

    def _calibrated_on(self) -> str | None:
        """Where the probabilities come from, if they are not the head's own."""
        if self.forecaster.calibration is None:
            return None
        on = self.forecaster.calibration.fitted_on
        return f"calibrated by isotonic regression on {on['num_windows']} validation windows of {on['archive']}"

    def _attrs_with(self, frames: xr.Dataset) -> dict[str, Any]:
        kept = {key: frames.attrs[key] for key in KEPT_ATTRS if key in frames.attrs}
        return kept | self.attrs | {"input_source": str(frames.attrs.get("source", "unknown"))}

    def _check_step(self, found: float, source: str) -> None:
        trained = self.forecaster.step_minutes
        if found != trained:
            raise ValueError(
                f"The network was trained on steps of {trained:g} min, {source} has {found:g} min. Take input of "
                f"{trained:g} min, or train a network on {found:g} min."
            )

    def _warn_of_other_grid(self, frames: xr.Dataset) -> None:
        found = [
            float(abs(frames[axis].values[1] - frames[axis].values[0]))
            for axis in (schema.Y, schema.X)
            if frames[axis].size > 1
        ]
        trained = list(self.grid_spacing)
        if (
            len(found) == len(trained) == 2
            and not np.allclose(found, trained, rtol=0.01)
            and not self._told_of_grid
        ):
            log.warning("The network was trained on pixels of %s, the input has %s (y, x).", trained, found)
            self._told_of_grid = True


def parse_init_time(text: str | np.datetime64) -> np.datetime64:
    """A time in UTC; ValueError for anything else."""
    try:
        return np.datetime64(str(text), "ns")
    except ValueError as error:
        raise ValueError(f"init_time={text}: write latest or 2010-08-26T06:00 (UTC).") from error
