"""A loaded network that takes Datasets of frames and gives Datasets of forecasts."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xarray as xr

from raincast import schema
from raincast.archive.codes import bands
from raincast.data.channels import Site
from raincast.data.channels.beside import Arrays, read_beside, stacked, unstacked
from raincast.data.channels.declared import Channels
from raincast.forecaster import Beside
from raincast.forecasting import fit
from raincast.forecasting.files.dataset import forecast_dataset, with_exceedance, with_quality
from raincast.forecasting.files.products import with_amounts, with_matched, with_onset
from raincast.forecasting.gaps import NoInput, Past, Rain, on_times, past_of
from raincast.forecasting.memory import Memory
from raincast.forecasting.motion import extrapolated
from raincast.forecasting.quality import quality_flags
from raincast.forecasting.series import Series, Times
from raincast.forecasting.tiles import in_tiles

log = logging.getLogger(__name__)

KEPT_ATTRS = ("license", "institution", "references")
"""Attributes of the input that its forecast carries on."""


class NetworkLike(Protocol):
    """What a `Nowcaster` needs of a network: `forecaster.NetworkForecaster`, or an exported one."""

    name: str
    input_steps: int
    lead_steps: int
    step_minutes: float

    def forecast_with_exceedance(
        self, rain: Rain, num_steps: int, thresholds: Sequence[float], *, beside: Beside | None = None
    ) -> tuple[Rain, Rain]:
        """(B, T, C, H, W) mm/h → rates (B, num_steps, 1, H, W) and probabilities (B, num_steps, K, H, W).

        `beside` is given to networks that see channels beside the rain.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Products:
    """Further variables of a forecast (`output.products`).

    `accumulations`: depths over so many minutes; `onset`: time until so many mm/h; `matched`: rates with the
    distribution of what was seen.
    """

    accumulations: Sequence[float] = ()
    onset: float | None = None
    matched: bool = False

    def add_to(self, forecast: xr.Dataset, past: Past) -> xr.Dataset:
        """`forecast` with what is asked for."""
        forecast = with_amounts(forecast, self.accumulations)
        if self.onset is not None:
            forecast = with_onset(forecast, self.onset, past.newest())
        return with_matched(forecast, past.newest()) if self.matched else forecast


class Nowcaster:
    """A network with everything that a forecast file says of it.

    `nowcaster(frames)` forecasts; `forecast` and `exceedance` are the network's own, so that it scores as any
    other forecaster. `thresholds` (mm/h, increasing) ask for probabilities; `attrs` become global attributes of
    every forecast. `trained` says what the network was trained on. With more than `max_missing` frames absent, or
    the newest, the rain is extrapolated instead; by default as many as in training. `reach` asks for the flag of
    what comes from where nobody looked, `other_grid` allows other pixels than in training, `products` are further
    variables. `channels` are those that the network sees beside the rain.
    """

    def __init__(
        self,
        network: NetworkLike,
        trained: fit.Trained,
        *,
        lead_steps: int | None = None,
        thresholds: Sequence[float] = (),
        max_missing: int | None = None,
        other_grid: bool = False,
        reach: bool = True,
        products: Products | None = None,
        memory: Memory | None = None,
        attrs: Mapping[str, Any] | None = None,
        channels: Channels | None = None,
    ) -> None:
        if lead_steps is not None and lead_steps < 1:
            raise ValueError(f"lead_steps={lead_steps}: give a whole number from 1 up.")
        self.forecaster = network
        self.name = network.name
        self.trained = trained
        self.lead_steps = lead_steps or network.lead_steps
        self.thresholds = list(thresholds)
        self.max_missing = trained.max_missing if max_missing is None else max_missing
        self.other_grid = other_grid
        self.reach = reach
        self.products = products or Products()
        self.memory = memory or Memory()
        self.attrs = dict(attrs or {})
        self.channels = channels if channels is not None and channels.read_any else None

    @property
    def input_steps(self) -> int:
        """Frames that a forecast is made of."""
        return self.forecaster.input_steps

    @property
    def step_minutes(self) -> float:
        """Time between frames."""
        return self.forecaster.step_minutes

    def frames(
        self,
        series: Series,
        init_time: str | np.datetime64 = "latest",
        *,
        source: str = "the input",
        gaps: bool = True,
    ) -> xr.Dataset:
        """The frames of `series` for a forecast from `init_time` (or the newest), missing where it has none.

        ValueError where the step is another, NoInput where not one frame is there, or without `gaps` where one is
        not; `source` is the series' name.
        """
        fit.check_step(series.step_minutes, self.step_minutes, source)
        self.memory.kept_bytes = series.kept_bytes
        times = series.times
        wanted = self.wanted_times(times, init_time)
        there = np.intersect1d(wanted, times)
        if not there.size:
            raise NoInput(
                f"{source} has none of the {wanted.size} frames that the network needs, {_text(wanted[0])} to "
                f"{_text(wanted[-1])}. It has {times.size} from {_text(times[0])} to {_text(times[-1])} at a step "
                f"of {series.step_minutes:g} min: give more files, or another init_time=…"
            )
        absent = np.setdiff1d(wanted, there)
        if absent.size and not gaps:
            raise NoInput(
                f"The network needs {wanted.size} frames from {_text(wanted[0])} to {_text(wanted[-1])}; {source} "
                f"lacks {', '.join(map(_text, absent))}."
            )
        return on_times(series.read(there), wanted, self.step_minutes)

    def wanted_times(self, times: Times, init_time: str | np.datetime64) -> Times:
        """The times of the input frames of a forecast from `init_time`, or from the last of `times`."""
        last = (
            times[-1] if isinstance(init_time, str) and init_time == "latest" else fit.parse_init_time(init_time)
        )
        wanted: Times = last - schema.step_timedelta(self.step_minutes) * np.arange(self.input_steps)[::-1]
        return wanted

    def __call__(self, frames: xr.Dataset, init_time: str | np.datetime64 = "latest") -> xr.Dataset:
        """Frames of rain → a forecast as `output.forecast_file` writes it.

        `frames` keeps the archive contract: a part of an archive, or what `self.frames` or a reader gives. Of more
        frames than the network takes, those up to `init_time` count; absent ones are missing. Made of them is a
        forecast whose attribute `forecast_method` says how: network, extrapolation, persistence, or dry.
        """
        frames = fit.as_rain(frames)
        fit.check_step(schema.find_step_minutes(frames), self.step_minutes, "the input")
        wanted = self.wanted_times(frames[schema.TIME].values, init_time)
        frames = on_times(frames.sel({schema.TIME: slice(wanted[0], wanted[-1])}), wanted, self.step_minutes)
        grid = schema.grid_of(frames)
        differs = self.trained.compare(frames, grid, other_grid=self.other_grid)
        past = past_of(frames)
        if past.absent.all():
            raise NoInput(f"All pixels of the frames from {_text(wanted[0])} to {_text(wanted[-1])} are missing.")
        made, rain, exceedance = self._rates(past, frames)
        never = ~np.isfinite(past.rain).any(axis=0)  # nobody ever looked there
        rain[:, never] = np.nan
        exceedance[:, :, never] = np.nan
        dataset = forecast_dataset(
            rain,
            init_time=wanted[-1],
            step_minutes=self.step_minutes,
            grid=grid,
            cell_methods=str(frames[schema.RAIN].attrs["cell_methods"]),
            attrs=self._attrs_of(frames, past, made) | differs,
        )
        dataset = with_quality(dataset, quality_flags(past, self.lead_steps, reach=self.reach))
        if self.thresholds:
            comment = self._calibrated_on() if made["forecast_method"] == "network" else None
            dataset = with_exceedance(dataset, exceedance, self.thresholds, comment=comment)
        return self.products.add_to(dataset, past)

    def forecast(self, rain: Rain, num_steps: int) -> Rain:
        """As the `Forecaster` protocol says: the network's own."""
        return self.forecaster.forecast_with_exceedance(rain, num_steps, ())[0]

    def exceedance(self, rain: Rain, num_steps: int, thresholds: Sequence[float]) -> Rain:
        """The network's probabilities, (B, num_steps, K, H, W)."""
        return self.forecaster.forecast_with_exceedance(rain, num_steps, thresholds)[1]

    def _rates(self, past: Past, frames: xr.Dataset) -> tuple[dict[str, str], Rain, Rain]:
        """What the file says of how it was made, the rates (lead, H, W) and probabilities (lead, K, H, W)."""
        if past.dry and self.channels is None:  # where no rain is, a weather model may know of some
            made = {"forecast_method": "dry"}
            rain = np.zeros((self.lead_steps, *past.rain.shape[1:]), np.float32)
        elif past.fits(self.max_missing):
            return {"forecast_method": "network"}, *self._by_network(past.filled(), self._beside(frames))
        else:
            method, rain, used = extrapolated(past, self.lead_steps)
            made = {"forecast_method": method, "frames_used": ", ".join(map(_text, used))}
            log.warning(
                "%d of the %d input frames are missing%s: the forecast is %s.",
                past.num_absent, past.absent.size, ", the newest too" if past.absent[-1] else "", method,
            )  # fmt: skip
        reached = [(rain >= threshold).astype(np.float32) for threshold in self.thresholds]
        return (
            made,
            rain,
            np.stack(reached, axis=1) if reached else np.empty((len(rain), 0, *rain.shape[1:]), np.float32),
        )

    def _beside(self, frames: xr.Dataset) -> Arrays:
        """What the network sees beside `frames`; the files of channels are opened anew each time, as they grow."""
        if self.channels is None:
            return {}
        mask = frames[schema.COVERAGE].values.astype(bool) if schema.COVERAGE in frames else None
        site = Site(schema.grid_of(frames), lambda: mask, "the input")
        step = schema.step_timedelta(self.step_minutes)
        return read_beside(self.channels, site, frames[schema.TIME].values, step, self.lead_steps)

    def _by_network(self, rain: Rain, beside: Arrays) -> tuple[Rain, Rain]:
        def run(maps: Rain) -> tuple[Rain, Rain]:
            frames, others = unstacked(maps, len(rain), beside)
            given: Any = {"beside": others} if others else {}  # who sees rain alone may not know the word
            rates, chances = self.forecaster.forecast_with_exceedance(
                frames[None, :, None], self.lead_steps, self.thresholds, **given
            )
            return rates[0, :, 0], chances[0]

        maps = stacked(rain, beside)
        tiling = self.memory.tiling(self.forecaster, rain.shape[1:], self.lead_steps, len(self.thresholds))
        if tiling is None:
            return run(maps)
        rates, chances = in_tiles(run, maps, tiling)
        return rates, np.clip(chances, 0, 1)

    def _calibrated_on(self) -> str | None:
        """Where the probabilities come from, if they are not the head's own."""
        calibration = getattr(self.forecaster, "calibration", None)
        if calibration is None:
            return None
        on = calibration.fitted_on
        return f"calibrated by isotonic regression on {on['num_windows']} validation windows of {on['archive']}"

    def _attrs_of(self, frames: xr.Dataset, past: Past, made: dict[str, str]) -> dict[str, Any]:
        kept = {key: frames.attrs[key] for key in KEPT_ATTRS if key in frames.attrs}
        own = {
            **made,
            "missing_input_frames": ", ".join(_text(time) for time in past.times[past.absent]) or "none",
            "input_sha256": _digest(past.rain),
            "input_source": str(frames.attrs.get("source", "unknown")),
        }
        if made["forecast_method"] == "network" and (tiling := self.memory.last):
            own["tiles"] = tiling
        return kept | self.attrs | own


def _digest(rain: Rain) -> str:
    """The hash of the input frames in mm/h, as float32 from the first to the last pixel."""
    digest = hashlib.sha256()
    for frame in rain:
        for rows in bands(frame.shape):
            digest.update(np.ascontiguousarray(frame[rows], dtype="<f4").data)
    return digest.hexdigest()


def _text(time: np.datetime64) -> str:
    return str(np.datetime_as_string(time, unit="m"))
