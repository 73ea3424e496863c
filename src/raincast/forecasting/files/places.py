"""A forecast at named points and over polygons, and tables of it."""

import csv
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.forecasting.files.dataset import (
    LAT,
    LAT_ATTRS,
    LON,
    LON_ATTRS,
    MEMBER,
    MEMBERS,
    MISSING,
    OUTSIDE_REACH,
    QUALITY,
    lead_minutes_of,
)
from raincast.forecasting.files.locations import Location, Pixels, pixels_of
from raincast.forecasting.files.netcdf import write_plain
from raincast.forecasting.files.products import (
    AMOUNT,
    BEGINS,
    END,
    GOES_ON,
    MATCHED,
    ONLY_KNOWN,
    ONSET,
    QUANTILE,
    QUANTILES,
    Spell,
    amount_minutes,
    amount_name,
    depths,
    known_throughout,
    quantile_name,
    share_reaching,
    spell_of,
)
from raincast.schema import EXCEEDANCE, INIT_TIME, LEAD_TIME, RAIN, RAIN_ATTRS, STEP_MINUTES, THRESHOLD, TIME
from raincast.system.files import atomic

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.floating[Any]]

MOST_NAMED = 10

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


def write_places(
    forecast: xr.Dataset, places: list[Location], path: Path, newest: npt.NDArray[np.float32] | None = None
) -> Path:
    """Write a CSV with a row per place and lead time, atomically; returns the path.

    Rates, depths and probabilities of polygons are means over their observed part, whose share is `observed`.
    Times of onset and end, and what members say, are those of the mean rate over the place. `quality_flag` has the
    bits of any of the pixels. Columns are empty for places outside the grid. `newest` is the observation at
    init_time, (H, W) in mm/h.
    """
    grid = schema.grid_of(forecast)
    columns = _columns(forecast)
    with atomic(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        further = _further_names(forecast)
        names = ("place", "init_time", "valid_time", "lead_minutes", "observed", QUALITY, *columns, *further)
        writer.writerow(names)
        outside = []
        for place in places:
            pixels = pixels_of(place, grid)
            outside += [] if pixels else [place.name]
            said = at_place(forecast, pixels, newest) if pixels and further else None
            rows = _rows(forecast, place, pixels, columns)
            blank = [""] * len(further)
            writer.writerows([*row, *(_further(said, lead) if said else blank)] for lead, row in enumerate(rows))
    if outside:
        _warn_of_outside(tuple(outside), f"y {grid.y[0]:g} to {grid.y[-1]:g}, x {grid.x[0]:g} to {grid.x[-1]:g}")
    return path


@functools.lru_cache(maxsize=16)  # once for all forecasts of a process
def _warn_of_outside(names: tuple[str, ...], reach: str) -> None:
    log.warning(
        "%d places are outside the grid (%s) and have empty rows: %s%s. Places are in degrees, longitude first in "
        "GeoJSON.", len(names), reach, ", ".join(names[:MOST_NAMED]), " …" if len(names) > MOST_NAMED else "",
    )  # fmt: skip


def _columns(forecast: xr.Dataset) -> dict[str, npt.NDArray[np.float32]]:
    """The maps of the columns, (lead, y, x)."""
    columns = {"rain_rate_mm_h": forecast[RAIN].values}
    if MATCHED in forecast:
        columns["rain_rate_matched_mm_h"] = forecast[MATCHED].values
    columns |= {f"{name}_mm": forecast[name].values for name in map(amount_name, amount_minutes(forecast))}
    if EXCEEDANCE in forecast:
        for number, threshold in enumerate(forecast[THRESHOLD].values):
            columns[f"probability_of_{threshold:g}_mm_h"] = forecast[EXCEEDANCE].values[:, number]
    return columns


def _rows(
    forecast: xr.Dataset, place: Location, where: Pixels | None, columns: dict[str, npt.NDArray[np.float32]]
) -> Iterator[list[Any]]:
    init_time = _utc(forecast[INIT_TIME].values)
    for lead, minutes in enumerate(lead_minutes_of(forecast)):
        row = [place.name, init_time, _utc(forecast[TIME].values[lead]), f"{minutes:g}"]
        if where is None:
            yield [*row, "0", "", *[""] * len(columns)]
            continue
        window = (where.y, where.x)
        observed = np.where(np.isfinite(forecast[RAIN].values[lead][window]), where.weights, 0).sum()
        flags = forecast[QUALITY].values[lead][window][where.weights > 0] if QUALITY in forecast else [0]
        means = [mean_of(values[lead][window], where.weights) for values in columns.values()]
        share = where.inside * observed / where.weights.sum()
        yield [*row, f"{share:.3g}", int(np.bitwise_or.reduce(flags)), *map(_cell, means)]


def _further_names(forecast: xr.Dataset) -> list[str]:
    """Return the names of the columns of `_further`."""
    names = [f"{ONSET}_minutes", f"{END}_minutes"] if ONSET in forecast else []
    if MEMBERS in forecast:
        names.append("known")
        amounts = forecast[AMOUNT].values if AMOUNT in forecast else ()
        for span in amount_minutes(forecast):
            names += [f"probability_of_{amount:g}_mm_in_{span:g}_min" for amount in amounts]
        if ONSET in forecast:
            names += [f"{name}_{share * 100:g}pct_minutes" for name in (ONSET, END) for share in QUANTILES]
            names += [BEGINS, GOES_ON]
    return names


def _further(said: AtPlace, lead: int) -> list[str]:
    """Return the cells of onset and end, and of the statistics over members."""
    found: list[Any] = [said.spell.onset[0], said.spell.end[0]] if said.spell is not None else []
    if said.members is not None:
        found.append(said.known[lead])
        for shares in said.reached.values():
            found += list(shares[lead])
        if said.spells is not None:
            found += [*said.spells.onset, *said.spells.end, said.spells.begins, said.spells.goes_on]
    return [_cell(value) for value in found]


def _cell(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else ""


def write_place_members(
    forecast: xr.Dataset, places: list[Location], path: Path, newest: npt.NDArray[np.float32] | None = None
) -> Path:
    """Write the members at places as CF netCDF, atomically; return the path.

    The file has mean rates (mm/h) and depths (mm) of each member over each place, the probabilities of
    amounts, and the times at which rain begins and ends. Unknown values are missing, as are all of a place outside
    the grid.
    """
    grid = schema.grid_of(forecast)
    located = [pixels_of(place, grid) for place in places]
    said = [at_place(forecast, pixels, newest) if pixels else None for pixels in located]
    example = next((one for one in said if one is not None), None)
    dataset = xr.Dataset(
        coords={
            "place_name": (
                "place",
                np.array([place.name for place in places], object),
                {"long_name": "name of the place"},
            ),
            LAT: ("place", [place.middle[1] for place in places], LAT_ATTRS),
            LON: ("place", [place.middle[0] for place in places], LON_ATTRS),
            **{name: forecast[name].variable for name in (INIT_TIME, LEAD_TIME, TIME, MEMBER)},
        },
        attrs=forecast.attrs,
    )  # fmt: skip
    if example is not None:
        for name, (dims, attrs, of) in _place_variables(forecast, example).items():
            shape = np.shape(of(example))
            values = [np.full(shape, np.nan) if one is None else of(one) for one in said]
            dataset[name] = (("place", *dims), np.stack(values).astype(np.float32), attrs)
        named = {name: forecast[name].variable for name in (AMOUNT, QUANTILE) if name in forecast}
        dataset = dataset.assign_coords(named)
    write_plain(dataset, path)
    return path


Variable = tuple[tuple[str, ...], dict[str, Any], Callable[[AtPlace], Any]]


def _place_variables(forecast: xr.Dataset, example: AtPlace) -> dict[str, Variable]:
    """Dimensions, attributes and values of the variables of `write_place_members`."""
    share = {"units": "1"}
    rates = RAIN_ATTRS | {"long_name": "mean rain rate over the place, of each member"}
    known = share | {"long_name": "share of the place whose rain is known", "comment": ONLY_KNOWN}
    variables: dict[str, Variable] = {
        MEMBERS: ((LEAD_TIME, MEMBER), rates, lambda at: at.members),
        "known": ((LEAD_TIME,), known, lambda at: at.known),
    }
    for span in example.depths:
        name, words = amount_name(span), f"in the {span:g} min before the valid time"
        depth = {"units": "mm", "long_name": f"mean rain over the place {words}, of each member"}
        depth |= {"standard_name": "thickness_of_rainfall_amount"}
        variables[f"{name}_members"] = ((LEAD_TIME, MEMBER), depth, lambda at, span=span: at.depths[span])  # type: ignore[misc]
        if example.reached:
            attrs = share | {
                "long_name": f"probability that the mean rain over the place {words} is at least the amount"
            }
            variables[f"{name}_exceedance"] = ((LEAD_TIME, AMOUNT), attrs, lambda at, span=span: at.reached[span])  # type: ignore[misc]
    if example.spells is not None:
        spells: dict[str, Callable[[Spell], Any]] = {
            quantile_name(ONSET): lambda spell: spell.onset,
            quantile_name(END): lambda spell: spell.end,
            BEGINS: lambda spell: spell.begins,
            GOES_ON: lambda spell: spell.goes_on,
        }
        for name, of in spells.items():
            attrs = {key: value for key, value in forecast[name].attrs.items() if key != "grid_mapping"}
            dims = (QUANTILE,) if QUANTILE in forecast[name].dims else ()
            variables[name] = (dims, attrs, lambda at, of=of: of(at.spells))  # type: ignore[misc]
    return variables


def _utc(time: Any) -> str:
    return f"{np.datetime_as_string(time, unit='s')}Z"
