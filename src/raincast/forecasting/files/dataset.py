"""A forecast as a CF Dataset: rates, probabilities, flags, times and coordinates."""

import functools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive import MAX_RATE
from raincast.schema import (
    BOUNDS,
    CRS,
    EXCEEDANCE,
    INIT_TIME,
    LEAD_TIME,
    RAIN,
    STEP_MINUTES,
    THRESHOLD,
    TIME,
    TIME_BOUNDS,
    Grid,
    X,
    Y,
)
from raincast.version import __version__

NO_LEAPS = "leap_seconds: none"  # as computers count time
INIT_TIME_ATTRS = {
    "standard_name": "forecast_reference_time",
    "long_name": "time of the last input frame (UTC)",
    "units_metadata": NO_LEAPS,
}
LEAD_TIME_ATTRS = {"standard_name": "forecast_period", "long_name": "time from init_time to valid time"}
# no axis="T" here: the dimension is lead_time, and CF allows one T axis, a coordinate variable of its own
VALID_TIME_ATTRS = {"standard_name": "time", "long_name": "valid time (UTC)", "units_metadata": NO_LEAPS}
# as CF does for its names that end in "above_threshold": the coordinate is a value of the quantity
THRESHOLD_ATTRS = {"standard_name": "rainfall_rate", "long_name": "rain rate to reach", "units": "mm h-1"}
# CF has no standard name for it
EXCEEDANCE_ATTRS = {
    "long_name": "probability that the rain rate is at least the threshold",
    "units": "1",
    "grid_mapping": CRS,
}
QUALITY = "quality_flag"
MISSING, OUTSIDE_REACH, FILLED, MODEL_ONLY = 1, 2, 4, 8
"""Bits of the quality flag."""
QUALITY_ATTRS = {
    "standard_name": "quality_flag",
    "long_name": "quality of the pixel",
    "flag_masks": np.array([MISSING, OUTSIDE_REACH, FILLED, MODEL_ONLY], np.uint8),
    "flag_meanings": "missing outside_reach filled model_only",
    "comment": "missing: not observed in any input frame; outside_reach: followed back along the motion of the "
    "newest frames it comes from where nothing was observed; filled: missing in some of the input frames; "
    "model_only: it would be missing or outside_reach, and is from the weather model alone",
    "grid_mapping": CRS,
}
MEMBER, MEMBERS = "member", "rain_rate_members"
MEMBER_ATTRS = {"standard_name": "realization", "long_name": "number of the member", "units": "1"}
LAT, LON = "lat", "lon"
LAT_ATTRS = {"standard_name": "latitude", "long_name": "latitude of the pixel", "units": "degrees_north"}
LON_ATTRS = {"standard_name": "longitude", "long_name": "longitude of the pixel", "units": "degrees_east"}
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
    """Return a forecast as a CF Dataset, ready for `write_forecast`.

    `rain` is (lead, y, x) in mm/h with NaN for missing; lead 0 is one step after `init_time`, the UTC
    time of the last input frame. `cell_methods` is the archive's: with "time: mean" each lead gets the bounds
    of the step, or of the `accumulation_minutes` among `attrs`, that ends at its valid time. `attrs` become global
    attributes (checkpoint hash, config, institution, …); a `history` among them is continued. Rates above
    `MAX_RATE` are set to it.
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
            **_lonlat_coords(grid),
        },
        attrs=_global_attrs(attrs, init_time, step_minutes),
    )
    meaning = schema.meaning_of(cell_methods, dataset.attrs, step_minutes)
    return dataset if meaning.minutes is None else _with_bounds(dataset, meaning.minutes)


def with_exceedance(
    dataset: xr.Dataset,
    probability: npt.NDArray[np.float32],
    thresholds: Sequence[float],
    *,
    comment: str | None = None,
) -> xr.Dataset:
    """Add the probability of reaching each of `thresholds` (mm/h, increasing) to a `forecast_dataset`.

    `probability` is (lead, threshold, y, x), 0 to 1 with NaN for missing; `comment` states its origin.
    """
    rain = dataset[RAIN]
    expected = (rain.shape[0], len(thresholds), *rain.shape[1:])
    if probability.shape != expected:
        raise ValueError(
            f"The probabilities have shape {probability.shape}: pass (lead, threshold, y, x), here {expected}."
        )
    if np.fmin.reduce(probability, axis=None) < 0 or np.fmax.reduce(probability, axis=None) > 1:
        bad = (probability < 0) | (probability > 1)
        raise ValueError(f"{bad.sum()} probabilities lie outside 0 to 1, the first is {probability[bad][0]}.")
    values = probability.astype(np.float32, copy=False)
    attrs = EXCEEDANCE_ATTRS | ({"comment": comment} if comment else {})
    return dataset.assign({EXCEEDANCE: ((LEAD_TIME, THRESHOLD, Y, X), values, attrs)}).assign_coords(
        {THRESHOLD: (THRESHOLD, np.array(thresholds, np.float64), THRESHOLD_ATTRS)}
    )


def with_members(dataset: xr.Dataset, members: npt.NDArray[np.float32]) -> xr.Dataset:
    """Add equally likely forecasts (lead, member, y, x) in mm/h, NaN for missing, to a `forecast_dataset`."""
    rain = dataset[RAIN]
    if members.ndim != 4 or members.shape[:1] + members.shape[2:] != rain.shape:
        raise ValueError(f"The members have shape {members.shape}: pass (lead, member, y, x) of {rain.shape}.")
    capped = np.minimum(members, MAX_RATE, out=members)
    attrs = rain.attrs | {"long_name": "rain rate of equally likely forecasts"}
    attrs.pop("ancillary_variables", None)
    numbers = np.arange(1, members.shape[1] + 1, dtype=np.int32)
    return dataset.assign({MEMBERS: ((LEAD_TIME, MEMBER, Y, X), capped, attrs)}).assign_coords(
        {MEMBER: (MEMBER, numbers, MEMBER_ATTRS)}
    )


def with_quality(dataset: xr.Dataset, flags: npt.NDArray[np.uint8]) -> xr.Dataset:
    """Add the quality flag to a `forecast_dataset`: bits MISSING, OUTSIDE_REACH and FILLED, (lead, y, x)."""
    rain = dataset[RAIN]
    if flags.shape != rain.shape:
        raise ValueError(f"The flags have shape {flags.shape}: pass one for each pixel and lead, {rain.shape}.")
    made = dataset.assign({QUALITY: ((LEAD_TIME, Y, X), flags, dict(QUALITY_ATTRS))})
    made[RAIN].attrs = rain.attrs | {"ancillary_variables": QUALITY}
    return made


def lead_minutes_of(dataset: xr.Dataset) -> list[float]:
    """Return the lead times of a `forecast_dataset` in minutes."""
    return [float(lead / np.timedelta64(1, "m")) for lead in dataset[LEAD_TIME].values]


def _lonlat_coords(grid: Grid) -> dict[str, Any]:
    """Latitude and longitude of each pixel, for programs without projections; empty for lat/lon grids."""
    from pyproj import CRS as ProjCRS

    if ProjCRS.from_wkt(grid.crs_wkt).is_geographic:
        return {}
    lon, lat = _lonlat(grid.crs_wkt, grid.y.tobytes(), grid.x.tobytes())
    return {LAT: ((Y, X), lat, LAT_ATTRS), LON: ((Y, X), lon, LON_ATTRS)}


@functools.lru_cache(maxsize=1)  # the forecasts of a range share one grid
def _lonlat(crs_wkt: str, y: bytes, x: bytes) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(H, W) degrees to about a metre; NaN off the Earth."""
    from pyproj import Transformer

    to_degrees = Transformer.from_crs(crs_wkt, "EPSG:4326", always_xy=True)
    rows, columns = np.frombuffer(y), np.frombuffer(x)
    lon = np.empty((rows.size, columns.size), np.float32)
    lat = np.empty_like(lon)
    for row, place in enumerate(rows):  # row by row, since a country takes much memory in float64
        lon[row], lat[row] = to_degrees.transform(columns, np.full(columns.size, place))
    off_earth = ~(np.isfinite(lon) & np.isfinite(lat))
    lon[off_earth] = lat[off_earth] = np.nan
    return lon, lat


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
        raise ValueError(f"step_minutes={step_minutes} must be above 0. Pass the step of the archive.")


def _global_attrs(attrs: Mapping[str, Any], init_time: np.datetime64, step_minutes: float) -> dict[str, Any]:
    """Default attributes, overridden by the caller's where CF allows it; the history gets a line."""
    defaults = {
        "title": f"Precipitation nowcast from {np.datetime_as_string(init_time, unit='m')} UTC",
        "source": f"raincast {__version__}",
    }
    given = {name: _plain_value(value) for name, value in attrs.items() if value is not None}
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    history = f"{stamp} raincast {__version__}: forecast made"
    if "history" in given:
        # one line per program, as in the netCDF users' guide
        history = f"{given['history']}\n{history}"
    fixed = {"Conventions": schema.CONVENTIONS, "history": history, STEP_MINUTES: float(step_minutes)}
    return defaults | given | fixed


def _plain_value(value: Any) -> Any:
    """Convert `value` to a type of netCDF: text, a number or a row of numbers; anything else becomes text."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, str | int | float | np.number):
        return value
    if isinstance(value, np.ndarray | list | tuple) and np.asarray(value).dtype.kind in "iuf":
        return np.asarray(value).ravel()
    return str(value)


def _with_bounds(dataset: xr.Dataset, minutes: float) -> xr.Dataset:
    ends = dataset[TIME].values
    starts = ends - schema.step_timedelta(minutes)
    dataset[TIME].attrs["bounds"] = TIME_BOUNDS
    return dataset.assign_coords({TIME_BOUNDS: ((LEAD_TIME, BOUNDS), np.stack([starts, ends], axis=1))})
