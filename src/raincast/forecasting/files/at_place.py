"""A forecast at one place: means over its pixels, by member, with depths, probabilities, onset and end."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast.forecasting.files.dataset import MEMBERS, MISSING, OUTSIDE_REACH, QUALITY
from raincast.forecasting.files.ensemble import Spell, depths, known_throughout, share_reaching, spell_of
from raincast.forecasting.files.locations import Pixels
from raincast.forecasting.files.products import AMOUNT, ONSET, amount_minutes
from raincast.schema import RAIN, STEP_MINUTES

Floats = npt.NDArray[np.floating[Any]]

LEAST_KNOWN = 0.5
"""Share of a place that must be known; below it the place is missing, like a pixel in reprojection."""


@dataclass(frozen=True, eq=False)
class AtPlace:
    """Mean rates over a place in mm/h and quantities derived from them; `known` is its known share, (L,)."""

    known: Floats
    members: Floats | None = None
    """(L, M); None without members. NaN where too little is known"""
    depths: dict[float, Floats] = field(default_factory=dict)
    """mm over so many minutes up to each lead, (L, M)"""
    reached: dict[float, Floats] = field(default_factory=dict)
    """the share of members that reach each amount, (L, K)"""
    spell: Spell | None = None
    """of the rates; None without `products.onset`"""
    spells: Spell | None = None
    """of the members"""


def at_place(
    forecast: xr.Dataset, pixels: Pixels, newest: Floats | None, threshold: float | None = None
) -> AtPlace:
    """Return the forecast over `pixels`. Onset and end refer to `threshold` mm/h, by default `products.onset`.

    `newest` is the observation at init_time, (H, W) in mm/h; None if unknown. Means are over the known part of the
    place, and missing if that is less than `LEAST_KNOWN` of it.
    """
    window, step = (pixels.y, pixels.x), float(forecast.attrs[STEP_MINUTES])
    rain = forecast[RAIN].values[:, *window]
    is_known = np.isfinite(rain)
    if QUALITY in forecast:
        is_known &= (forecast[QUALITY].values[:, *window] & (MISSING | OUTSIDE_REACH)) == 0
    weights = np.where(is_known, pixels.weights, 0.0)
    share = weights.sum(axis=(1, 2)) / pixels.weights.sum() * pixels.inside
    enough = share >= LEAST_KNOWN - 1e-9
    if threshold is None and ONSET in forecast:
        threshold = float(forecast[ONSET].attrs["threshold_mm_h"])
    now = np.array(mean_of(newest[window], pixels.weights) if newest is not None else np.nan)
    spell = spells = None
    if threshold is not None:
        spell = spell_of(_means(rain[:, None], weights) >= threshold, now >= threshold, enough, step)
    if MEMBERS not in forecast:
        return AtPlace(share, spell=spell)
    members = _means(forecast[MEMBERS].values[:, :, *window], weights)
    members[~enough] = np.nan
    if threshold is not None:
        spells = spell_of(members >= threshold, now >= threshold, enough, step)
    amounts = list(forecast[AMOUNT].values) if AMOUNT in forecast else []
    sums, reached = {}, {}
    for span in amount_minutes(forecast):
        count = round(span / step)
        sums[span] = depths(members, count, step)
        if amounts:
            reached[span] = share_reaching(sums[span], amounts, known_throughout(enough, count))
    return AtPlace(share, members, sums, reached, spell, spells)


def _means(values: Floats, weights: Floats) -> Floats:
    """Return weighted means (L, M) of (L, M, h, w) with weights (L, h, w); NaN if all weights are 0."""
    total = weights.sum(axis=(1, 2))
    sums = np.einsum("lmyx,lyx->lm", np.nan_to_num(values), weights)
    means: Floats = np.where(total > 0, sums.T / np.where(total > 0, total, 1.0), np.nan).T
    return means


def mean_of(values: Floats, weights: Floats) -> float:
    """Return the weighted mean of the known `values`; NaN if none is known."""
    known = np.where(np.isfinite(values), weights, 0.0)
    return float((np.nan_to_num(values) * known).sum() / known.sum()) if known.any() else np.nan
