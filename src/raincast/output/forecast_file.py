"""A forecast as a CF netCDF file that GDAL, xarray and netCDF programs read without knowing raincast.

Rates are int16 codes of 0.01 mm/h, as in the archive: a fifth of the size of float32 after zlib, and finer
than any radar measures. The compression is zlib, which every netCDF library has; zstd would be smaller, and
unreadable for GDAL and for netCDF builds without the filter.

Probabilities, where there are any, are a second variable beside the rates, (lead_time, threshold, y, x). GDAL then
asks which of the two is meant: NETCDF:file.nc:rain_rate.
"""

import functools
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
NO_LEAPS = "leap_seconds: none"  # as computers count time
INIT_TIME_ATTRS = {
    "standard_name": "forecast_reference_time",
    "long_name": "time of the last input frame (UTC)",
    "units_metadata": NO_LEAPS,
}
LEAD_TIME_ATTRS = {"standard_name": "forecast_period", "long_name": "time from init_time to valid time"}
# no axis="T" here: the dimension is lead_time, and CF allows one T axis, a coordinate variable of its own
VALID_TIME_ATTRS = {"standard_name": "time", "long_name": "valid time (UTC)", "units_metadata": NO_LEAPS}
# as CF has it for its own names that end in "above_threshold": the coordinate is a value of the quantity
THRESHOLD_ATTRS = {"standard_name": "rainfall_rate", "long_name": "rain rate to reach", "units": "mm h-1"}
# CF has no standard name for it
EXCEEDANCE_ATTRS = {
    "long_name": "probability that the rain rate is at least the threshold",
    "units": "1",
    "grid_mapping": CRS,
}
QUALITY = "quality_flag"
MISSING, OUTSIDE_REACH, FILLED = 1, 2, 4
"""Bits of the quality flag."""
QUALITY_ATTRS = {
    "standard_name": "quality_flag",
    "long_name": "what is known of the pixel",
    "flag_masks": np.array([MISSING, OUTSIDE_REACH, FILLED], np.uint8),
    "flag_meanings": "missing outside_reach filled",
    "comment": "missing: not observed in any input frame; outside_reach: followed back along the motion of the "
    "newest frames it comes from where nothing was observed; filled: missing in some of the input frames",
    "grid_mapping": CRS,
}
LAT, LON = "lat", "lon"
PYSTEPS_RAIN, PYSTEPS_CRS = "precip_intensity", "polar_stereographic"
GRID_MAPPINGS = (CRS, PYSTEPS_CRS)
LAT_ATTRS = {"standard_name": "latitude", "long_name": "latitude of the pixel", "units": "degrees_north"}
LON_ATTRS = {"standard_name": "longitude", "long_name": "longitude of the pixel", "units": "degrees_east"}
PROBABILITY_CODE = 1e-4
"""Probabilities are int16 codes of this."""
MINUTES_CODE = 0.1
"""Times to an onset are int16 codes of so many minutes."""
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
            **_lonlat_coords(grid),
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


def with_quality(dataset: xr.Dataset, flags: npt.NDArray[np.uint8]) -> xr.Dataset:
    """A `forecast_dataset` and the bits `MISSING`, `OUTSIDE_REACH` and `FILLED` of each pixel, (lead, y, x)."""
    rain = dataset[RAIN]
    if flags.shape != rain.shape:
        raise ValueError(f"The flags have shape {flags.shape}: pass one for each pixel and lead, {rain.shape}.")
    made = dataset.assign({QUALITY: ((LEAD_TIME, Y, X), flags, dict(QUALITY_ATTRS))})
    made[RAIN].attrs = rain.attrs | {"ancillary_variables": QUALITY}
    return made


def write_forecast(
    dataset: xr.Dataset, path: str | Path, *, overwrite: bool = False, for_pysteps: bool = False
) -> Path:
    """Write a `forecast_dataset` whole or not at all; returns the path.

    `for_pysteps`: north first, and with the names that `pysteps.io.import_netcdf_pysteps` looks for.
    FileExistsError where the file exists and `overwrite` is false.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists. Choose another path, delete the file, or allow it with overwrite=True."
        )
    _check_forecast(dataset)
    plain = _in_file_form(_for_pysteps(dataset) if for_pysteps else dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the process number keeps two writers of one file from meeting in the same partial file
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        plain.to_netcdf(partial, engine="netcdf4", format="NETCDF4", encoding=_encoding(plain))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _lonlat_coords(grid: Grid) -> dict[str, Any]:
    """Latitude and longitude of each pixel, for programs that know no projections; none for lat/lon grids."""
    from pyproj import CRS as ProjCRS

    if ProjCRS.from_wkt(grid.crs_wkt).is_geographic:
        return {}
    lon, lat = _lonlat(grid.crs_wkt, grid.y.tobytes(), grid.x.tobytes())
    return {LAT: ((Y, X), lat, LAT_ATTRS), LON: ((Y, X), lon, LON_ATTRS)}


@functools.lru_cache(maxsize=1)  # a range of forecasts, or those of a day, have one grid
def _lonlat(crs_wkt: str, y: bytes, x: bytes) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(H, W) degrees to about a metre; NaN off the Earth."""
    from pyproj import Transformer

    to_degrees = Transformer.from_crs(crs_wkt, "EPSG:4326", always_xy=True)
    rows, columns = np.frombuffer(y), np.frombuffer(x)
    lon = np.empty((rows.size, columns.size), np.float32)
    lat = np.empty_like(lon)
    for row, place in enumerate(rows):  # row by row: in float64 a country is large
        lon[row], lat[row] = to_degrees.transform(columns, np.full(columns.size, place))
    off_earth = ~(np.isfinite(lon) & np.isfinite(lat))
    lon[off_earth] = lat[off_earth] = np.nan
    return lon, lat


def write_zarr(dataset: xr.Dataset, path: Path) -> Path:
    """The same as a Zarr v3 store, float32 and a chunk a map, whole or not at all, in the place of another."""
    import shutil

    _check_forecast(dataset)
    plain = _in_file_form(dataset)
    encoding: dict[str, dict[str, Any]] = {}
    for name, given in _encoding(plain).items():
        maps = "chunksizes" in given
        encoding[name] = {"chunks": given["chunksizes"]} if maps else given
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        plain.to_zarr(partial, mode="w", zarr_format=3, consolidated=False, encoding=encoding)
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def lead_minutes_of(dataset: xr.Dataset) -> list[float]:
    """The lead times of a `forecast_dataset` in minutes."""
    return [float(lead / np.timedelta64(1, "m")) for lead in dataset[LEAD_TIME].values]


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


def _for_pysteps(dataset: xr.Dataset) -> xr.Dataset:
    """Its importer takes the first row for the northernmost, and knows one projection, by its variable's name."""
    if dataset[Y].size > 1 and dataset[Y].values[0] < dataset[Y].values[-1]:
        dataset = dataset.isel({Y: slice(None, None, -1)})
    names = {RAIN: PYSTEPS_RAIN}
    if dataset[CRS].attrs.get("grid_mapping_name") == PYSTEPS_CRS:
        names[CRS] = PYSTEPS_CRS
    renamed = dataset.rename(names)
    for variable in renamed.data_vars.values():
        if CRS in names and "grid_mapping" in variable.attrs:
            variable.attrs = variable.attrs | {"grid_mapping": PYSTEPS_CRS}
    return renamed


def _in_file_form(dataset: xr.Dataset) -> xr.Dataset:
    """A copy whose `coordinates` attribute names init_time and time only: xarray would add crs."""
    outside = [name for name in (*GRID_MAPPINGS, TIME_BOUNDS) if name in dataset.coords]
    plain = dataset.drop_encoding().reset_coords(outside)
    places = f" {LAT} {LON}" if LAT in plain.coords else ""
    for name, variable in plain.data_vars.items():
        if variable.dims[-2:] == (Y, X):
            times = f"{INIT_TIME} {TIME}" if LEAD_TIME in variable.dims else INIT_TIME
            plain[name].attrs["coordinates"] = times + places
    for name in outside:
        plain[name].encoding["coordinates"] = None  # xarray's word for: write none
    return plain


def _encoding(dataset: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Times, and maps: int16 codes, flags and degrees, compressed. A chunk is one map: what programs ask for."""
    init_time = str(np.datetime_as_string(dataset[INIT_TIME].values, unit="s")).replace("T", " ")
    times = {"dtype": "int64", "_FillValue": None}
    encoding: dict[str, dict[str, Any]] = {
        # float64, because steps of 2.5 minutes exist
        LEAD_TIME: {"units": "minutes", "dtype": "float64", "_FillValue": None},
        INIT_TIME: times | {"units": TIME_UNITS},
        # the same number as the lead time in seconds, which is how pysteps reads it
        TIME: times | {"units": f"seconds since {init_time}"},
    }
    if TIME_BOUNDS in dataset.variables:
        encoding[TIME_BOUNDS] = encoding[TIME]
    for name, variable in dataset.variables.items():
        if variable.dims[-2:] == (Y, X):
            chunks = (1,) * (variable.ndim - 2) + variable.shape[-2:]
            packed = {"chunksizes": chunks, "zlib": True, "complevel": 4, "shuffle": True}
            encoding[str(name)] = packed | _code(str(name), variable)
        elif name not in encoding:
            encoding[str(name)] = {"_FillValue": None}
    return encoding


def _code(name: str, variable: xr.Variable) -> dict[str, Any]:
    if name in (LAT, LON):
        return {"dtype": "float32", "_FillValue": None}
    if variable.dtype.kind == "u":
        return {"dtype": "uint8", "_FillValue": None}
    code = {"1": PROBABILITY_CODE, "minutes": MINUTES_CODE}.get(str(variable.attrs.get("units")), CODE_MM_H)
    return {"dtype": "int16", "scale_factor": code, "_FillValue": np.int16(MISSING_CODE)}
