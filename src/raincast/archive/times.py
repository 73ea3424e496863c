"""Times that a file stores as floating-point numbers, rounded to what their unit can resolve."""

import re

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

_MINUTE = 60 * 10**9
_ROUND = (10**6, 10**7, 10**8, 10**9, 5 * 10**9, 10**10, 3 * 10**10, _MINUTE, 5 * _MINUTE)
"""Candidates for the rounding in ns, each a whole number of the one before."""


def exact_times(dataset: xr.Dataset) -> xr.Dataset:
    """`dataset` with its decoded times and durations rounded where the file stores them as floats.

    "days since 1900" in float64 resolve 0.6 µs, "hours since 2020" in float32 up to 2 s: times that were written
    on a step of 5 min come back off it. Each variable is rounded to the finest of 1 ms, 1 s … that is at least
    twice what its numbers resolve. ValueError where they resolve less than half a minute and the times show no
    multiples of 5 min.
    """
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
            f"{resolved / 1e9:g} s: the times cannot be told. Store it as int64 or float64"
        )
    found = np.where(known, whole.view(values.dtype), values)
    return xr.Variable(variable.dims, found, variable.attrs, variable.encoding)


def _resolved_ns(values: npt.NDArray[np.generic], variable: xr.Variable) -> float | None:
    """The distance in ns between neighbouring numbers of the file's type at the largest of `values`."""
    word, _, reference = str(variable.encoding.get("units", "")).strip().partition(" since ")
    date = re.match(r"\s*(\d+)-(\d+)-(\d+)", reference)
    if not values.size or (reference and date is None):
        return None
    ns = pd.Timedelta(1, "D" if word in ("d", "D") else word.lower()).as_unit("ns").value
    since = "{:0>4}-{:0>2}-{:0>2}".format(*date.groups()) if date else 0
    # the origin may lie before what nanoseconds reach back to
    passed = values.astype(f"{values.dtype.kind}8[us]") - np.array(since, f"{values.dtype.kind}8[us]")
    largest = np.abs(passed / np.timedelta64(1, "us")).max() * 1e3 / ns
    spacing = float(np.spacing(np.asarray(largest, variable.encoding["dtype"])))
    return spacing * float(ns)
