"""Polar volumes and sweeps, which are recognised and refused with a hint on how to grid them."""

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import xarray as xr

from raincast.ingest.readers import ALL, HDF5_SIGNATURE, Head, starts_with
from raincast.ingest.readers.cf import NETCDF3_SIGNATURES
from raincast.ingest.readers.common.unpack import first_bytes

# NOAA ICD 2620010, the volume header record; ICD 2620001, the WMO heading before a product
NEXRAD_SIGNATURES = (b"AR2V", b"ARCHIVE2")
NEXRAD_PRODUCT = re.compile(rb"(\x01\r\r\n\d{3} ?\r\r\n)?SDUS\d\d [A-Z]{4} \d{6}")
RAINBOW = re.compile(rb"\s*(<\?xml[^>]*>\s*)?<volume\s")  # Leonardo Rainbow 5, file formats
SIGMET = struct.pack("<h", 27), struct.pack("<h", 26), struct.pack("<h", 15)
"""At bytes 0, 12 and 24: product header, product configuration, RAW (IRIS Programming Guide M211318EN)."""
DX = re.compile(rb"DX\d{15}BY *\d")  # DWD, radar product DX: a sweep of one radar
POLAR_OBJECTS = ("PVOL", "SCAN", "RAY", "AZIM", "ELEV")  # what/object of ODIM_H5


@dataclass(frozen=True)
class Polar:
    """Refuses ODIM volumes and scans, CfRadial, NEXRAD levels 2 and 3, SIGMET, Rainbow and DX, gzipped or plain.

    raincast forecasts gridded fields. Gridding rays involves choices (height, beam blockage, overlap) that belong
    to specialised tools.
    """

    def recognises(self, path: Path) -> bool:
        """Return True for one of these formats."""
        return polar_kind(path) is not None

    def scan(self, path: Path) -> Head:
        """Raise ValueError, which explains how to grid the file."""
        refuse(path, polar_kind(path))

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Raise ValueError, which explains how to grid the file."""
        refuse(path, polar_kind(path))


def polar_kind(path: Path) -> str | None:
    """Return the polar format of `path`; None if it is not polar or cannot be read."""
    start = first_bytes(path, 256)
    if start.startswith(NEXRAD_SIGNATURES):
        return "NEXRAD level 2"
    if NEXRAD_PRODUCT.match(start):
        return "NEXRAD level 3"
    if RAINBOW.match(start):
        return "Rainbow"
    if (start[:2], start[12:14], start[24:26]) == SIGMET:
        return "SIGMET IRIS RAW"
    if DX.match(start):
        return "DWD DX"
    if start.startswith(HDF5_SIGNATURE):
        return _hdf5_kind(path)
    return _netcdf3_kind(path) if starts_with(path, *NETCDF3_SIGNATURES) else None


def refuse(path: Path, kind: str | None) -> NoReturn:
    """Raise ValueError with the file, its format and the remedy."""
    if kind is None:
        raise ValueError(f"{path} is not a polar file that raincast knows: use source=auto")
    raise ValueError(
        f"{path} ({kind}) holds rays, not a map: raincast reads composites and other gridded fields. Grid it "
        "first, e.g. with pyart.map.grid_from_radars or wradlib.comp, write reflectivity or rain on (time, y, x) "
        "with its projection as CF netCDF, and use source=cf"
    )


def _hdf5_kind(path: Path) -> str | None:
    import h5py

    try:
        with h5py.File(path) as file:
            name = _text(file["what"].attrs.get("object", "")) if "what" in file else ""
            if name in POLAR_OBJECTS:
                return f"ODIM HDF5, object {name}"
            conventions = _text(file.attrs.get("Conventions", ""))
            return "CfRadial" if "radial" in conventions.lower() else None
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError):
        return None


def _netcdf3_kind(path: Path) -> str | None:
    import netCDF4

    try:
        with netCDF4.Dataset(path) as file:
            conventions = str(getattr(file, "Conventions", ""))
            has_rays = {"azimuth", "elevation", "range"} <= file.variables.keys()
            return "CfRadial" if "radial" in conventions.lower() or has_rays else None
    except (OSError, RuntimeError, ValueError, AttributeError, UnicodeError):
        return None


def _text(value: object) -> str:
    value = np.ravel(value)[0]  # type: ignore[call-overload]
    return value.decode("ascii", "replace").strip("\0 ") if isinstance(value, bytes) else str(value)
