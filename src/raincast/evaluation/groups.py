"""Which sums belong together, which dimensions they have, and which scores are made of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from raincast.metrics import categorical, continuous, ensemble, objects, probabilistic, spatial, users
from raincast.metrics import spectrum as spectra
from raincast.schema import LEAD_TIME

MM_H = "mm h-1"


@dataclass(frozen=True)
class Score:
    """A formula on the sums of its group; `better` is 1 where more is better, −1 where less is, 0 elsewhere."""

    formula: Callable[[Any], Tensor]
    long_name: str
    better: int = 0
    units: str = "1"


@dataclass(frozen=True)
class Group:
    """Sums of one kind: the fields of `sums`, in the Dataset under `sum_{prefix}{field}`, each with `dims`.

    Scores have the dimensions but the last `consumed` ones.
    """

    sums: type[Any]
    prefix: str
    dims: tuple[str, ...]
    scores: Mapping[str, Score]
    consumed: int = 0

    def names(self) -> list[str]:
        """Of the sums, in the order of the fields."""
        return [f"{self.prefix}{name}" for name in self.sums._fields]

    def named(self, sums: Any) -> dict[str, Tensor]:
        """The fields of `sums` under their names."""
        return dict(zip(self.names(), sums, strict=True))


def _categorical(what: str = "", prefix: str = "") -> dict[str, Score]:
    formulas = {
        "csi": Score(categorical.csi, "critical success index", 1),
        "pod": Score(categorical.pod, "probability of detection", 1),
        "far": Score(categorical.far, "false alarm ratio", -1),
        "frequency_bias": Score(categorical.frequency_bias, "frequency bias"),
        "hss": Score(categorical.hss, "Heidke skill score", 1),
        "ets": Score(categorical.ets, "equitable threat score", 1),
        "f1": Score(categorical.f1, "F1", 1),
    }
    return {f"{prefix}{name}": Score(s.formula, f"{s.long_name}{what}", s.better) for name, s in formulas.items()}


CONTINUOUS = {
    "mean_error": Score(continuous.mean_error, "mean error (forecast − observation)", 0, MM_H),
    "mae": Score(continuous.mae, "mean absolute error", -1, MM_H),
    "rmse": Score(continuous.rmse, "root mean squared error", -1, MM_H),
    "correlation": Score(continuous.correlation, "correlation about the means (Pearson)", 1),
    "uncentred_correlation": Score(continuous.uncentred_correlation, "uncentred correlation (Shi et al. 2015)", 1),
}
BALANCED = {
    "balanced_mse": Score(continuous.balanced_mse, "mean squared error of the HKO-7 pixel with its weights", -1),
    "balanced_mae": Score(continuous.balanced_mae, "mean absolute error of the HKO-7 pixel with its weights", -1),
}
CATEGORICAL = _categorical()

PIXELS = Group(categorical.Contingency, "", ("threshold", LEAD_TIME), CATEGORICAL)
ERRORS = Group(continuous.ErrorSums, "", (LEAD_TIME,), CONTINUOUS)
WEIGHTED = Group(continuous.BalancedSums, "balanced_", (LEAD_TIME,), BALANCED)
POOLED = Group(
    categorical.Contingency,
    "pooled_",
    ("pool", "threshold", LEAD_TIME),
    _categorical(" of the highest rates in squares of `pool` pixels", "pooled_"),
)
FRACTIONS = Group(
    spatial.FractionSums,
    "fss_",
    ("threshold", "scale", LEAD_TIME),
    {"fss": Score(spatial.fss, "fractions skill score", 1)},
)
SPECTRUM = Group(
    spectra.SpectrumSums,
    "spectrum_",
    ("wavelength", LEAD_TIME),
    {
        "spectrum": Score(spectra.pred_spectrum, "radially averaged power of the forecast", 0, "mm2 h-2"),
        "observed_spectrum": Score(spectra.target_spectrum, "the same of the observation", 0, "mm2 h-2"),
        "spectrum_ratio": Score(spectra.ratio, "power of the forecast over that of the observation"),
    },
)
AMOUNTS = Group(
    categorical.Contingency,
    "accumulated_",
    ("accumulation", "amount", LEAD_TIME),
    _categorical(" of what fell in `accumulation` minutes until `lead_time`", "accumulated_"),
)
AMOUNT_ERRORS = Group(
    continuous.ErrorSums,
    "accumulated_",
    ("accumulation", LEAD_TIME),
    {
        f"accumulated_{name}": Score(s.formula, f"{s.long_name} of accumulations", s.better, "mm")
        for name, s in CONTINUOUS.items()
        if s.units == MM_H
    },
)
ONSET = Group(
    users.OnsetSums,
    "onset_",
    ("threshold", LEAD_TIME),
    {
        "onset_csi": Score(users.onset_csi, "CSI of the onset of rain, within a step", 1),
        "onset_pod": Score(users.onset_pod, "onsets that were forecast to within a step", 1),
        "onset_far": Score(users.onset_far, "forecast onsets without one to within a step", -1),
    },
)
AREAS = Group(
    objects.SalSums,
    "sal_",
    (LEAD_TIME,),
    {
        "sal_structure": Score(objects.structure, "S of SAL: areas too large or flat above 0, too small below"),
        "sal_amplitude": Score(objects.amplitude, "A of SAL: too much rain above 0, too little below"),
        "sal_location": Score(objects.location, "L of SAL: how far off the rain lies", -1),
        "sal_abs_structure": Score(objects.structure_size, "mean of |S|", -1),
        "sal_abs_amplitude": Score(objects.amplitude_size, "mean of |A|", -1),
    },
)
MEMBERS = Group(
    ensemble.EnsembleSums,
    "ensemble_",
    (LEAD_TIME,),
    {
        "crps": Score(ensemble.crps, "continuous ranked probability score of the members", -1, MM_H),
        "fair_crps": Score(ensemble.fair_crps, "the same for an ensemble of any size (Ferro 2014)", -1, MM_H),
        "spread": Score(ensemble.spread, "ensemble spread", 0, MM_H),
        "ensemble_mean_rmse": Score(ensemble.mean_rmse, "RMSE of the ensemble mean", -1, MM_H),
        "spread_error_ratio": Score(ensemble.spread_error_ratio, "spread over the RMSE of the mean"),
    },
)
PROBABILITIES = Group(
    probabilistic.BinSums,
    "probability_",
    ("threshold", LEAD_TIME, "probability"),
    {
        "brier": Score(probabilistic.brier, "Brier score", -1),
        "brier_reliability": Score(lambda s: probabilistic.brier_parts(s).reliability, "its reliability", -1),
        "brier_resolution": Score(lambda s: probabilistic.brier_parts(s).resolution, "its resolution", 1),
        "brier_uncertainty": Score(lambda s: probabilistic.brier_parts(s).uncertainty, "its uncertainty"),
        "brier_within_bins": Score(lambda s: probabilistic.brier_parts(s).within_bins, "what bins leave over"),
        "roc_area": Score(probabilistic.roc_area, "area under the ROC", 1),
    },
    consumed=1,
)
_CURVE = {
    "stated_probability": Score(lambda s: probabilistic.reliability_curve(s)[0], "mean stated probability"),
    "observed_frequency": Score(lambda s: probabilistic.reliability_curve(s)[1], "observed frequency of it"),
}
RELIABILITY = Group(probabilistic.BinSums, "probability_", PROBABILITIES.dims, _CURVE)


def _uncalibrated(group: Group) -> Group:
    scores = {
        f"uncalibrated_{name}": replace(score, long_name=f"{score.long_name}, before calibration")
        for name, score in group.scores.items()
    }
    return replace(group, prefix=f"uncalibrated_{group.prefix}", scores=scores)


UNCALIBRATED, UNCALIBRATED_CURVE = map(_uncalibrated, (PROBABILITIES, RELIABILITY))
GROUPS = (
    PIXELS,
    ERRORS,
    WEIGHTED,
    POOLED,
    FRACTIONS,
    SPECTRUM,
    AMOUNTS,
    AMOUNT_ERRORS,
    ONSET,
    AREAS,
    MEMBERS,
    PROBABILITIES,
    RELIABILITY,
    UNCALIBRATED,
    UNCALIBRATED_CURVE,
)
RANKS = "ensemble_ranks"
"""The rank histogram, (lead_time, rank): no NamedTuple, and a score as it is."""

DIMS = {name: group.dims for group in GROUPS for name in group.names()} | {RANKS: (LEAD_TIME, "rank")}
HOURLY = {*PIXELS.names(), *ERRORS.names()}
"""The sums that are also kept by hour of day, as `hourly_…`."""
SCORES = {name: score for group in GROUPS for name, score in group.scores.items()}


def finish(sums: xr.Dataset, *, prefix: str = "sum_") -> xr.Dataset:
    """The scores that the sums in `sums` make, whatever other dimensions these have; undefined is NaN.

    So `finish(scores.sum("event"))` gives the scores of all events, `finish(scores)` those of each one,
    `finish(scores, prefix="hourly_")` those of each hour of day.
    """
    made: dict[str, Any] = {}
    for group in GROUPS:
        names = [f"{prefix}{name}" for name in group.names()]
        if any(name not in sums for name in names):
            continue
        arrays = [sums[name] for name in names]
        own = group.sums(*(torch.from_numpy(array.values) for array in arrays))
        dims = arrays[0].dims
        dims = dims[: len(dims) - group.consumed]
        for name, score in group.scores.items():
            attrs = {"long_name": score.long_name, "units": score.units}
            made[name] = (dims, score.formula(own).numpy(), attrs)
    finished = xr.Dataset(made, coords=sums.coords)
    if "spectrum_ratio" in finished:
        finished["effective_resolution"] = _effective_resolution(finished["spectrum_ratio"])
    return finished


def _effective_resolution(ratio: xr.DataArray) -> xr.DataArray:
    ratio = ratio.transpose(..., "wavelength")
    km = torch.tensor(ratio["wavelength"].values)
    values = spectra.effective_resolution(torch.from_numpy(ratio.values), km)
    attrs = {
        "long_name": "the wavelength below which less than half of the observed power is left",
        "units": "km",
    }
    return xr.DataArray(values.numpy(), dims=ratio.dims[:-1], attrs=attrs)
