"""Groups of sums: their dimensions, and the registry's scores computed from them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from raincast.metrics import (
    categorical,
    continuous,
    ensemble,
    multivariate,
    probabilistic,
    registry,
    spatial,
    users,
)
from raincast.metrics import spectrum as spectra
from raincast.metrics.registry import SCORES, Score
from raincast.schema import LEAD_TIME


@dataclass(frozen=True)
class Group:
    """Sums of one kind: the fields of `sums`, stored in the Dataset as `sum_{prefix}{field}` with `dims`.

    The scores lack the last `consumed` dimensions.
    """

    sums: type[Any]
    prefix: str
    dims: tuple[str, ...]
    scores: Mapping[str, Score]
    consumed: int = 0

    def names(self) -> list[str]:
        """The names of the sums, in the order of the fields."""
        return [f"{self.prefix}{name}" for name in self.sums._fields]

    def named(self, sums: Any) -> dict[str, Tensor]:
        """The fields of `sums` by name."""
        return dict(zip(self.names(), sums, strict=True))


PIXELS = Group(categorical.Contingency, "", ("threshold", LEAD_TIME), registry.CATEGORICAL)
ERRORS = Group(continuous.ErrorSums, "", (LEAD_TIME,), registry.CONTINUOUS)
WEIGHTED = Group(continuous.BalancedSums, "balanced_", (LEAD_TIME,), registry.BALANCED)
POOLED = Group(categorical.Contingency, "pooled_", ("pool", "threshold", LEAD_TIME), registry.POOLED)
FRACTIONS = Group(spatial.FractionSums, "fss_", ("threshold", "scale", LEAD_TIME), registry.FRACTIONS)
SPECTRUM = Group(spectra.SpectrumSums, "spectrum_", ("wavelength", LEAD_TIME), registry.SPECTRUM)
AMOUNTS = Group(categorical.Contingency, "accumulated_", ("accumulation", "amount", LEAD_TIME), registry.AMOUNTS)
AMOUNT_ERRORS = Group(continuous.ErrorSums, "accumulated_", ("accumulation", LEAD_TIME), registry.AMOUNT_ERRORS)
ONSET = Group(users.OnsetSums, "onset_", ("threshold", LEAD_TIME), registry.ONSET)
AREAS = Group(spatial.SalSums, "sal_", (LEAD_TIME,), registry.AREAS)
MEMBERS = Group(ensemble.EnsembleSums, "ensemble_", (LEAD_TIME,), registry.MEMBERS)
AREAL_MEMBERS = Group(ensemble.EnsembleSums, "areal_ensemble_", ("areal_scale", LEAD_TIME), registry.AREAL_MEMBERS)
ACCUMULATED_MEMBERS = Group(
    ensemble.EnsembleSums, "accumulated_ensemble_", ("accumulation", LEAD_TIME), registry.ACCUMULATED_MEMBERS
)
MULTIVARIATE = Group(
    multivariate.MultivariateSums, "multivariate_", ("areal_scale", LEAD_TIME), registry.MULTIVARIATE
)
MEMBER_SPECTRUM = replace(SPECTRUM, prefix="member_spectrum_", scores=registry.MEMBER_SPECTRUM)
_BY_BIN = ("threshold", LEAD_TIME, "probability")
PROBABILITIES = Group(probabilistic.BinSums, "probability_", _BY_BIN, registry.PROBABILITIES, consumed=1)
RELIABILITY = Group(probabilistic.BinSums, "probability_", _BY_BIN, registry.RELIABILITY)
UNCALIBRATED = replace(PROBABILITIES, prefix="uncalibrated_probability_", scores=registry.UNCALIBRATED)
UNCALIBRATED_CURVE = replace(RELIABILITY, prefix="uncalibrated_probability_", scores=registry.UNCALIBRATED_CURVE)
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
    AREAL_MEMBERS,
    ACCUMULATED_MEMBERS,
    MULTIVARIATE,
    MEMBER_SPECTRUM,
    PROBABILITIES,
    RELIABILITY,
    UNCALIBRATED,
    UNCALIBRATED_CURVE,
)


def ranks(group: Group) -> str:
    """The name of the rank histogram of a group of `EnsembleSums`."""
    return f"{group.prefix}ranks"


RANKS = {ranks(group): (*group.dims, "rank") for group in (MEMBERS, AREAL_MEMBERS, ACCUMULATED_MEMBERS)}
"""The rank histograms and their dimensions: they are sums and scores at once."""

DIMS = {name: group.dims for group in GROUPS for name in group.names()} | RANKS
HOURLY = {*PIXELS.names(), *ERRORS.names()}
"""Sums that are also kept by hour of day, as `hourly_…`."""


def finish(sums: xr.Dataset, *, prefix: str = "sum_") -> xr.Dataset:
    """Compute the scores from the sums in `sums`, which may have further dimensions; NaN where undefined.

    `finish(scores.sum("event"))` gives the scores of all events, `finish(scores)` those of each one,
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
    for name in (*registry.RESOLUTION, *registry.MEMBER_RESOLUTION):
        ratio = f"{name.removesuffix('effective_resolution')}spectrum_ratio"
        if ratio in finished:
            finished[name] = _effective_resolution(finished[ratio], SCORES[name])
    return finished


def _effective_resolution(ratio: xr.DataArray, score: Score) -> xr.DataArray:
    ratio = ratio.transpose(..., "wavelength")
    km = torch.tensor(ratio["wavelength"].values)
    values = spectra.effective_resolution(torch.from_numpy(ratio.values), km)
    attrs = {"long_name": score.long_name, "units": score.units}
    return xr.DataArray(values.numpy(), dims=ratio.dims[:-1], attrs=attrs)
