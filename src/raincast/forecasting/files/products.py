"""Products of a forecast: depths, when rain begins and ends, rates with the distribution of the observation.

Functions of members take leads and members first, and any pixels or none after them. What is not known is missing
(NaN) and never counts as dry.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast.forecasting.files.dataset import MEMBERS, MISSING, OUTSIDE_REACH, QUALITY
from raincast.schema import ACCUMULATION_MINUTES, CRS, LEAD_TIME, RAIN, STEP_MINUTES, X, Y

Rain = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

QUANTILES = (0.1, 0.5, 0.9)
"""Quantiles of the times of onset and end; 10 % of the members are earlier than the first."""
ONSET, END = "time_to_onset", "time_to_end"
BEGINS, GOES_ON = "probability_of_onset", "probability_of_no_end"
MATCHED = "rain_rate_matched"
AMOUNT, QUANTILE = "amount", "quantile"
AMOUNT_ATTRS = {
    "standard_name": "thickness_of_rainfall_amount",
    "long_name": "depth of rain to reach",
    "units": "mm",
}
QUANTILE_ATTRS = {
    "long_name": "share of the members that are not above",
    "units": "1",
}
ONLY_KNOWN = "missing where a pixel is missing, or outside_reach (see quality_flag): what is not known is not dry"
ROWS = 64
"""Rows of a map whose members are taken at once: they are copied a few times."""


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


def amount_name(minutes: float) -> str:
    """Return the name of the variable of depths over `minutes`: rain_amount_60min."""
    return f"rain_amount_{minutes:g}min"


def amount_minutes(forecast: xr.Dataset) -> list[float]:
    """The periods of the depths that a forecast has."""
    found = (str(name) for name in forecast.data_vars if str(name).startswith("rain_amount_"))
    return [float(name[len("rain_amount_") : -len("min")]) for name in found if name.endswith("min")]


def quantile_name(name: str) -> str:
    """The name of the quantiles of `ONSET` or `END`."""
    return f"{name}_quantile"


def known_pixels(dataset: xr.Dataset) -> npt.NDArray[np.bool_]:
    """Return a mask (lead, y, x): True where the rate of a pixel follows from observations."""
    known = np.isfinite(dataset[RAIN].values)
    if QUALITY in dataset:
        known &= (dataset[QUALITY].values & (MISSING | OUTSIDE_REACH)) == 0
    return np.asarray(known)


def with_amounts(dataset: xr.Dataset, minutes: Sequence[float], amounts: Sequence[float] = ()) -> xr.Dataset:
    """Add the depth (mm) over each of `minutes` before the valid time, (lead, y, x).

    Of members also the share that reaches each of `amounts` (mm), (lead, amount, y, x). Both are missing at
    shorter leads. ValueError if a period is no multiple of the step, or the rates are means over another period
    than the step.
    """
    step = float(dataset.attrs[STEP_MINUTES])
    rain = dataset[RAIN].values
    covered = float(dataset.attrs.get(ACCUMULATION_MINUTES, step))
    if len(minutes) and abs(covered - step) > 1e-3:
        raise ValueError(
            f"products.accumulations: the rates are means over {covered:g} min, a frame each {step:g} min: they "
            "do not add up to depths. Leave products.accumulations out."
        )
    for span in minutes:
        count = round(span / step)
        if count < 1 or abs(count * step - span) > 1e-6 or count > len(rain):
            raise ValueError(
                f"products.accumulations: {span:g} min is no multiple of the step of {step:g} min up to "
                f"{len(rain) * step:g} min. Choose others, or a larger lead_steps."
            )
        depth = depths(rain, count, step)
        attrs = {
            "standard_name": "thickness_of_rainfall_amount",
            "long_name": f"rain in the {span:g} min before the valid time",
            "units": "mm",
            "cell_methods": "time: sum",
            "comment": "each rate holds for the step that ends at its valid time; missing at shorter lead times",
            "grid_mapping": CRS,
        }
        dataset = dataset.assign({amount_name(span): ((LEAD_TIME, Y, X), depth, attrs)})
        if len(amounts) and MEMBERS in dataset:
            dataset = _with_amounts_reached(dataset, span, count, amounts)
    return dataset


def _with_amounts_reached(dataset: xr.Dataset, span: float, count: int, amounts: Sequence[float]) -> xr.Dataset:
    members, step = dataset[MEMBERS].values, float(dataset.attrs[STEP_MINUTES])
    known = known_throughout(known_pixels(dataset), count)
    shares = np.empty((len(members), len(amounts), *members.shape[2:]), np.float32)
    for rows in _bands(members.shape[2]):
        reached = share_reaching(depths(members[:, :, rows], count, step), amounts, known[:, rows])
        shares[:, :, rows] = reached
    attrs = {
        "long_name": f"probability that the rain in the {span:g} min before the valid time is at least the amount",
        "units": "1",
        "comment": f"share of the members; missing at shorter lead times, and {ONLY_KNOWN}",
        "grid_mapping": CRS,
    }
    coordinate = (AMOUNT, np.array(amounts, np.float64), AMOUNT_ATTRS)
    named = {f"{amount_name(span)}_exceedance": ((LEAD_TIME, AMOUNT, Y, X), shares, attrs)}
    return dataset.assign(named).assign_coords({AMOUNT: coordinate})


def _bands(height: int) -> list[slice]:
    return [slice(first, min(first + ROWS, height)) for first in range(0, height, ROWS)]


def with_onset(dataset: xr.Dataset, threshold: float, newest: Rain) -> xr.Dataset:
    """Add the minutes until the rate is at least `threshold` mm/h, and until it stays below, (y, x).

    The onset is 0 where `newest`, the last observation (H, W), reaches the threshold already. Both are missing
    where they do not come within the forecast. Of members also the quantiles of both, the share with rain, and the
    share with rain at the last lead time.
    """
    if not threshold > 0:
        raise ValueError(f"products.onset={threshold}: give a rain rate in mm/h above 0.")
    step = float(dataset.attrs[STEP_MINUTES])
    reached = np.concatenate([newest[None] >= threshold, dataset[RAIN].values >= threshold])
    minutes = np.where(reached.any(axis=0), reached.argmax(axis=0) * step, np.nan).astype(np.float32)
    attrs = {
        "long_name": f"time from init_time until the rain rate is at least {threshold:g} mm h-1",
        "units": "minutes",
        "threshold_mm_h": float(threshold),
        "comment": "0: it rains already; missing: not within the forecast, or not observed (see quality_flag)",
        "grid_mapping": CRS,
    }
    known = known_pixels(dataset)
    spell = spell_of(dataset[RAIN].values[:, None] >= threshold, newest >= threshold, known, step)
    end_attrs = attrs | {
        "long_name": f"time from init_time until the rain rate stays below {threshold:g} mm h-1",
        "comment": "the first valid time from which on it stays below up to the last lead time; missing: it rains "
        f"on, or it does not rain at all; {ONLY_KNOWN}",
    }
    dataset = dataset.assign({ONSET: ((Y, X), minutes, attrs), END: ((Y, X), spell.end[0], end_attrs)})
    return _with_spells(dataset, threshold, newest, known) if MEMBERS in dataset else dataset


def _with_spells(dataset: xr.Dataset, threshold: float, newest: Rain, known: npt.NDArray[np.bool_]) -> xr.Dataset:
    """Add the statistics over members of onset and end."""
    members, step = dataset[MEMBERS].values, float(dataset.attrs[STEP_MINUTES])
    shape = members.shape[2:]
    onset, end = (np.empty((len(QUANTILES), *shape), np.float32) for _ in range(2))
    begins, goes_on = (np.empty(shape, np.float32) for _ in range(2))
    for rows in _bands(shape[0]):
        wet, now = members[:, :, rows] >= threshold, newest[rows] >= threshold
        spell = spell_of(wet, now, known[:, rows], step)
        onset[:, rows], end[:, rows] = spell.onset, spell.end
        begins[rows], goes_on[rows] = spell.begins, spell.goes_on
    at_least = f"at least {threshold:g} mm h-1"
    common = {"threshold_mm_h": float(threshold), "grid_mapping": CRS}
    said = {
        quantile_name(ONSET): (
            (QUANTILE, Y, X),
            onset,
            f"time from init_time until the rain rate is {at_least}",
            "of all members: missing where so many of them have no onset within the forecast",
        ),
        quantile_name(END): (
            (QUANTILE, Y, X),
            end,
            f"time from init_time until the rain rate stays below {threshold:g} mm h-1",
            "of the members with rain: missing where it rains on in so many of them",
        ),
        BEGINS: (
            (Y, X),
            begins,
            f"probability that the rain rate is {at_least} within the forecast",
            "share of the members",
        ),
        GOES_ON: (
            (Y, X),
            goes_on,
            f"probability that the rain rate is {at_least} at the last lead time",
            "share of the members",
        ),
    }
    for name, (dims, values, words, comment) in said.items():
        units = {"units": "minutes" if QUANTILE in dims else "1"}
        attrs = {"long_name": words, "comment": f"{comment}; {ONLY_KNOWN}"} | units | common
        dataset = dataset.assign({name: (dims, values, attrs)})
    return dataset.assign_coords({QUANTILE: (QUANTILE, np.array(QUANTILES), QUANTILE_ATTRS)})


def with_matched(dataset: xr.Dataset, newest: Rain) -> xr.Dataset:
    """Add rates with the distribution of `newest`, the last observation (H, W) in mm/h.

    Probability matching (Ebert 2001): the wettest pixel gets the highest rate that was observed, and so on down.
    A network's rates grow smooth with lead time; these do not. Dry pixels stay dry.
    """
    rain = dataset[RAIN].values
    known = np.isfinite(rain[0])
    target = np.sort(np.nan_to_num(newest[known], nan=0.0))
    matched = np.full(rain.shape, np.nan, np.float32)
    for lead, frame in enumerate(rain):
        rates = frame[known]
        ranked = np.empty_like(rates)
        ranked[np.argsort(rates, kind="stable")] = target
        matched[lead, known] = np.where(rates > 0, ranked, 0.0)
    # no standard name, so that programs find one rain rate only
    attrs = {
        "long_name": "rain rate with the distribution of the newest observation",
        "units": "mm h-1",
        "cell_methods": dataset[RAIN].attrs["cell_methods"],
        "grid_mapping": CRS,
    }
    return dataset.assign({MATCHED: ((LEAD_TIME, Y, X), matched, attrs)})
