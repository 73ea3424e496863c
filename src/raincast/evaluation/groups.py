"""Groups of sums: their dimensions, the registry's scores computed from them, and those of published protocols.

Scores of a protocol begin with its name (`hko7_csi`), and exist only if every setting is the published one:
thresholds, weights, and order of pooling and averaging. They are comparable with published figures on the same
data: radar, split, steps and pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from raincast.metrics import categorical, continuous, ensemble, probabilistic, registry, spatial, users
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
MULTIVARIATE = Group(ensemble.MultivariateSums, "multivariate_", ("areal_scale", LEAD_TIME), registry.MULTIVARIATE)
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


HKO7_NOISE = (0.01682827, 0.30370341)
"""Observed rates in mm/h between these two are ignored: pixel values 0 to 0.28, dBZ −10 to 9.6 (`HKO7_PIXEL`)."""

SEVIR_THRESHOLDS = (0.4, 2.3488, 12.3398, 26.36, 47.58, 138.5)
"""VIL codes 16, 74, 133, 160, 181, 219 in the nominal mm/h of an archive with `source=sevir`."""


@dataclass(frozen=True)
class Protocol:
    """The `settings` of `Metrics` that a protocol requires, and its scores from the sums of all events."""

    settings: Mapping[str, Any]
    scores: Callable[[xr.Dataset], dict[str, xr.DataArray]]


def _lead_mean(values: xr.DataArray) -> xr.DataArray:
    """Return the mean over all lead times; NaN if the score is undefined at one."""
    return values.mean(LEAD_TIME, skipna=False)


def _hko7(sums: xr.Dataset) -> dict[str, xr.DataArray]:
    """Pool counts over sequences, average the ratios over lead times; errors are sums over a frame's pixels."""
    scores = finish(sums)
    balanced = continuous.BalancedSums(
        *(torch.from_numpy(sums[f"sum_{name}"].values) for name in WEIGHTED.names())
    )
    frames = {"hko7_b_mse": continuous.hko7_b_mse, "hko7_b_mae": continuous.hko7_b_mae}
    dims = sums["sum_balanced_frames"].dims
    return {
        "hko7_csi": _lead_mean(scores["csi"]),
        "hko7_hss": _lead_mean(scores["hss"]),
        **{name: _lead_mean(xr.DataArray(f(balanced).numpy(), dims=dims)) for name, f in frames.items()},
    }


def _shi2015(sums: xr.Dataset) -> dict[str, xr.DataArray]:
    """Pool over all sequences, then average over lead times; the paper leaves the order open."""
    scores = finish(sums)
    made = {f"shi2015_{name}": _lead_mean(scores[name].sel(threshold=0.5)) for name in ("csi", "far", "pod")}
    made["shi2015_rainfall_mse"] = _lead_mean(scores["rmse"] ** 2)
    made["shi2015_correlation"] = _lead_mean(scores["uncentred_correlation"])
    return made


def _sevir(sums: xr.Dataset) -> dict[str, xr.DataArray]:
    """Pool counts over all sequences and lead times, with one ratio per threshold; CSI-M is their mean."""
    counted = [name for group in (PIXELS, POOLED) for name in group.names()]
    scores = finish(sums[[f"sum_{name}" for name in counted]].sum(LEAD_TIME))
    return {
        "sevir_csi": scores["csi"],
        "sevir_csi_m": scores["csi"].mean("threshold", skipna=False),
        "sevir_pooled_csi": scores["pooled_csi"],
        "sevir_pooled_csi_m": scores["pooled_csi"].mean("threshold", skipna=False),
    }


PROTOCOLS = {
    "hko7": Protocol(
        {"thresholds": continuous.HKO7_THRESHOLDS, "balanced": True, "ignored_between": HKO7_NOISE}, _hko7
    ),
    "shi2015": Protocol({"thresholds": (0.5,), "ignored_between": None}, _shi2015),
    "sevir": Protocol({"thresholds": SEVIR_THRESHOLDS, "pools": (4, 16), "ignored_between": None}, _sevir),
}


def check_protocol(name: str, metrics: object) -> None:
    """Raise ValueError if the protocol is unknown, or `metrics` (a `Metrics`) has other settings."""
    if name not in PROTOCOLS:
        raise ValueError(f"metrics.protocol={name} is unknown; there are {', '.join(PROTOCOLS)}.")
    for key, published in PROTOCOLS[name].settings.items():
        own = getattr(metrics, key)
        if _plain(own) != _plain(published):
            raise ValueError(
                f"metrics.{key}={_plain(own)} differs from {name}'s ({_plain(published)}), so the scores would "
                f"not be {name}'s. Leave it out, or take metrics=rain with settings of your own."
            )


def _plain(value: Any) -> Any:
    return [float(item) for item in value] if isinstance(value, (list, tuple)) else value


def published(name: str, sums: xr.Dataset) -> dict[str, xr.DataArray]:
    """Compute the scores of the protocol from the sums of all events."""
    made = PROTOCOLS[name].scores(sums)
    return {
        key: values.drop_attrs().assign_attrs(long_name=f"{key}, by the protocol of {name}", protocol=name)
        for key, values in made.items()
    }


def describe_protocol(scores: xr.Dataset) -> str:
    """Return the scores of the protocol as text; empty if there is none."""
    name = scores.attrs.get("protocol")
    if not name:
        return ""
    lines = [f"By the protocol of {name}:"]
    for forecaster in scores["forecaster"].values:
        own = scores.sel(forecaster=forecaster)
        for key in (key for key in scores.data_vars if str(key).startswith(f"{name}_")):
            values = np.atleast_2d(own[key].values)
            text = " | ".join(" ".join(f"{value:.4g}" for value in row) for row in values)
            lines.append(f"  {forecaster} {key}: {text}")
    return "\n".join(lines) + "\n"
