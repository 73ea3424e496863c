"""A weather model's files: runs, times, sums and grids become rates on the radar's grid, or are refused."""

import netCDF4
import numpy as np
import pytest
import xarray as xr
from pyproj import CRS, Transformer

from raincast import schema
from raincast.forecasting.regrid import Regrid, Scattered
from raincast.forecasting.weather_model import ModelSettings, NoRun, WeatherModel
from raincast.schema import Grid

RUN = np.datetime64("2026-01-31T00:00", "ns")
HOUR = np.timedelta64(1, "h")
NUM = 8
LAT, LON = np.arange(50.0, 55.0, 0.5), np.arange(2.0, 10.0, 0.5)
RADAR = schema.mock_grid(20, 16)  # near 52° N 7° E
NEEDED = np.ones(RADAR.shape, bool)
RATES = np.arange(1.0, NUM + 1)
"""mm/h in each hour of the run, everywhere."""
MARCH = {"lat": ("lat", LAT, {"units": "degrees_north"}), "lon": ("lon", LON, {"units": "degrees_east"})}


def fields(values):
    return np.broadcast_to(
        np.asarray(values, np.float32)[..., None, None], (*np.shape(values), LAT.size, LON.size)
    )


def ends(run=RUN):
    return run + HOUR * np.arange(1, NUM + 1)


def plain(values, units, *, dims=("time", "lat", "lon"), run=RUN, starts=None, name="rain", coords=None, **attrs):
    """A file by valid time, with time bounds if there are `starts`."""
    coords = MARCH if coords is None else coords
    dataset = xr.Dataset(
        {name: (dims, values, {"units": units} | attrs)},
        {"time": ("time", ends(run)), "forecast_reference_time": ((), run), **coords},
    )
    dataset["forecast_reference_time"].attrs["standard_name"] = "forecast_reference_time"
    if starts is not None:
        dataset["time"].attrs["bounds"] = "time_bnds"
        dataset["time"].encoding["units"] = "minutes since 2026-01-30"
        dataset["time_bnds"] = (("time", "bnds"), np.stack([starts, ends(run)], axis=1))
    return dataset


SUMS = np.cumsum(RATES)
AMOUNT = {"standard_name": "precipitation_amount"}
SINCE = np.full(NUM, RUN)


def by_lead(values, *, runs=(RUN,), scalar=True):
    """Lead times along `step`, as from GRIB: sums since the run's start, one run or several."""
    dataset = xr.Dataset(
        {"tp": (("time", "step", "lat", "lon"), values, {"units": "kg m-2"} | AMOUNT)},
        {
            "time": ("time", np.array(runs), {"standard_name": "forecast_reference_time"}),
            "step": ("step", HOUR * np.arange(1, NUM + 1), {"standard_name": "forecast_period"}),
            **MARCH,
        },
    )
    valid = dataset["time"] + dataset["step"]
    dataset = dataset.assign_coords(valid_time=valid.assign_attrs(standard_name="time"))
    return dataset.isel(time=0) if scalar else dataset


FORMS = {
    "sums since the run, bounds": [plain(fields(SUMS), "mm", starts=SINCE, **AMOUNT)],
    "sums since the run, said": [plain(fields(SUMS), "kg m-2", **AMOUNT)],
    "sums of an hour in m": [
        plain(fields(RATES / 1000), "m", starts=ends() - HOUR, standard_name="lwe_thickness_of_precipitation_amount")
    ],
    "sums of an hour, said by the file": [plain(fields(RATES), "mm", accumulation_period="PT1H", **AMOUNT)],
    "mean flux": [
        plain(fields(RATES / 3600), "kg m-2 s-1", starts=ends() - HOUR, standard_name="precipitation_flux", cell_methods="time: mean")
    ],
    "mean flux since the run": [
        plain(fields(SUMS / np.arange(1, 9)), "mm h-1", starts=SINCE, standard_name="rainfall_rate", cell_methods="time: mean")
    ],
    "by lead time": [by_lead(fields(SUMS)[None])],
    "several runs by lead time": [
        by_lead(fields(np.stack([9 * SUMS, SUMS])), runs=(RUN - 6 * HOUR, RUN), scalar=False)
    ],
    "sums of buckets of 3 h": [
        plain(fields([RATES[n // 3 * 3 : n + 1].sum() for n in range(NUM)]), "mm", starts=RUN + 3 * HOUR * (np.arange(NUM) // 3), **AMOUNT)
    ],
    "bounds the wrong way round, at the middle": [
        plain(fields(RATES), "mm", starts=ends() - HOUR, **AMOUNT)
        .isel(bnds=[1, 0])
        .assign_coords(time=("time", ends() - HOUR // 2, {"bounds": "time_bnds"}))
    ],
    "rate over bounds, no cell_methods": [
        plain(fields(RATES), "mm/h", starts=ends() - HOUR, standard_name="rainfall_rate")
    ],
    "a file for each hour": [plain(fields(SUMS), "mm", starts=SINCE, **AMOUNT).isel(time=[n]) for n in range(NUM)],
    "south last": [plain(fields(SUMS), "mm", starts=SINCE, **AMOUNT).isel(lat=slice(None, None, -1))],
}  # fmt: skip


def written(folder, datasets):
    folder.mkdir(exist_ok=True)
    for number, dataset in enumerate(datasets):
        dataset.to_netcdf(folder / f"{number}.nc")
    return str(folder / "*.nc")


def at(*hours):
    return RUN + (HOUR * 60 * np.array(hours)) // 60


MIDDLES = RUN + np.timedelta64(30, "m") + HOUR * np.arange(1, 7)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_run_gives_the_same_rates(form, tmp_path):
    said = ModelSettings(accumulated="run") if form == "sums since the run, said" else ModelSettings()
    model = WeatherModel(written(tmp_path / "a", FORMS[form]), said)
    made = model.forecast(MIDDLES, RADAR, NEEDED)
    assert made.run_time == RUN and made.rates.shape == (1, 6, *RADAR.shape)
    np.testing.assert_allclose(
        made.rates[0], np.broadcast_to(RATES[1:7, None, None], made.rates.shape[1:]), rtol=2e-5
    )
    between = model.forecast(RUN + HOUR * np.arange(2, 6), RADAR, NEEDED).rates[0, :, 0, 0]
    np.testing.assert_allclose(between, RATES[1:5] + 0.5, rtol=2e-5)
    first = model.forecast(RUN + np.timedelta64(10, "m") * np.arange(4), RADAR, NEEDED).rates[0, :, 0, 0]
    np.testing.assert_allclose(first, RATES[0], rtol=2e-5)  # from the run's start to the middle of its first hour


STORED = {
    "netCDF's default fill of float32": ("f4", {}, 9.969209968386869e36),
    "netCDF's default fill of int16": ("i2", {"scale_factor": 0.1}, -32767),
    "a declared fill": ("i2", {"scale_factor": 0.1, "_FillValue": np.int16(-1)}, -1),
    "outside the valid range": ("i2", {"scale_factor": 0.1, "valid_range": np.array([0, 3000], "i2")}, 3001),
    "an undeclared −9999": ("f4", {}, -9999.0),
}


@pytest.mark.parametrize("case", STORED)
def test_missing_values_of_a_model_are_not_rain(case, tmp_path):
    """Sums since the run's start, so that a missing value stays the same: its differences would be dry."""
    dtype, attrs, fill = STORED[case]
    numbers = (fields(SUMS) / attrs.get("scale_factor", 1)).round(1).astype(dtype)
    numbers[:, :2] = fill  # 50° N and 50.5° N, south of the radar
    written(tmp_path / "a", [plain(fields(SUMS), "mm", starts=SINCE, **AMOUNT).drop_vars("rain")])
    with netCDF4.Dataset(tmp_path / "a" / "0.nc", "a") as file:
        rain = file.createVariable("rain", dtype, ("time", "lat", "lon"), fill_value=attrs.pop("_FillValue", None))
        rain.setncatts({"units": "mm"} | AMOUNT | attrs)
        rain.set_auto_maskandscale(False)
        rain[:] = numbers
    model = WeatherModel(tmp_path / "a" / "0.nc")
    np.testing.assert_allclose(model.forecast(MIDDLES, RADAR, NEEDED).rates[0, :, 0, 0], RATES[1:7], rtol=1e-4)
    south = Grid(RADAR.y - 230_000, RADAR.x, RADAR.crs_wkt)
    with pytest.raises(NoRun, match="does not cover the radar"):
        model.forecast(MIDDLES, south, NEEDED)
    assert np.isnan(model.forecast(MIDDLES, south, ~NEEDED).rates).all()


def test_the_unit_of_the_file_counts_unless_its_variable_is_named(tmp_path):
    """As `blending.units` says: a unit for files without one must not rescale files that state theirs."""
    flux = plain(fields(RATES / 3600), "kg m-2 s-1", starts=ends() - HOUR, standard_name="precipitation_flux")
    files = written(tmp_path / "a", [flux])
    stated = WeatherModel(files, ModelSettings(units="mm/h")).forecast(MIDDLES, RADAR, NEEDED).rates
    np.testing.assert_allclose(stated[0, :, 0, 0], RATES[1:7], rtol=1e-4)
    named = WeatherModel(files, ModelSettings(units="mm/h", variable="rain")).forecast(MIDDLES, RADAR, NEEDED)
    np.testing.assert_allclose(named.rates[0, :, 0, 0], RATES[1:7] / 3600, rtol=1e-4)


def test_momentary_rates_are_linear_in_time(tmp_path):
    field = plain(fields(RATES), "mm/h", standard_name="rainfall_rate", cell_methods="time: point")
    model = WeatherModel(written(tmp_path / "a", [field]))
    made = model.forecast(RUN + HOUR + np.timedelta64(15, "m") * np.arange(5), RADAR, NEEDED)
    np.testing.assert_allclose(made.rates[0, :, 3, 3], [1, 1.25, 1.5, 1.75, 2])
    with pytest.raises(NoRun, match="begins at 2026-01-31T01:00"):
        model.forecast(at(0, 1), RADAR, NEEDED)


def test_members_along_a_dimension_and_in_files(tmp_path):
    factors = np.array([1.0, 0.0, 2.0])
    values = fields(SUMS[None] * factors[:, None])
    together = plain(values, "mm", dims=("number", "time", "lat", "lon"), starts=SINCE, **AMOUNT)
    own = [plain(values[n], "mm", starts=SINCE, **AMOUNT).assign_coords(realization=n) for n in range(3)]
    for number, datasets in enumerate(([together], own)):
        made = WeatherModel(written(tmp_path / str(number), datasets)).forecast(MIDDLES, RADAR, NEEDED)
        np.testing.assert_allclose(made.rates[:, 2, 4, 4], 4 * factors, rtol=1e-5)


def test_the_newest_run_that_was_there_and_reaches_far_enough(tmp_path, caplog):
    runs = [RUN + 3 * number * HOUR for number in range(3)]
    datasets = [
        plain(fields(SUMS + 10 * number * np.arange(1, 9)), "mm", run=run, starts=np.full(NUM, run), **AMOUNT)
        for number, run in enumerate(runs)
    ]
    files = written(tmp_path / "a", datasets)
    times = RUN + 6 * HOUR + np.timedelta64(30, "m") * np.arange(4)
    assert WeatherModel(files).forecast(times, RADAR, NEEDED).run_time == runs[2]
    late = WeatherModel(files, ModelSettings(delay_minutes=100))
    assert late.forecast(times, RADAR, NEEDED).run_time == runs[1]
    assert late.forecast(times - HOUR, RADAR, NEEDED).run_time == runs[1]
    assert late.forecast(times - 3 * HOUR, RADAR, NEEDED).run_time == runs[0]
    (tmp_path / "a" / "2.nc").unlink()
    datasets[2].isel(time=slice(0, 1)).to_netcdf(tmp_path / "a" / "3.nc")
    assert WeatherModel(files).forecast(times, RADAR, NEEDED).run_time == runs[1]
    assert (
        "The run of 2026-01-31T03:00 is blended: that of 2026-01-31T06:00 ends at 2026-01-31T07:00" in caplog.text
    )
    with pytest.raises(
        NoRun, match=r"no run was there 100 min .*before 2026-01-31T00:30. Found: 3, from 2026-01-31T00"
    ):
        late.forecast(times - np.timedelta64(330, "m"), RADAR, NEEDED)
    with pytest.raises(
        NoRun, match=r"no run covers .* to 2026-02-01T06:00: .* ends at 2026-01-31T11:00.*smaller lead"
    ):
        WeatherModel(files).forecast(RUN + np.array([8, 30]) * HOUR, RADAR, NEEDED)


REFUSED = {
    "means of nobody knows what": (plain(fields(RATES), "mm/h", standard_name="rainfall_rate", cell_methods="time: mean"), {}, "over which time its means are.*blending.accumulated=step"),
    "a maximum": (plain(fields(RATES), "mm/h", starts=ends() - HOUR, standard_name="rainfall_rate", cell_methods="time: maximum"), {}, "rain is a maximum over time"),
    "another quantity": (plain(fields(RATES), "K", name="t2m", standard_name="air_temperature"), {}, "no variable on .* is rain.*blending.variable=NAME"),
    "a reflectivity": (plain(fields(RATES), "dBZ", standard_name="equivalent_reflectivity_factor"), {}, "rain is a reflectivity.*blending.variable"),
    "two variables": (plain(fields(SUMS), "mm", starts=SINCE, **AMOUNT).assign(other=plain(fields(SUMS), "mm", **AMOUNT)["rain"]), {}, "2 variables are a accumulation.*blending.variable=NAME"),
    "a wrong unit": (plain(fields(RATES), "furlong", **AMOUNT), {"variable": "rain"}, "units 'furlong', "),
    "no unit": (plain(fields(RATES), "", **AMOUNT), {}, "states no units: set blending.units=mm/h"),
    "no run time": (plain(fields(SUMS), "mm", starts=SINCE, **AMOUNT).drop_vars("forecast_reference_time"), {}, "states no run time.*blending.run_time=first"),
    "sums of nobody knows what": (plain(fields(RATES[::-1].copy()), "mm", **AMOUNT), {}, "over which time.*blending.accumulated=run .*blending.accumulated=step"),
    "sums that fall": (plain(fields(RATES[::-1].copy()), "mm", **AMOUNT), {"accumulated": "run"}, "fall with time, by up to 1 mm"),
    "another region": (plain(fields(SUMS), "mm", starts=SINCE, coords={"lat": ("lat", LAT - 3, {"units": "degrees_north"}), "lon": MARCH["lon"]}, **AMOUNT), {}, "does not cover the radar: of .*% of the pixels"),
    "a lacking hour": (plain(fields(RATES), "mm", starts=ends() - HOUR, **AMOUNT).isel(time=[0, 1, 2, 4, 5, 6, 7]), {}, "lacks the period after 2026-01-31T03:00"),
    "no projection": (plain(fields(SUMS), "mm", starts=SINCE, coords={"lat": ("lat", LAT), "lon": ("lon", LON)}, **AMOUNT), {}, "names no projection.*blending.crs"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_model_for_this_forecast_is_refused(case, tmp_path):
    dataset, settings, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        WeatherModel(written(tmp_path / "a", [dataset]), ModelSettings(**settings)).forecast(
            MIDDLES, RADAR, NEEDED
        )


def test_settings_and_doubles_are_refused(tmp_path, caplog):
    for wrong, message in (
        ({"accumulated": "day"}, "run, step or null"),
        ({"units": "K"}, "blending.units=K is no"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelSettings(**wrong)
    double = [plain(fields(SUMS), "mm", starts=SINCE, **AMOUNT)] * 2
    with pytest.raises(NoRun, match=r"has a time twice, in 0.nc, 1.nc"):
        WeatherModel(written(tmp_path / "a", double)).forecast(MIDDLES, RADAR, NEEDED)
    never_fall = WeatherModel(written(tmp_path / "b", [plain(fields(SUMS), "mm", **AMOUNT)]))
    made = never_fall.forecast(MIDDLES, RADAR, NEEDED)
    np.testing.assert_allclose(made.rates[0, :, 0, 0], RATES[1:7], rtol=1e-5)
    assert "taken for sums since the run's start" in caplog.text
    first = plain(fields(SUMS), "mm", starts=SINCE, **AMOUNT).drop_vars("forecast_reference_time")
    stated = WeatherModel(written(tmp_path / "c", [first]), ModelSettings(run_time="2026-01-31T00:00Z"))
    assert stated.forecast(MIDDLES, RADAR, NEEDED).run_time == RUN


def lonlat(grid):
    lon, lat = Transformer.from_crs(grid.crs_wkt, 4326, always_xy=True).transform(*np.meshgrid(grid.x, grid.y))
    return lon, lat


def test_coarse_fields_are_linear_between_points_on_any_grid():
    lon, lat = lonlat(RADAR)
    wanted = 2 * lon + 3 * lat
    wgs = CRS.from_epsg(4326).to_wkt()
    for x, y in ((LON, LAT), (LON[::-1].copy(), LAT), (LON + 360, LAT[::-1].copy())):
        on = np.add.outer(3 * y, 2 * (x - 360 * (x > 180)))
        np.testing.assert_allclose(Regrid(Grid(y, x, wgs), RADAR)(on), wanted, atol=2e-4)
    turned = np.deg2rad(20)  # a curvilinear grid: no row or column follows a meridian
    u, v = np.meshgrid(np.arange(-3, 3, 0.2), np.arange(-3, 3, 0.2))
    lons, lats = 7 + np.cos(turned) * u - np.sin(turned) * v, 53 + np.sin(turned) * u + np.cos(turned) * v
    found = Regrid(Scattered(lats, lons), RADAR)(2 * lons + 3 * lats)
    np.testing.assert_allclose(found, wanted, atol=0.02)  # straight in metres, not in degrees


def test_around_the_earth_over_the_edge_and_finer():
    wgs = CRS.from_epsg(4326).to_wkt()
    greenwich = Grid(np.array([51.0, 51.1]), np.array([-0.9, -0.1, 0.1, 0.9]), wgs)
    world = Grid(np.arange(90.0, -91, -1), np.arange(0.0, 360), wgs)
    field = np.broadcast_to(np.cos(np.deg2rad(world.x)), world.shape)
    np.testing.assert_allclose(Regrid(world, greenwich)(field)[0], np.cos(np.deg2rad(greenwich.x)), atol=1e-3)
    west = Grid(world.y, world.x[:180], wgs)  # ends at 0° E
    assert np.isnan(Regrid(west, greenwich)(field[:, :180])[:, 0]).all()
    y, x = RADAR.y[0] + 375 - 250.0 * np.arange(80), RADAR.x[0] - 375 + 250.0 * np.arange(64)
    fine = Grid(y, x, RADAR.crs_wkt)
    values = np.random.default_rng(0).random(fine.shape).astype(np.float32)
    means = values.reshape(20, 4, 16, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(Regrid(fine, RADAR)(values), means, rtol=1e-5)
    far = Scattered(np.array([[10.0, 10], [11, 11]]), np.array([[10.0, 11], [10, 11]]))
    assert np.isnan(Regrid(far, RADAR)(np.ones((2, 2)))).all()


def test_a_curvilinear_file_is_read(tmp_path):
    lons, lats = np.meshgrid(LON, LAT)
    coords = {"latitude": (("lat", "lon"), lats), "longitude": (("lat", "lon"), lons)}
    dataset = plain(fields(SUMS), "mm", starts=SINCE, coords=coords, **AMOUNT).rename(lat="j", lon="i")
    made = WeatherModel(written(tmp_path / "a", [dataset])).forecast(MIDDLES, RADAR, NEEDED)
    np.testing.assert_allclose(made.rates[0, :, 5, 5], RATES[1:7], rtol=1e-4)
