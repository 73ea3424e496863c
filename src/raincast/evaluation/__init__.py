"""Scoring of forecasters on windows.

All forecasters are scored on the same windows and the same mask: the observed pixels. Sums are kept per event, a
block of hours that is defined by the newest input frame, and added up last.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from raincast.data.dataset import Sample
from raincast.evaluation import groups
from raincast.evaluation.comparison import join
from raincast.evaluation.event_sums import WINDOWS, EventSums
from raincast.evaluation.groups import describe_protocol, finish
from raincast.evaluation.intervals import Resampling, with_intervals
from raincast.evaluation.metrics import HOURS, Metrics, Scoring
from raincast.evaluation.queries import Scored, query_of, rates_by_name
from raincast.forecaster import Forecaster
from raincast.metrics import spectrum
from raincast.metrics.registry import MM_H, SCORES
from raincast.schema import LEAD_TIME, Grid

__all__ = [
    "SCORES",
    "EventSums",
    "Metrics",
    "Resampling",
    "Scored",
    "Scoring",
    "check_names",
    "describe_protocol",
    "evaluate",
    "finish",
    "join",
    "query_of",
    "rates_by_name",
    "to_dataset",
    "with_intervals",
]


def evaluate(
    forecasters: Sequence[Forecaster],
    batches: Iterable[Sample],
    metrics: Metrics | None = None,
    *,
    lead_steps: int,
    step_minutes: float,
    pixel_km: float | None = None,
    grid: Grid | None = None,
    progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> xr.Dataset:
    """Score every forecaster on every window, in this process.

    Give `metrics`, or its settings as keywords, at least `thresholds` in mm/h. `grid` is the grid from which the
    windows were cut, and `pixel_km` its pixel size, for forecasters and scores that need them. `progress` receives
    the number of windows of each batch. The Dataset has sums by (forecaster, event, …) and the scores of the sums
    of all events. Raises ValueError if two forecasters share a name or there are no windows.
    """
    check_names([f.name for f in forecasters])
    scoring = Scoring(metrics or Metrics(**settings), step_minutes, pixel_km)
    scored = [Scored(forecaster, scoring, lead_steps=lead_steps, grid=grid) for forecaster in forecasters]
    sums = {forecaster.name: EventSums() for forecaster in forecasters}
    shape = (0, 0)
    for batch in batches:
        if shape == (0, 0):
            shape = (batch["target"].shape[-2], batch["target"].shape[-1])
            scoring.check(lead_steps, shape)
        for one in scored:
            scoring.add(sums[one.forecaster.name], one.predict(batch), batch)
        if progress:
            progress(len(batch["time"]))  # type: ignore[arg-type]  # a batch has several times
    if shape == (0, 0):
        raise ValueError("There is no window to score.")
    return to_dataset(sums, scoring, lead_steps=lead_steps, shape=shape)


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError if two forecasters share a name."""
    if len(set(names)) != len(names):
        raise ValueError(f"Two forecasters share a name: {list(names)}.")


def to_dataset(
    sums: Mapping[str, EventSums], scoring: Scoring, *, lead_steps: int, shape: tuple[int, int]
) -> xr.Dataset:
    """Return sums and scores of all forecasters on the same windows of `shape` (H, W) pixels."""
    keys = {key for own in sums.values() for key in own.sums}
    events = sorted(key for key in keys if not key.startswith(HOURS))
    made = {f"sum_{name}": _stack(sums, name, events, "event") for name in _names(sums, events) if name != WINDOWS}
    hours = [f"{HOURS}{hour:02}" for hour in range(24)]
    made |= {
        f"hourly_{name}": _stack(sums, name, hours, "hour")
        for name in _names(sums, [key for key in hours if key in keys])
        if name != WINDOWS
    }
    first = next(iter(sums.values()))
    made["num_windows"] = xr.DataArray(first.stacked(WINDOWS, events), dims="event")
    made["hourly_num_windows"] = xr.DataArray(first.stacked(WINDOWS, hours), dims="hour")
    dataset = xr.Dataset(made).assign_coords(_coords(sums, scoring, events, lead_steps, shape, made))
    pooled = dataset[[name for name in made if name.startswith("sum_")]].sum("event")
    dataset = dataset.merge(groups.finish(pooled)).assign_attrs(
        num_windows=int(dataset["num_windows"].sum()), event_hours=scoring.metrics.event_hours or 1
    )
    if (protocol := scoring.metrics.protocol) is None:
        return dataset
    return dataset.assign(groups.published(protocol, pooled)).assign_attrs(protocol=protocol)


def _names(sums: Mapping[str, EventSums], keys: list[str]) -> list[str]:
    found = (own.sums[key] for own in sums.values() for key in keys if key in own.sums)
    return list(dict.fromkeys(name for named in found for name in named))


def _stack(sums: Mapping[str, EventSums], name: str, keys: list[str], dim: str) -> xr.DataArray:
    """Stack sums as (forecaster, event or hour, …).

    0 if a forecaster lacks one, so that its score is undefined.
    """
    own = [each.stacked(name, keys) if _has(each, name, keys) else None for each in sums.values()]
    shape = np.max([values.shape for values in own if values is not None], axis=0)
    kind = next(values.dtype for values in own if values is not None)
    whole = np.zeros((len(own), *shape), dtype=kind)
    for row, values in zip(whole, own, strict=True):
        if values is not None:  # a smaller ensemble has fewer ranks
            row[tuple(slice(size) for size in values.shape)] = values
    return xr.DataArray(whole, dims=("forecaster", dim, *groups.DIMS[name]))


def _has(own: EventSums, name: str, keys: list[str]) -> bool:
    return any(name in own.sums[key] for key in keys if key in own.sums)


def _coords(
    sums: Mapping[str, EventSums],
    scoring: Scoring,
    events: list[str],
    lead_steps: int,
    shape: tuple[int, int],
    made: Mapping[str, xr.DataArray],
) -> dict[str, Any]:
    wanted, km = scoring.metrics, scoring.pixel_km
    leads = scoring.step_minutes * np.arange(1, lead_steps + 1, dtype=np.float64)
    along: dict[str, Any] = {
        "threshold": ([float(t) for t in wanted.thresholds], {"units": MM_H}),
        LEAD_TIME: (leads, {"units": "minutes", "long_name": "lead time"}),
        "hour": (np.arange(24), {"long_name": "hour of day of the newest input frame, UTC"}),
        "pool": (list(wanted.pools), {"units": "1", "long_name": "pixels along the side of the square"}),
        "scale": ([float(s) for s in wanted.scales], {"units": "km", "long_name": "side of the box"}),
        "wavelength": (
            spectrum.wavelengths(*shape, km or 1.0).numpy(),
            {"units": "km", "long_name": "wavelength"},
        ),
        "areal_scale": (
            [float(s) for s in wanted.areal_scales],
            {"units": "km", "long_name": "side of the box of a mean rate"},
        ),
        "accumulation": ([float(m) for m in wanted.accumulations], {"units": "minutes"}),
        "amount": ([float(a) for a in wanted.amounts], {"units": "mm"}),
        "probability": (
            np.linspace(0, 1, wanted.probability_bins),
            {"units": "1", "long_name": "centre of the bin of forecast probabilities"},
        ),
    }
    used = {dim for array in made.values() for dim in array.dims}
    coords: dict[str, Any] = {dim: (dim, *of) for dim, of in along.items() if dim in used}
    starts = np.array([event.replace(" ", "T") for event in events], "datetime64[ns]")
    coords |= {
        "forecaster": list(sums),
        "event": (
            "event",
            events,
            {"long_name": f"UTC block of {wanted.event_hours or 1} h, by the newest input"},
        ),
        "event_start": ("event", starts),
    }
    pixels = {"units": "1", "long_name": "pixels along the side of the box"}
    if "scale" in used:
        coords["box"] = ("scale", wanted.boxes(km), pixels)
    if "areal_scale" in used:
        coords["areal_box"] = ("areal_scale", wanted.areal_boxes(km), pixels)
    return coords
