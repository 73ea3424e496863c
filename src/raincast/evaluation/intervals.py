"""Confidence intervals of scores by resampling events, and the comparison of forecasters in words.

Windows of one storm are not independent; events are (`blocks` chooses their length). Each of many trials draws as
many events as there are, with replacement, and computes the score of their sums (block bootstrap). Forecasters are
compared on the same draws, since a hard event is hard for all. The interval lies between those quantiles of the
trials that would give the mean of a few normal values its t interval (expanded percentiles, Hesterberg 2015):
plain percentiles of six events are too narrow by 30 %.

A comparison is one word per rival, and one sentence for all; it takes the Dataset of `with_intervals`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from scipy.special import ndtr, stdtrit

from raincast.evaluation import groups
from raincast.metrics.registry import Score

Floats = npt.NDArray[np.float64]
LEFT_OUT = (
    groups.SPECTRUM,
    groups.MEMBER_SPECTRUM,
    groups.RELIABILITY,
    groups.UNCALIBRATED,
    groups.UNCALIBRATED_CURVE,
)  # curves, which are neither better nor worse
UNDECIDED = "undecided"
_ORDER = ("better", "worse", UNDECIDED)


@dataclass(frozen=True)
class Resampling:
    """Settings of the bootstrap: `resamples` trials drawn with `seed`.

    `confidence` is the share within an interval.
    """

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible confidence or too few resamples."""
        if not 0 < self.confidence < 1 or self.resamples < 2 / (1 - self.confidence):
            raise ValueError(
                f"confidence={self.confidence} must lie between 0 and 1, and resamples={self.resamples} be at "
                "least 2 / (1 − confidence)."
            )

    @property
    def least_events(self) -> int:
        """Fewest events with which a difference can be shown: six for 95 %.

        All of n events favour one forecaster by chance in 2·½ⁿ of all cases. Below six that is more than 5 %.
        """
        return math.ceil(math.log2(2 / (1 - self.confidence)) - 1e-9)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper end of an interval, as probabilities."""
        return (1 - self.confidence) / 2, (1 + self.confidence) / 2

    def quantiles(self, num_events: int) -> tuple[float, float]:
        """Return the quantiles of the trials at which the interval ends.

        For many events they approach `bounds`.
        """
        if num_events < 2:
            return self.bounds
        factor = math.sqrt(num_events / (num_events - 1))
        low = float(ndtr(factor * stdtrit(num_events - 1, self.bounds[0])))
        return low, 1 - low


def with_intervals(scores: xr.Dataset, how: Resampling) -> xr.Dataset:
    """Add confidence intervals to `scores`, which has sums by event.

    For a score S, and for S_mean, its mean over the lead times where it is defined, it adds S_interval (bound,
    forecaster, …) and S_difference_interval (bound, forecaster, reference, …) of forecaster minus reference. If
    higher or lower is better, it also adds S_better (forecaster, reference, …): 1 if the forecaster is better than
    the reference, −1 if worse, 0 if no difference is shown: the interval contains 0 or is undefined, or there are
    too few events (`Resampling.least_events`).
    """
    num_events = scores.sizes["event"]
    rng = np.random.default_rng(how.seed)
    draws = rng.multinomial(num_events, np.full(num_events, 1 / num_events), size=how.resamples).astype(np.float64)
    made: dict[str, Any] = {}
    for group in groups.GROUPS:
        names = [f"sum_{name}" for name in group.names()]
        if group in LEFT_OUT or any(name not in scores for name in names):
            continue
        whole, trials = _scores_of(group, [scores[name].values for name in names], draws)
        if num_events == 1:  # all draws are equal, so there is no interval
            trials = {name: np.full_like(values, np.nan) for name, values in trials.items()}
        dims = group.dims[: len(group.dims) - group.consumed]
        for name, score in group.scores.items():
            for key, of, own_dims in (
                (name, (whole[name], trials[name]), dims),
                (f"{name}_mean", tuple(lead_mean(x) for x in (whole[name], trials[name])), dims[:-1]),
            ):
                made |= _described(key, of[1], own_dims, score, how, num_events)
                if key != name:
                    attrs = {"long_name": f"{score.long_name}, mean over lead times", "units": score.units}
                    made[key] = (("forecaster", *own_dims), of[0], attrs)
    return (
        scores.assign(made)
        .assign_coords(
            reference=(
                "reference",
                scores["forecaster"].values,
                {"long_name": "the forecaster to compare with"},
            ),
            bound=("bound", list(how.bounds)),
        )
        .assign_attrs(
            confidence=how.confidence,
            resamples=how.resamples,
            resampling_seed=how.seed,
            least_events=how.least_events,
        )
    )


def _scores_of(
    group: groups.Group, sums: list[npt.NDArray[Any]], draws: Floats
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Return scores (forecaster, …) of all events, and (forecaster, trial, …) of each trial."""

    def finished(of: list[Any]) -> dict[str, Floats]:
        own = group.sums(*(torch.from_numpy(values) for values in of))
        return {name: score.formula(own).numpy() for name, score in group.scores.items()}

    whole = finished([values.sum(axis=1) for values in sums])
    trials: dict[str, list[Floats]] = {name: [] for name in group.scores}
    for forecaster in range(sums[0].shape[0]):  # one at a time: their trials are large
        drawn = [np.tensordot(draws, values[forecaster].astype(np.float64), 1) for values in sums]
        for name, values in finished(drawn).items():
            trials[name].append(values)
    return whole, {name: np.stack(values) for name, values in trials.items()}


def _described(
    key: str,
    trials: Floats,
    dims: tuple[str, ...],
    score: Score,
    how: Resampling,
    num_events: int,
) -> dict[str, Any]:
    """Return the variables with the intervals of `key`."""
    num = trials.shape[0]
    bounds, enough = how.quantiles(num_events), num_events >= how.least_events
    interval = np.zeros((2, num, num, *trials.shape[2:]))
    for one, other in combinations(range(num), 2):
        interval[:, one, other] = _quantiles(trials[one] - trials[other], bounds)
        interval[:, other, one] = -interval[::-1, one, other]
    pair = ("forecaster", "reference", *dims)
    text = {"units": score.units}
    made: dict[str, Any] = {
        f"{key}_interval": (
            ("bound", "forecaster", *dims),
            np.stack([_quantiles(own, bounds) for own in trials], axis=1),
            text,
        ),
        f"{key}_difference_interval": (("bound", *pair), interval, text),
    }
    if score.better:
        shown = (interval[0] > 0).astype(np.int8) - (interval[1] < 0).astype(np.int8)
        meaning = "1: the forecaster is better than the reference, -1: worse, 0: no difference shown"
        made[f"{key}_better"] = (pair, (score.better * shown * enough).astype(np.int8), {"long_name": meaning})
    return made


def _quantiles(trials: Floats, at: tuple[float, ...]) -> Floats:
    """Return quantiles along the first axis, linear between defined trials; NaN if fewer than half are defined.

    Equivalent to numpy's nanquantile, which is many times slower.
    """
    ordered = np.sort(trials, axis=0)  # NaN last
    defined = np.isfinite(trials).sum(axis=0)
    found = []
    for share in at:
        rank = share * np.maximum(defined - 1, 0)
        below = np.floor(rank).astype(np.int64)
        above = np.minimum(below + 1, np.maximum(defined - 1, 0))
        low, high = (np.take_along_axis(ordered, k[None], axis=0)[0] for k in (below, above))
        found.append(np.where(2 * defined >= len(trials), low + (rank - below) * (high - low), np.nan))
    return np.stack(found)


def lead_mean(values: Floats) -> Floats:
    """Return the mean of the defined values along the last axis; NaN if there are none."""
    defined = np.isfinite(values)
    count = defined.sum(axis=-1)
    total = np.where(defined, values, 0.0).sum(axis=-1)
    mean: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def verdict(scores: xr.Dataset, reference: str, threshold: float, *, score: str = "csi") -> str:
    """Compare the first forecaster with `reference` at one threshold: the result in words."""
    events, least = scores.sizes["event"], int(scores.attrs["least_events"])
    if events < least:
        return f"too few events to decide ({events}; at least {least} are needed)"
    pair = {"forecaster": scores["forecaster"].values[0], "reference": reference, "threshold": threshold}
    better = int(scores[f"{score}_mean_better"].sel(pair))
    if better:
        return "better" if better > 0 else "worse"
    if not np.isfinite(scores[f"{score}_mean_difference_interval"].sel(pair)).all():
        return f"undefined: too little rain ≥ {threshold:g} mm/h"
    return UNDECIDED


def sentence(scores: xr.Dataset, *, score: str = "csi") -> str:
    """Return one sentence on the thresholds at which the first forecaster is better or worse than each rival."""
    first, *others = (str(name) for name in scores["forecaster"].values)
    if not others or f"{score}_mean_better" not in scores:
        return f"{first} was scored alone: there is nothing to compare it with."
    events, least = scores.sizes["event"], int(scores.attrs["least_events"])
    if events < least:
        rivals = _listed(others, "or")
        counted = f"{events} event of" if events == 1 else f"{events} events of"
        hours = int(scores.attrs["event_hours"])
        return (
            f"Too few events to decide whether {first} is better than {rivals}: {counted} {hours} h; "
            f"at least {least} are needed."
        )
    alike: dict[str, list[str]] = {}
    for other in others:
        alike.setdefault(_against(scores, other, score), []).append(other)
    parts = [found.replace("{}", _listed(names, "and")) for found, names in alike.items()]
    return f"By {score.upper()}, {first} is {'; '.join(parts)}."


def events_text(scores: xr.Dataset) -> str:
    """Return the number of events, their length, and how that length was chosen."""
    events, hours = scores.sizes["event"], int(scores.attrs["event_hours"])
    how = "from the autocorrelation of the differences" if "event_hours_from" in scores.attrs else "as configured"
    return f"{events} event{'s' * (events != 1)} of {hours} h ({how})"


def _against(scores: xr.Dataset, other: str, score: str) -> str:
    """Return text such as `better than {} at 1 and 2 mm/h, undecided at 5 mm/h`."""
    thresholds = [float(t) for t in scores["threshold"].values]
    said = {t: verdict(scores, other, t, score=score) for t in thresholds}
    words = {word: [t for t in thresholds if said[t] == word] for word in _ORDER}
    words = {word: at for word, at in words.items() if at}
    if not words:
        return "not comparable with {}: too little rain"
    parts = []
    for k, (word, at) in enumerate(words.items()):
        rates = _listed([f"{t:g}" for t in at], "and")
        where = "at every threshold" if len(at) == len(thresholds) > 1 else f"at {rates} mm/h"
        than = " than" if word != UNDECIDED else " against"
        parts.append(f"{word}{than} {{}} {where}" if k == 0 else f"{word} {where}")
    return ", ".join(parts)


def _listed(names: Sequence[str], last: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"
