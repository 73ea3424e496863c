"""Grids of files: from the coordinates of a CF file, their units and projection, or from corners in degrees."""

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast.archive.limits import check_image
from raincast.archive.packing import warn_once
from raincast.projection import crs_in_metres, is_geographic
from raincast.schema import KM_PER_DEGREE, TIME, Grid, X, Y, grid_on

CORNERS = ("LL", "UL", "UR", "LR")
"""ODIM's names: lower left, upper left, upper right, lower right."""
_ROLE_WORDS = {
    TIME: ("time", "valid_time", "t"),
    Y: ("y", "projection_y_coordinate", "latitude", "grid_latitude", "lat", "northing", "rlat"),
    X: ("x", "projection_x_coordinate", "longitude", "grid_longitude", "lon", "easting", "rlon"),
}
_ROTATED = ("grid_latitude", "grid_longitude")
_PIXELS_APART = 1.5
"""Services round latitudes and longitudes, and some state those of the pixels' corners."""
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
    is_rotated = any(field[axis].attrs.get("standard_name") in _ROTATED for axis in (Y, X))
    in_degrees = all(str(field[axis].attrs.get("units", "")).lower().startswith("degree") for axis in (Y, X))
    if definition is None and in_degrees and not is_rotated:
        definition = "EPSG:4326"
    if definition is None:
        raise ValueError(
            "it names no projection (no grid_mapping with crs_wkt, no proj_string). "
            "Set source.crs=…, e.g. source.crs=EPSG:3035 or a proj4 string in quotes"
        )
    grid = grid_on(field[Y], field[X], definition, remedy=". Set the right one with source.crs=…")
    found = Grid(even_axis(grid.y, Y), even_axis(grid.x, X), grid.crs_wkt)
    _compare_with_lat_lon(dataset, field, found)
    return found


def _compare_with_lat_lon(dataset: xr.Dataset, field: xr.DataArray, grid: Grid) -> None:
    """Warn if the file's own latitudes and longitudes of the corners contradict its projection."""
    roles = find_roles(dataset[field.name])
    stated = {}
    for name, variable in dataset.variables.items():
        words = {variable.attrs.get("standard_name"), variable.attrs.get("units")}
        for what, unit in (("latitude", "degrees_north"), ("longitude", "degrees_east")):
            if roles and words & {what, unit} and set(variable.dims) == {roles[Y], roles[X]}:
                corners = dataset[name].isel({roles[Y]: [0, -1], roles[X]: [0, -1]})
                stated[what] = corners.transpose(roles[Y], roles[X]).values.astype(np.float64)
    if len(stated) < 2:
        return
    from pyproj import CRS, Transformer

    crs = CRS.from_wkt(grid.crs_wkt)
    to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    lon, lat = to_degrees.transform(*np.meshgrid(grid.x[[0, -1]], grid.y[[0, -1]]))
    east = (stated["longitude"] - lon + 180) % 360 - 180
    km = KM_PER_DEGREE * np.hypot(stated["latitude"] - lat, east * np.cos(np.radians(lat)))
    apart = km[np.isfinite(km)].max(initial=0)
    if apart > _PIXELS_APART * grid.pixel_km:
        warn_once(
            f"{field.name}: the corners by its projection and coordinates y and x are up to {apart:.3g} km from "
            "its own latitudes and longitudes. The projection is used: check it, and the units of y and x"
        )


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


@lru_cache(maxsize=16)
def grid_between(
    projdef: str, corners: tuple[tuple[str, float, float], ...], sizes: tuple[tuple[int, float], ...]
) -> Grid:
    """Return the grid with `corners` (name, longitude, latitude); `sizes` are number and scale of pixels in y, x.

    Raises ValueError for an unknown projection, too few corners, or corners that contradict the sizes.
    """
    from pyproj import Transformer

    wkt, _ = crs_in_metres(projdef)
    # longitudes and latitudes are WGS 84; PROJ shifts the datum if projdef defines it (+towgs84)
    to_map = Transformer.from_crs("EPSG:4326", wkt, always_xy=True)
    places = {name: to_map.transform(lon, lat) for name, lon, lat in corners}
    (num_y, scale_y), (num_x, scale_x) = sizes
    check_image(num_y, num_x)
    if is_geographic(wkt):  # across the date line the eastern corners have smaller longitudes
        west = max((x for name, (x, _) in places.items() if name[1] == "L"), default=-np.inf)
        places = {name: (x + 360 if name[1] == "R" and x < west else x, y) for name, (x, y) in places.items()}
    y = _centres(_edges(places, "U", 1), _edges(places, "L", 1), num_y, scale_y, "y")
    x = _centres(_edges(places, "L", 0), _edges(places, "R", 0), num_x, scale_x, "x")
    return Grid(y=y, x=x, crs_wkt=wkt)


def _edges(places: Mapping[str, tuple[float, float]], side: str, axis: int) -> Sequence[float]:
    """Return the coordinates of a side (U, L for y; L, R for x): the mean of its rounded corners, then each."""
    letter = 0 if axis else 1
    values = [place[axis] for name, place in places.items() if name[letter] == side]
    if not values or not np.isfinite(values).all():
        raise ValueError(
            f"where states too few corners ({', '.join(places) or 'none'}): at least LL and UR are needed"
        )
    return float(np.mean(values)), *values


def _centres(
    firsts: Sequence[float], lasts: Sequence[float], number: int, scale: float, axis: str
) -> npt.NDArray[np.float64]:
    """Return pixel centres between two edges, which must agree with `scale` (0: not stated).

    The corners should be those of the image, but some services give the centres of the corner pixels. The scale
    shows which, and also which corner is wrong: DMI's lower right one is 15 km off. MeteoSwiss states it in km.
    """
    first, last = firsts[0], lasts[0]
    if scale > 0 and abs(abs(last - first) / (1000.0 * scale) / max(number, 1) - 1) <= 0.02:
        scale *= 1000.0
    if scale > 0:
        pairs = itertools.product(firsts, lasts)
        fits = ((a, b) for a, b in pairs if _steps(abs(b - a), number, scale) is not None)
        first, last = next(fits, (first, last))
    width = abs(last - first)
    if number < 1 or first == last:
        raise ValueError(f"{axis}size={number} pixels from {first:g} to {last:g} are not an image")
    steps = number if scale <= 0 else _steps(width, number, scale)
    if steps is None and abs(width / scale / number - 1) > 0.02:
        raise ValueError(
            f"its corners are {width:g} apart in {axis}, but {axis}size × {axis}scale is {number * scale:g}: "
            "where/projdef, the corners or the scale are wrong"
        )
    steps = steps or number
    pixel = (last - first) / steps
    if scale > 0 and abs(width - steps * scale) <= 0.1 * scale:
        pixel = float(np.copysign(scale, pixel))
    centre = 0.5 * (first + last)
    return centre + pixel * (np.arange(number, dtype=np.float64) - 0.5 * (number - 1))


def _steps(width: float, number: int, scale: float) -> int | None:
    """Return the number of pixels between the corners, `number` or one less; None if neither fits the scale."""
    for steps in (number, number - 1):
        if abs(width / scale - steps) <= 0.1:
            return steps
    return None
