"""The settings of scores, and the sums computed from a window."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raincast.data.dataset import Sample
from raincast.evaluation import blocks, groups
from raincast.evaluation.event_sums import EventSums
from raincast.forecaster import Prediction
from raincast.metrics import categorical, continuous, ensemble, probabilistic, spatial, spectrum, users
from raincast.metrics.categorical import Contingency, check_thresholds, over_frames, reaching

HOURS = "hour "
"""Prefix of an hour of day among the keys of `EventSums`; all other keys are events."""


@dataclass(frozen=True)
class Metrics:
    """The scores to compute; rates and thresholds in mm/h.

    Counts and errors of pixels are always computed. The others take time (`benchmarks/evaluation.py`):

    balanced: HKO-7's weighted errors.
    pools: sides, in pixels, of squares whose highest rates are counted.
    scales: sides in km of the boxes of the fractions skill score; `fss_boundary` is "zero" or "inside".
    spectrum: radially averaged power.
    accumulations: periods in minutes, multiples of the step; `amounts`: thresholds of their amounts in mm.
    sal: structure, amplitude and location of rain areas in each frame; needs scikit-image.
    onset: whether the onset of rain is forecast to within one step.
    probabilities: scores of ensembles and probabilities, in `probability_bins`. Scores of members also cover
    accumulations and spectra, if these are computed.
    areal_scales: sides in km of adjacent boxes, whose mean rates are scored as ensembles.
    ignored_between: observed rates between these two are ignored as noise.
    protocol: a published protocol (`groups.PROTOCOLS`); all settings must then be its own.
    event_hours: the length of an event in hours, counted from 0 UTC, by the newest input frame. Intervals resample
    events. None: sums are kept per hour, and `blocks.automatic` chooses the length.
    """

    thresholds: Sequence[float]
    balanced: bool = True
    pools: Sequence[int] = ()
    scales: Sequence[float] = ()
    fss_boundary: str = "zero"
    spectrum: bool = False
    accumulations: Sequence[float] = ()
    amounts: Sequence[float] = (1.0, 5.0, 10.0)
    onset: bool = False
    sal: bool = False
    probabilities: bool = True
    probability_bins: int = 21
    areal_scales: Sequence[float] = ()
    ignored_between: Sequence[float] | None = None
    protocol: str | None = None
    event_hours: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for impossible settings before any forecast is made."""
        check_thresholds(self.thresholds)
        if self.accumulations and (not self.amounts or any(a >= b for a, b in pairwise((0.0, *self.amounts)))):
            raise ValueError(f"metrics.amounts={list(self.amounts)} must be above 0 and increasing, in mm.")
        for name, most in {"pools": 1, "scales": 0, "accumulations": 0, "areal_scales": 0}.items():
            values = list(getattr(self, name))
            if len(set(values)) != len(values) or any(value <= most for value in values):
                raise ValueError(f"metrics.{name}={values}: each must be above {most}, and none may repeat.")
        if self.sal:
            spatial.require_sal()
        if self.fss_boundary not in ("zero", "inside"):
            raise ValueError(f"metrics.fss_boundary={self.fss_boundary}: choose zero or inside.")
        if self.probability_bins < 2:
            raise ValueError(f"metrics.probability_bins={self.probability_bins} must be 2 or more.")
        if self.ignored_between is not None and not 0 <= self.ignored_between[0] < self.ignored_between[-1]:
            raise ValueError(
                f"metrics.ignored_between={list(self.ignored_between)} must be two rates, increasing."
            )
        if self.protocol is not None:
            groups.check_protocol(self.protocol, self)
        if self.event_hours is not None and self.event_hours < 1:
            raise ValueError(f"metrics.event_hours={self.event_hours} must be null or a whole number above 0.")

    def boxes(self, pixel_km: float | None) -> list[int]:
        """Return the sides of the boxes of `scales` in pixels; raises ValueError if the pixel size is unknown."""
        return _boxes("scales", self.scales, pixel_km)

    def areal_boxes(self, pixel_km: float | None) -> list[int]:
        """Return the sides of the boxes of `areal_scales` in pixels.

        Raises ValueError if the pixel size is unknown.
        """
        return _boxes("areal_scales", self.areal_scales, pixel_km)

    def periods(self, step_minutes: float) -> list[int]:
        """Return the accumulations in steps; raises ValueError if one is not a multiple of the step."""
        steps = [minutes / step_minutes for minutes in self.accumulations]
        if any(count != round(count) for count in steps):
            raise ValueError(
                f"metrics.accumulations={list(self.accumulations)} min must be multiples of the archive's step, "
                f"{step_minutes:g} min."
            )
        return [round(count) for count in steps]

    def event_of(self, time: np.datetime64) -> str:
        """Return the event of a window whose newest input frame is at `time`: its first day or hour, UTC."""
        return blocks.event_name(time, self.event_hours or 1)


@dataclass(frozen=True)
class Scoring:
    """`metrics` applied to windows with a given time step and pixel size."""

    metrics: Metrics
    step_minutes: float
    pixel_km: float | None = None

    def check(self, lead_steps: int, shape: tuple[int, int]) -> None:
        """Raise ValueError if forecasts of this length and size cannot have these scores."""
        self.metrics.boxes(self.pixel_km)
        self.metrics.areal_boxes(self.pixel_km)
        longest = max(self.metrics.periods(self.step_minutes), default=0)
        if longest > lead_steps:
            raise ValueError(
                f"metrics.accumulations={list(self.metrics.accumulations)} min: forecasts are of "
                f"{lead_steps * self.step_minutes:g} min only. Remove longer accumulations."
            )
        if max(self.metrics.pools, default=1) > min(shape):
            raise ValueError(f"metrics.pools={list(self.metrics.pools)}: the windows have only {shape} pixels.")

    def add(self, sums: EventSums, prediction: Prediction, batch: Sample) -> None:
        """Add every window of a batch to its event and its hour."""
        times = np.asarray(batch["time"]).astype("datetime64[s]")
        for row, time in enumerate(times):
            # each window alone, so that its sums do not depend on the rest of the batch, to the last bit
            one = slice(row, row + 1)
            target, mask, newest = batch["target"][one], batch["target_mask"][one], batch["input"][one, -1, :1]
            if between := self.metrics.ignored_between:
                mask = mask & ~((target > between[0]) & (target < between[-1]))
            own = self._sums(prediction.sample(row), target, mask, newest)
            named = {name: values[0].cpu().numpy() for name, values in own.items()}
            sums.add(self.metrics.event_of(time), named)
            hour = int(time.astype("datetime64[h]").astype(np.int64)) % 24
            hourly = {name: values for name, values in named.items() if name in groups.HOURLY}
            sums.add(f"{HOURS}{hour:02}", hourly)

    def _sums(self, prediction: Prediction, target: Tensor, mask: Tensor, newest: Tensor) -> dict[str, Tensor]:
        wanted, rain = self.metrics, torch.from_numpy(prediction.rates).to(target.device)
        thresholds = wanted.thresholds
        named = self._pixels(rain, target, mask)
        if wanted.pools:
            named |= self._pooled(rain, target, mask)
        if boxes := wanted.boxes(self.pixel_km):
            kind = wanted.fss_boundary
            fractions = spatial.fraction_sums(rain, target, mask, thresholds, boxes, boundary=kind)
            named |= groups.FRACTIONS.named(fractions)
        if wanted.spectrum:
            named |= groups.SPECTRUM.named(spectrum.spectrum_sums(rain, target, mask))
        if wanted.accumulations:
            named |= self._accumulated(rain, target, mask)
        if wanted.onset:
            named |= groups.ONSET.named(users.onset_sums(rain, target, mask, newest, thresholds))
        if wanted.sal:
            named |= groups.AREAS.named(spatial.sal_sums(rain, target, mask))
        if prediction.members is not None and prediction.members.shape[2] > 1:  # one member is not an ensemble
            named |= self._ensemble(torch.from_numpy(prediction.members).to(target.device), target, mask)
        stated = (groups.PROBABILITIES, prediction.probabilities), (groups.UNCALIBRATED, prediction.uncalibrated)
        for group, values in stated:
            if values is not None:
                sums = probabilistic.bin_sums(
                    torch.from_numpy(values), target, mask, thresholds, num_bins=wanted.probability_bins
                )
                named |= group.named(sums)
        return named

    def _ensemble(self, members: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the sums of members: of pixels, boxes, accumulations and spectra."""
        wanted, T = self.metrics, members.shape[1]
        named = _with_ranks(groups.MEMBERS, _member_parts(members, target, mask))
        if sizes := wanted.areal_boxes(self.pixel_km):
            boxes = [ensemble.areal_means(members, target, mask, size=size) for size in sizes]
            named |= _with_ranks(groups.AREAL_MEMBERS, _stacked([_member_parts(*box) for box in boxes]))
            named |= groups.MULTIVARIATE.named(_stacked([ensemble.multivariate_sums(*box) for box in boxes]))
        if wanted.accumulations:
            parts = []
            for steps in wanted.periods(self.step_minutes):
                amounts = users.accumulate(members, target, mask, num_steps=steps, step_minutes=self.step_minutes)
                ends = slice(steps - 1, None, steps)
                parts.append([_spread(part, T, ends, dim=1) for part in _member_parts(*amounts)])
            named |= _with_ranks(groups.ACCUMULATED_MEMBERS, _stacked(parts))
        if wanted.spectrum:
            named |= groups.MEMBER_SPECTRUM.named(spectrum.spectrum_sums(members, target, mask))
        return named

    def _pixels(self, rain: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return counts and errors of pixels, computed in one pass."""
        thresholds, balanced = self.metrics.thresholds, self.metrics.balanced
        least = min(thresholds[0], continuous.least_rate()) if balanced else thresholds[0]

        def rows(pred: Tensor, truth: Tensor, count: Tensor) -> Any:
            errors = continuous.error_rows(pred, truth, count)
            pred, truth = reaching(pred, truth, least)
            joint = categorical.joint_rows(pred, truth, thresholds)
            return (joint, *errors, *(continuous.balanced_rows(pred, truth, count) if balanced else ()))

        joint, count, *others = over_frames(rows, rain, target, mask)
        parts = [*categorical.from_joint(joint, count), count, *others]
        names = [*groups.PIXELS.names(), *groups.ERRORS.names(), *(groups.WEIGHTED.names() if balanced else ())]
        return dict(zip(names, parts, strict=True))

    def _pooled(self, rain: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
        tables = [
            categorical.contingency(*spatial.max_pool(rain, target, mask, size=size), self.metrics.thresholds)
            for size in self.metrics.pools
        ]
        return groups.POOLED.named(_stacked(tables))

    def _accumulated(self, rain: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the sums of each period at the lead time at which it ends; 0 at the others."""
        tables, errors = [], []
        for steps in self.metrics.periods(self.step_minutes):
            amounts = users.accumulate(rain, target, mask, num_steps=steps, step_minutes=self.step_minutes)
            table = categorical.contingency(*amounts, self.metrics.amounts)
            ends = slice(steps - 1, None, steps)
            tables.append(Contingency(*(_spread(count, rain.shape[1], ends) for count in table)))
            errors.append([_spread(total, rain.shape[1], ends) for total in continuous.error_sums(*amounts)])
        return groups.AMOUNTS.named(_stacked(tables)) | groups.AMOUNT_ERRORS.named(_stacked(errors))


def _boxes(name: str, scales: Sequence[float], pixel_km: float | None) -> list[int]:
    if not scales:
        return []
    if pixel_km is None:
        raise ValueError(f"{name}={list(scales)} in km: give pixel_km, the size of a pixel, or remove them.")
    return [spatial.box_size(scale, pixel_km) for scale in scales]


def _member_parts(members: Tensor, target: Tensor, mask: Tensor) -> list[Tensor]:
    """Return the sums of an ensemble (B, T), and last its ranks (B, T, M + 1)."""
    return [*ensemble.ensemble_sums(members, target, mask), ensemble.rank_histogram(members, target, mask)]


def _with_ranks(group: groups.Group, parts: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip([*group.names(), groups.ranks(group)], parts, strict=True))


def _stacked(sums: Sequence[Iterable[Tensor]]) -> list[Tensor]:
    """Stack sums of several scales or periods along a new second axis."""
    return [torch.stack(part, dim=1) for part in zip(*sums, strict=True)]


def _spread(values: Tensor, num_leads: int, ends: slice, *, dim: int = -1) -> Tensor:
    """Place `values` at the lead times `ends` along `dim`, and 0 at the others."""
    values = values.movedim(dim, -1)
    whole = torch.zeros(*values.shape[:-1], num_leads, dtype=values.dtype, device=values.device)
    whole[..., ends] = values
    return whole.movedim(-1, dim)
