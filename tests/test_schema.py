"""The archive contract: what keeps it, and what each breach of it is told."""

import numpy as np
import pytest
import xarray as xr
from pyproj import CRS

from raincast import schema
from raincast.schema import Grid, check_archive, find_rain_variable, find_step_minutes, mock_archive, mock_grid


def minutes(*values: float) -> np.ndarray:
    return np.datetime64("2026-01-01", "ns") + np.array([schema.step_timedelta(v) for v in values])


def test_mock_archive_keeps_the_contract():
    dataset = mock_archive(missing=(3, 4))
    check_archive(dataset)
    assert dataset[schema.RAIN].dims == ("time", "y", "x")
    assert np.isnan(dataset[schema.RAIN]).any() and (dataset[schema.RAIN] == 0).any()
    np.testing.assert_array_equal(dataset[schema.MISSING_TIMES], minutes(15, 20))


def renamed(d: xr.Dataset) -> xr.Dataset:
    return d.rename(y="lat").drop_vars("lat")


def rain_attrs(**attrs: str) -> xr.Dataset:
    d = mock_archive()
    d[schema.RAIN].attrs.update(attrs)
    return d


BREACHES = {
    "No variable is a rain rate.*units=inches": lambda d: rain_attrs(units="inches"),
    "No variable is a rain rate.*standard_name=air_temp": lambda d: rain_attrs(standard_name="air_temp"),
    "2 variables .rain_rate, again. are a rain rate": lambda d: d.assign(again=d[schema.RAIN]),
    r"rain_rate has dimensions \('y', 'x', 'time'\)": lambda d: d.transpose("y", "x", "time", ...),
    "no grid_mapping with crs_wkt": lambda d: rain_attrs(grid_mapping="elsewhere"),
    "There is no coordinate 'y'": renamed,
    "There is no coordinate 'time'": lambda d: d.drop_vars("time"),
    "'time' is int64, not decodable": lambda d: d.assign_coords(time=np.arange(24)),
    "It has no frames": lambda d: d.isel(time=slice(0)),
    "are not ascending, or repeat, at 2026-01-01T00:00": lambda d: d.isel(time=[0, 0, 1]),
    "are not ascending, or repeat, at 2026-01-01T00:05": lambda d: d.isel(time=[0, 2, 1]),
    "1 times are off the step.*2026-01-01T00:07": lambda d: d.isel(time=slice(3)).assign_coords(
        time=minutes(0, 5, 7)
    ),
    "'x' is not evenly spaced": lambda d: d.assign_coords(x=d.x.values**2),
    "'y' is not evenly spaced: 0.0 to 0.0": lambda d: d.assign_coords(y=0 * d.y),
}


@pytest.mark.parametrize("message", BREACHES)
def test_each_breach_is_named_with_a_remedy(message):
    with pytest.raises(ValueError, match=message) as error:
        check_archive(BREACHES[message](mock_archive()), "a.nc")
    assert str(error.value).startswith("a.nc is not an archive")
    assert "python ingest.py" in str(error.value)


def test_one_message_lists_all_breaches():
    broken = rain_attrs(grid_mapping="elsewhere").transpose("y", "x", "time", ...)
    broken = broken.isel(time=[0, 2, 1]).assign_coords(x=broken.x.values**2)
    with pytest.raises(ValueError) as error:
        check_archive(broken)
    for part in ("has dimensions", "no grid_mapping", "are not ascending", "'x' is not evenly spaced"):
        assert part in str(error.value)
    assert str(error.value).count("\n  - ") == 4


def test_rain_variable_is_found_by_name_and_unit_among_others():
    dataset = mock_archive().rename(rain_rate="RR").assign(depth=("t", [1.0], {"units": "mm h-1"}))
    dataset["RR"].attrs |= {"standard_name": "precipitation_flux", "units": "kg m-2 s-1"}
    assert find_rain_variable(dataset) == "RR"
    check_archive(dataset)


def test_units_in_mm_h():
    # 1 kg/m² is 1 mm deep; an hour has 3600 s; a metre 1000 mm
    hour, metre = 3600, 1000
    for unit in ("mm h-1", "mm/hr", "mm hr-1", "mm/hour", "kg m-2 h-1", "kg m-2 s-1", "mm s-1", "m s-1"):
        per_second, in_metres = unit.endswith(("s-1", "/s")), unit.startswith("m ")
        assert schema.mm_h_per(unit) == (hour if per_second else 1) * (metre if in_metres else 1), unit
    with pytest.raises(ValueError, match="'dBZ' is not a unit of rain rate"):
        schema.mm_h_per("dBZ")


def test_missing_times_are_those_due_and_absent():
    step = schema.step_timedelta(5)
    np.testing.assert_array_equal(schema.missing_times(minutes(0, 5, 20, 30), step), minutes(10, 15, 25))
    assert schema.missing_times(minutes(0, 5, 10), step).size == 0
    assert schema.missing_times(minutes(0), step).size == 0
    assert schema.missing_times(minutes(0)[:0], step).size == 0


def test_step_is_stated_or_the_most_frequent_gap():
    dataset = mock_archive(6, missing=(2, 3), step_minutes=7.5)
    assert find_step_minutes(dataset) == 7.5
    del dataset.attrs[schema.STEP_MINUTES]
    # frames 0, 1, 4, 5: gaps of 7.5, 22.5 and 7.5 minutes
    assert find_step_minutes(dataset) == 7.5
    with pytest.raises(ValueError, match="the step is unknown"):
        find_step_minutes(dataset.isel(time=[0]))


def test_sub_minute_steps_are_exact():
    assert schema.step_timedelta(0.5) == np.timedelta64(30, "s")
    assert schema.step_timedelta(1 / 3) == np.timedelta64(20, "s")


def moved(grid: Grid, metres: float) -> Grid:
    return Grid(grid.y, grid.x + metres, grid.crs_wkt)


def test_grids_are_the_same_to_a_tenth_of_a_pixel():
    grid = mock_grid()  # 1 km
    assert grid.same_as(moved(grid, 99.0)) and not grid.same_as(moved(grid, 101.0))
    assert not grid.same_as(mock_grid(13, 10))
    assert not grid.same_as(Grid(grid.y[::-1], grid.x, grid.crs_wkt))
    shifted = CRS.from_proj4(schema.MOCK_CRS_PROJ.replace("lon_0=10", "lon_0=11")).to_wkt()
    assert not grid.same_as(Grid(grid.y, grid.x, shifted))
    # the same projection in kilometres, or said in other words, lies where it lay
    in_km = CRS.from_proj4(schema.MOCK_CRS_PROJ.replace("units=m", "units=km")).to_wkt()
    assert grid.same_as(Grid(grid.y / 1000, grid.x / 1000, in_km))
    # heights above a geoid: out of a spoilt file, and no way leads from there to a map
    assert not grid.same_as(Grid(grid.y, grid.x, CRS.from_epsg(5703).to_wkt()))


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3413", "EPSG:28992", schema.MOCK_CRS_PROJ])
def test_projection_goes_into_coordinates_and_comes_back(crs):
    wkt = CRS.from_user_input(crs).to_wkt()
    pixel = 0.01 if crs == "EPSG:4326" else 1000.0
    grid = Grid(50 + pixel * np.arange(4), 5 + pixel * np.arange(3), wkt)
    dataset = schema.rain_dataset(
        np.zeros((1, 4, 3), np.float32), minutes(0), grid, step_minutes=5, cell_methods="time: point"
    )
    check_archive(dataset)
    assert schema.find_crs_wkt(dataset, schema.RAIN) == wkt
    units = {dataset.y.attrs["units"], dataset.x.attrs["units"]}
    assert units == ({"degrees_north", "degrees_east"} if crs == "EPSG:4326" else {"m"})


def test_projection_of_files_without_wkt():
    by_name = mock_archive()
    for name in ("crs_wkt", "spatial_ref"):
        del by_name.crs.attrs[name]
    found = schema.find_crs_wkt(by_name, schema.RAIN)
    grid = mock_grid()
    assert grid.same_as(Grid(grid.y, grid.x, found))
    degrees = rain_attrs(grid_mapping="")
    degrees.y.attrs["units"] = "degrees_north"
    assert CRS.from_wkt(schema.find_crs_wkt(degrees, schema.RAIN)) == CRS.from_epsg(4326)


def test_times_as_text_are_utc_unless_they_state_an_offset():
    noon = np.datetime64("2015-07-28T12:00", "ns")
    for text in ("2015-07-28T12:00", "2015-07-28 12:00Z", "2015-07-28T14:00+02:00", "20150728T1200", noon):
        assert schema.parse_utc(text) == noon, text
    assert schema.parse_utc("20150728") == np.datetime64("2015-07-28")  # to numpy the year 20,150,728
    assert schema.parse_utc("2015-07") == np.datetime64("2015-07-01")
    assert schema.parse_utc("2015") == np.datetime64("2015-01-01")
    for text in ("", "NaT", "today", "28.07.2015", "2015-07-28/2015-07-29"):
        with pytest.raises(ValueError, match="is not a date"):
            schema.parse_utc(text)
    with pytest.raises(ValueError, match="outside the years"):
        schema.parse_utc("0015-07-28")
