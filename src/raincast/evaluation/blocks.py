"""The length of an event, chosen from the autocorrelation of the differences between forecasters.

Sums are kept per short block of time. Neighbouring blocks share their weather, so the bootstrap must draw blocks
longer than the memory of the paired differences (Künsch 1989). The memory is the integral time scale 1 + 2 Σ r(k)
of the differences' autocorrelation, summed up to its first non-positive value after a correction of its bias in
short series (Kendall 1954). An event lasts 1.5 times that.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast.schema import LEAD_TIME

Floats = npt.NDArray[np.float64]

HOURS = (1, 2, 3, 4, 6, 8, 12, 24)
"""Lengths of an event in hours, up to one day; longer ones are whole days."""
MOST_BLOCKS = 1000
"""Largest number of blocks for which sums are kept."""
TIME_SCALES = 1.5
"""Length of an event in integral time scales.

With 1.5 and expanded percentiles, simulated series without a true difference (24 to 480 values, autocorrelation 0
to .9) were called different in 4 to 13 % of all cases; with the rule of Politis and White (2004) in up to 36 %.
"""
LEAST_PAIRS = 4


def lengths() -> Iterator[int]:
    """Yield all permitted lengths of an event in hours, in ascending order."""
    yield from HOURS
    yield from itertools.count(48, 24)


def at_least(hours: float) -> int:
    """Return the shortest permitted length of at least `hours`."""
    return next(length for length in lengths() if length >= hours)


def event_name(time: np.datetime64, hours: int) -> str:
    """Return the name of the block of `hours` that contains `time`: its first day or hour, in UTC."""
    start = np.datetime64(int(time.astype("datetime64[h]").astype(np.int64)) // hours * hours, "h")
    return str(start.astype("datetime64[D]")) if hours % 24 == 0 else str(start)


def kept_hours(newest: npt.NDArray[np.datetime64]) -> int:
    """Return the block length in hours for windows whose newest input frames are at the times `newest`."""
    hours = newest.astype("datetime64[h]").astype(np.int64)
    return next(length for length in lengths() if np.unique(hours // length).size <= MOST_BLOCKS)


def automatic(scores: xr.Dataset) -> xr.Dataset:
    """Merge the short blocks of `scores` into events of the length that the differences of CSI require."""
    return merged(scores, independent_hours(scores)).assign_attrs(event_hours_from="autocorrelation")


def merged(scores: xr.Dataset, hours: int) -> xr.Dataset:
    """Merge the sums of `scores` into events of `hours`, a multiple of their length; pooled scores are kept.

    Raises ValueError if `hours` is not a multiple.
    """
    had = int(scores.attrs["event_hours"])
    if hours == had:
        return scores
    if hours % had:
        raise ValueError(f"Events of {had} h cannot be merged into events of {hours} h: choose a multiple.")
    starts = scores["event_start"].values
    names = np.array([event_name(start, hours) for start in starts])
    kept, number = np.unique(names, return_inverse=True)
    made = {}
    for name, values in scores.data_vars.items():
        if "event" not in values.dims:
            continue
        along = values.transpose("event", ...)
        sums = np.zeros((kept.size, *along.shape[1:]), values.dtype)
        np.add.at(sums, number, along.values)
        made[name] = xr.Variable(along.dims, sums, values.attrs).transpose(*values.dims)
    long_name = f"UTC block of {hours} h, by the newest input"
    begin = np.array([name.replace(" ", "T") for name in kept], "datetime64[ns]")
    return (
        scores.drop_dims("event")
        .assign(made)
        .assign_coords(
            event=("event", kept.astype(object), {"long_name": long_name}), event_start=("event", begin)
        )
        .assign_attrs(event_hours=hours)
    )


def independent_hours(scores: xr.Dataset) -> int:
    """Return the event length in hours from which differences between forecasters are nearly independent.

    The differences are those of CSI between the first forecaster and each other one, at thresholds reached in at
    least half of the blocks (with one forecaster, its CSI). Their autocorrelations are averaged, since each alone
    is noisy. The length is never below the longest lead time, since windows closer together share verifying
    frames.
    """
    had = int(scores.attrs["event_hours"])
    minutes = scores[LEAD_TIME].values.astype("timedelta64[m]" if scores[LEAD_TIME].dtype.kind == "m" else float)
    floor = float(minutes.astype(float).max()) / 60
    series = _differences(scores)
    hours = scores["event_start"].values.astype("datetime64[h]").astype(np.int64)
    scale = time_scale(hours // had, series)
    wanted = max(floor, had * (scale * TIME_SCALES if scale > 1 else 1))
    return next(length for length in lengths() if length >= wanted and length % had == 0)


def _differences(scores: xr.Dataset) -> Floats:
    """Return the contributions of the events to the differences of CSI, (pair and threshold, event).

    CSI is a ratio of sums, S = H / D; to first order event e changes it by (H_e − S·D_e) / D.
    """
    parts = {
        name: scores[f"sum_{name}"].transpose("threshold", "forecaster", "event", LEAD_TIME).values.astype(float)
        for name in ("hits", "misses", "false_alarms")
    }
    hits, of = parts["hits"], sum(parts.values())
    assert isinstance(of, np.ndarray)
    total = of.sum(axis=2, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        moves = (hits - hits.sum(axis=2, keepdims=True) / total * of) / total
    defined = (total > 0).all(axis=(1, 2))  # by threshold and lead time, for all forecasters
    found = []
    for threshold in range(len(moves)):
        reached = (of[threshold] > 0).any(axis=(0, 2)).mean()
        leads = defined[threshold]
        if not leads.any() or reached < 0.5:
            continue
        own = moves[threshold][..., leads].mean(axis=-1)
        found.append(own[:1] - own[1:] if len(own) > 1 else own)
    return np.concatenate(found) if found else np.zeros((0, scores.sizes["event"]))


def time_scale(places: npt.NDArray[np.int64], series: Floats) -> float:
    """Return the integral time scale of `series` (n, event), in units of `places` (ascending integers).

    Autocorrelations are averaged over the n series. Events may be missing: each lag uses the pairs that exist.
    """
    if places.size < 2 * LEAST_PAIRS:
        return 1.0
    steps, often = np.unique(np.diff(places), return_counts=True)
    spacing = int(steps[often.argmax()])
    series = series[(series**2).mean(axis=1) > 0]
    if not len(series):
        return 1.0
    apart = places - places[0]
    dense = np.zeros((len(series), int(apart[-1]) + 1))
    dense[:, apart] = series / np.sqrt((series**2).mean(axis=1, keepdims=True))
    there = np.zeros(dense.shape[1])
    there[apart] = 1
    scale, num = 1.0, places.size
    for lag in range(spacing, dense.shape[1], spacing):
        pairs = there[:-lag] @ there[lag:]
        if pairs < LEAST_PAIRS or lag > spacing * num // 2:
            break
        found = float((dense[:, :-lag] * dense[:, lag:]).sum(axis=1).mean() / pairs)
        found += (1 + 3 * found) / num
        if found <= 0:
            break
        scale += 2 * found
    return scale * spacing if scale > 1 else 1.0
