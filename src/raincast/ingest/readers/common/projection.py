"""Projections in metres and even axes: what readers need to state where their pixels lie."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt


def crs_in_metres(definition: Any) -> tuple[str, float]:
    """The WKT of a projection with its axes in metres, and how many metres one of its own units is.

    `definition` is whatever pyproj takes (proj4, WKT, EPSG code, CF attributes as a dict). A geographic one
    keeps its degrees, with factor 1.
    """
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        crs = CRS.from_cf(definition) if isinstance(definition, dict) else CRS.from_user_input(definition)
    except (CRSError, KeyError) as error:
        raise ValueError(f"pyproj knows no projection {definition!r}: {error}") from error
    if crs.is_compound:
        crs = crs.sub_crs_list[0]  # heights say nothing of where a pixel lies
    # the axes of a projection with a datum shift (+towgs84) are those of the projection inside
    axes = (crs.source_crs if crs.is_bound and crs.source_crs else crs).axis_info
    # an axis of a derived geographic system (rotated pole) is in degrees too
    factor = 1.0 if crs.is_geographic or not axes else float(axes[0].unit_conversion_factor)
    if factor == 1.0:
        return str(crs.to_wkt()), 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a PROJ dict holds no names; the geometry stays
        parameters = crs.to_dict()
    parameters.pop("to_meter", None)
    return str(CRS.from_dict(parameters | {"units": "m"}).to_wkt()), factor


def is_geographic(crs_wkt: str) -> bool:
    """Whether the coordinates are degrees."""
    from pyproj import CRS

    return bool(CRS.from_wkt(crs_wkt).is_geographic)


def even_axis(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.float64]:
    """The axis with the rounding of its file removed; ValueError where the spacing is not constant."""
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
