"""The one contract of every forecaster: `forecaster.predict(query)` gives a `Prediction`.

Trained networks, exported networks, pysteps' methods, forecasts in files and the fallback implement it.
Evaluation, forecasting, live mode and calibration call nothing else, so any class with these three members can be
scored and run:

    class Mine:
        name = "mine"
        gives = Gives()

        def predict(self, query: Query) -> Prediction: ...

Rates are in mm/h. docs/own_forecaster.md scores such a class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter

from raincast import schema
from raincast.schema import Grid

Rain = npt.NDArray[np.float32]
Covariates = Mapping[str, npt.NDArray[np.float32]]
"""Further channels: "past" (B, T, P, H, W), "future" (B, S, F, H, W) for each step up to the last lead time."""

NETWORK, EXTRAPOLATION, PERSISTENCE, DRY = "network", "extrapolation", "persistence", "dry"
"""Ways to make a forecast, as `Prediction.done` names them."""

STEP_TOLERANCE = 1e-6
"""Largest distance of a lead time from a whole number of steps, in steps."""


@dataclass(frozen=True, kw_only=True)
class Gives:
    """The outputs that a forecaster has besides rates. Queries ask for no others.

    `members`: an ensemble. `probabilities`: of reaching thresholds. `rules`: the rules by which it can turn its
    probabilities into rates (`Query.rule`). `whole_grid`: it needs the whole grid at once. The pipeline then cuts
    no tiles, and the forecaster saves memory by itself (`Query.tile_shape`, `tile_overlap`). `times`: the only
    init times that it has forecasts of, each with its lead times; None: any.
    """

    members: bool = False
    probabilities: bool = False
    rules: tuple[str, ...] = ()
    whole_grid: bool = False
    times: Mapping[np.datetime64, frozenset[np.timedelta64]] | None = None


class ThresholdError(ValueError):
    """A forecaster cannot give the probability of one of the thresholds. It can still give rates."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Query:
    """B samples of equal shape, and the outputs that are wanted.

    Optional fields may stay unknown; a forecaster that needs one of them raises ValueError. So does the query for
    arrays of the wrong shape, and for lead times or thresholds that are not positive and increasing.
    """

    rain: Rain
    """(B, T, C, H, W) mm/h, NaN for missing, from the oldest to the newest frame; channel 0 is rain"""
    step_minutes: float
    """time from one frame to the next"""
    lead_minutes: Sequence[float]
    """(L,) times to forecast, after the newest frame"""
    times: npt.NDArray[np.datetime64] | None = None
    """(B,) valid times of the newest frames, UTC"""
    grid: Grid | None = None
    """the image that the samples were cut from"""
    y: Sequence[int] = ()
    """(B,) row of each sample's first pixel in `grid`; 0 by default"""
    x: Sequence[int] = ()
    """(B,) column of each sample's first pixel in `grid`; 0 by default"""
    pixel_km: float | None = None
    """height and width of a pixel; that of `grid` by default"""
    motion: npt.NDArray[np.float64] | None = None
    """(B, 2, H, W) pixels per step, x first, if it is known, for example from a larger image; None: unknown"""
    covariates: Covariates = field(default_factory=dict)
    members: bool = False
    """whether an ensemble is wanted"""
    thresholds: Sequence[float] = ()
    """(K,) mm/h at which probabilities are wanted: P(rate >= threshold)"""
    uncalibrated: bool = False
    """whether the probabilities before calibration are wanted, too"""
    rule: str | None = None
    """one of `Gives.rules`; None: the forecaster's default"""
    tile_shape: tuple[int, int] | None = None
    """the largest (H, W) that fits in memory at once; None: the whole grid does"""
    tile_overlap: int = 0
    """pixels that tiles should share"""

    def __post_init__(self) -> None:
        """Check shapes and order, and fill in defaults."""
        if self.rain.ndim != 5 or 0 in self.rain.shape:
            raise ValueError(
                f"Expected rain of shape (B, T, C, H, W), found {self.rain.shape}. Add the missing axis."
            )
        if not self.step_minutes > 0:
            raise ValueError(f"step_minutes={self.step_minutes}: give the minutes from frame to frame, above 0.")
        leads = tuple(map(float, self.lead_minutes))
        if not leads or any(a >= b for a, b in pairwise((0.0, *leads))):
            raise ValueError(f"lead_minutes={list(leads)} must be at least one, above 0 and increasing.")
        thresholds = tuple(map(float, self.thresholds))
        if any(a >= b for a, b in pairwise((0.0, *thresholds))):
            raise ValueError(f"thresholds={list(thresholds)} must be in mm/h, above 0 and increasing.")
        B, H, W = len(self.rain), *self.rain.shape[-2:]
        y, x = ([int(first) for first in axis] if len(axis) else [0] * B for axis in (self.y, self.x))
        num_times = B if self.times is None else len(self.times)
        for name, count in {"times": num_times, "y": len(y), "x": len(x)}.items():
            if count != B:
                raise ValueError(f"{name} has {count} values: give one for each of {B} samples.")
        if self.motion is not None and self.motion.shape != (B, 2, H, W):
            raise ValueError(f"motion has shape {self.motion.shape}, expected {(B, 2, H, W)}.")
        pixel_km = self.grid.pixel_km if self.pixel_km is None and self.grid is not None else self.pixel_km
        filled = {"lead_minutes": leads, "thresholds": thresholds, "y": y, "x": x, "pixel_km": pixel_km}
        for name, value in filled.items():
            object.__setattr__(self, name, value)

    @classmethod
    def for_steps(cls, rain: Rain, num_steps: int, *, step_minutes: float, **others: Any) -> "Query":
        """Return a query for the next `num_steps` steps; `others` are further fields."""
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps}: request at least one step.")
        leads = [step_minutes * step for step in range(1, num_steps + 1)]
        return cls(rain=rain, step_minutes=step_minutes, lead_minutes=leads, **others)

    @property
    def lead_steps(self) -> npt.NDArray[np.int64]:
        """(L,) the lead times in steps, for forecasters that go step by step.

        Raises ValueError if one is not a multiple of the step.
        """
        steps = np.array(self.lead_minutes) / self.step_minutes
        whole = np.rint(steps)
        if (np.abs(steps - whole) > STEP_TOLERANCE).any():
            raise ValueError(
                f"lead_minutes={list(self.lead_minutes)}: this forecaster has a step of {self.step_minutes:g} "
                "min. Request multiples of it."
            )
        return whole.astype(np.int64)

    @property
    def num_steps(self) -> int:
        """Steps up to the last lead time. Raises ValueError as `lead_steps`."""
        return int(self.lead_steps[-1])

    @property
    def lead_times(self) -> npt.NDArray[np.timedelta64]:
        """(L,) the lead times, in ns."""
        steps = np.array(self.lead_minutes) / self.step_minutes
        # round to ns only once, like valid times
        if (np.abs(steps - np.rint(steps)) <= STEP_TOLERANCE).all():
            return schema.step_timedelta(self.step_minutes) * np.rint(steps).astype(np.int64)
        return np.array([schema.step_timedelta(minutes) for minutes in self.lead_minutes])

    def at_lead_times(self, every_step: Rain) -> Rain:
        """Select the lead times from a forecast of every step: (B, num_steps, …) → (B, L, …)."""
        steps = self.lead_steps
        if len(steps) == every_step.shape[1]:
            return every_step
        return every_step[:, steps - 1]

    def sample_grid(self, sample: int) -> Grid:
        """Return the grid of one sample. Raises ValueError without `grid`."""
        if self.grid is None:
            raise ValueError("The grid is not known: give the query the grid that its samples were cut from.")
        return self.grid.crop(self.y[sample], self.x[sample], *self.rain.shape[-2:])

    def crop(self, rows: slice, columns: slice) -> "Query":
        """Return the same query for a part of the pixels."""
        top, left = rows.indices(self.rain.shape[-2])[0], columns.indices(self.rain.shape[-1])[0]
        return replace(
            self,
            rain=self.rain[..., rows, columns],
            y=[first + top for first in self.y],
            x=[first + left for first in self.x],
            motion=None if self.motion is None else self.motion[..., rows, columns],
            covariates={name: values[..., rows, columns] for name, values in self.covariates.items()},
        )


@dataclass(frozen=True, eq=False)
class Prediction:
    """A forecast of all samples of a query. Rates are finite and nonnegative, and 0 where nothing is known."""

    rates: Rain
    """(B, L, 1, H, W) mm/h; of an ensemble, its mean"""
    members: Rain | None = None
    """(B, L, M, H, W) mm/h; None if they were not asked for or the forecaster has none"""
    probabilities: npt.NDArray[np.floating[Any]] | None = None
    """(B, L, K, H, W) P(rate >= threshold), 0 to 1; None as for `members`"""
    thresholds: Sequence[float] = ()
    """(K,) mm/h, those of the query if there are probabilities"""
    uncalibrated: npt.NDArray[np.floating[Any]] | None = None
    """`probabilities` before calibration; None if not asked for, or if nothing was calibrated"""
    done: tuple[str, ...] = ()
    """(B,) how each sample's forecast was made: network, extrapolation, persistence, dry or a forecaster's name;
    empty if the forecaster has only one way"""

    def sample(self, number: int) -> "Prediction":
        """Return the prediction of one sample, B = 1."""
        one = slice(number, number + 1)
        return replace(
            self,
            rates=self.rates[one],
            members=None if self.members is None else self.members[one],
            probabilities=None if self.probabilities is None else self.probabilities[one],
            uncalibrated=None if self.uncalibrated is None else self.uncalibrated[one],
            done=self.done[one],
        )

    def check(self, query: Query, name: str) -> None:
        """Raise ValueError if a shape is not the one that `query` requests; `name` is the forecaster's."""
        B, L, K = len(query.rain), len(query.lead_minutes), len(query.thresholds)
        H, W = query.rain.shape[-2:]
        M = self.members.shape[2] if self.members is not None and self.members.ndim == 5 else 0
        wanted = {"rates": (B, L, 1, H, W), "members": (B, L, M, H, W), "probabilities": (B, L, K, H, W)}
        for what, shape in (wanted | {"uncalibrated": wanted["probabilities"]}).items():
            values = getattr(self, what)
            if values is not None and values.shape != shape:
                raise ValueError(f"{name} gives {what} of shape {values.shape}, the query asks for {shape}.")
        if self.done and len(self.done) != B:
            raise ValueError(f"{name} says how {len(self.done)} samples were made, the query has {B}.")


class Forecaster(Protocol):
    """Predicts the rain of the next minutes to hours from that of the past."""

    @property
    def name(self) -> str:
        """Its name in tables and files."""
        ...

    @property
    def gives(self) -> Gives:
        """The outputs besides rates."""
        ...

    def predict(self, query: Query) -> Prediction:
        """Forecast all samples of `query`.

        Raises ValueError if it cannot, ThresholdError if it can give rates but not the probability of a threshold.
        """
        ...


def exceeded(rates: Rain, thresholds: Sequence[float]) -> Rain:
    """Return (B, L, K, H, W) with 1 where rates (B, L, 1, H, W) in mm/h reach the threshold, else 0."""
    return np.concatenate([(rates >= threshold).astype(np.float32) for threshold in thresholds], axis=2)


def share_of_members(members: Rain, thresholds: Sequence[float]) -> Rain:
    """Return the share (B, L, K, H, W) of the members (B, L, M, H, W) in mm/h that reach each threshold."""
    return np.stack([(members >= threshold).mean(axis=2) for threshold in thresholds], axis=2)


def share_around(rates: Rain, thresholds: Sequence[float], lead_minutes: Sequence[float], pixel_km: float) -> Rain:
    """Return neighbourhood probabilities (B, L, K, H, W) of a deterministic forecast (B, L, 1, H, W) in mm/h.

    The probability is the share of observed pixels that reach the threshold, in a square whose side is 1 km per
    minute of lead time and at least 3 pixels: the uncertainty of position grows with lead time (Germann and
    Zawadzki 2004, J. Appl. Meteor. 43, 74-89). Pixels beyond the edge do not count.
    """
    shares = np.empty((*rates.shape[:2], len(thresholds), *rates.shape[3:]), np.float32)
    for lead, minutes in enumerate(lead_minutes):
        side = 2 * max(1, round(minutes / pixel_km / 2)) + 1
        window: dict[str, Any] = {"size": (1, side, side), "mode": "constant"}
        observed = uniform_filter(np.isfinite(rates[:, lead, 0]).astype(np.float64), **window)
        for number, threshold in enumerate(thresholds):
            wet = uniform_filter((rates[:, lead, 0] >= threshold).astype(np.float64), **window)
            with np.errstate(invalid="ignore", divide="ignore"):
                shares[:, lead, number] = np.clip(wet / observed, 0.0, 1.0)
    return shares
