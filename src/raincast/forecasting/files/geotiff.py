"""A forecast as cloud-optimised GeoTIFFs (COG), one per lead time."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from raincast import schema
from raincast.forecasting.files.dataset import lead_minutes_of
from raincast.system.files import atomic


def write_geotiffs(forecast: xr.Dataset, folder: Path, name: str) -> Path:
    """Write rates to the folder NAME, which is returned: NAME_+005min.tif etc.

    float32 mm/h with NaN for missing, north up. Each file is written atomically. ValueError if rasterio is not
    installed.
    """
    rasterio = rasterio_or_refuse()
    wkt = schema.find_crs_wkt(forecast, schema.RAIN)
    y, x = forecast[schema.Y].values, forecast[schema.X].values
    rows, columns = (slice(None, None, -1 if up else 1) for up in (y[0] < y[-1], x[0] > x[-1]))
    y, x = y[rows], x[columns]
    step_y, step_x = _step(y), _step(x)
    transform = rasterio.Affine(step_x, 0.0, x[0] - step_x / 2, 0.0, step_y, y[0] - step_y / 2)
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    tags = {
        key: str(forecast.attrs[key])
        for key in ("source", "checkpoint_sha256", "license")
        if key in forecast.attrs
    }
    tags["init_time"] = f"{np.datetime_as_string(forecast[schema.INIT_TIME].values, unit='s')}Z"
    for number, minutes in enumerate(lead_minutes_of(forecast)):
        path = target / f"{name}_+{minutes:03g}min.tif"
        valid = np.datetime_as_string(forecast[schema.TIME].values[number], unit="s")
        with atomic(path) as partial, rasterio.open(
            partial, "w", driver="COG", dtype="float32", nodata=np.nan, count=1, crs=wkt, transform=transform,
            height=y.size, width=x.size, compress="deflate", predictor="yes", overview_resampling="average",
        ) as file:  # fmt: skip
            file.write(forecast[schema.RAIN].values[number][rows, columns], 1)
            file.update_tags(**tags, valid_time=f"{valid}Z", lead_minutes=f"{minutes:g}")
            file.set_band_description(1, f"rain rate (mm/h) +{minutes:g} min")
            file.set_band_unit(1, "mm h-1")
    return target


def _step(axis: np.ndarray) -> float:
    return float((axis[-1] - axis[0]) / (axis.size - 1)) if axis.size > 1 else 1.0


def rasterio_or_refuse() -> Any:
    """Return the module rasterio. Raises ValueError with the command that installs it if it is missing."""
    try:
        import rasterio  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError(
            'formats: geotiff needs the package rasterio: pip install -e ".[gis]", or leave geotiff out.'
        ) from error
    return rasterio
