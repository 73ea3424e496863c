"""Conversion of a Dataset of radar frames to a forecast Dataset, by any forecaster."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.rates import bands
from raincast.data.channels import Site
from raincast.data.channels.declared import Channels, read_covariates
from raincast.forecaster import (
    DRY,
    NETWORK,
    Covariates,
    Forecaster,
    Gives,
    Prediction,
    Query,
    Rain,
    share_around,
)
from raincast.forecasting import fit
from raincast.forecasting.blending import HOURS, Blended, Blending
from raincast.forecasting.files.dataset import (
    MISSING,
    MODEL_ONLY,
    OUTSIDE_REACH,
    forecast_dataset,
    with_exceedance,
    with_members,
    with_quality,
)
from raincast.forecasting.files.products import with_amounts, with_matched, with_onset
from raincast.forecasting.gaps import NoInput, Past, on_times, past_of
from raincast.forecasting.memory import Footprint, Memory
from raincast.forecasting.motion import Fallback, quality_flags
from raincast.forecasting.series import Series, Times
from raincast.forecasting.tiles import in_tiles
from raincast.schema import Grid

log = logging.getLogger(__name__)

KEPT_ATTRS = ("license", "institution", "references", schema.ACCUMULATION_MINUTES, "zr_a", "zr_b", "zr_from")
"""Attributes of the input that are copied to the forecast."""


@dataclass(frozen=True, kw_only=True)
class Products:
    """Further variables of a forecast (`forecasting.files.products`).

    `accumulations`: depths over these periods in minutes. `amounts`: depths in mm whose probability of exceedance
    is computed from the members. `onset`: a rate in mm/h whose times of onset and end are given. `matched`: rates
    with the distribution of the newest observation.
    """

    accumulations: Sequence[float] = ()
    amounts: Sequence[float] = ()
    onset: float | None = None
    matched: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for amounts without a period or out of order."""
        amounts = [float(amount) for amount in self.amounts]
        if any(not low < high for low, high in pairwise((0.0, *amounts))):
            raise ValueError(f"products.amounts={amounts}: give mm above 0, increasing.")
        if amounts and not self.accumulations:
            raise ValueError(
                f"products.amounts={amounts} need a period: give products.accumulations=[60] too, in minutes."
            )

    def add_to(self, forecast: xr.Dataset, past: Past) -> xr.Dataset:
        """Add the requested variables to `forecast`."""
        forecast = with_amounts(forecast, self.accumulations, self.amounts)
        if self.onset is not None:
            forecast = with_onset(forecast, self.onset, past.newest())
        return with_matched(forecast, past.newest()) if self.matched else forecast


NEIGHBOURHOOD = "share of pixels around that reach the threshold, in a square of 1 km per minute of lead time"
"""Method of the probabilities of a forecaster that gives none: see `share_around`."""


class ForecastPipeline:
    """Conversion of frames to a forecast Dataset, by any forecaster.

    `pipeline(frames)` forecasts. `predict` is the forecaster's own, so a pipeline is scored like any forecaster.
    `thresholds` (mm/h, increasing) request probabilities; `attrs` become global attributes of every forecast.
    `trained` describes the data that the forecaster is made for. If more than `max_missing` frames are missing (by
    default the number in training), or the newest is, the rain is extrapolated instead. `reach` flags pixels whose
    rain comes from where nothing was observed, `other_grid` allows other pixels than in training, and `products`
    adds variables. `members` is the number of members, if wanted; `blending` blends them with a weather model, to
    6 h unless `lead_steps` is given. `channels` are the forecaster's covariates, `footprint` is its memory, and
    `calibrated_on` describes the data on which its probabilities were calibrated.
    """

    def __init__(
        self,
        forecaster: Forecaster,
        trained: fit.Trained,
        *,
        lead_steps: int | None = None,
        thresholds: Sequence[float] = (),
        max_missing: int | None = None,
        other_grid: bool = False,
        reach: bool = True,
        products: Products | None = None,
        memory: Memory | None = None,
        footprint: Footprint | None = None,
        attrs: Mapping[str, Any] | None = None,
        channels: Channels | None = None,
        members: int | None = None,
        blending: Blending | None = None,
        calibrated_on: str | None = None,
    ) -> None:
        if lead_steps is not None and lead_steps < 1:
            raise ValueError(f"lead_steps={lead_steps}: give a whole number of at least 1.")
        if max_missing is not None and max_missing < 0:
            raise ValueError(f"max_missing={max_missing}: give a number of input frames, 0 or more.")
        if thresholds and not forecaster.gives.probabilities:
            log.warning(
                "%s gives no probabilities. Those for exceedance=… are the %s.", forecaster.name, NEIGHBOURHOOD
            )
        if products is not None and products.amounts and not members:
            raise ValueError(
                f"products.amounts={list(products.amounts)}: their probabilities are shares of members. Give "
                "members=20 too."
            )
        if blending is not None and not members:
            raise ValueError("A weather model is blended with members: give members=20 too.")
        self.forecaster = forecaster
        self.fallback = Fallback()
        self.trained = trained
        self._lead_steps = lead_steps
        self.thresholds = list(thresholds)
        self.max_missing = trained.max_missing if max_missing is None else max_missing
        self.other_grid = other_grid
        self.reach = reach
        self.products = products or Products()
        self.memory = memory or Memory()
        self.footprint = footprint or Footprint(trained.input_steps)
        self.attrs = dict(attrs or {})
        self.channels = channels if channels is not None and channels.read_any else None
        self.members = members
        self.blending = blending
        self.comment = f"calibrated by isotonic regression on {calibrated_on}" if calibrated_on else None

    def __repr__(self) -> str:
        """Show the forecaster, the number of frames it reads and its lead times."""
        leads = f"{self.lead_steps} lead times of {self.step_minutes:g} min"
        return f"ForecastPipeline({self.name}: {self.input_steps} frames → {leads})"

    @property
    def name(self) -> str:
        """The forecaster's name."""
        return self.forecaster.name

    @property
    def gives(self) -> Gives:
        """The outputs that the forecaster gives."""
        return self.forecaster.gives

    def predict(self, query: Query) -> Prediction:
        """Return the forecaster's own prediction."""
        return self.forecaster.predict(query)

    @property
    def lead_steps(self) -> int:
        """Number of steps to forecast."""
        if self.blending is not None and self._lead_steps is None:
            return round(60 * HOURS / self.step_minutes)
        return self._lead_steps or self.trained.lead_steps

    @property
    def num_maps(self) -> int:
        """Number of maps per lead time that memory holds besides rates: probabilities, members and depths."""
        depths = len(self.products.accumulations) * (1 + len(self.products.amounts))
        # blending holds the members three times more: in dBR, those of the model, and blended
        members = (self.members or 0) * (1 if self.blending is None else 3)
        return len(self.thresholds) + members + depths

    @property
    def input_steps(self) -> int:
        """Number of input frames."""
        return self.trained.input_steps

    @property
    def step_minutes(self) -> float:
        """Time between frames in minutes."""
        return self.trained.step_minutes

    def frames(
        self,
        series: Series,
        init_time: str | np.datetime64 = "latest",
        *,
        source: str = "the input",
        gaps: bool = True,
    ) -> xr.Dataset:
        """Read the input frames of a forecast from `init_time` (or the newest) from `series`.

        Missing ones are NaN. `source` is the name of the series in messages. Raises ValueError if its step is not
        the forecaster's; raises NoInput if it has none of the frames or, with `gaps=False`, lacks one.
        """
        self.trained = self.trained.at_step(series.step_minutes, source)
        self.memory.kept_bytes = series.kept_bytes
        times = series.times
        wanted = self.wanted_times(times, init_time)
        there = np.intersect1d(wanted, times)
        if not there.size:
            raise NoInput(
                f"{source} has none of the {wanted.size} frames that the forecast needs, {_text(wanted[0])} to "
                f"{_text(wanted[-1])}. It has {times.size} from {_text(times[0])} to {_text(times[-1])} at a step "
                f"of {series.step_minutes:g} min: give more files, or another init_time=…"
            )
        absent = np.setdiff1d(wanted, there)
        if absent.size and not gaps:
            raise NoInput(
                f"The forecast needs {wanted.size} frames from {_text(wanted[0])} to {_text(wanted[-1])}; "
                f"{source} lacks {', '.join(map(_text, absent))}."
            )
        return on_times(series.read(there), wanted, self.step_minutes)

    def wanted_times(self, times: Times, init_time: str | np.datetime64) -> Times:
        """Return the times of the input frames of a forecast from `init_time`, or from the last of `times`."""
        last = (
            times[-1] if isinstance(init_time, str) and init_time == "latest" else fit.parse_init_time(init_time)
        )
        wanted: Times = last - schema.step_timedelta(self.step_minutes) * np.arange(self.input_steps)[::-1]
        return wanted

    def __call__(self, frames: xr.Dataset, init_time: str | np.datetime64 = "latest") -> xr.Dataset:
        """Forecast from frames of rain; return a Dataset as `files.netcdf` writes it.

        `frames` follows the archive contract: a part of an archive, or the result of `self.frames` or of a reader.
        If there are more frames than the forecaster takes, the last ones up to `init_time` are used. The attribute
        `forecast_method` states how the forecast was made: network, extrapolation, persistence or dry.
        """
        frames = fit.as_rain(frames)
        self.trained = self.trained.at_step(schema.find_step_minutes(frames), "the input")
        wanted = self.wanted_times(frames[schema.TIME].values, init_time)
        frames = on_times(frames.sel({schema.TIME: slice(wanted[0], wanted[-1])}), wanted, self.step_minutes)
        grid = schema.grid_of(frames)
        differs = self.trained.compare(frames, grid, other_grid=self.other_grid, lead_steps=self.lead_steps)
        past = past_of(frames)
        if past.absent.all():
            raise NoInput(f"All pixels of the frames from {_text(wanted[0])} to {_text(wanted[-1])} are missing.")
        prediction, made = self._forecast(past, frames, grid)
        never = ~np.isfinite(past.rain).any(axis=0)  # nothing was ever observed there
        flags = quality_flags(past, self.lead_steps, pixel_km=grid.pixel_km, reach=self.reach)
        if self.blending is not None:
            blended = self._blend(self.blending, prediction, past, flags, grid)
            prediction, never = self._of_members(blended.members), never & ~blended.modelled
            flags = _with_model(flags, blended.modelled)
            made |= blended.attrs | {"exceedance_method": "share of the blended members"}
        rain = _own(prediction.rates, past.rain)[0, :, 0]
        rain[:, never] = np.nan
        dataset = forecast_dataset(
            rain,
            init_time=wanted[-1],
            step_minutes=self.step_minutes,
            grid=grid,
            cell_methods=str(frames[schema.RAIN].attrs["cell_methods"]),
            attrs=self._attrs_of(frames, past, made) | differs,
        )
        dataset = with_quality(dataset, flags)
        if self.thresholds:
            assert prediction.probabilities is not None
            probabilities = _own(prediction.probabilities.astype(np.float32, copy=False), past.rain)[0]
            probabilities[:, :, never] = np.nan
            comment = made.get("exceedance_method", self.comment if made["forecast_method"] == NETWORK else None)
            dataset = with_exceedance(dataset, probabilities, self.thresholds, comment=comment)
        if prediction.members is not None:
            members = _own(prediction.members, past.rain)[0]
            members[:, :, never] = np.nan
            dataset = with_members(dataset, members)
        elif self.members:
            log.warning("The forecast is %s: it has no members.", made["forecast_method"])
        return self.products.add_to(dataset, past)

    def _forecast(self, past: Past, frames: xr.Dataset, grid: Grid) -> tuple[Prediction, dict[str, str]]:
        """Return the prediction, with probabilities if there are thresholds, and attributes on how it was made."""
        query = Query.for_steps(
            past.rain[None, :, None],
            self.lead_steps,
            step_minutes=self.step_minutes,
            times=past.times[-1:],
            grid=grid,
            thresholds=self.thresholds,
            members=bool(self.members),
        )
        if past.dry and self.channels is None:  # with covariates, a weather model may announce rain
            zeros = np.zeros((1, self.lead_steps, 1, *past.rain.shape[1:]), np.float32)
            members = np.repeat(zeros, self.members, axis=2) if self.members else None
            prediction, made = Prediction(zeros, members, done=(DRY,)), {}
        elif past.fits(self.max_missing):
            query = replace(query, rain=past.filled()[None, :, None], covariates=self._covariates(frames, grid))
            prediction = self._by_forecaster(query)
            made = {"tiles": self.memory.last} if self.memory.last else {}
            if not _is_finite(prediction, past):
                prediction, made = self._by_fallback(query, past)
                log.error(
                    "%s gives values that are not finite for this input: the forecast is %s.",
                    self.name, prediction.done[0],
                )  # fmt: skip
        else:
            prediction, made = self._by_fallback(query, past)
            log.warning(
                "%d of the %d input frames are missing%s: the forecast is %s.",
                past.num_absent, past.absent.size, ", the newest too" if past.absent[-1] else "",
                prediction.done[0],
            )  # fmt: skip
        if self.thresholds and prediction.probabilities is None:
            shares = share_around(prediction.rates, self.thresholds, query.lead_minutes, grid.pixel_km)
            prediction = replace(prediction, probabilities=shares, thresholds=self.thresholds)
            made["exceedance_method"] = NEIGHBOURHOOD
        return prediction, {"forecast_method": prediction.done[0] if prediction.done else self.name, **made}

    def _blend(
        self, blending: Blending, prediction: Prediction, past: Past, flags: npt.NDArray[np.uint8], grid: Grid
    ) -> Blended:
        """The members of `prediction`, or its rates if it has none, blended with the weather model."""
        nowcast = prediction.rates if prediction.members is None else prediction.members
        known = (flags & (MISSING | OUTSIDE_REACH)) == 0
        assert self.members is not None
        return blending(past, nowcast[0], known, grid, step_minutes=self.step_minutes, num_members=self.members)

    def _of_members(self, members: Rain) -> Prediction:
        """Rates and probabilities of blended members, (L, M, H, W)."""
        shares = [(members >= threshold).mean(axis=1, dtype=np.float32) for threshold in self.thresholds]
        return Prediction(
            members.mean(axis=1)[None, :, None],
            members[None],
            np.stack(shares, axis=1)[None] if shares else None,
            self.thresholds,
        )

    def _by_fallback(self, query: Query, past: Past) -> tuple[Prediction, dict[str, str]]:
        query = replace(query, rain=past.rain[None, :, None], covariates={}, members=False)
        prediction = self.fallback.predict(query)
        used = past.times[self.fallback.frames_used(past.rain, prediction.done[0])]
        return prediction, {"frames_used": ", ".join(map(_text, used))}

    def _by_forecaster(self, query: Query) -> Prediction:
        shape = query.rain.shape[-2:]
        tiling = self.memory.tiling(self.footprint, shape, self.lead_steps, self.num_maps)
        if tiling is None:
            prediction = self.forecaster.predict(query)
        elif self.gives.whole_grid and not tiling.apart:
            query = replace(query, tile_shape=tiling.size, tile_overlap=tiling.overlap)
            prediction = self.forecaster.predict(query)
        else:
            prediction = in_tiles(self.forecaster.predict, query, tiling)
        prediction.check(query, self.name)
        return prediction

    def _covariates(self, frames: xr.Dataset, grid: Grid) -> Covariates:
        """Read the covariates of `frames`; the files are opened each time, since they may grow."""
        if self.channels is None:
            return {}
        mask = frames[schema.COVERAGE].values.astype(bool) if schema.COVERAGE in frames else None
        site = Site(grid, lambda: mask, "the input")
        step = schema.step_timedelta(self.step_minutes)
        return read_covariates(self.channels, site, frames[schema.TIME].values, step, self.lead_steps)

    def _attrs_of(self, frames: xr.Dataset, past: Past, made: dict[str, str]) -> dict[str, Any]:
        kept = {key: frames.attrs[key] for key in KEPT_ATTRS if key in frames.attrs}
        own = {
            **made,
            "missing_input_frames": ", ".join(_text(time) for time in past.times[past.absent]) or "none",
            "input_sha256": _digest(past.rain),
            "input_source": str(frames.attrs.get("source", "unknown")),
        }
        return kept | self.attrs | own


def _with_model(flags: npt.NDArray[np.uint8], modelled: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """`MODEL_ONLY` where there would be nothing without the model."""
    unknown = np.uint8(MISSING | OUTSIDE_REACH)
    filled = ((flags & unknown) > 0) & modelled
    return np.where(filled, (flags & ~unknown) | np.uint8(MODEL_ONLY), flags)


def _is_finite(prediction: Prediction, past: Past) -> bool:
    """Return True if rates and probabilities are finite wherever anything was observed.

    A broken network gives NaN.
    """
    never = ~np.isfinite(past.rain).any(axis=0)
    given = (maps for maps in (prediction.rates, prediction.probabilities) if maps is not None)
    return all(bool((np.isfinite(one) | never).all()) for maps in given for one in maps.reshape(-1, *never.shape))


def _own(maps: Rain, source: Rain) -> Rain:
    """Return `maps`, or a copy if they are read-only or share memory with the input `source`."""
    return maps if maps.flags.writeable and not np.may_share_memory(maps, source) else maps.copy()


def _digest(rain: Rain) -> str:
    """Return the hash of the input frames in mm/h, as float32 from the first to the last pixel."""
    digest = hashlib.sha256()
    for frame in rain:
        for rows in bands(frame.shape):
            digest.update(np.ascontiguousarray(frame[rows], dtype="<f4").data)
    return digest.hexdigest()


def _text(time: np.datetime64) -> str:
    return str(np.datetime_as_string(time, unit="m"))
