"""A forecast as maps for GIS programs and the web, a file for each lead time: GeoTIFF, and PNG in Web Mercator."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.forecasting.files.dataset import lead_minutes_of
from raincast.schema import Grid
from raincast.system.files import atomic, write_text

RADIUS = 6378137.0
"""Radius of the sphere of Web Mercator in metres."""
HIGHEST = 85.06
"""Highest latitude of Web Mercator in degrees."""
LONGEST_SIDE = 2048
"""Largest number of pixels along a side of a picture."""
MISSING_ALPHA = 100


def write_geotiffs(forecast: xr.Dataset, folder: Path, name: str) -> Path:
    """Write rates as cloud-optimised GeoTIFFs to the folder NAME, which is returned: NAME_+005min.tif etc.

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


def write_pngs(forecast: xr.Dataset, folder: Path, name: str) -> Path:
    """Write rates to the folder NAME_web, which is returned: NAME_+005min.png, its world file, and map.json.

    The PNGs are in Web Mercator (EPSG:3857). Margins that no frame observed are cut off. A pixel has the colour of
    the nearest pixel of the grid; dry pixels and those outside the grid are transparent, missing ones grey.
    `map.json` has the corners in degrees, as web maps ask for them, the colours and the times. Each file is
    written atomically.
    """
    from PIL import Image

    from raincast.plotting import rain_image as maps

    rates, grid = maps.cropped({name: forecast[schema.RAIN].values}, schema.grid_of(forecast))
    mercator = _Mercator(grid)
    target = folder / f"{name}_web"
    target.mkdir(parents=True, exist_ok=True)
    outside = maps.MISSING_CLASS + 1
    colours = [maps.DRY_COLOUR, *maps.RAIN_COLOURS, maps.HATCH_COLOUR, maps.DRY_COLOUR]
    palette = [int(colour[k : k + 2], 16) for colour in colours for k in (1, 3, 5)]
    alpha = bytes([0, *[255] * len(maps.RAIN_COLOURS), MISSING_ALPHA, 0])
    listed = []
    for number, minutes in enumerate(lead_minutes_of(forecast)):
        classes = maps.rain_classes(rates[name][number])
        image = Image.fromarray(mercator.shown(classes, outside))
        image.putpalette(palette)
        path = target / f"{name}_+{minutes:03g}min.png"
        with atomic(path) as partial:
            image.save(partial, format="PNG", transparency=alpha, optimize=True)
        write_text(path.with_suffix(".pgw"), mercator.world_file)
        # GDAL and QGIS look for the projection of a PNG there
        write_text(path.with_name(f"{path.name}.aux.xml"), "<PAMDataset><SRS>EPSG:3857</SRS></PAMDataset>\n")
        valid = np.datetime_as_string(forecast[schema.TIME].values[number], unit="s")
        listed.append({"file": path.name, "valid_time": f"{valid}Z", "lead_minutes": minutes})
    init_time: Any = forecast[schema.INIT_TIME].values[()]
    about = {
        "init_time": f"{np.datetime_as_string(init_time, unit='s')}Z",
        "bounds": mercator.bounds,
        "crs": "EPSG:3857",
        "credit": maps.credit(forecast.attrs),
        "units": "mm/h",
        "colours": [
            {"from": rate, "colour": colour}
            for rate, colour in zip(maps.RAIN_BOUNDARIES, maps.RAIN_COLOURS, strict=True)
        ],
        "maps": listed,
    }
    write_text(target / "map.json", json.dumps(about, indent=1, ensure_ascii=False))
    return target


class _Mercator:
    """A picture of a grid in Web Mercator: its corners, and which pixel of the grid each of its pixels shows."""

    def __init__(self, grid: Grid) -> None:
        from raincast.plotting.rain_image import MapView

        lon, lat = MapView.of(grid).lonlat(81, 81)
        lat = np.clip(lat, -HIGHEST, HIGHEST)
        west, east, south, north = (
            float(edge) for edge in (np.nanmin(lon), np.nanmax(lon), np.nanmin(lat), np.nanmax(lat))
        )
        left, right = RADIUS * np.radians([west, east])
        bottom, top = RADIUS * np.log(np.tan(np.pi / 4 + np.radians([south, north]) / 2))
        # half a pixel of the grid: each of them is then seen where it is
        finest = grid.pixel_km * 500 / np.cos(np.radians((south + north) / 2))
        self.size = max(finest, (right - left) / LONGEST_SIDE, (top - bottom) / LONGEST_SIDE)
        width, height = (max(1, int(np.ceil(side / self.size))) for side in (right - left, top - bottom))
        self.left, self.top = float(left), float(top)
        x = self.left + self.size * (np.arange(width) + 0.5)
        y = self.top - self.size * (np.arange(height) + 0.5)
        self.rows, self.columns, self.inside = _nearest(grid, np.degrees(x / RADIUS), _latitude(y))
        ends = np.array([self.top - self.size * height, self.top])
        (south, north), east = _latitude(ends), float(np.degrees((self.left + self.size * width) / RADIUS))
        corners = ((float(south), west), (float(north), east))
        self.bounds = [[round(degrees, 7) for degrees in corner] for corner in corners]

    def shown(self, classes: npt.NDArray[np.uint8], outside: int) -> npt.NDArray[np.uint8]:
        """Return the classes (H, W) of the grid as a picture, with `outside` outside the grid."""
        picture = classes[self.rows, self.columns]
        picture[~self.inside] = outside
        return picture

    @property
    def world_file(self) -> str:
        """Return a world file: pixel size, rotation, centre of the upper left pixel, in metres."""
        half = self.size / 2
        numbers = (self.size, 0.0, 0.0, -self.size, self.left + half, self.top - half)
        return "".join(f"{number:.10f}\n" for number in numbers)


def _latitude(y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.degrees(2 * np.arctan(np.exp(y / RADIUS)) - np.pi / 2)


def _nearest(
    grid: Grid, lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Return row and column of the pixel of `grid` at each longitude and latitude, and whether there is one."""
    from pyproj import Transformer

    to_grid = Transformer.from_crs("EPSG:4326", grid.crs_wkt, always_xy=True)
    x, y = to_grid.transform(*np.meshgrid((lon + 180) % 360 - 180, lat))
    places = []
    inside = np.isfinite(x) & np.isfinite(y)
    for values, axis in ((y, grid.y), (grid.near(x), grid.x)):
        step = (axis[-1] - axis[0]) / max(1, axis.size - 1) or 1.0
        number = np.rint((np.where(inside, values, axis[0]) - axis[0]) / step)
        inside &= (number >= 0) & (number < axis.size)
        places.append(np.clip(number, 0, axis.size - 1).astype(np.intp))
    return places[0], places[1], inside
