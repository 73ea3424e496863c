"""Scoring of forecasters on windows.

All forecasters are scored on the same windows and the same mask: the observed pixels. Sums are kept per event, a
block of hours that is defined by the newest input frame, and added up last.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import xarray as xr

from raincast.data.dataset import Sample
from raincast.evaluation.comparison import join
from raincast.evaluation.event_sums import EventSums
from raincast.evaluation.groups import finish
from raincast.evaluation.intervals import Resampling, with_intervals
from raincast.evaluation.metrics import Metrics, Scoring
from raincast.evaluation.protocols import describe as describe_protocol
from raincast.evaluation.queries import Scored, query_of, rates_by_name
from raincast.evaluation.scores import to_dataset
from raincast.forecaster import Forecaster
from raincast.metrics.registry import SCORES
from raincast.schema import Grid

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
    "score_windows",
    "to_dataset",
    "with_intervals",
]


def evaluate(
    forecasters: Sequence[Forecaster],
    batches: Iterable[Sample],
    *,
    lead_steps: int,
    step_minutes: float,
    pixel_km: float | None = None,
    grid: Grid | None = None,
    progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> xr.Dataset:
    """Score every forecaster on every window, in this process.

    `progress` receives the number of windows of each batch. `settings` are those of `Metrics`, at least
    `thresholds`. `grid` is the grid from which the windows were cut, and `pixel_km` its pixel size, for
    forecasters and scores that need them. The Dataset has sums by (forecaster, event, …) and the scores of the
    sums of all events. Raises ValueError if two forecasters share a name or there are no windows.
    """
    return score_windows(
        forecasters,
        batches,
        Metrics(**settings),
        lead_steps=lead_steps,
        step_minutes=step_minutes,
        pixel_km=pixel_km,
        grid=grid,
        progress=progress,
    )


def score_windows(
    forecasters: Sequence[Forecaster],
    batches: Iterable[Sample],
    metrics: Metrics,
    *,
    lead_steps: int,
    step_minutes: float,
    pixel_km: float | None = None,
    grid: Grid | None = None,
    progress: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Score as `evaluate` does, with the settings of a `Metrics` object."""
    check_names([f.name for f in forecasters])
    scoring = Scoring(metrics, step_minutes, pixel_km)
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
