"""Scores of probabilities of reaching a threshold: sums by probability bins, and the scores computed from them.

Events and probabilities are compared where `mask` is True. One table per threshold and lead time gives the Brier
score, its decomposition, the reliability diagram and the ROC.

`Calibration` maps stated probabilities to observed frequencies by non-decreasing functions: isotonic regression
(Zadrozny and Elkan 2002), separately for each threshold and lead time, on windows that training did not see. There
is no parameter to choose. Rates without probabilities are calibrated as well: "reached" and "not reached" become
the observed frequencies of either case.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from raincast.metrics.categorical import check_finite, check_thresholds

Floats = npt.NDArray[np.float64]
Knots = tuple[Floats, Floats]

NUM_BINS = 1001
"""Number of bins of `bin_sums` for `Calibration.fit`: steps of 0.1 %, because probabilities of heavy
rain are small."""
MIN_EVENTS = 100
"""Fewest pixels that must reach a threshold at a lead time; with fewer, probabilities stay uncalibrated."""


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


@dataclass(frozen=True, eq=False)
class Calibration:
    """Piecewise linear functions from stated to calibrated probabilities, by threshold and lead time.

    `knots[k][t]` are (stated, calibrated) probabilities for threshold k in mm/h and lead t, both increasing; None
    if there was too little rain. `fitted_on` describes the windows of the fit, as plain data.
    """

    thresholds: tuple[float, ...]
    knots: tuple[tuple[Knots | None, ...], ...]
    fitted_on: Mapping[str, Any]

    @classmethod
    def fit(
        cls, sums: BinSums, thresholds: Sequence[float], *, fitted_on: Mapping[str, Any] | None = None
    ) -> "Calibration":
        """Fit to sums (K thresholds, T leads, bins) with `NUM_BINS` fine bins."""
        forecasts, events, probability = (values.double().cpu().numpy() for values in sums[:3])
        if forecasts.ndim != 3 or forecasts.shape[0] != len(thresholds):
            raise ValueError(
                f"Sums of {forecasts.shape} for {len(thresholds)} thresholds: pass (thresholds, leads, bins)."
            )
        knots = tuple(
            tuple(_fit_one(*row) for row in zip(forecasts[k], events[k], probability[k], strict=True))
            for k in range(len(thresholds))
        )
        return cls(tuple(map(float, thresholds)), knots, dict(fitted_on or {}))

    @property
    def num_leads(self) -> int:
        """Number of lead times of the fit."""
        return len(self.knots[0])

    def apply(self, probability: npt.NDArray[np.float32], thresholds: Sequence[float]) -> npt.NDArray[np.float32]:
        """Calibrate probabilities (B, T, K, H, W) of reaching `thresholds` in mm/h.

        The result never rises with the threshold. Lead times after the last fitted one use the function of the
        last. Raises ValueError for thresholds that were not fitted.
        """
        rows = self._rows(thresholds)
        calibrated = np.array(probability, np.float32)
        for lead in range(calibrated.shape[1]):
            for position, k in enumerate(rows):
                found = self.knots[k][min(lead, self.num_leads - 1)]
                if found is not None:
                    calibrated[:, lead, position] = np.interp(calibrated[:, lead, position], *found)
        # each threshold was fitted by itself
        return np.minimum.accumulate(calibrated, axis=2)

    def _rows(self, thresholds: Sequence[float]) -> list[int]:
        unknown = [t for t in thresholds if t not in self.thresholds]
        if unknown:
            raise ValueError(
                f"There is no calibration at {', '.join(f'{t:g}' for t in unknown)} mm/h; it was fitted at "
                f"{', '.join(f'{t:g}' for t in self.thresholds)}. Ask for those, or forecast with "
                "calibrated=false, or fit it anew: python evaluate.py calibrate=true metrics.thresholds=[…]"
            )
        return [self.thresholds.index(t) for t in thresholds]

    def to_plain(self) -> dict[str, Any]:
        """Return lists and numbers for a checkpoint."""
        return {
            "thresholds": list(self.thresholds),
            "knots": [
                [None if found is None else [found[0].tolist(), found[1].tolist()] for found in row]
                for row in self.knots
            ],
            "fitted_on": dict(self.fitted_on),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Calibration":
        """Rebuild from `to_plain`."""
        knots = tuple(
            tuple(None if found is None else (np.array(found[0]), np.array(found[1])) for found in row)
            for row in plain["knots"]
        )
        return cls(tuple(plain["thresholds"]), knots, dict(plain["fitted_on"]))


def _fit_one(forecasts: Floats, events: Floats, probability: Floats) -> Knots | None:
    """Return the knots of one threshold and lead time from sums by bin."""
    if events.sum() < MIN_EVENTS:
        return None
    used = forecasts > 0
    weights = forecasts[used]
    from scipy.optimize import isotonic_regression  # it takes long to import, and a forecast fits nothing

    fitted = isotonic_regression(events[used] / weights, weights=weights)
    stated, calibrated = probability[used] / weights, np.clip(fitted.x, 0.0, 1.0)
    # a level stretch is its two ends
    ends = np.union1d(fitted.blocks[:-1], fitted.blocks[1:] - 1)
    return stated[ends], calibrated[ends]


def pool(sums: BinSums) -> BinSums:
    """Add up the sums of a batch (B, …) over its windows."""
    return BinSums(*(torch.sum(values, dim=0) for values in sums))
