"""The comparison of a forecaster with its rivals in words: one word per rival, and one sentence for all.

`scores` is the Dataset of an evaluation with intervals (`intervals.with_intervals`).
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

UNDECIDED = "undecided"
_ORDER = ("better", "worse", UNDECIDED)


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
