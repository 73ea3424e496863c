"""CF attributes of a projection, from its WKT."""

import functools
import warnings
from typing import Any

import numpy as np


def is_geographic(crs_wkt: str) -> bool:
    """Return True if the coordinates are in degrees."""
    return bool(_crs(crs_wkt).is_geographic)


def mapping_attrs(crs_wkt: str) -> dict[str, Any]:
    """Return the attributes of a grid-mapping variable."""
    crs = _crs(crs_wkt)
    # to_cf supports only some projections; crs_wkt describes all
    attrs = {k: v for k, v in _cf_attrs(crs).items() if v is not None} | {
        "long_name": "coordinate reference system",
        "crs_wkt": crs_wkt,
        "spatial_ref": crs.to_wkt("WKT1_GDAL") if _has_wkt1(crs) else crs_wkt,
    }
    if attrs.get("grid_mapping_name") == "polar_stereographic":
        # pyproj omits this attribute, which CF requires: the pole on the side of the standard parallel
        pole = float(np.copysign(90.0, attrs.get("standard_parallel", 90.0)))
        attrs.setdefault("latitude_of_projection_origin", pole)
    if "azimuth_of_central_line" in attrs:
        # CF's name is azimuth_of_central_line, but the IOOS checker requires azimuth
        attrs["azimuth"] = attrs["azimuth_of_central_line"]
    return attrs


def axis_attrs(crs_wkt: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the attributes of the coordinates y and x."""
    if is_geographic(crs_wkt):
        return (
            {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"},
            {"standard_name": "longitude", "units": "degrees_east", "axis": "X"},
        )
    return (
        {"standard_name": "projection_y_coordinate", "units": "m", "axis": "Y"},
        {"standard_name": "projection_x_coordinate", "units": "m", "axis": "X"},
    )


@functools.lru_cache(maxsize=16)
def _crs(crs_wkt: str) -> Any:
    from pyproj import CRS

    return CRS.from_wkt(crs_wkt)


def _cf_attrs(crs: Any) -> dict[str, Any]:
    """Return the CF attributes of a projection; empty if they would be incomplete.

    For an oblique Mercator pyproj warns that the skew of the grid is lost. If the skew equals the azimuth of the
    central line, as in the Swiss projection, nothing is lost: this is how PROJ's omerc, to which CF refers, reads
    it.
    """
    with warnings.catch_warnings(record=True) as lost:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        attrs: dict[str, Any] = crs.to_cf()
    return attrs if not lost or _is_skewed_by_its_azimuth(crs) else {}


def _is_skewed_by_its_azimuth(crs: Any) -> bool:
    """Return True for variant B (false origin at the centre, as in CF) whose skew equals its azimuth."""
    if not crs.is_projected or crs.coordinate_operation.method_name != "Hotine Oblique Mercator (variant B)":
        return False
    angles = {p.name: p.value for p in crs.coordinate_operation.params}
    return bool(angles["Angle from Rectified to Skew Grid"] == angles["Azimuth at projection centre"])


def _has_wkt1(crs: Any) -> bool:
    from pyproj.exceptions import CRSError

    try:
        return bool(crs.to_wkt("WKT1_GDAL"))
    except CRSError:
        return False


METRES = {"m": 1.0, "meter": 1.0, "metre": 1.0, "km": 1000.0, "kilometer": 1000.0, "kilometre": 1000.0}
_LEAST_RADIUS = 1e5
"""Radius in m below which an Earth is stated in km, as KNMI does: +a=6378.14."""
_WKT2 = ("PROJCRS[", "GEOGCRS[", "BOUNDCRS[")
_LENGTHS = ("a", "b", "R", "x_0", "y_0")


def crs_in_metres(definition: Any) -> tuple[str, float]:
    """Return the WKT of a projection with axes in metres, and the length of its original unit in metres.

    `definition` is anything that pyproj accepts (proj4, WKT, EPSG code, CF attributes as a dict). A geographic CRS
    keeps degrees, with factor 1. If the Earth's radius is in km, so are all its lengths. Raises ValueError for an
    unknown projection.
    """
    return _in_metres(definition) if isinstance(definition, str) else _converted(definition)


def _converted(definition: Any) -> tuple[str, float]:
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
    in_km = crs.ellipsoid is not None and crs.ellipsoid.semi_major_metre < _LEAST_RADIUS
    # an axis of a derived geographic system (rotated pole) is in degrees too
    factor = 1.0 if crs.is_geographic or not axes else float(axes[0].unit_conversion_factor)
    if factor == 1.0 and not in_km:
        # pyproj may word WKT with a datum shift anew each time: keep the text of an archive
        is_ours = isinstance(definition, str) and definition.startswith(_WKT2)
        return str(definition if is_ours else crs.to_wkt()), 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a PROJ dict loses names but keeps the geometry
        parameters = crs.to_dict()
    parameters.pop("to_meter", None)
    parameters.pop("units", None)
    if in_km:
        parameters |= {name: 1000 * float(parameters[name]) for name in _LENGTHS if name in parameters}
        factor = 1.0 if crs.is_geographic else 1000.0
    return str(CRS.from_dict(parameters).to_wkt()), factor


_in_metres = functools.lru_cache(maxsize=64)(_converted)
