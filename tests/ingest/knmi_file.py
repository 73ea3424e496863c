"""A small file in KNMI's format."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np

PROJ4 = "+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60.0 +a=6378.137 +b=6356.752 +x_0=0 +y_0=0"
NO_DATA = 65535


def _knmi_time(time: datetime) -> bytes:
    month = "JANFEBMARAPRMAYJUNJULAUGSEPOCTNOVDEC"[3 * time.month - 3 : 3 * time.month]
    return f"{time.day:02d}-{month}-{time.year};{time:%H:%M:%S}.000".encode()


def write(
    path: Path,
    end: str = "2020-01-01T00:05",
    codes: Any = None,
    *,
    minutes: int = 5,
    column_offset: float = 0.0,
) -> Path:
    """One frame of codes (0.01 mm) as KNMI HDF5."""
    time = datetime.fromisoformat(end)
    if codes is None:
        rng = np.random.default_rng(time.hour * 60 + time.minute)
        codes = rng.integers(0, 40, (6, 5))
        codes[0, 0] = NO_DATA
    codes = np.asarray(codes, np.uint16)
    with h5py.File(path, "w") as file:
        file.create_group("overview").attrs.update(
            product_group_name=np.bytes_(b"RAD_NL25_TEST"),
            product_datetime_start=np.array([_knmi_time(time - timedelta(minutes=minutes))]),
            product_datetime_end=np.array([_knmi_time(time)]),
        )
        file.create_group("geographic").attrs.update(
            geo_column_offset=np.array([column_offset], np.float32),
            geo_row_offset=np.array([3650.0], np.float32),
            geo_dim_pixel=np.bytes_(b"KM,KM"),
            geo_number_columns=np.array([codes.shape[1]], np.int32),
            geo_number_rows=np.array([codes.shape[0]], np.int32),
            geo_pixel_def=np.bytes_(b"LU"),
            geo_pixel_size_x=np.array([1.0], np.float32),
            geo_pixel_size_y=np.array([-1.0], np.float32),
        )
        projection = file.create_group("geographic/map_projection")
        projection.attrs["projection_proj4_params"] = np.bytes_(PROJ4.encode())
        image = file.create_group("image1")
        image.attrs["image_geo_parameter"] = np.bytes_(b"ACCUMULATED_PRECIPITATION_[MM]")
        image.create_dataset("image_data", data=codes, compression="gzip")
        image.create_group("calibration").attrs.update(
            calibration_formulas=np.bytes_(b"GEO=0.01*PV+0.0"),
            calibration_missing_data=np.array([NO_DATA], np.int32),
            calibration_out_of_image=np.array([NO_DATA], np.int32),
        )
    return path
