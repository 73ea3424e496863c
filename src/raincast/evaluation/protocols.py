"""Published protocols: their thresholds, weights, and order of pooling and averaging.

Scores of a protocol begin with its name (`hko7_csi`), and exist only if every setting is the published one. They
are comparable with published figures on the same data: radar, split, steps and pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from raincast.evaluation import groups
from raincast.metrics import continuous
from raincast.schema import LEAD_TIME

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
    scores = groups.finish(sums)
    balanced = continuous.BalancedSums(
        *(torch.from_numpy(sums[f"sum_{name}"].values) for name in groups.WEIGHTED.names())
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
    scores = groups.finish(sums)
    made = {f"shi2015_{name}": _lead_mean(scores[name].sel(threshold=0.5)) for name in ("csi", "far", "pod")}
    made["shi2015_rainfall_mse"] = _lead_mean(scores["rmse"] ** 2)
    made["shi2015_correlation"] = _lead_mean(scores["uncentred_correlation"])
    return made


def _sevir(sums: xr.Dataset) -> dict[str, xr.DataArray]:
    """Pool counts over all sequences and lead times, with one ratio per threshold; CSI-M is their mean."""
    counted = [name for group in (groups.PIXELS, groups.POOLED) for name in group.names()]
    scores = groups.finish(sums[[f"sum_{name}" for name in counted]].sum(LEAD_TIME))
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


def check(name: str, metrics: object) -> None:
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


def describe(scores: xr.Dataset) -> str:
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
