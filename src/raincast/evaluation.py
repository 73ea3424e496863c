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
from raincast.forecaster import Forecaster, forecast_windows
from raincast.metrics import categorical, continuous, spatial

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
    "fss": "fractions skill score",
}
UNITS = dict.fromkeys(("mean_error", "mae", "rmse"), "mm h-1")

EventSums = dict[str, dict[str, Tensor]]
"""event → name of the sum → (K, T) counts, (T,) error sums or (K, S, T) sums of fractions."""


def evaluate(
    forecasters: Sequence[Forecaster],
    batches: Iterable[Sample],
    *,
    thresholds: Sequence[float],
    lead_steps: int,
    step_minutes: float,
    scales: Sequence[float] = (),
    pixel_km: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Score every forecaster on every window; `progress` is told how many windows each batch held.

    The Dataset has sums by (forecaster, event, threshold, lead_time) and scores by (forecaster, threshold,
    lead_time) from the sums of all events. `scales`, sides of boxes in km on pixels of `pixel_km`, add the
    fractions skill score by (forecaster, threshold, scale, lead_time). ValueError where two forecasters share a
    name or no window came.
    """
    names = [f.name for f in forecasters]
    if len(set(names)) != len(names):
        raise ValueError(f"Two forecasters share a name: {names}.")
    boxes = _boxes(scales, pixel_km)
    sums: dict[str, EventSums] = {name: {} for name in names}
    num_windows = 0
    for batch in batches:
        times = np.asarray(batch["time"]).astype("datetime64[s]")
        y, x = (np.asarray(batch[axis]).tolist() for axis in ("y", "x"))
        events = [str(day) for day in times.astype("datetime64[D]")]
        for forecaster in forecasters:
            rain = batch["input"].numpy()
            prediction = torch.from_numpy(forecast_windows(forecaster, rain, lead_steps, times=times, y=y, x=x))
            _add(sums[forecaster.name], events, prediction, batch, thresholds, boxes)
        num_windows += len(events)
        if progress:
            progress(len(events))
    if num_windows == 0:
        raise ValueError("There is no window to score.")
    leads = step_minutes * np.arange(1, lead_steps + 1, dtype=np.float64)
    dataset = _to_dataset(sums, thresholds, leads).assign_attrs(num_windows=num_windows)
    if not boxes:
        return dataset
    return _with_fss(dataset, scales, boxes)


def _boxes(scales: Sequence[float], pixel_km: float | None) -> list[int]:
    if not scales:
        return []
    if pixel_km is None:
        raise ValueError(f"scales={list(scales)} in km: state pixel_km, the size of a pixel, or take no scales.")
    if len(set(scales)) != len(scales):
        raise ValueError(f"scales={list(scales)} has one twice: state each once.")
    return [spatial.box_size(scale, pixel_km) for scale in scales]


def _add(
    sums: EventSums,
    events: list[str],
    prediction: Tensor,
    batch: Sample,
    thresholds: Sequence[float],
    boxes: Sequence[int],
) -> None:
    target, mask = batch["target"], batch["target_mask"]
    table = categorical.contingency(prediction, target, mask, thresholds)
    errors = continuous.error_sums(prediction, target, mask)
    balanced = _named_balanced(continuous.balanced_sums(prediction, target, mask))
    named = {**table._asdict(), **errors._asdict(), **balanced}
    if boxes:
        fractions = spatial.fraction_sums(prediction, target, mask, thresholds, boxes)
        named |= {f"fss_{key}": values for key, values in fractions._asdict().items()}
    for name, values in named.items():
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
        between = ("threshold", "scale")[: values.ndim - 3]
        dataset[f"sum_{key}"] = (("forecaster", "event", *between, "lead_time"), values.numpy())
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


def _with_fss(dataset: xr.Dataset, scales: Sequence[float], boxes: Sequence[int]) -> xr.Dataset:
    """`dataset`, which has the sums of fractions, with the score they make and the coordinates of its scales."""
    pooled = (dataset[f"sum_fss_{key}"].sum("event") for key in spatial.FractionSums._fields)
    score = spatial.fss(spatial.FractionSums(*(torch.from_numpy(values.values) for values in pooled)))
    dims = ("forecaster", "threshold", "scale", "lead_time")
    dataset["fss"] = (dims, score.numpy(), {"long_name": LONG_NAMES["fss"], "units": "1"})
    return dataset.assign_coords(
        scale=("scale", [float(scale) for scale in scales], {"units": "km", "long_name": "side of the box"}),
        box=("scale", list(boxes), {"units": "1", "long_name": "pixels along the side of the box"}),
    )
