"""Calibration of exceedance probabilities: non-decreasing functions from stated to observed frequencies.

Isotonic regression (Zadrozny and Elkan 2002), separately for each threshold and lead time, on windows that
training did not see. It has no parameter to choose. Rates without probabilities are calibrated as well: "reached"
and "not reached" become the observed frequencies of either case.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from raincast.metrics.probabilistic import BinSums

Floats = npt.NDArray[np.float64]
Knots = tuple[Floats, Floats]

NUM_BINS = 1001
"""Number of bins of `probabilistic.bin_sums` for `Calibration.fit`: steps of 0.1 %, because probabilities of heavy
rain are small."""
MIN_EVENTS = 100
"""Fewest pixels that must reach a threshold at a lead time; with fewer, probabilities stay uncalibrated."""


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
