"""Statistics over members: probabilities of depths, and times of onset and end of rain.

All functions take leads and members first, and any pixels or none after them. What is not known is missing (NaN)
and never counts as dry.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

QUANTILES = (0.1, 0.5, 0.9)
"""Quantiles of the times of onset and end; 10 % of the members are earlier than the first."""


def depths(rates: Floats, count: int, step_minutes: float) -> Floats:
    """Return depths in mm over the `count` steps up to each lead from rates (L, …); NaN at shorter leads."""
    found = np.full(rates.shape, np.nan, np.float32)
    for lead in range(count - 1, len(rates)):
        found[lead] = rates[lead - count + 1 : lead + 1].sum(axis=0) * (step_minutes / 60.0)
    return found


def share_reaching(values: Floats, limits: Sequence[float], known: Mask) -> Floats:
    """Return the share of members (L, M, …) that reach each limit, (L, K, …); NaN where not `known` (L, …)."""
    shares = np.stack([(values >= limit).mean(axis=1) for limit in limits], axis=1).astype(np.float32)
    shares[np.broadcast_to(~known[:, None], shares.shape)] = np.nan
    return shares


def known_throughout(known: Mask, count: int) -> Mask:
    """Return True where all `count` steps up to each lead are known, (L, …); False at shorter leads."""
    found = np.zeros_like(known)
    for lead in range(count - 1, len(known)):
        found[lead] = known[lead - count + 1 : lead + 1].all(axis=0)
    return found


@dataclass(frozen=True, eq=False)
class Spell:
    """When rain begins and ends, in minutes after the newest frame; Q are `QUANTILES`.

    Rain ends at the first valid time from which on it stays away up to the last lead time.
    """

    onset: Floats
    """(Q, …); of all members: NaN where so many do not begin within the forecast"""
    end: Floats
    """(Q, …); of the members with rain: NaN where it goes on in so many, and where a lead is not known"""
    begins: Floats
    """(…) share of the members with rain at some time"""
    goes_on: Floats
    """(…) share of the members in which it rains at the last lead time"""


def spell_of(wet: Mask, now: Mask, known: Mask, step_minutes: float) -> Spell:
    """Find when it rains, from `wet` members (L, M, …), the observation `now` (…) and `known` leads (L, …).

    What follows a lead that is not known counts as not known. An onset before it stands.
    """
    num_leads = len(wet)
    seen = np.logical_and.accumulate(known, axis=0)
    at = np.concatenate([np.broadcast_to(now, wet.shape[1:])[None], wet & seen[:, None]])
    rains = at.any(axis=0)
    onset = np.where(rains, at.argmax(axis=0), np.inf)
    last = num_leads - at[::-1].argmax(axis=0)
    end = np.where(rains, np.where(last == num_leads, np.inf, last + 1.0), np.nan)
    all_known = seen[-1]
    # so much is sure whatever comes later
    begins = np.where(all_known | rains.all(axis=0), rains.mean(axis=0), np.nan)
    goes_on = np.where(all_known, at[-1].mean(axis=0), np.nan)
    onsets, ends = _quantiles(onset) * step_minutes, _quantiles(end) * step_minutes
    ends[:, ~all_known] = np.nan
    found = (values.astype(np.float32) for values in (onsets, ends, begins, goes_on))
    return Spell(*found)


def _quantiles(values: Floats) -> Floats:
    """Return quantiles (Q, …) of members (M, …), each one of the values; infinite ones become NaN."""
    ordered = np.sort(values, axis=0)  # infinite ones last, behind them NaN
    count = (~np.isnan(ordered)).sum(axis=0)
    found = np.full((len(QUANTILES), *values.shape[1:]), np.nan)
    for number, share in enumerate(QUANTILES):
        rank = np.maximum(np.ceil(share * count - 1e-9).astype(np.int64) - 1, 0)
        found[number] = np.take_along_axis(ordered, rank[None], axis=0)[0]
    return np.where(np.isfinite(found), found, np.nan)
