"""Coordinates of a CF file: which are time, y and x, their units, and the projection."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast.schema import TIME, Grid, X, Y

_ROLE_WORDS = {
    TIME: ("time", "valid_time", "t"),
    Y: ("y", "projection_y_coordinate", "latitude", "grid_latitude", "lat", "northing", "rlat"),
    X: ("x", "projection_x_coordinate", "longitude", "grid_longitude", "lon", "easting", "rlon"),
}
_METRES = {"m": 1.0, "meter": 1.0, "metre": 1.0, "km": 1000.0, "kilometer": 1000.0, "kilometre": 1000.0}
_PROJ_ATTRS = (
    "proj4",
    "proj4_params",
    "proj4_string",
    "proj_string",
    "proj_params",
    "projection",
    "proj",
    "crs",
)


def _role(name: str, coordinate: xr.DataArray | None) -> str | None:
    """Return time, y, x or None for a dimension or coordinate: by standard_name, dtype, axis, units, then name."""
    attrs = {} if coordinate is None else coordinate.attrs
    standard_name = attrs.get("standard_name")
    for role, words in _ROLE_WORDS.items():
        if standard_name in words:
            return role
    if standard_name is not None and standard_name.endswith("time"):
        return None  # forecast_reference_time is not the valid time
    if coordinate is not None and np.issubdtype(coordinate.dtype, np.datetime64):
        return TIME
    by_axis = {"T": TIME, "Y": Y, "X": X}.get(str(attrs.get("axis", "")).upper())
    by_unit = {"degrees_north": Y, "degrees_east": X}.get(str(attrs.get("units")))
    by_name = next((role for role, words in _ROLE_WORDS.items() if name.lower() in words), None)
    return by_axis or by_unit or by_name


def _coordinate(array: xr.DataArray, dim: str) -> xr.DataArray | None:
    """Return the 1-D coordinate along `dim`, whatever its name."""
    if dim in array.coords:  # .get() would create a default coordinate
        own: xr.DataArray = array.coords[dim]
        return own
    along = (c for c in array.coords.values() if c.dims == (dim,))
    return next((c for c in along if _role(str(c.name), c) in (Y, X, TIME)), None)


def find_roles(array: xr.DataArray) -> dict[str, str] | None:
    """Return the dimension (or scalar time coordinate) of time, y and x; None if any of them is absent."""
    roles: dict[str, str] = {}
    for dim in map(str, array.dims):
        role = _role(dim, _coordinate(array, dim))
        if role is not None:
            roles.setdefault(role, dim)
    if TIME not in roles:
        scalars = (str(name) for name, c in array.coords.items() if c.ndim == 0 and _role(str(name), c) == TIME)
        if (name := next(scalars, None)) is None:
            return None
        roles[TIME] = name
    if not {Y, X} & set(roles):  # dimensions without coordinates: in_our_words reports them
        rest = [str(dim) for dim in array.dims if dim not in roles.values() and array.sizes[dim] > 1]
        roles |= dict(zip((Y, X), rest[-2:], strict=False))
    extra = [dim for dim in array.dims if dim not in roles.values() and array.sizes[dim] > 1]
    return roles if {Y, X} <= set(roles) and not extra else None


def in_our_words(array: xr.DataArray) -> xr.DataArray:
    """Return `array` with 1-D coordinates named time, y and x, in the file's order and still on disk.

    `time` is a scalar if the file holds one frame without that dimension. Dimensions are put in order only after
    loading, because xarray loads a transposed array pixel by pixel. Raises ValueError if the dimensions cannot be
    identified, have no 1-D coordinates, or time cannot be decoded.
    """
    roles = find_roles(array)
    if roles is None:
        raise ValueError(f"{array.name} has dimensions {array.dims}: cannot tell which ones are time, y and x")
    axes = {role: _coordinate(array, name) for role, name in roles.items()}
    absent = [roles[role] for role, axis in axes.items() if axis is None]
    if absent:
        raise ValueError(_no_coordinates(array, absent))
    coords = {role: axis.values for role, axis in axes.items() if axis is not None}
    if not np.issubdtype(coords[TIME].dtype, np.datetime64):
        raise ValueError(
            f"{roles[TIME]} is {coords[TIME].dtype}, not decodable as CF time in the standard calendar"
        )
    ones = [dim for dim in array.dims if dim not in roles.values() and array.sizes[dim] == 1]
    bare = array.drop_vars(list(array.coords)).squeeze(ones)
    field = bare.rename({name: role for role, name in roles.items() if name in bare.dims})
    for role, axis in axes.items():
        if axis is not None:
            field.coords[role] = xr.Variable((role,) if role in field.dims else (), axis.values, axis.attrs)
    field.encoding = array.encoding
    return field


def _no_coordinates(array: xr.DataArray, absent: list[str]) -> str:
    found = ", ".join(f"{name}{tuple(c.dims)}" for name, c in array.coords.items() if c.ndim == 2)
    has = f" It has only 2-D coordinates ({found})." if found else ""
    return (
        f"{array.name} has no 1-D coordinate along {' and '.join(absent)}.{has} raincast needs the "
        "projection's own coordinates: add them and a grid_mapping to the file, or reproject it, "
        "e.g. with rioxarray or cdo remapbil"
    )


def find_grid(dataset: xr.Dataset, field: xr.DataArray, crs: str | None = None) -> Grid:
    """Return the grid of `field` (coordinates y and x) in metres or degrees, by `crs` or the file's projection."""
    definition = crs or _crs_definition(dataset, field)
    in_degrees = [_axis_unit(field, axis).startswith("degree") for axis in (Y, X)]
    if definition is None and all(in_degrees):
        definition = "EPSG:4326"
    if definition is None:
        raise ValueError(
            "it names no projection (no grid_mapping with crs_wkt, no proj_string). "
            "Set source.crs=…, e.g. source.crs=EPSG:3035 or a proj4 string in quotes"
        )
    wkt, factor = crs_in_metres(definition)
    if any(in_degrees) is not is_geographic(wkt):
        units = ", ".join(repr(_axis_unit(field, axis)) for axis in (Y, X))
        raise ValueError(
            f"its coordinates are in {units}, but its projection is {wkt[:60]}… "
            "Set the right one with source.crs=…"
        )
    y, x = (field[axis].values * _metres_per(field, axis, factor) for axis in (Y, X))
    y, x = even_axis(y, Y), even_axis(np.unwrap(x, period=360) if all(in_degrees) else x, X)
    return Grid(y=y, x=x, crs_wkt=wkt)


def _crs_definition(dataset: xr.Dataset, field: xr.DataArray) -> Any:
    """Return the file's projection: from the variable's grid mapping, any other one, or global attributes."""
    mapping = str(field.attrs.get("grid_mapping") or field.encoding.get("grid_mapping") or "")
    name = mapping.split(":")[0].split(" ")[0]
    others = [n for n in dataset.variables if n != name and dataset[n].ndim == 0]
    for variable in ([name] if name in dataset.variables else []) + others:
        attrs = dataset[variable].attrs
        for key in ("crs_wkt", "spatial_ref", *_PROJ_ATTRS):
            if _is_crs(attrs.get(key)):
                return str(attrs[key])
        if "grid_mapping_name" in attrs:
            return attrs
    for key in ("crs_wkt", *_PROJ_ATTRS):
        if _is_crs(dataset.attrs.get(key)):
            return str(dataset.attrs[key])
    return None


def _is_crs(text: Any) -> bool:
    """Return True if an attribute defines a projection; one called `projection` is often only a title."""
    return isinstance(text, str) and ("proj=" in text or "[" in text or text.upper().startswith("EPSG:"))


def _axis_unit(field: xr.DataArray, axis: str) -> str:
    return str(field[axis].attrs.get("units", "")).strip().lower()


def _metres_per(field: xr.DataArray, axis: str, of_crs: float) -> float:
    """Return metres per unit of a coordinate: 1 for degrees, `of_crs` if no unit is stated."""
    unit = _axis_unit(field, axis)
    if unit == "":
        return of_crs
    if unit.startswith("degree"):
        return 1.0
    if unit.removesuffix("s") not in _METRES:
        raise ValueError(f"the coordinate {axis} is in {unit!r}; raincast knows {', '.join(_METRES)} and degrees")
    return _METRES[unit.removesuffix("s")]


def crs_in_metres(definition: Any) -> tuple[str, float]:
    """Return the WKT of a projection with axes in metres, and the length of its original unit in metres.

    `definition` is anything that pyproj accepts (proj4, WKT, EPSG code, CF attributes as a dict). A geographic CRS
    keeps degrees, with factor 1. Raises ValueError for an unknown projection.
    """
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        crs = CRS.from_cf(definition) if isinstance(definition, dict) else CRS.from_user_input(definition)
    except (CRSError, KeyError) as error:
        raise ValueError(f"pyproj knows no projection {definition!r}: {error}") from error
    if crs.is_compound:
        crs = crs.sub_crs_list[0]  # the vertical part does not matter for pixel positions
    # the axes of a projection with a datum shift (+towgs84) are those of the projection inside it
    axes = (crs.source_crs if crs.is_bound and crs.source_crs else crs).axis_info
    # an axis of a derived geographic system (rotated pole) is in degrees too
    factor = 1.0 if crs.is_geographic or not axes else float(axes[0].unit_conversion_factor)
    if factor == 1.0:
        return str(crs.to_wkt()), 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a PROJ dict loses names but keeps the geometry
        parameters = crs.to_dict()
    parameters.pop("to_meter", None)
    return str(CRS.from_dict(parameters | {"units": "m"}).to_wkt()), factor


def is_geographic(crs_wkt: str) -> bool:
    """Return True if the coordinates are in degrees."""
    from pyproj import CRS

    return bool(CRS.from_wkt(crs_wkt).is_geographic)


def even_axis(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.float64]:
    """Return the axis without the file's rounding. Raises ValueError if the spacing is not constant."""
    axis = values.astype(np.float64)
    even = np.linspace(axis[0], axis[-1], axis.size)
    spacing = abs(axis[-1] - axis[0]) / max(axis.size - 1, 1)
    if axis.size > 1 and (not np.isfinite(axis).all() or np.abs(axis - even).max() > 0.02 * spacing):
        steps = np.abs(np.diff(axis))
        raise ValueError(
            f"the axis {name} is not evenly spaced ({steps.min():g} to {steps.max():g}): "
            "reproject the file to a regular grid first, e.g. with rioxarray or cdo remapbil"
        )
    return even
