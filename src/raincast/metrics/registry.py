"""The only registry of scores: name, formula, label, unit, and which values are good."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from raincast.metrics import categorical, continuous, ensemble, probabilistic, spatial, users
from raincast.metrics import spectrum as spectra

MM_H = "mm h-1"
UP, DOWN = 1, -1


@dataclass(frozen=True)
class Score:
    """A score, made by `formula` of sums (a NamedTuple of tensors).

    `better` is 1 where more is better and −1 where less is. Where it is 0, the best value is `ideal`, if there is
    one: an ideal ratio is 1, an ideal difference 0. `label` heads columns and axes; a score without one is in no
    table.
    """

    formula: Callable[..., Tensor]
    long_name: str
    label: str = ""
    better: int = 0
    units: str = "1"
    ideal: float | None = None

    @property
    def heading(self) -> str:
        """The label with the unit, if there is one."""
        return self.label if self.units == "1" else f"{self.label} {self.units.replace(' h-1', '/h')}"

    def badness(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Distance of `values` from the best: smaller is better; NaN if no value is best."""
        if self.better:
            return -self.better * values
        if self.ideal is None:
            return np.full_like(values, math.nan)
        # ratios on a scale of their own: twice too often is as far off as half as often
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.abs(np.log(values)) if self.ideal == 1 else np.abs(values - self.ideal)


Scores = Mapping[str, Score]

CATEGORICAL: Scores = {
    "csi": Score(categorical.csi, "critical success index", "CSI", UP),
    "pod": Score(categorical.pod, "probability of detection", "POD", UP),
    "far": Score(categorical.far, "false alarm ratio", "FAR", DOWN),
    "frequency_bias": Score(categorical.frequency_bias, "frequency bias", "bias", ideal=1),
    "hss": Score(categorical.hss, "Heidke skill score", "HSS", UP),
    "ets": Score(categorical.ets, "equitable threat score", "ETS", UP),
    "f1": Score(categorical.f1, "F1", "F1", UP),
}
CONTINUOUS: Scores = {
    "mean_error": Score(continuous.mean_error, "mean error (forecast − observation)", "ME", 0, MM_H, ideal=0),
    "mae": Score(continuous.mae, "mean absolute error", "MAE", DOWN, MM_H),
    "rmse": Score(continuous.rmse, "root mean squared error", "RMSE", DOWN, MM_H),
    "correlation": Score(continuous.correlation, "correlation about the means (Pearson)", "corr.", UP),
    "uncentred_correlation": Score(
        continuous.uncentred_correlation, "uncentred correlation (Shi et al. 2015)", "uncentred corr.", UP
    ),
}
BALANCED: Scores = {
    "balanced_mse": Score(
        continuous.balanced_mse, "mean squared error of the HKO-7 pixel with its weights", "weighted MSE", DOWN
    ),
    "balanced_mae": Score(
        continuous.balanced_mae, "mean absolute error of the HKO-7 pixel with its weights", "weighted MAE", DOWN
    ),
}
FRACTIONS: Scores = {"fss": Score(spatial.fss, "fractions skill score", "FSS", UP)}
SPECTRUM: Scores = {
    "spectrum": Score(spectra.pred_spectrum, "radially averaged power of the forecast", units="mm2 h-2"),
    "observed_spectrum": Score(spectra.target_spectrum, "the same of the observation", units="mm2 h-2"),
    "spectrum_ratio": Score(spectra.ratio, "power of the forecast over that of the observation", ideal=1),
}
RESOLUTION: Scores = {
    # of the ratio and the wavelengths
    "effective_resolution": Score(
        spectra.effective_resolution,
        "the wavelength below which less than half of the observed power is left",
        "effective resolution",
        DOWN,
        "km",
    )
}
ONSET: Scores = {
    "onset_csi": Score(users.onset_csi, "CSI of the onset of rain, within a step", "onset CSI", UP),
    "onset_pod": Score(users.onset_pod, "share of onsets that were forecast to within a step", better=UP),
    "onset_far": Score(
        users.onset_far, "share of forecast onsets without an observed one within a step", better=DOWN
    ),
}
AREAS: Scores = {
    "sal_structure": Score(
        spatial.structure, "S of SAL: areas too large or flat above 0, too small below", ideal=0
    ),
    "sal_amplitude": Score(spatial.amplitude, "A of SAL: too much rain above 0, too little below", ideal=0),
    "sal_location": Score(spatial.location, "L of SAL: displacement of the rain", "SAL L", DOWN),
    "sal_abs_structure": Score(spatial.structure_size, "mean of |S|", "SAL |S|", DOWN),
    "sal_abs_amplitude": Score(spatial.amplitude_size, "mean of |A|", "SAL |A|", DOWN),
}
MEMBERS: Scores = {
    "crps": Score(ensemble.crps, "continuous ranked probability score of the members", "CRPS", DOWN, MM_H),
    "fair_crps": Score(
        ensemble.fair_crps, "CRPS corrected for the size of the ensemble (Ferro 2014)", "fair CRPS", DOWN, MM_H
    ),
    "spread": Score(ensemble.spread, "ensemble spread", units=MM_H),
    "ensemble_mean_rmse": Score(ensemble.mean_rmse, "RMSE of the ensemble mean", better=DOWN, units=MM_H),
    "spread_error_ratio": Score(
        ensemble.spread_error_ratio, "spread over the RMSE of the mean", "spread / error", ideal=1
    ),
}
MULTIVARIATE: Scores = {
    "energy_score": Score(
        ensemble.energy_score,
        "energy score of means over boxes, per root of their number",
        "energy score",
        DOWN,
        MM_H,
    ),
    "fair_energy_score": Score(
        ensemble.fair_energy_score,
        "energy score corrected for the size of the ensemble",
        "fair energy score",
        DOWN,
        MM_H,
    ),
    "variogram_score": Score(
        ensemble.variogram_score,
        "variogram score of order 1/2 of means over boxes",
        "variogram score",
        DOWN,
        MM_H,
    ),
}
PROBABILITIES: Scores = {
    "brier": Score(probabilistic.brier, "Brier score", "Brier", DOWN),
    "brier_reliability": Score(
        lambda s: probabilistic.brier_parts(s).reliability,
        "reliability part of the Brier score",
        "Brier reliability",
        DOWN,
    ),
    "brier_resolution": Score(
        lambda s: probabilistic.brier_parts(s).resolution,
        "resolution part of the Brier score",
        "Brier resolution",
        UP,
    ),
    "brier_uncertainty": Score(
        lambda s: probabilistic.brier_parts(s).uncertainty, "uncertainty part of the Brier score"
    ),
    "brier_within_bins": Score(
        lambda s: probabilistic.brier_parts(s).within_bins, "part of the Brier score within bins"
    ),
    "roc_area": Score(probabilistic.roc_area, "area under the ROC", "ROC area", UP),
}
RELIABILITY: Scores = {
    "stated_probability": Score(lambda s: probabilistic.reliability_curve(s)[0], "mean stated probability"),
    "observed_frequency": Score(lambda s: probabilistic.reliability_curve(s)[1], "observed frequency"),
}


def _like(scores: Scores, prefix: str, what: str, units: str | None = None) -> Scores:
    """The same scores of other sums, with `what` appended to their names, and mm/h as `units`."""
    return {
        f"{prefix}{name}": replace(
            score,
            long_name=f"{score.long_name}{what}",
            label="",
            units=units if units and score.units == MM_H else score.units,
        )
        for name, score in scores.items()
    }


POOLED = _like(CATEGORICAL, "pooled_", " of the highest rates in squares of `pool` pixels")
AMOUNTS = _like(CATEGORICAL, "accumulated_", " of amounts in the `accumulation` minutes before `lead_time`")
AMOUNT_ERRORS = _like(
    {name: score for name, score in CONTINUOUS.items() if score.units == MM_H},
    "accumulated_",
    " of accumulations",
    "mm",
)
AREAL_MEMBERS = _like(MEMBERS, "areal_", " of means over boxes")
ACCUMULATED_MEMBERS = _like(MEMBERS, "accumulated_", " of accumulations", "mm")
MEMBER_SPECTRUM = _like(SPECTRUM, "member_", " (mean over the members of the power of each)")
MEMBER_RESOLUTION = _like(RESOLUTION, "member_", " in single members")
UNCALIBRATED = _like(PROBABILITIES, "uncalibrated_", ", before calibration")
UNCALIBRATED_CURVE = _like(RELIABILITY, "uncalibrated_", ", before calibration")

FAMILIES = (
    *(CATEGORICAL, CONTINUOUS, BALANCED, POOLED, FRACTIONS, SPECTRUM, RESOLUTION, AMOUNTS, AMOUNT_ERRORS, ONSET),
    *(AREAS, MEMBERS, AREAL_MEMBERS, ACCUMULATED_MEMBERS, MULTIVARIATE, MEMBER_SPECTRUM, MEMBER_RESOLUTION),
    *(PROBABILITIES, RELIABILITY, UNCALIBRATED, UNCALIBRATED_CURVE),
)
SCORES: Scores = {name: score for family in FAMILIES for name, score in family.items()}
