import dataclasses
import json

import netCDF4
import numpy as np
import pytest
import rasterio
import rasterio.warp
import xarray as xr
from checking import check_encoded
from pyproj import CRS, Transformer

from raincast import __version__, schema
from raincast.forecasting.files.dataset import (
    MAX_RATE,
    MISSING,
    OUTSIDE_REACH,
    forecast_dataset,
    with_exceedance,
    with_quality,
)
from raincast.forecasting.files.maps import MISSING_ALPHA, write_geotiffs, write_pngs
from raincast.forecasting.files.netcdf import write_forecast, write_zarr
from raincast.plotting.rain_image import MISSING_CLASS, rain_classes
from raincast.schema import Grid

INIT = np.datetime64("2026-01-01T12:00")
STEP = 5.0


def latlon_grid() -> Grid:
    return Grid(y=56.0 - 0.02 * np.arange(12), x=4.0 + 0.03 * np.arange(10), crs_wkt=CRS.from_epsg(4326).to_wkt())


def ascending_grid() -> Grid:
    grid = schema.mock_grid()
    return dataclasses.replace(grid, y=grid.y[::-1].copy())


def laea_grid() -> Grid:
    return Grid(
        y=3e6 + 2000.0 * np.arange(12), x=4e6 + 2000.0 * np.arange(10), crs_wkt=CRS.from_epsg(3035).to_wkt()
    )


GRIDS = {
    "north first": schema.mock_grid(),
    "south first": ascending_grid(),
    "lat/lon": latlon_grid(),
    "laea": laea_grid(),
}


@pytest.fixture(params=GRIDS.values(), ids=GRIDS.keys())
def grid(request):
    return request.param


@pytest.fixture
def rain():
    rng = np.random.default_rng(0)
    rain = rng.gamma(0.3, 4.0, (6, 12, 10)).astype(np.float32)
    rain[:, :2, :3] = np.nan
    rain[0, 5, 5] = 0.0
    return rain


def made(rain, grid, *, cell_methods="time: point", attrs=None, step_minutes=STEP):
    return forecast_dataset(
        rain,
        init_time=INIT,
        step_minutes=step_minutes,
        grid=grid,
        cell_methods=cell_methods,
        attrs=attrs or {},
    )


THRESHOLDS = (0.5, 2.0, 10.0)


@pytest.fixture
def probability(rain):
    """(lead, threshold, y, x), missing where the rain is."""
    falling = np.sort(np.random.default_rng(1).random((6, 3, 12, 10), np.float32), axis=1)[:, ::-1]
    return np.where(np.isnan(rain)[:, None], np.nan, falling).astype(np.float32)


def test_what_is_written_is_read_back(rain, grid, tmp_path):
    path = write_forecast(made(rain, grid), tmp_path / "new" / "a.nc")
    with xr.open_dataset(path, engine="netcdf4", decode_timedelta=True) as read:
        check_encoded(read.rain_rate.values, rain)
        assert read.rain_rate.values[0, 5, 5] == 0
        np.testing.assert_array_equal(read.y, grid.y)
        np.testing.assert_array_equal(read.x, grid.x)
        assert schema.find_rain_variable(read) == schema.RAIN
        assert CRS.from_wkt(schema.find_crs_wkt(read, schema.RAIN)) == CRS.from_wkt(grid.crs_wkt)


@pytest.mark.parametrize("step_minutes", [5.0, 2.5, 60.0])
def test_valid_time_is_init_time_plus_lead_time(rain, step_minutes, tmp_path):
    path = write_forecast(made(rain, schema.mock_grid(), step_minutes=step_minutes), tmp_path / "a.nc")
    with xr.open_dataset(path, engine="netcdf4", decode_timedelta=True) as read:
        assert np.issubdtype(read.lead_time.dtype, np.timedelta64)
        assert read.init_time.values == INIT
        np.testing.assert_array_equal(read.time, read.init_time + read.lead_time)
        assert read.lead_time.values[0] == schema.step_timedelta(step_minutes)


def test_netcdf4_alone_reads_it(rain, tmp_path):
    path = write_forecast(made(rain, schema.mock_grid()), tmp_path / "a.nc")
    with netCDF4.Dataset(path) as file:
        variable = file["rain_rate"]
        assert variable.standard_name == "rainfall_rate"
        assert variable.coordinates.startswith("init_time time")
        assert variable.chunking() == [1, 12, 10]
        assert variable.filters()["zlib"] and variable.filters()["shuffle"]
        assert not variable.filters()["zstd"]
        assert file["lead_time"].units == "minutes"
        np.testing.assert_array_equal(file["lead_time"][:], STEP * np.arange(1, 7))
        assert file[variable.grid_mapping].crs_wkt
        for name in ("y", "x", "time", "init_time", "lead_time", "crs", "lat", "lon"):
            assert "_FillValue" not in file[name].ncattrs()
        np.testing.assert_array_equal(np.ma.getmaskarray(variable[:]), np.isnan(rain))


@pytest.mark.parametrize("form", ["{}", "netcdf:{}:rain_rate"])
@pytest.mark.parametrize("cell_methods", ["time: point", "time: mean"])
def test_gdal_finds_each_pixel_at_its_place_on_earth(rain, grid, form, cell_methods, tmp_path):
    path = write_forecast(made(rain, grid, cell_methods=cell_methods), tmp_path / "a.nc")
    i, j = 7, 3
    to_degrees = Transformer.from_crs(CRS.from_wkt(grid.crs_wkt), "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(grid.x[j], grid.y[i])
    with rasterio.open(form.format(path)) as gdal:
        assert gdal.count == len(rain)
        assert gdal.nodata == -32768
        # from degrees back by GDAL's own projection, so that a false one shows
        (gx,), (gy,) = rasterio.warp.transform("EPSG:4326", gdal.crs, [lon], [lat])
        row, column = gdal.index(gx, gy)
        value = gdal.read(4)[row, column] * gdal.scales[3]
        centre = gdal.xy(row, column)
        assert gdal.tags(4)["NETCDF_DIM_lead_time"] == "20"
    assert value == pytest.approx(rain[3, i, j], abs=0.0051)
    np.testing.assert_allclose(centre, (grid.x[j], grid.y[i]), rtol=1e-9)


def test_gdal_and_pyproj_agree_on_the_projection(rain, grid, tmp_path):
    path = write_forecast(made(rain, grid), tmp_path / "a.nc")
    with rasterio.open(path) as gdal:
        theirs = CRS.from_wkt(gdal.crs.to_wkt())
    ours = CRS.from_wkt(grid.crs_wkt)
    assert theirs.ellipsoid.semi_major_metre == ours.ellipsoid.semi_major_metre
    x, y = np.meshgrid(grid.x, grid.y)
    to_degrees = [Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y) for crs in (theirs, ours)]
    # 1e-8 degrees are a millimetre
    np.testing.assert_allclose(*to_degrees, rtol=0, atol=1e-8)


def test_probabilities_are_read_back(rain, probability, grid, tmp_path):
    path = write_forecast(with_exceedance(made(rain, grid), probability, THRESHOLDS), tmp_path / "a.nc")
    with xr.open_dataset(path, engine="netcdf4", decode_timedelta=True) as read:
        assert read.rain_rate_exceedance.dims == ("lead_time", "threshold", "y", "x")
        assert read.threshold.values.tolist() == list(THRESHOLDS)
        # half a code of 0.0001; NaN only where nobody looked
        np.testing.assert_allclose(read.rain_rate_exceedance.values, probability, rtol=0, atol=0.5e-4 + 1e-6)
        assert (read.rain_rate_exceedance.diff("threshold") <= 0).where(read.rain_rate.notnull(), True).all()
        # a program that looks for the rain rate finds one
        assert schema.find_rain_variable(read) == schema.RAIN
    with netCDF4.Dataset(path) as file:
        variable = file["rain_rate_exceedance"]
        assert variable.units == "1" and file["threshold"].units == "mm h-1"
        assert variable.coordinates.startswith("init_time time") and variable.grid_mapping == "crs"
        assert variable.chunking() == [1, 1, 12, 10]


def test_gdal_finds_rates_and_probabilities(rain, probability, tmp_path):
    grid = schema.mock_grid()
    path = write_forecast(with_exceedance(made(rain, grid), probability, THRESHOLDS), tmp_path / "a.nc")
    with rasterio.open(f"netcdf:{path}:rain_rate") as gdal:
        assert gdal.count == len(rain)
        value = gdal.read(4)[7, 3] * gdal.scales[3]
    assert value == pytest.approx(rain[3, 7, 3], abs=0.0051)
    with rasterio.open(f"netcdf:{path}:rain_rate_exceedance") as gdal:
        assert gdal.count == len(rain) * len(THRESHOLDS)
        tags = gdal.tags(11)  # of lead number 3 the second threshold
        assert (tags["NETCDF_DIM_lead_time"], tags["NETCDF_DIM_threshold"]) == ("20", "2")
        value = gdal.read(11)[7, 3] * gdal.scales[10]
        np.testing.assert_allclose(gdal.xy(7, 3), (grid.x[3], grid.y[7]), rtol=1e-9)
    assert value == pytest.approx(probability[3, 1, 7, 3], abs=1e-4)


def test_probabilities_that_do_not_fit_are_refused(rain, probability):
    dataset = made(rain, schema.mock_grid())
    with pytest.raises(ValueError, match=r"\(lead, threshold, y, x\), here \(6, 2, 12, 10\)"):
        with_exceedance(dataset, probability, THRESHOLDS[:2])
    with pytest.raises(ValueError, match="outside 0 to 1, the first is 50"):
        with_exceedance(dataset, np.full_like(probability, 50), THRESHOLDS)


def test_means_have_the_bounds_of_their_step(rain, tmp_path):
    path = write_forecast(made(rain, schema.mock_grid(), cell_methods="time: mean"), tmp_path / "a.nc")
    with xr.open_dataset(path, engine="netcdf4", decode_timedelta=True) as read:
        assert read.time.attrs["bounds"] == "time_bounds"
        np.testing.assert_array_equal(read.time_bounds[:, 1], read.time)
        assert read.time_bounds.values[0, 0] == INIT


def cf_errors(path):
    """What CF requires or recommends and the file lacks."""
    from compliance_checker.runner import CheckSuite

    CheckSuite.load_all_available_checkers()
    suite = CheckSuite()
    file = suite.load_dataset(str(path))
    results, failures = suite.run_all(file, ["cf:1.11"])["cf:1.11"]
    file.close()
    assert not failures
    return [message for r in results if r.value[0] < r.value[1] for message in r.msgs or [r.name]]


# the checker's own retired parts announce themselves
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("cell_methods", ["time: point", "time: mean"])
def test_the_compliance_checker_finds_no_error(rain, grid, cell_methods, tmp_path):
    pytest.importorskip("compliance_checker", reason="the CF checker is not installed")
    assert cf_errors(write_forecast(made(rain, grid, cell_methods=cell_methods), tmp_path / "a.nc")) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("cell_methods", ["time: point", "time: mean"])
def test_the_compliance_checker_finds_no_error_in_probabilities(rain, probability, cell_methods, tmp_path):
    pytest.importorskip("compliance_checker", reason="the CF checker is not installed")
    dataset = with_exceedance(made(rain, schema.mock_grid(), cell_methods=cell_methods), probability, THRESHOLDS)
    assert cf_errors(write_forecast(dataset, tmp_path / "a.nc")) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_compliance_checker_would_find_an_error(rain, tmp_path):
    pytest.importorskip("compliance_checker", reason="the CF checker is not installed")
    dataset = made(rain, schema.mock_grid())
    dataset.rain_rate.attrs["units"] = "furlongs"
    assert cf_errors(write_forecast(dataset, tmp_path / "a.nc"))


def test_global_attributes_say_where_it_came_from(rain):
    attrs = {
        "checkpoint": "abc",
        "institution": "me",
        "ema": True,
        "none": None,
        "history": "before",
        "n": (1, 2),
    }
    dataset = made(rain, schema.mock_grid(), attrs=attrs | {"config": {"a": 1}})
    assert dataset.attrs["Conventions"] == "CF-1.11"
    assert dataset.attrs["checkpoint"] == "abc"
    assert dataset.attrs["ema"] == "true"
    assert dataset.attrs["config"] == "{'a': 1}"
    assert "none" not in dataset.attrs
    assert dataset.attrs["history"].startswith("before\n")
    assert __version__ in dataset.attrs["source"]


def test_nothing_is_overwritten_unasked(rain, tmp_path):
    dataset = made(rain, schema.mock_grid())
    path = write_forecast(dataset, tmp_path / "a.nc")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_forecast(dataset, path)
    assert write_forecast(dataset, path, overwrite=True) == path
    assert [p.name for p in tmp_path.iterdir()] == ["a.nc"]


def test_a_failed_write_leaves_nothing(rain, tmp_path):
    dataset = made(rain, schema.mock_grid()).assign_attrs(bad=object())
    with pytest.raises(TypeError):
        write_forecast(dataset, tmp_path / "a.nc")
    assert list(tmp_path.iterdir()) == []


def test_rates_beyond_the_code_are_capped_and_it_says_so(rain, tmp_path):
    rain[0, 6, 6] = 1e6
    dataset = made(rain, schema.mock_grid())
    assert float(dataset.rain_rate.max()) == MAX_RATE
    assert "327" in dataset.rain_rate.attrs["comment"]
    with xr.open_dataset(write_forecast(dataset, tmp_path / "a.nc"), decode_timedelta=True) as read:
        assert float(read.rain_rate[0, 6, 6]) == pytest.approx(MAX_RATE)


def test_all_missing_and_one_pixel(tmp_path):
    grid = schema.mock_grid(1, 1)
    path = write_forecast(made(np.full((1, 1, 1), np.nan, np.float32), grid), tmp_path / "a.nc")
    with xr.open_dataset(path, engine="netcdf4", decode_timedelta=True) as read:
        assert np.isnan(read.rain_rate.values).all()


def test_errors_name_the_remedy(rain, tmp_path):
    grid = schema.mock_grid()
    with pytest.raises(ValueError, match=r"\(lead, y, x\)"):
        made(rain[0], grid)
    with pytest.raises(ValueError, match="Cut the forecast at 0"):
        made(-np.ones_like(rain), grid)
    with pytest.raises(ValueError, match="step_minutes=0"):
        made(rain, grid, step_minutes=0)
    with pytest.raises(ValueError, match="forecast_dataset"):
        write_forecast(schema.mock_archive(), tmp_path / "a.nc")
    shifted = made(rain, grid)
    shifted = shifted.assign_coords(time=shifted.time + np.timedelta64(1, "m"))
    with pytest.raises(ValueError, match="not init_time"):
        write_forecast(shifted, tmp_path / "a.nc")


def flagged(rain, grid, *, cell_methods="time: point"):
    """With everything a forecast may hold but products."""
    flags = np.where(np.isnan(rain), MISSING, 0).astype(np.uint8)
    flags[3:, :, 7:] |= OUTSIDE_REACH
    return with_quality(made(rain, grid, cell_methods=cell_methods), flags)


def test_flags_and_places_are_read_back(rain, grid, tmp_path):
    dataset = flagged(rain, grid)
    with xr.open_dataset(write_forecast(dataset, tmp_path / "a.nc"), decode_timedelta=True) as read:
        np.testing.assert_array_equal(read.quality_flag, dataset.quality_flag)
        assert read.quality_flag.dtype == np.uint8
        assert read.rain_rate.attrs["ancillary_variables"] == "quality_flag"
        bits = dict(
            zip(
                read.quality_flag.attrs["flag_meanings"].split(),
                read.quality_flag.attrs["flag_masks"],
                strict=True,
            )
        )
        assert bits == {"missing": 1, "outside_reach": 2, "filled": 4, "model_only": 8}
        if CRS.from_wkt(grid.crs_wkt).is_geographic:
            assert "lat" not in read.variables  # y and x are the degrees
        else:
            assert {"lat", "lon"} <= set(read.rain_rate.coords)
            to_degrees = Transformer.from_crs(CRS.from_wkt(grid.crs_wkt), "EPSG:4326", always_xy=True)
            lon, lat = to_degrees.transform(*np.meshgrid(grid.x, grid.y))
            # 1e-5 degrees are a metre
            np.testing.assert_allclose(read.lon, lon, atol=1e-5)
            np.testing.assert_allclose(read.lat, lat, atol=1e-5)
    with pytest.raises(ValueError, match="one for each pixel and lead"):
        with_quality(dataset, np.zeros((1, 12, 10), np.uint8))


def grid_of(epsg, *, y, x):
    return Grid(y=y - 1000.0 * np.arange(12), x=x + 1000.0 * np.arange(10), crs_wkt=CRS.from_epsg(epsg).to_wkt())


def swiss_grid():
    return grid_of(21781, y=480e3, x=255e3)


def malayan_grid():
    """A projection that CF has no name for: crs_wkt alone carries it."""
    return grid_of(3168, y=350e3, x=400e3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_swiss_projection_has_a_name_in_cf(rain, tmp_path):
    pytest.importorskip("compliance_checker", reason="the CF checker is not installed")
    grid = swiss_grid()
    path = write_forecast(flagged(rain, grid), tmp_path / "a.nc")
    assert cf_errors(path) == []
    with xr.open_dataset(path) as read:
        cf = read["crs"].attrs
    assert cf["grid_mapping_name"] == "oblique_mercator"
    # CF says no more of what its attributes mean than that PROJ's omerc does it: so it has to, without the WKT
    by_proj = CRS.from_proj4(
        f"+proj=omerc +alpha={cf['azimuth_of_central_line']} +lat_0={cf['latitude_of_projection_origin']} "
        f"+lonc={cf['longitude_of_projection_origin']} +k={cf['scale_factor_at_projection_origin']} "
        f"+x_0={cf['false_easting']} +y_0={cf['false_northing']} +a={cf['semi_major_axis']} "
        f"+rf={cf['inverse_flattening']}"
    )
    there = Transformer.from_crs(by_proj.geodetic_crs, by_proj, always_xy=True)
    swiss = CRS.from_epsg(21781)
    lon, lat = Transformer.from_crs(swiss, swiss.geodetic_crs, always_xy=True).transform(grid.x[3], grid.y[7])
    np.testing.assert_allclose(there.transform(lon, lat), (grid.x[3], grid.y[7]), atol=0.01)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("cell_methods", ["time: point", "time: mean"])
def test_the_compliance_checker_finds_no_error_in_flags_and_places(rain, grid, cell_methods, tmp_path):
    pytest.importorskip("compliance_checker", reason="the CF checker is not installed")
    assert cf_errors(write_forecast(flagged(rain, grid, cell_methods=cell_methods), tmp_path / "a.nc")) == []


@pytest.mark.parametrize("epsg", [21781, 3168])
def test_gdal_places_oblique_projections(rain, epsg, tmp_path):
    grid = swiss_grid() if epsg == 21781 else malayan_grid()
    path = write_forecast(flagged(rain, grid), tmp_path / "a.nc")
    with rasterio.open(f"netcdf:{path}:rain_rate") as gdal:
        lon, lat = Transformer.from_crs(epsg, 4326, always_xy=True).transform(grid.x[3], grid.y[7])
        (gx,), (gy,) = rasterio.warp.transform("EPSG:4326", gdal.crs, [lon], [lat])
        assert gdal.index(gx, gy) == (7, 3)
        assert gdal.read(4)[7, 3] * gdal.scales[3] == pytest.approx(rain[3, 7, 3], abs=0.0051)


@pytest.mark.parametrize("order", ["north first", "south first"])
def test_pysteps_opens_it(rain, order, tmp_path):
    from pysteps.io import import_netcdf_pysteps

    grid = GRIDS[order]
    path = write_forecast(flagged(rain, grid), tmp_path / "a.nc", for_pysteps=True)
    precip, metadata = import_netcdf_pysteps(str(path), onerror="raise")
    north_up = rain if grid.y[0] > grid.y[-1] else rain[:, ::-1]
    check_encoded(precip, north_up)
    np.testing.assert_array_equal(metadata["leadtimes"], STEP * np.arange(1, 7))
    assert metadata["unit"] == "mm/h" and metadata["accutime"] == STEP and metadata["yorigin"] == "upper"
    assert (metadata["x1"], metadata["y2"]) == (grid.x.min() - 500, grid.y.max() + 500)
    theirs = CRS.from_user_input(metadata["projection"])
    to_theirs = Transformer.from_crs(CRS.from_wkt(grid.crs_wkt), theirs, always_xy=True)
    # it leaves the ellipsoid out: a few hundred metres
    np.testing.assert_allclose(to_theirs.transform(grid.x[4], grid.y[4]), (grid.x[4], grid.y[4]), rtol=1e-3)


def test_zarr_holds_the_same(rain, grid, tmp_path):
    dataset = flagged(rain, grid)
    path = write_zarr(dataset, tmp_path / "a.zarr")
    assert write_zarr(dataset, path) == path  # in the place of the first
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    with xr.open_dataset(path, engine="zarr", consolidated=True, decode_timedelta=True) as read:
        np.testing.assert_array_equal(read.rain_rate, dataset.rain_rate)
        np.testing.assert_array_equal(read.quality_flag, dataset.quality_flag)
        np.testing.assert_array_equal(read.time, dataset.time)
        assert CRS.from_wkt(schema.find_crs_wkt(read, schema.RAIN)) == CRS.from_wkt(grid.crs_wkt)


def test_geotiffs_lie_where_they_belong(rain, grid, tmp_path):
    folder = write_geotiffs(flagged(rain, grid), tmp_path, "forecast_x")
    files = sorted(folder.iterdir())
    assert [file.name for file in files][:2] == ["forecast_x_+005min.tif", "forecast_x_+010min.tif"]
    assert len(files) == 6
    lon, lat = Transformer.from_crs(CRS.from_wkt(grid.crs_wkt), 4326, always_xy=True).transform(
        grid.x[3], grid.y[7]
    )
    with rasterio.open(files[3]) as gdal:
        (gx,), (gy,) = rasterio.warp.transform("EPSG:4326", gdal.crs, [lon], [lat])
        row, column = gdal.index(gx, gy)
        values = gdal.read(1)
        assert values[row, column] == rain[3, 7, 3]
        assert np.isnan(values).sum() == np.isnan(rain[3]).sum() and np.isnan(gdal.nodata)
        assert gdal.transform.e < 0 and gdal.units == ("mm h-1",)
        assert gdal.tags()["valid_time"] == "2026-01-01T12:20:00Z"
        assert gdal.tags()["init_time"] == "2026-01-01T12:00:00Z"
        assert gdal.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_pngs_lie_where_they_belong_on_a_web_map(rain, grid, tmp_path):
    folder = write_pngs(flagged(rain, grid), tmp_path, "forecast_x")
    about = json.loads((folder / "map.json").read_text(encoding="utf-8"))
    assert [one["lead_minutes"] for one in about["maps"]] == [5, 10, 15, 20, 25, 30]
    assert about["maps"][3]["valid_time"] == "2026-01-01T12:20:00Z"
    (south, west), (north, east) = about["bounds"]
    to_degrees = Transformer.from_crs(CRS.from_wkt(grid.crs_wkt), 4326, always_xy=True)
    with rasterio.open(folder / about["maps"][3]["file"]) as gdal:
        assert gdal.crs.to_epsg() == 3857
        corners = rasterio.warp.transform("EPSG:4326", gdal.crs, [west, east], [north, south])
        edges = gdal.bounds
        np.testing.assert_allclose(
            np.ravel(corners), [edges.left, edges.right, edges.top, edges.bottom], rtol=1e-6
        )
        shown, colours = gdal.read(1), gdal.colormap(1)
        seen = set()
        for row, column in np.ndindex(rain[3].shape):
            lon, lat = to_degrees.transform(grid.x[column], grid.y[row])
            place = gdal.index(
                *(value[0] for value in rasterio.warp.transform("EPSG:4326", gdal.crs, [lon], [lat]))
            )
            number = int(shown[place])
            assert number == rain_classes(rain[3])[row, column]
            seen.add(number)
    assert colours[0][3] == 0 and colours[MISSING_CLASS][3] == MISSING_ALPHA and colours[3][3] == 255
    assert {0, MISSING_CLASS} < seen
    bare = flagged(rain, grid)
    bare["rain_rate"][:, :, 4:] = np.nan
    edges = json.loads((write_pngs(bare, tmp_path, "bare") / "map.json").read_text(encoding="utf-8"))["bounds"]
    assert edges[1][1] - edges[0][1] < 0.75 * (east - west)
