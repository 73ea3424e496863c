"""Scores of probabilities of reaching a threshold: sums by probability bins, and the scores computed from them.

Events and probabilities are compared where `mask` is True. One table per threshold and lead time gives the Brier
score, its decomposition, the reliability diagram and the ROC.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from raincast.metrics.categorical import check_finite, check_thresholds


class BinSums(NamedTuple):
    """Sums by probability bins, the last axis; they merge by addition."""

    forecasts: Int64[Tensor, "... n"]
    """pixels with a probability in the bin"""
    events: Int64[Tensor, "... n"]
    """those of them where the threshold was reached"""
    probability: Float[Tensor, "... n"]
    """float64, as the next"""
    squared_error: Float[Tensor, "... n"]
    """(probability − event)², whatever the bin's width"""


def bin_sums(
    probability: Float[Tensor, "b t k h w"],
    target: Float[Tensor, "b t 1 h w"],
    mask: Bool[Tensor, "b t 1 h w"],
    thresholds: Sequence[float],
    *,
    num_bins: int = 11,
) -> BinSums:
    """Sums over H, W, each (B, K thresholds, T, bins), of probabilities that `target` is `>=` it, in mm/h.

    Bin i holds the probabilities nearest to i / (num_bins − 1): 11 bins stand for 0, 10, … 100 %. With M + 1 bins
    each probability of M members has its own, so that the decomposition has no remainder. NaN inside the mask is
    an error.
    """
    check_thresholds(thresholds)
    if num_bins < 2 or probability.shape[2] != len(thresholds):
        raise ValueError(
            f"num_bins={num_bins} must be 2 or more, and {len(thresholds)} thresholds have as many probabilities, "
            f"found {probability.shape[2]}."
        )
    wrong = int((~((probability >= 0) & (probability <= 1)) & mask).sum())
    if wrong:
        raise ValueError(f"{wrong} probabilities inside the mask are NaN, below 0 or above 1.")
    check_finite("target", target, mask)
    B, T, K = probability.shape[:3]
    given = mask.expand_as(probability)
    p = probability.double().masked_fill(~given, 0.0)
    event = torch.cat([target >= t for t in thresholds], dim=2) & given
    cell = (p * (num_bins - 1) + 0.5).floor().long()
    cell += num_bins * torch.arange(B * T * K, device=cell.device).view(B, T, K, 1, 1)
    shape = B, T, K, num_bins

    def by_bin(weights: Tensor) -> Tensor:  # which are 0 where masked
        return torch.bincount(cell.flatten(), weights.flatten(), minlength=B * T * K * num_bins).view(shape)

    sums = by_bin(given.double()), by_bin(event.double()), by_bin(p), by_bin((p - event.double()).square())
    forecasts, events, stated, squared_error = (part.transpose(1, 2).contiguous() for part in sums)
    return BinSums(forecasts.long(), events.long(), stated, squared_error)


def brier(sums: BinSums) -> Float[Tensor, "..."]:
    """Brier score, the mean of (probability − event)², 0 the best; NaN without pixels."""
    return sums.squared_error.sum(-1) / sums.forecasts.sum(-1)


class BrierParts(NamedTuple):
    """brier = reliability − resolution + uncertainty + within_bins (Murphy 1973, Stephenson et al. 2008)."""

    reliability: Float[Tensor, "..."]
    """mean squared distance of stated and observed frequency, 0 the best"""
    resolution: Float[Tensor, "..."]
    """mean squared distance of the bins' frequencies from the whole's, the larger the better"""
    uncertainty: Float[Tensor, "..."]
    """the score of always stating the whole's frequency"""
    within_bins: Float[Tensor, "..."]
    """what bins that hold several probabilities leave over; 0 where each holds one"""


def brier_parts(sums: BinSums) -> BrierParts:
    """Decompose the Brier score over all bins; NaN without pixels."""
    n = sums.forecasts.double()
    total = n.sum(-1)
    share = n / total[..., None]
    stated, observed = (values.nan_to_num() for values in reliability_curve(sums))  # empty bins have no share
    rate = sums.events.sum(-1) / total
    reliability = (share * (stated - observed).square()).sum(-1)
    resolution = (share * (observed - rate[..., None]).square()).sum(-1)
    uncertainty = rate * (1 - rate)
    rest = brier(sums) - (reliability - resolution + uncertainty)
    return BrierParts(reliability, resolution, uncertainty, rest)


def reliability_curve(sums: BinSums) -> tuple[Float[Tensor, "... n"], Float[Tensor, "... n"]]:
    """Return (mean stated probability, observed frequency) by bin; NaN in empty bins."""
    return sums.probability / sums.forecasts, sums.events.double() / sums.forecasts


def roc(sums: BinSums) -> tuple[Float[Tensor, "... m"], Float[Tensor, "... m"]]:
    """Return (false alarm rate, probability of detection) of warnings from each bin upwards, from (0, 0) to (1,
    1).

    Both have one point more than there are bins: the first never warns. The false alarm rate is false alarms /
    observed non-events (POFD), not the ratio FAR. NaN if there was no event, or no non-event.
    """
    curves = []
    for counts in (sums.forecasts - sums.events, sums.events):
        warned = torch.nn.functional.pad(counts.flip(-1).cumsum(-1), (1, 0)).double()
        total = warned[..., -1:]
        curves.append(warned / total.masked_fill(total == 0, torch.nan))
    return curves[0], curves[1]


def roc_area(sums: BinSums) -> Float[Tensor, "..."]:
    """Area under the ROC by trapezoids, 0.5 without skill; NaN if there was no event, or no non-event."""
    pofd, pod = roc(sums)
    return torch.trapezoid(pod, pofd, dim=-1)
