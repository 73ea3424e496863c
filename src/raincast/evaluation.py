"""Forecasters × windows × metrics → a scores Dataset.

All forecasters see the same windows and are scored under the same mask: the pixels that were observed.
Sums are kept per event (the UTC day of the newest input frame) and added up last.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from raincast.data.dataset import Sample
from raincast.forecaster import Forecaster
from raincast.metrics import categorical, continuous

CATEGORICAL = {
    "csi": categorical.csi,
    "pod": categorical.pod,
    "far": categorical.far,
    "frequency_bias": categorical.frequency_bias,
    "hss": categorical.hss,
    "ets": categorical.ets,
    "f1": categorical.f1,
}
CONTINUOUS = {
    "mean_error": continuous.mean_error,
    "mae": continuous.mae,
    "rmse": continuous.rmse,
    "correlation": continuous.correlation,
    "uncentred_correlation": continuous.uncentred_correlation,
}
BALANCED = {
    "balanced_mse": continuous.balanced_mse,
    "balanced_mae": continuous.balanced_mae,
}
LONG_NAMES = {
    "csi": "critical success index",
    "pod": "probability of detection",
    "far": "false alarm ratio",
    "frequency_bias": "frequency bias",
    "hss": "Heidke skill score",
    "ets": "equitable threat score",
    "f1": "F1",
    "mean_error": "mean error (forecast − observation)",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "correlation": "correlation about the means (Pearson)",
    "uncentred_correlation": "uncentred correlation (Shi et al. 2015)",
    "balanced_mse": "mean squared error of the HKO-7 pixel with its weights",
    "balanced_mae": "mean absolute error of the HKO-7 pixel with its weights",
}
UNITS = dict.fromkeys(("mean_error", "mae", "rmse"), "mm h-1")

EventSums = dict[str, dict[str, Tensor]]
"""event → name of the sum → (K, T) counts or (T,) error sums."""


def evaluate(
    forecasters: Sequence[Forecaster],
    batches: Iterable[Sample],
    *,
    thresholds: Sequence[float],
    lead_steps: int,
    step_minutes: float,
    progress: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Score every forecaster on every window; `progress` is told how many windows each batch held.

    The Dataset has sums by (forecaster, event, threshold, lead_time) and scores by (forecaster, threshold,
    lead_time) from the sums of all events. ValueError where two forecasters share a name or no window came.
    """
    names = [f.name for f in forecasters]
    if len(set(names)) != len(names):
        raise ValueError(f"Two forecasters share a name: {names}.")
    sums: dict[str, EventSums] = {name: {} for name in names}
    num_windows = 0
    for batch in batches:
        events = [str(day) for day in np.asarray(batch["time"]).astype("datetime64[s]").astype("datetime64[D]")]
        for forecaster in forecasters:
            rain = batch["input"].numpy()
            prediction = torch.from_numpy(forecaster.forecast(rain, lead_steps))
            _add(sums[forecaster.name], events, prediction, batch, thresholds)
        num_windows += len(events)
        if progress:
            progress(len(events))
    if num_windows == 0:
        raise ValueError("There is no window to score.")
    leads = step_minutes * np.arange(1, lead_steps + 1, dtype=np.float64)
    return _to_dataset(sums, thresholds, leads).assign_attrs(num_windows=num_windows)


def _add(
    sums: EventSums, events: list[str], prediction: Tensor, batch: Sample, thresholds: Sequence[float]
) -> None:
    target, mask = batch["target"], batch["target_mask"]
    table = categorical.contingency(prediction, target, mask, thresholds)
    errors = continuous.error_sums(prediction, target, mask)
    balanced = _named_balanced(continuous.balanced_sums(prediction, target, mask))
    for name, values in {**table._asdict(), **errors._asdict(), **balanced}.items():
        for row, event in enumerate(events):
            own = sums.setdefault(event, {})
            own[name] = own[name] + values[row] if name in own else values[row].clone()


def _to_dataset(
    sums: dict[str, EventSums], thresholds: Sequence[float], leads: np.ndarray[Any, np.dtype[np.float64]]
) -> xr.Dataset:
    names = list(sums)
    events = sorted(sums[names[0]])
    coords = {
        "forecaster": names,
        "event": events,
        "threshold": ("threshold", [float(t) for t in thresholds], {"units": "mm h-1"}),
        "lead_time": ("lead_time", leads, {"units": "minutes", "long_name": "lead time"}),
    }
    dataset = xr.Dataset(coords=coords)
    stacked = {
        key: torch.stack([torch.stack([sums[name][event][key] for event in events]) for name in names])
        for key in sums[names[0]][events[0]]
    }
    for key, values in stacked.items():
        dims = ("forecaster", "event", "threshold", "lead_time") if values.ndim == 4 else (
            "forecaster", "event", "lead_time")  # fmt: skip
        dataset[f"sum_{key}"] = (dims, values.numpy())
    pooled = {key: values.sum(dim=1) for key, values in stacked.items()}
    table = categorical.Contingency(*(pooled[key] for key in categorical.Contingency._fields))
    errors = continuous.ErrorSums(*(pooled[key] for key in continuous.ErrorSums._fields))
    for key, formula in CATEGORICAL.items():
        dims3 = ("forecaster", "threshold", "lead_time")
        dataset[key] = (dims3, formula(table).numpy(), {"long_name": LONG_NAMES[key]})
    balanced = continuous.BalancedSums(*(pooled[f"balanced_{key}"] for key in continuous.BalancedSums._fields))
    means = {key: finish(errors) for key, finish in CONTINUOUS.items()}
    means |= {key: finish(balanced) for key, finish in BALANCED.items()}
    for key, mean in means.items():
        attrs = {"long_name": LONG_NAMES[key], "units": UNITS.get(key, "1")}
        dataset[key] = (("forecaster", "lead_time"), mean.numpy(), attrs)
    return dataset


def _named_balanced(sums: continuous.BalancedSums) -> dict[str, Tensor]:
    return {f"balanced_{key}": values for key, values in sums._asdict().items()}
