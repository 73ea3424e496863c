"""A forecast as a CF netCDF file for GDAL, xarray and netCDF programs.

Rates are int16 codes of 0.01 mm/h, as in the archive: a fifth of the size of float32 after zlib, and finer
than any radar measures. Every netCDF library reads zlib; zstd would be smaller, but GDAL and netCDF builds without
the filter cannot read it.

Probabilities are a second variable, (lead_time, threshold, y, x). GDAL then needs the name of the variable:
NETCDF:file.nc:rain_rate.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from raincast.archive import CODE_MM_H, MISSING_CODE, TIME_UNITS, nearest_codes
from raincast.forecasting.files.dataset import LAT, LON, MEMBER, MEMBERS
from raincast.schema import CRS, INIT_TIME, LEAD_TIME, RAIN, RAIN_ATTRS, TIME, TIME_BOUNDS, X, Y
from raincast.system.files import atomic

PYSTEPS_RAIN, PYSTEPS_CRS = "precip_intensity", "polar_stereographic"
GRID_MAPPINGS = (CRS, PYSTEPS_CRS)
PROBABILITY_CODE = 1e-4
"""Probabilities are stored as int16 multiples of this."""
MINUTES_CODE = 0.1
"""Times to the onset are stored as int16 multiples of so many minutes."""


def write_forecast(
    dataset: xr.Dataset, path: str | Path, *, overwrite: bool = False, for_pysteps: bool = False
) -> Path:
    """Write a `forecast_dataset` atomically; returns the path.

    `for_pysteps`: north first, and with the names that `pysteps.io.import_netcdf_pysteps` looks for. It reads the
    members, (M, L, H, W), or of a forecast without members the rates, (L, H, W).
    FileExistsError if the file exists and `overwrite` is false.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists. Choose another path, delete the file, or allow it with overwrite=True."
        )
    _check_forecast(dataset)
    plain = _in_file_form(_for_pysteps(dataset) if for_pysteps else dataset)
    plain, encoding = _coded(plain, _encoding(plain))
    return _write(plain, path, encoding)


def write_zarr(dataset: xr.Dataset, path: Path) -> Path:
    """Write a Zarr v3 store atomically, as float32 with one map per chunk; an existing one is replaced."""
    _check_forecast(dataset)
    plain = _in_file_form(dataset)
    encoding: dict[str, dict[str, Any]] = {}
    for name, given in _encoding(plain).items():
        maps = "chunksizes" in given
        encoding[name] = {"chunks": given["chunksizes"]} if maps else given
    with atomic(path) as partial, warnings.catch_warnings():
        # consolidated metadata: not in the specification of Zarr 3 yet, but servers without listings need them
        warnings.simplefilter("ignore")
        plain.to_zarr(partial, mode="w", zarr_format=3, consolidated=True, encoding=encoding)
    return path


def write_plain(dataset: xr.Dataset, path: Path) -> Path:
    """Write a dataset with the times of a forecast and no maps as netCDF, atomically."""
    plain = dataset.drop_encoding()
    encoding = _encoding(plain)
    for name, variable in plain.data_vars.items():
        encoding[str(name)] = {"zlib": True, "complevel": 4, "_FillValue": np.float32(np.nan)}
        others = (c for n, c in plain.coords.items() if n not in plain.dims and set(c.dims) <= set(variable.dims))
        variable.attrs["coordinates"] = " ".join(str(coordinate.name) for coordinate in others)
    return _write(plain, path, encoding)


def _write(dataset: xr.Dataset, path: Path, encoding: dict[str, dict[str, Any]]) -> Path:
    """Write netCDF-4 atomically, as `Dataset.to_netcdf` does.

    That would look for a dask cluster first: where dask is installed, it imports dask.distributed for 0.2 s.
    """
    from netCDF4 import Dataset

    with atomic(path) as partial, Dataset(partial, "w", format="NETCDF4") as file:
        store = xr.backends.NetCDF4DataStore(file)  # type: ignore[no-untyped-call]
        dataset.dump_to_store(store, encoding=encoding)
    return path


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
    """Adapt to pysteps' importer: the northernmost row first, and the projection under the name it knows.

    It reads one variable: members where there are any, in pysteps' order (member, lead, y, x).
    """
    if dataset[Y].size > 1 and dataset[Y].values[0] < dataset[Y].values[-1]:
        dataset = dataset.isel({Y: slice(None, None, -1)})
    names = {MEMBERS if MEMBERS in dataset else RAIN: PYSTEPS_RAIN}
    if MEMBERS in dataset:
        dataset = dataset.assign({MEMBERS: dataset[MEMBERS].transpose(MEMBER, LEAD_TIME, Y, X)})
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
        plain[name].encoding["coordinates"] = None  # None tells xarray to write none
    return plain


def _encoding(dataset: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Encodings of times and maps: int16 codes, flags and degrees, compressed, with one map per chunk."""
    init_time = str(np.datetime_as_string(dataset[INIT_TIME].values, unit="s")).replace("T", " ")
    times = {"dtype": "int64", "_FillValue": None}
    encoding: dict[str, dict[str, Any]] = {
        # float64, because steps of 2.5 minutes exist
        LEAD_TIME: {"units": "minutes", "dtype": "float64", "_FillValue": None},
        INIT_TIME: times | {"units": TIME_UNITS},
        # the same number as the lead time in seconds, as pysteps reads it
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


def _coded(
    dataset: xr.Dataset, encoding: dict[str, dict[str, Any]]
) -> tuple[xr.Dataset, dict[str, dict[str, Any]]]:
    """Encode map by map to int16: xarray would hold two more copies of everything in float32."""
    coded = {}
    for name, given in encoding.items():
        if given.get("dtype") == "int16":
            variable = dataset[name].variable
            packed = {key: given.pop(key) for key in ("scale_factor", "_FillValue")}
            codes = np.empty(variable.shape, np.int16)
            for place in np.ndindex(variable.shape[:-2]):
                values = variable.values[place]
                if variable.attrs.get("units") == RAIN_ATTRS["units"]:
                    codes[place] = nearest_codes(np.where(np.isfinite(values), values, np.nan))
                    continue
                numbers = np.rint(values / packed["scale_factor"])
                codes[place] = np.where(np.isfinite(numbers), numbers, packed["_FillValue"])
            coded[name] = xr.Variable(variable.dims, codes, variable.attrs | packed, variable.encoding)
    return dataset.assign(coded), encoding


def _code(name: str, variable: xr.Variable) -> dict[str, Any]:
    if name in (LAT, LON):
        return {"dtype": "float32", "_FillValue": None}
    if variable.dtype.kind == "u":
        return {"dtype": "uint8", "_FillValue": None}
    code = {"1": PROBABILITY_CODE, "minutes": MINUTES_CODE}.get(str(variable.attrs.get("units")), CODE_MM_H)
    return {"dtype": "int16", "scale_factor": code, "_FillValue": np.int16(MISSING_CODE)}
