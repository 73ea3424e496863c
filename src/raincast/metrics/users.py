"""Scores of depths over periods, and of the onset of rain."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from raincast.metrics.categorical import Contingency, check_finite, check_thresholds, csi, far, pod


def accumulate(
    pred: Float[Tensor, "b t m h w"],
    target: Float[Tensor, "b t c h w"],
    mask: Bool[Tensor, "b t c h w"],
    *,
    num_steps: int,
    step_minutes: float,
) -> tuple[Float[Tensor, "b n m h w"], Float[Tensor, "b n c h w"], Bool[Tensor, "b n c h w"]]:
    """Convert rates in mm/h to amounts in mm over consecutive periods of `num_steps`, from the first step on.

    `pred` may have M members on the axis of channels. A pixel counts in a period if it counts in all its steps.
    Steps after the last whole period are left out.
    """
    check_finite("pred", pred, mask)
    check_finite("target", target, mask)
    B, whole = pred.shape[0], pred.shape[1] // num_steps
    parts = [x[:, : whole * num_steps] for x in (pred, target, mask)]
    periods = [x.reshape(B, whole, num_steps, *x.shape[2:]) for x in parts]
    counted = periods[2].all(2)
    hours = step_minutes / 60
    amounts = [(rain.sum(2) * hours).masked_fill(~counted, 0.0) for rain in periods[:2]]
    return amounts[0], amounts[1], counted


class OnsetSums(NamedTuple):
    """Counts of pixels at which rain begins, by the step of the onset; they merge by addition."""

    hits: Int64[Tensor, "..."]
    """observed, and forecast to within a step"""
    misses: Int64[Tensor, "..."]
    """observed, and not forecast so"""
    false_alarms: Int64[Tensor, "..."]
    """forecast, and not observed to within a step"""


def onset_sums(
    pred: Float[Tensor, "b t 1 h w"],
    target: Float[Tensor, "b t 1 h w"],
    mask: Bool[Tensor, "b t 1 h w"],
    newest: Float[Tensor, "b 1 h w"],
    thresholds: Sequence[float],
    *,
    tolerance: int = 1,
) -> OnsetSums:
    """Counts over H, W, each (B, K thresholds, T), of the first step at which `>=` threshold (mm/h) is reached.

    Only pixels count that are below the threshold in the newest frame, `newest` (NaN for missing), and observed at
    every step. Hits and misses are counted at the step of the observed onset, false alarms at that of the forecast
    onset; a hit is at most `tolerance` steps early or late.
    """
    check_thresholds(thresholds)
    check_finite("pred", pred, mask)
    check_finite("target", target, mask)
    B, T = pred.shape[:2]
    tables = torch.zeros(3, B, len(thresholds), T, dtype=torch.int64, device=pred.device)
    for row in range(B):
        rains = [rain[row].flatten(1) for rain in (pred, target)]
        highest = torch.maximum(*(rain.amax(0) for rain in rains))
        always, before = mask[row].all(0).flatten(), newest[row].flatten()
        for k, threshold in enumerate(thresholds):
            # who is below the threshold throughout has no onset; NaN is not below it
            begins = (always & (before < threshold) & (highest >= threshold)).nonzero()[:, 0]
            firsts = [_first(rain.index_select(1, begins) >= threshold) for rain in rains]
            tables[:, row, k] = _tables(firsts[0], firsts[1], T, tolerance)
    return OnsetSums(*tables)


def _first(reached: Bool[Tensor, "t p"]) -> Int64[Tensor, " p"]:
    """Return the first step that is True; T if none is."""
    return reached.int().argmax(0).masked_fill(~reached.any(0), len(reached))


def _tables(forecast: Int64[Tensor, " p"], observed: Int64[Tensor, " p"], T: int, tolerance: int) -> Tensor:
    """Return hits, misses and false alarms by step, (3, T), from the steps of onsets; T means none."""
    rains, warned = observed < T, forecast < T
    hit = rains & warned & ((forecast - observed).abs() <= tolerance)
    chosen = observed[hit], observed[rains & ~hit], forecast[warned & ~hit]
    return torch.stack([torch.bincount(steps, minlength=T) for steps in chosen])


def _table(sums: OnsetSums) -> Contingency:
    return Contingency(sums.hits, sums.misses, sums.false_alarms, torch.zeros_like(sums.hits))


def onset_csi(sums: OnsetSums) -> Float[Tensor, "..."]:
    """Hits / (hits + misses + false alarms); NaN without onsets."""
    return csi(_table(sums))


def onset_pod(sums: OnsetSums) -> Float[Tensor, "..."]:
    """Hits / (hits + misses); NaN without observed onsets."""
    return pod(_table(sums))


def onset_far(sums: OnsetSums) -> Float[Tensor, "..."]:
    """False alarms / (hits + false alarms); NaN without forecast onsets.

    Hits are counted at the observed step even if they were forecast a step early or late, so only the sum over
    lead times is the share of all forecast onsets.
    """
    return far(_table(sums))
