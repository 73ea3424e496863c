"""Joining the scores of several evaluations, restricted to events with the same observed pixels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from raincast.evaluation import blocks
from raincast.evaluation.groups import finish
from raincast.schema import LEAD_TIME

SUMS, HOURS, WINDOWS = "sum_", "hourly_", "num_windows"
SHARED = ("threshold", LEAD_TIME)
REMEDY = "Evaluate both with the same metrics, data.archive, split, data.eval_stride and data.eval_crop"


def join(each: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Join sums and scores of all forecasters of `each` (label → scores.nc), over the events that all files share.

    Events of different lengths are merged to their least common multiple. An event is shared if all files counted
    the same number of pixels and of wet pixels. Thresholds, lead times and scales that any file lacks are left
    out. The first forecaster of each file comes first. A forecaster that is the same in several files appears
    once; different forecasters of one name get the label of their file appended. Raises ValueError if nothing is
    left.
    """
    for label, scores in each.items():
        if f"{SUMS}hits" not in scores or WINDOWS not in scores:
            raise ValueError(f"{label} has no sums by event: give scores.nc of this version's evaluate.py.")
    hours = math.lcm(*(int(scores.attrs["event_hours"]) for scores in each.values()))
    each = {label: blocks.merged(scores, hours) for label, scores in each.items()}
    whole = {label: scores.sizes["event"] for label, scores in each.items()}
    common = _shared_events(_common_coords(each))
    names = _names(common)
    first = next(iter(common.values()))
    parts = [_sums_of(label, scores, names) for label, scores in common.items()]
    kept = set.intersection(*(set(map(str, part.data_vars)) for part in parts))
    if any(first.sizes["event"] < size for size in whole.values()):
        kept = {name for name in kept if not name.startswith(HOURS)}  # they include events that were left out
    ordered = [name for name in map(str, parts[0].data_vars) if name in kept]
    joined = xr.concat(
        [part[ordered] for part in parts], "forecaster", join="exact", coords="minimal", compat="override"
    )
    joined = joined.sel(forecaster=_leading(common, names))
    windows = {name: first[name] for name in (WINDOWS, f"{HOURS}{WINDOWS}") if name in first}
    if not any(name.startswith(HOURS) for name in kept):
        windows.pop(f"{HOURS}{WINDOWS}", None)
    joined = joined.assign(windows)
    pooled = joined[[name for name in ordered if name.startswith(SUMS)]].sum("event")
    return joined.merge(finish(pooled)).assign_attrs(
        num_windows=int(first[WINDOWS].sum()), event_hours=first.attrs["event_hours"]
    )


def _sums_of(label: str, scores: xr.Dataset, names: Mapping[tuple[str, str], str]) -> xr.Dataset:
    """Select the sums of the forecasters taken from this file, under their new names."""
    own = [name for name in map(str, scores["forecaster"].values) if (label, name) in names]
    kept = [str(name) for name, values in scores.data_vars.items() if "forecaster" in values.dims]
    kept = [name for name in kept if name.startswith((SUMS, HOURS))]
    return scores.sel(forecaster=own)[kept].assign_coords(forecaster=[names[label, name] for name in own])


def _common_coords(each: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Restrict `each` to the coordinates that all files have.

    Sums along a dimension that is not shared are dropped.
    """
    found = dict(each)
    dims = dict.fromkeys(str(dim) for scores in found.values() for dim in scores.dims)
    for dim in dims:
        if dim in ("forecaster", "event", "reference", "bound"):
            continue
        if all(dim in scores.coords for scores in found.values()):
            values = [scores[dim].values for scores in found.values()]
            common = [value for value in values[0] if all(_places(other, value).size for other in values[1:])]
            if common:
                found = {
                    label: scores.isel({dim: [_places(scores[dim].values, value)[0] for value in common]})
                    for label, scores in found.items()
                }
                # coordinates that differ only by rounding become one
                found = {label: scores.assign_coords({dim: common}) for label, scores in found.items()}
                continue
        elif len({scores.sizes.get(dim) for scores in found.values()}) == 1:
            continue  # has no labels: ranks of equally many members
        if dim in SHARED:
            listed = {label: scores[dim].values.tolist() for label, scores in found.items()}
            raise ValueError(f"No {dim} is in all files: {listed}. {REMEDY}.")
        found = {label: scores.drop_dims(dim, errors="ignore") for label, scores in found.items()}
    return found


def _places(values: Any, value: float) -> Any:
    return np.flatnonzero(np.isclose(values, value, rtol=1e-9, atol=1e-9))


def _shared_events(each: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    first, *others = each.values()
    named = [event for event in first["event"].values if all(event in other["event"].values for other in others)]
    if not named:
        spans = {label: f"{s['event'].values[0]} to {s['event'].values[-1]}" for label, s in each.items()}
        raise ValueError(f"No event is in all files: {spans}. {REMEDY}.")
    wet = [_observed(scores.sel(event=named)) for scores in each.values()]
    same = [event for event in named if all((wet[0] == other).sel(event=event).all() for other in wet[1:])]
    if not same:
        raise ValueError(
            f"{len(named)} events are in all files, but none was scored on the same pixels in all. {REMEDY}."
        )
    return {label: scores.sel(event=same) for label, scores in each.items()}


def _observed(scores: xr.Dataset) -> xr.DataArray:
    """Count the observed pixels and those that reached each threshold; the same for all forecasters."""
    one = scores.isel(forecaster=0, drop=True)
    reached = one[f"{SUMS}hits"] + one[f"{SUMS}misses"]
    all_pixels = reached + one[f"{SUMS}false_alarms"] + one[f"{SUMS}correct_negatives"]
    return xr.concat([reached, all_pixels], "what")


def _names(each: Mapping[str, xr.Dataset]) -> dict[tuple[str, str], str]:
    """Map (label, forecaster) to its name in the joined scores; repetitions of a forecaster are left out."""
    found: dict[tuple[str, str], str] = {}
    for label, scores in each.items():
        for name in map(str, scores["forecaster"].values):
            earlier = [other for other, own in found if own == name]
            if any(_same(scores, each[other], name) for other in earlier):
                continue
            found[label, name] = name
    counts = [name for _, name in found]
    return {(label, name): f"{name} ({label})" if counts.count(name) > 1 else name for label, name in found}


def _same(one: xr.Dataset, other: xr.Dataset, name: str) -> bool:
    """Return True if a forecaster has the same pixel counts in both files."""
    own, others = (scores.sel(forecaster=name) for scores in (one, other))
    return all(
        np.array_equal(own[f"{SUMS}{key}"].values, others[f"{SUMS}{key}"].values)
        for key in ("hits", "false_alarms")
    )


def _leading(each: Mapping[str, xr.Dataset], names: Mapping[tuple[str, str], str]) -> Sequence[str]:
    """Return the joined names, the first forecaster of each file before all others."""
    heads = {(label, str(scores["forecaster"].values[0])) for label, scores in each.items()}
    return [name for key, name in names.items() if key in heads] + [
        name for key, name in names.items() if key not in heads
    ]
