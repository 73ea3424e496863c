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
