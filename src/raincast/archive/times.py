"""Times of a file, rounded if they are stored as floats, and the period that each value covers."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from raincast.schema import TIME, time_methods

_MINUTE = 60 * 10**9
_ROUND = (10**6, 10**7, 10**8, 10**9, 5 * 10**9, 10**10, 3 * 10**10, _MINUTE, 5 * _MINUTE)
"""Candidates for the rounding in ns; each is a multiple of the one before."""


_REFERENCE = re.compile(
    r" since +\d+-\d+-\d+(?:[T ]+\d+(?::\d+(?::\d+(?:\.\d*)?)?)?)?(?<!:) *(?![\d:.T])(.*?) *$", re.I
)
_KNOWN_ZONE = re.compile(r"\(?(?:z|utc?|gmt|zulu)\)?|[-+]\d\d?(?::?\d\d)?|[-+]?[0:.]+", re.I)


PERIOD_ATTRS = {"accum_time_h": 60.0, "accutime": 1.0, "accumulation_minutes": 1.0}
"""Attributes that state the period of a mean or a depth, with their unit in minutes."""
MINUTES_PER = {"second": 1 / 60, "sec": 1 / 60, "s": 1 / 60, "minute": 1.0, "min": 1.0}
MINUTES_PER |= {"hour": 60.0, "hr": 60.0, "h": 60.0, "day": 1440.0, "d": 1440.0}


def exact_times(dataset: xr.Dataset) -> xr.Dataset:
    """Return `dataset` with decoded times and durations rounded if the file stores them as floats.

    "days since 1900" in float64 resolve 0.6 µs, "hours since 2020" in float32 only 2 s: times on a step of 5 min
    are off it when they are read back. Each variable is rounded to the finest of 1 ms, 1 s … that is at least
    twice its resolution. Raises ValueError if the resolution is coarser than half a minute and the times are not
    multiples of 5 min, and for a time zone by name.
    """
    for name, variable in dataset.variables.items():
        if variable.dtype.kind == "M":
            _check_zone(str(name), str(variable.encoding.get("units", "")))
    rounded = {
        name: _rounded(str(name), variable)
        for name, variable in dataset.variables.items()
        if variable.dtype.kind in "mM"
        and np.dtype(variable.encoding.get("dtype", np.int64)).kind == "f"
        and variable.ndim <= 2
    }
    if not rounded:
        return dataset
    coords = {name: variable for name, variable in rounded.items() if name in dataset.coords}
    variables = {name: variable for name, variable in rounded.items() if name not in coords}
    exact = dataset.assign_coords(coords).assign(variables)
    exact.set_close(dataset.close)
    return exact


def _check_zone(name: str, units: str) -> None:
    """Raise ValueError for a zone that is neither UTC nor an offset: xarray ignores "CET" and misreads "UTC+2"."""
    match = _REFERENCE.search(units)
    zone = match[1].strip() if match else ""
    if zone and not _KNOWN_ZONE.fullmatch(zone):
        raise ValueError(
            f"{name} is in {units!r}: raincast does not know the time zone {zone!r}. State its offset from UTC in "
            "the file, for example +01:00"
        )


def _rounded(name: str, variable: xr.Variable) -> xr.Variable:
    values = variable.values.astype(f"{variable.dtype.kind}8[ns]")
    known = ~np.isnat(values)
    resolved = _resolved_ns(values[known], variable)
    if resolved is None:
        return variable
    unit = next((unit for unit in _ROUND if unit >= 2 * resolved), None)
    whole = values.astype(np.int64)
    if unit is not None:
        whole = (whole + unit // 2) // unit * unit
    off = np.abs(whole - values.astype(np.int64))[known]
    if unit is None or (unit > _MINUTE and off.max(initial=0) > 0.51 * resolved):
        raise ValueError(
            f"{name} is stored as {variable.encoding['dtype']} in '{variable.encoding['units']}', which resolves "
            f"{resolved / 1e9:g} s: the exact times are unknown. Store it as int64 or float64"
        )
    found = np.where(known, whole.view(values.dtype), values)
    return xr.Variable(variable.dims, found, variable.attrs, variable.encoding)


def _resolved_ns(values: npt.NDArray[np.generic], variable: xr.Variable) -> float | None:
    """Return the spacing in ns of the file's float type at the largest of `values`; None if unknown."""
    word, _, reference = str(variable.encoding.get("units", "")).strip().partition(" since ")
    date = re.match(r"\s*(\d+)-(\d+)-(\d+)", reference)
    if not values.size or (reference and date is None):
        return None
    ns = pd.Timedelta(1, "D" if word in ("d", "D") else word.lower()).as_unit("ns").value
    since = "{:0>4}-{:0>2}-{:0>2}".format(*date.groups()) if date else 0
    # the reference date may be before the range of nanoseconds
    passed = values.astype(f"{values.dtype.kind}8[us]") - np.array(since, f"{values.dtype.kind}8[us]")
    largest = np.abs(passed / np.timedelta64(1, "us")).max() * 1e3 / ns
    spacing = float(np.spacing(np.asarray(largest, variable.encoding["dtype"])))
    return spacing * float(ns)


def valid_times(
    dataset: xr.Dataset, field: xr.DataArray, *, is_depth: bool = False
) -> tuple[npt.NDArray[np.datetime64], float | None]:
    """Return the valid times of `field`, and the minutes that a value covers or None, from its time bounds.

    Without bounds, the times are the file's. `cell_methods` of "time: point" makes bounds meaningless, except for
    a depth, which always has a period. Raises ValueError if the bounds have different lengths.
    """
    times = np.atleast_1d(field[TIME].values).astype("datetime64[ns]")
    bounds = dataset.variables.get(field[TIME].attrs.get("bounds", ""))
    is_point = not is_depth and "point" in time_methods(field.attrs.get("cell_methods"))
    if bounds is None or bounds.size != 2 * times.size or is_point:
        return times, None
    start, end = bounds.values.reshape(-1, 2).astype("datetime64[ns]").T
    intervals = (end - start) / np.timedelta64(1, "m")
    if intervals.size and (intervals.min() <= 0 or np.ptp(intervals) > 0.1 * intervals.max()):
        raise ValueError(
            f"the bounds of its times cover {intervals.min():g} to {intervals.max():g} min: all frames of a file "
            "need the same period over 0. Split the file, or remove the bounds"
        )
    return end, round(float(np.median(intervals)), 2) if intervals.size else None


def stated_minutes(
    field_attrs: Mapping[str, Any], attrs: Mapping[str, Any], *, is_depth: bool = False
) -> float | None:
    """Return the period in minutes of a mean or a depth from attributes of the variable or the file, else None.

    In CF the interval in cell_methods is that of the samples of a mean, but files with depths state the period
    there. accumulation_period is PT1H in RMI's RADCLIM of the mlcast community; accum_time_h and accutime are
    pysteps'. Raises ValueError for a period that is not over 0.
    """
    for own in (field_attrs, attrs):
        text = str(own.get("accumulation_period", ""))
        if match := re.fullmatch(r"PT(?=\d)(?:(\d+)H)?(?:(\d+)M)?", text):
            return _positive("accumulation_period", text, 60.0 * int(match[1] or 0) + int(match[2] or 0))
        for name, factor in PERIOD_ATTRS.items():
            if name in own:
                return _positive(name, own[name], factor * float(np.ravel(own[name])[0]))
    if not is_depth:
        return None
    interval = r"time: *(?:sum|mean|accumulated) *\((?:interval:)? *([\d.]+) *([a-z]+)\)"
    if match := re.search(interval, str(field_attrs.get("cell_methods", "")).lower()):
        unit = MINUTES_PER.get(match[2]) or MINUTES_PER.get(match[2].removesuffix("s"))
        if unit is not None:
            return _positive("cell_methods", match[0], unit * float(match[1]))
    return None


def _positive(name: str, said: Any, minutes: float) -> float:
    if not 0 < minutes < np.inf:
        raise ValueError(f"its {name} is {said}: not a period over 0 min")
    return minutes
