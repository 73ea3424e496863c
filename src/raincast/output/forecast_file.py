"""A forecast as a CF netCDF file that GDAL, xarray and netCDF programs read without knowing raincast.

Rates are int16 codes of 0.01 mm/h, as in the archive: a fifth of the size of float32 after zlib, and finer
than any radar measures. The compression is zlib, which every netCDF library has; zstd would be smaller, and
unreadable for GDAL and for netCDF builds without the filter.

Probabilities, where there are any, are a second variable beside the rates, (lead_time, threshold, y, x). GDAL then
asks which of the two is meant: NETCDF:file.nc:rain_rate.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import __version__, schema
from raincast.archive import CODE_MM_H, MAX_RATE, MISSING_CODE, TIME_UNITS
from raincast.schema import CRS, EXCEEDANCE, INIT_TIME, LEAD_TIME, RAIN, STEP_MINUTES, THRESHOLD, TIME, Grid, X, Y

TIME_BOUNDS = "time_bounds"
INIT_TIME_ATTRS = {
    "standard_name": "forecast_reference_time",
    "long_name": "time of the last input frame (UTC)",
}
LEAD_TIME_ATTRS = {"standard_name": "forecast_period", "long_name": "time from init_time to valid time"}
# no axis="T" here: the dimension is lead_time, and CF allows one T axis, a coordinate variable of its own
VALID_TIME_ATTRS = {"standard_name": "time", "long_name": "valid time (UTC)"}
# as CF has it for its own names that end in "above_threshold": the coordinate is a value of the quantity
THRESHOLD_ATTRS = {"standard_name": "rainfall_rate", "long_name": "rain rate to reach", "units": "mm h-1"}
# CF has no standard name for it
EXCEEDANCE_ATTRS = {
    "long_name": "probability that the rain rate is at least the threshold",
    "units": "1",
    "grid_mapping": CRS,
}
PROBABILITY_CODE = 1e-4
"""Probabilities are int16 codes of this."""
CAPPED = f"rates above {MAX_RATE:g} mm/h are set to {MAX_RATE:g} mm/h, the largest that the file can hold"


def forecast_dataset(
    rain: npt.NDArray[np.float32],
    *,
    init_time: np.datetime64,
    step_minutes: float,
    grid: Grid,
    cell_methods: str,
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    """A forecast in the words of CF, ready for `write_forecast`.

    `rain` is (lead, y, x) in mm/h with NaN for missing; lead number 0 is one step after `init_time`, the UTC
    time of the last input frame. `cell_methods` is the archive's: with "time: mean" each lead gets the bounds
    of the step that ends at its valid time. `attrs` become global attributes (checkpoint hash, config,
    institution, …); a `history` among them is continued. Rates above `MAX_RATE` are set to it.
    """
    _check_rain(rain, grid)
    _check_times(init_time, step_minutes)
    lead_times = schema.step_timedelta(step_minutes) * np.arange(1, len(rain) + 1)
    init_time = init_time.astype("datetime64[ns]")
    rain_attrs = schema.RAIN_ATTRS | {"grid_mapping": CRS, "cell_methods": cell_methods, "comment": CAPPED}
    capped = np.minimum(rain, MAX_RATE).astype(np.float32, copy=False)
    dataset = xr.Dataset(
        {RAIN: ((LEAD_TIME, Y, X), capped, rain_attrs)},
        coords={
            INIT_TIME: ((), init_time, INIT_TIME_ATTRS),
            LEAD_TIME: (LEAD_TIME, lead_times, LEAD_TIME_ATTRS),
            TIME: (LEAD_TIME, init_time + lead_times, VALID_TIME_ATTRS),
            **grid.to_coords(),
        },
        attrs=_global_attrs(attrs, init_time, step_minutes),
    )
    return _with_bounds(dataset, step_minutes) if "mean" in cell_methods else dataset


def with_exceedance(
    dataset: xr.Dataset,
    probability: npt.NDArray[np.float32],
    thresholds: Sequence[float],
    *,
    comment: str | None = None,
) -> xr.Dataset:
    """A `forecast_dataset` and how likely its rate reaches each of `thresholds` (mm/h, increasing).

    `probability` is (lead, threshold, y, x), 0 to 1 with NaN for missing; `comment` says where it comes from.
    """
    rain = dataset[RAIN]
    expected = (rain.shape[0], len(thresholds), *rain.shape[1:])
    if probability.shape != expected:
        raise ValueError(
            f"The probabilities have shape {probability.shape}: pass (lead, threshold, y, x), here {expected}."
        )
    bad = (probability < 0) | (probability > 1)
    if bad.any():
        raise ValueError(f"{bad.sum()} probabilities lie outside 0 to 1, the first is {probability[bad][0]}.")
    values = probability.astype(np.float32, copy=False)
    attrs = EXCEEDANCE_ATTRS | ({"comment": comment} if comment else {})
    return dataset.assign({EXCEEDANCE: ((LEAD_TIME, THRESHOLD, Y, X), values, attrs)}).assign_coords(
        {THRESHOLD: (THRESHOLD, np.array(thresholds, np.float64), THRESHOLD_ATTRS)}
    )


def write_forecast(dataset: xr.Dataset, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a `forecast_dataset` whole or not at all; returns the path.

    FileExistsError where the file exists and `overwrite` is false.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists. Choose another path, delete the file, or allow it with overwrite=True."
        )
    _check_forecast(dataset)
    plain = _in_file_form(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the process number keeps two writers of one file from meeting in the same partial file
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        plain.to_netcdf(partial, engine="netcdf4", format="NETCDF4", encoding=_encoding(plain))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _check_rain(rain: npt.NDArray[np.float32], grid: Grid) -> None:
    if rain.ndim != 3 or len(rain) == 0 or rain.shape[1:] != grid.shape:
        raise ValueError(
            f"The forecast has shape {rain.shape}, the grid {grid.shape}: "
            "pass one member as (lead, y, x) with at least one lead, and the grid of its own pixels."
        )
    bad = np.isinf(rain) | (rain < 0)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} rates are negative or infinite, the first {rain[bad][0]} mm/h: rates are 0 or "
            "more, and missing is NaN. Cut the forecast at 0 (np.maximum keeps NaN)."
        )


def _check_times(init_time: np.datetime64, step_minutes: float) -> None:
    if np.isnat(init_time):
        raise ValueError("init_time is NaT. Pass the UTC time of the last input frame.")
    if not step_minutes > 0:
        raise ValueError(f"step_minutes={step_minutes} is no step. Pass the archive's, above 0.")


def _global_attrs(attrs: Mapping[str, Any], init_time: np.datetime64, step_minutes: float) -> dict[str, Any]:
    """Ours, overridden by the caller's where CF leaves the choice, with this step added to the history."""
    defaults = {
        "title": f"Precipitation nowcast from {np.datetime_as_string(init_time, unit='m')} UTC",
        "source": f"raincast {__version__}",
    }
    given = {name: _plain_value(value) for name, value in attrs.items() if value is not None}
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    history = f"{stamp} raincast {__version__}: forecast made"
    if "history" in given:
        # one line a program, as the netCDF users' guide has it
        history = f"{given['history']}\n{history}"
    fixed = {"Conventions": schema.CONVENTIONS, "history": history, STEP_MINUTES: float(step_minutes)}
    return defaults | given | fixed


def _plain_value(value: Any) -> Any:
    """`value` as netCDF can hold it: text, a number or a row of numbers; anything else as text."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, str | int | float | np.number):
        return value
    if isinstance(value, np.ndarray | list | tuple) and np.asarray(value).dtype.kind in "iuf":
        return np.asarray(value).ravel()
    return str(value)


def _with_bounds(dataset: xr.Dataset, step_minutes: float) -> xr.Dataset:
    ends = dataset[TIME].values
    starts = ends - schema.step_timedelta(step_minutes)
    dataset[TIME].attrs["bounds"] = TIME_BOUNDS
    return dataset.assign_coords({TIME_BOUNDS: ((LEAD_TIME, "bounds"), np.stack([starts, ends], axis=1))})


def _check_forecast(dataset: xr.Dataset) -> None:
    wanted = (RAIN, INIT_TIME, LEAD_TIME, TIME, CRS, Y, X)
    absent = [name for name in wanted if name not in dataset.variables]
    if absent or dataset[RAIN].dims != (LEAD_TIME, Y, X):
        raise ValueError(
            f"This is no forecast: it lacks {absent or f'the dimensions ({LEAD_TIME}, {Y}, {X})'}. "
            "Make one with forecast_dataset(…)."
        )
    valid = dataset[INIT_TIME].values + dataset[LEAD_TIME].values
    if not np.array_equal(valid, dataset[TIME].values):
        raise ValueError(
            f"Valid times {dataset[TIME].values[:3]}… are not init_time + lead_time ({valid[:3]}…). "
            "Make the Dataset with forecast_dataset(…)."
        )


def _in_file_form(dataset: xr.Dataset) -> xr.Dataset:
    """A copy whose `coordinates` attribute names init_time and time only: xarray would add crs."""
    outside = [name for name in (CRS, TIME_BOUNDS) if name in dataset.coords]
    plain = dataset.drop_encoding().reset_coords(outside)
    for name in (RAIN, EXCEEDANCE):
        if name in plain:
            plain[name].attrs["coordinates"] = f"{INIT_TIME} {TIME}"
    for name in outside:
        plain[name].encoding["coordinates"] = None  # xarray's word for: write none
    return plain


def _encoding(dataset: xr.Dataset) -> dict[str, dict[str, Any]]:
    _, height, width = dataset[RAIN].shape
    rain = _map_encoding(CODE_MM_H, (1, height, width))
    # float64, because steps of 2.5 minutes exist
    lead_time = {"units": "minutes", "dtype": "float64", "_FillValue": None}
    times = {"units": TIME_UNITS, "dtype": "int64", "_FillValue": None}
    encoding: dict[str, dict[str, Any]] = {RAIN: rain, LEAD_TIME: lead_time, INIT_TIME: times, TIME: times}
    encoding |= {name: {"_FillValue": None} for name in (Y, X, CRS)}
    if TIME_BOUNDS in dataset.variables:
        encoding[TIME_BOUNDS] = {"dtype": "int64", "_FillValue": None, "units": TIME_UNITS}
    if EXCEEDANCE in dataset.variables:
        encoding[EXCEEDANCE] = _map_encoding(PROBABILITY_CODE, (1, 1, height, width))
        encoding[THRESHOLD] = {"_FillValue": None}
    return encoding


def _map_encoding(code: float, chunks: tuple[int, ...]) -> dict[str, Any]:
    """int16 codes; a chunk is one map, which is what programs ask for."""
    return {
        "dtype": "int16",
        "scale_factor": code,
        "_FillValue": np.int16(MISSING_CODE),
        "chunksizes": chunks,
        "zlib": True,
        "complevel": 4,
        "shuffle": True,
    }
