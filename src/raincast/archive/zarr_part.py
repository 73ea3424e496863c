"""Write a part of an archive as a Zarr v3 store, by the dataset specification 0.3.0 of the mlcast community.

The specification (github.com/mlcast-community/mlcast-dataset-validator, source_data/radar_precipitation) requires
floating-point rates with NaN, one chunk per frame, zstd, `lat` and `lon` in addition to `y` and `x`, a `crs` whose
WKT has a bounding box, `missing_times` and `consistent_timestep_start`. Requirements for publishers (a licence,
contacts, three years of data) are met by `attrs` or the data.
"""

import math
import shutil
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from raincast import schema
from raincast.archive.part import COVERAGE_ATTRS, TIME_CODES, PartWriter, in_seconds
from raincast.archive.rates import CODE_MM_H, MISSING_CODE, bands
from raincast.archive.series import Archive
from raincast.schema import (
    BOUNDS,
    CONVENTIONS,
    COVERAGE,
    CRS,
    MISSING_TIMES,
    RAIN,
    REGULAR_START,
    STEP_MINUTES,
    TIME,
    TIME_BOUNDS,
    Grid,
    X,
    Y,
)
from raincast.system.files import flush, put_in_place

LAT, LON = "lat", "lon"
RAIN_ATTRS = schema.RAIN_ATTRS | {"standard_name": "rainfall_flux", "units": "kg m-2 h-1"}
LEVEL = 3
_DEGREE_PARTS = 2**14
"""`lat` and `lon` are rounded to this fraction of a degree: 7 m, which reduces their size to two thirds."""


class ZarrPartWriter(PartWriter):
    """Writes a part of an archive as a Zarr store atomically, like `PartWriter` but frame by frame.

    Rates are the float32 nearest to their codes of 0.01 mm/h, so conversion between both formats is lossless. Each
    frame is one chunk and one file: single frames can be read alone, but a crop reads whole frames.
    """

    def _discard(self) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)

    def copy(self, part: Archive, first: int, stop: int) -> None:
        """Append the frames `first` to `stop` of another part."""
        for number in range(first, stop):
            self._append(part.times[number], part.read_codes(number, 1)[0])

    def _append(self, time: np.datetime64, codes: npt.NDArray[np.int16]) -> None:
        assert not self.times or time > self.times[-1], "frames come in the order of time"
        self._begin()
        self._observed |= codes != MISSING_CODE
        self._rain.resize((len(self.times) + 1, *self.grid.shape))
        self._rain[len(self.times)] = _decode(codes)
        self.times.append(time)

    def _create(self) -> None:
        import zarr

        self._file = zarr.create_group(self._partial, zarr_format=3)
        self._rain = self._array(RAIN, "float32", (TIME, Y, X), (0, *self.grid.shape), fill_value=np.nan)

    def _array(
        self, name: str, dtype: str, dims: tuple[str, ...], shape: tuple[int, ...], *, fill_value: Any = 0
    ) -> Any:
        """Create an array, in chunks of one frame for the rain, else in one chunk."""
        from zarr.codecs import ZstdCodec

        chunks = (1, *shape[1:]) if name == RAIN else tuple(max(1, size) for size in shape)
        return self._file.create_array(
            name,
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            fill_value=fill_value,
            filters=None,
            compressors=[ZstdCodec(level=LEVEL)] if shape else None,
            dimension_names=dims,
            # write chunks of only missing pixels or zeros too, because _check_whole counts the files
            config={"write_empty_chunks": True},
        )

    def _write(
        self, name: str, values: npt.NDArray[Any], dims: tuple[str, ...], attrs: dict[str, Any], **settings: Any
    ) -> None:
        array = self._array(name, str(values.dtype), dims, values.shape, **settings)
        array.attrs.put(_plain(attrs))
        if values.size:
            array[...] = values

    def _finish(self) -> None:
        """Write the remaining metadata, then move the store to `path`."""
        import zarr

        degrees = self._write_coordinates()
        self._write(COVERAGE, self._observed.astype(np.int8), (Y, X), COVERAGE_ATTRS)
        self._write_times()
        names = {"grid_mapping": CRS, "cell_methods": self.cell_methods}
        self._rain.attrs.put(RAIN_ATTRS | names | {"coordinates": " ".join([CRS, COVERAGE, *degrees])})
        own = {
            "Conventions": CONVENTIONS,
            STEP_MINUTES: float(self.step_minutes),
            REGULAR_START: str(self.times[0].astype("datetime64[s]")),
        }
        # makes xarray read the bounds as a coordinate; the specification takes all other variables for data
        if TIME_BOUNDS in self._file:
            own["coordinates"] = TIME_BOUNDS
        others = {name: value for name, value in self.attrs.items() if name not in own}
        self._file.attrs.put(_plain(own | others))
        with warnings.catch_warnings():  # consolidation is not yet in the Zarr 3 specification; xarray wants it
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(self._file.store)
        self._check_whole()
        for path in self._partial.rglob("*"):
            flush(path)  # otherwise a power cut could leave the name without the content
        put_in_place(self._partial, self.path)

    def _write_coordinates(self) -> list[str]:
        """Write y, x and the projection; unless they are degrees, also lat and lon, whose names are returned."""
        coords = self.grid.to_coords()
        for name in (Y, X):
            dim, values, attrs = coords[name]
            self._write(name, values, (dim,), attrs)
        lat, lon = _lat_lon(self.grid)
        mapping = coords[CRS][2]
        wkt = _with_bounds(self.grid.crs_wkt, lat, lon)
        self._write(CRS, np.array(0, np.int32), (), mapping | {"crs_wkt": wkt, "spatial_ref": wkt})
        if mapping.get("grid_mapping_name") == "latitude_longitude":
            return []
        degrees = {LAT: (lat, "latitude", "degrees_north"), LON: (lon, "longitude", "degrees_east")}
        for name, (values, standard_name, units) in degrees.items():
            attrs = {"standard_name": standard_name, "long_name": f"{standard_name} of the pixel", "units": units}
            self._write(name, values, (Y, X), attrs, fill_value=np.nan)
        return list(degrees)

    def _write_times(self) -> None:
        times = np.array(self.times, "datetime64[ns]")
        missing = schema.missing_times(times, schema.step_timedelta(self.step_minutes))
        bounds = self._time_bounds(times)
        named = {} if bounds is None else {"bounds": TIME_BOUNDS}
        self._write(TIME, in_seconds(times), (TIME,), schema.TIME_ATTRS | TIME_CODES | named)
        if bounds is not None:
            self._write(TIME_BOUNDS, bounds, (TIME, BOUNDS), {})
        attrs = {"long_name": "times of the step that have no frame"} | TIME_CODES
        self._write(MISSING_TIMES, in_seconds(missing), (MISSING_TIMES,), attrs)

    def _check_whole(self) -> None:
        """Raise OSError if frames are absent because another writer of this part removed them."""
        num_files = sum(1 for _ in (self._partial / RAIN / "c").iterdir())
        if num_files != len(self.times):
            raise OSError(
                f"{self._partial} holds {num_files} frames of {len(self.times)}: another process wrote it"
            )


def _decode(codes: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Return the float32 nearest to each code's rate, as `Archive.read` does."""
    rates = np.empty(codes.shape, np.float32)
    for rows in bands(codes.shape):
        rates[rows] = codes[rows] * np.float64(CODE_MM_H)
        rates[rows][codes[rows] == MISSING_CODE] = np.nan
    return rates


def _lat_lon(grid: Grid) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return latitude and longitude of the pixels in degrees of WGS 84, (H, W) each."""
    from pyproj import Transformer

    to_degrees = Transformer.from_crs(grid.crs_wkt, "EPSG:4326", always_xy=True)
    lat, lon = (np.empty(grid.shape, np.float32) for _ in range(2))
    for rows in bands(grid.shape):
        x, y = np.meshgrid(grid.x, grid.y[rows])
        for out, values in zip((lon, lat), to_degrees.transform(x, y), strict=False):
            out[rows] = np.round(values * _DEGREE_PARTS) / _DEGREE_PARTS
    return lat, lon


def _with_bounds(crs_wkt: str, lat: npt.NDArray[np.float32], lon: npt.NDArray[np.float32]) -> str:
    """Return the projection with its area of use, in degrees rounded outward to two decimals.

    West is greater than east if the area crosses 180° E.
    """
    from pyproj import CRS as ProjCRS

    middle = float(lon[lon.shape[0] // 2, lon.shape[1] // 2])
    east_of_middle = (lon[np.isfinite(lon)] - middle + 180) % 360 - 180
    west, east = (middle + float(edge) for edge in (east_of_middle.min(), east_of_middle.max()))
    if east - west < 360:
        west, east = ((edge + 180) % 360 - 180 for edge in (west, east))
    low, high = (float(edge) for edge in (lat[np.isfinite(lat)].min(), lat[np.isfinite(lat)].max()))
    bounds = {
        "south_latitude": max(-90.0, math.floor(low * 100) / 100),
        "west_longitude": max(-180.0, math.floor(west * 100) / 100),
        "north_latitude": min(90.0, math.ceil(high * 100) / 100),
        "east_longitude": min(180.0, math.ceil(east * 100) / 100),
    }
    crs = ProjCRS.from_wkt(crs_wkt).to_json_dict()
    inner = crs.get("source_crs", crs)  # the projection inside one with a datum shift
    inner.pop("usages", None)
    inner |= {"scope": "Radar.", "area": "Radar composite.", "bbox": bounds}
    return str(ProjCRS.from_json_dict(crs).to_wkt())


def _plain(attrs: dict[str, Any]) -> dict[str, Any]:
    """Return attributes as JSON types."""
    return {
        name: value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        for name, value in attrs.items()
    }
