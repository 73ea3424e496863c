"""Depths, onset, matched rates, and tables at places."""

import csv
import json

import numpy as np
import pytest
import xarray as xr
from encoded import check_encoded
from forecasting.test_forecast_file import STEP, cf_errors, flagged, latlon_grid, swiss_grid
from pyproj import Transformer

from raincast import schema
from raincast.forecasting.files.dataset import forecast_dataset, with_exceedance
from raincast.forecasting.files.netcdf import write_forecast
from raincast.forecasting.files.places import Location, pixels_of, read_places, write_places
from raincast.forecasting.files.products import with_amounts, with_matched, with_onset


@pytest.fixture
def rain():
    rain = np.random.default_rng(0).gamma(0.3, 4.0, (6, 12, 10)).astype(np.float32)
    rain[rain < 0.3] = 0
    rain[:, :2, :3] = np.nan
    return rain


def test_depths_are_rates_times_time(rain):
    dataset = with_amounts(flagged(rain, schema.mock_grid()), [5, 15, 30])
    np.testing.assert_allclose(dataset["rain_amount_5min"], rain / 12, rtol=1e-6)
    fifteen = dataset["rain_amount_15min"].values
    assert np.isnan(fifteen[:2]).all()
    for lead in range(2, 6):
        np.testing.assert_allclose(fifteen[lead], rain[lead - 2 : lead + 1].sum(axis=0) / 12, rtol=1e-5)
    np.testing.assert_allclose(dataset["rain_amount_30min"][5], rain.mean(axis=0) / 2, rtol=1e-5)
    assert dataset["rain_amount_15min"].attrs["units"] == "mm"
    for wrong in (7, 60, 0):
        with pytest.raises(ValueError, match=rf"{wrong} min is no multiple of the step of 5 min up to 30"):
            with_amounts(dataset, [wrong])


def test_means_over_another_period_keep_it_and_do_not_add_up(rain):
    """Hourly depths that come every 5 min: bounds of an hour, not of the step."""
    hourly = forecast_dataset(
        rain,
        init_time=np.datetime64("2026-01-01T10:00"),
        step_minutes=5,
        grid=schema.mock_grid(),
        cell_methods="time: mean",
        attrs={"accumulation_minutes": 60.0},
    )
    assert (np.diff(hourly["time_bounds"].values, axis=1) == np.timedelta64(1, "h")).all()
    with pytest.raises(
        ValueError, match="the rates are means over 60 min, a frame each 5 min: they do not add up"
    ):
        with_amounts(hourly, [30])
    assert list(with_amounts(hourly, [])) == list(hourly)


def test_onset_is_the_first_time_at_the_threshold(rain):
    newest = rain[-1]
    onset = with_onset(flagged(rain, schema.mock_grid()), 1.0, newest)["time_to_onset"].values
    for y, x in np.ndindex(12, 10):
        series = [newest[y, x], *rain[:, y, x]]
        first = next((number for number, rate in enumerate(series) if rate >= 1), None)
        assert (np.isnan(onset[y, x]) and first is None) or onset[y, x] == first * STEP
    assert (onset == 0).any() and np.isnan(onset).any() and (onset > 0).any()
    with pytest.raises(ValueError, match="onset=0"):
        with_onset(flagged(rain, schema.mock_grid()), 0, newest)


def test_matched_rates_have_the_distribution_of_what_was_seen(rain):
    smooth = np.where(np.isnan(rain), np.nan, 0.3 * np.nan_to_num(rain) + 0.1).astype(np.float32)
    smooth[:, 5] = 0.0
    newest = rain[2]
    matched = with_matched(flagged(smooth, schema.mock_grid()), newest)["rain_rate_matched"].values
    known = np.isfinite(newest)
    assert np.isnan(matched[:, ~known]).all() and (matched[:, 5][:, known[5]] == 0).all()
    assert np.nanmax(matched[3]) == np.nanmax(newest)
    order = np.argsort(smooth[3][known], kind="stable")
    assert (np.diff(matched[3][known][order]) >= 0).all()  # ranks are kept
    full = smooth + 1e-3
    whole = with_matched(flagged(full, schema.mock_grid()), newest)["rain_rate_matched"].values
    np.testing.assert_array_equal(np.sort(whole[3][known]), np.sort(newest[known]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_products_are_in_the_file(rain, tmp_path):
    dataset = with_onset(with_amounts(flagged(rain, schema.mock_grid()), [15, 30]), 1.0, rain[0])
    dataset = with_matched(dataset, rain[0])
    path = write_forecast(dataset, tmp_path / "a.nc")
    pytest.importorskip("compliance_checker", reason="the CF checker is not installed")
    assert cf_errors(path) == []
    with xr.open_dataset(path, decode_timedelta=False) as read:
        np.testing.assert_allclose(read["rain_amount_30min"], dataset["rain_amount_30min"], atol=0.0051)
        np.testing.assert_allclose(read["time_to_onset"], dataset["time_to_onset"], atol=0.051)
        check_encoded(read["rain_rate_matched"], dataset["rain_rate_matched"])
        assert schema.find_rain_variable(read) == schema.RAIN


def square(x, y, half):
    return [
        [x - half, y - half],
        [x + half, y - half],
        [x + half, y + half],
        [x - half, y + half],
        [x - half, y - half],
    ]


def test_polygons_weigh_pixels_by_their_share():
    grid = latlon_grid()  # pixels of 0.03 × 0.02 degrees
    x, y = grid.x[4], grid.y[6]
    whole = Location("", polygons=((np.array([[x - 0.015, y - 0.01], [x + 0.045, y - 0.01], [x + 0.045, y + 0.01], [x - 0.015, y + 0.01]]),),))  # fmt: skip
    found = pixels_of(whole, grid)
    weights = np.zeros(grid.shape)
    weights[found.y, found.x] = found.weights
    assert weights[6, 4] == weights[6, 5] == 1 and weights.sum() == pytest.approx(2)
    hole = np.array([[x - 0.015, y - 0.01], [x + 0.015, y - 0.01], [x + 0.015, y + 0.01], [x - 0.015, y + 0.01]])
    found = pixels_of(Location("", polygons=((whole.polygons[0][0], hole),)), grid)
    weights[:] = 0
    weights[found.y, found.x] = found.weights
    assert weights[6, 5] == 1 and weights.sum() == pytest.approx(1)
    tiny = pixels_of(Location("", polygons=((np.array(square(x, y, 0.006)),),)), grid)
    assert 0 < tiny.weights.sum() < 1
    assert pixels_of(Location("", polygons=((np.array(square(60.0, y, 0.1)),),)), grid) is None


def test_a_table_of_points_and_areas(rain, tmp_path):
    grid = swiss_grid()
    to_degrees = Transformer.from_crs(grid.crs_wkt, 4326, always_xy=True)
    point = to_degrees.transform(grid.x[6] + 300, grid.y[7] - 400)
    west, south = to_degrees.transform(grid.x[2], grid.y[11])
    east, north = to_degrees.transform(grid.x[8], grid.y[4])
    features = [
        {"type": "Feature", "properties": {"name": "station"}, "geometry": {"type": "Point", "coordinates": point}},
        {"type": "Feature", "id": 7, "properties": None, "geometry": {"type": "Polygon", "coordinates": [
            [[west, south], [east, south], [east, north], [west, north], [west, south]]]}},
        {"type": "Feature", "properties": {"name": "away"}, "geometry": {"type": "Point", "coordinates": [0, 0]}},
    ]  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    places = read_places(tmp_path / "p.json")
    assert [place.name for place in places] == ["station", "7", "away"]
    chance = (rain[:, None] >= 1).astype(np.float32)
    chance[np.isnan(rain)[:, None]] = np.nan
    dataset = with_exceedance(with_amounts(flagged(rain, grid), [30]), chance, [1.0])
    path = write_places(dataset, places, tmp_path / "a.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18 and [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
    row = rows[3]
    assert (row["place"], row["valid_time"], row["lead_minutes"]) == ("station", "2026-01-01T12:20:00Z", "20")
    assert float(row["rain_rate_mm_h"]) == pytest.approx(rain[3, 7, 6], rel=1e-3)
    assert row["rain_amount_30min_mm"] == "" and float(row["probability_of_1_mm_h"]) == chance[3, 0, 7, 6]
    assert float(rows[5]["rain_amount_30min_mm"]) == pytest.approx(rain[:, 7, 6].mean() / 2, rel=1e-3)
    found = pixels_of(places[1], grid)
    area = np.average(rain[3][found.y, found.x], weights=found.weights)
    assert float(rows[9]["rain_rate_mm_h"]) == pytest.approx(area, rel=1e-3)
    assert int(rows[9]["quality_flag"]) == 2 and rows[9]["observed"] == "1"
    assert (rows[15]["rain_rate_mm_h"], rows[15]["observed"]) == ("", "0")


def test_places_from_csv_and_what_is_none(tmp_path):
    (tmp_path / "a.csv").write_text("name,lat,lon\nDe Bilt,52.1,5.18\n")
    (place,) = read_places(tmp_path / "a.csv")
    assert place.name == "De Bilt" and place.point == (5.18, 52.1)
    (tmp_path / "b.csv").write_text("ort,breite\nDe Bilt,52.1\n")
    (tmp_path / "c.json").write_text('{"type": "Feature", "geometry": {"type": "LineString", "coordinates": []}}')
    (tmp_path / "d.json").write_text("no json")
    for name in ("b.csv", "c.json", "d.json"):
        with pytest.raises(ValueError, match=f"{name} holds no places.*longitude first"):
            read_places(tmp_path / name)
    (tmp_path / "e.csv").write_text("name,lat,lon\n")
    with pytest.raises(ValueError, match="neither a point nor a polygon"):
        read_places(tmp_path / "e.csv")
    with pytest.raises(FileNotFoundError, match="no file"):
        read_places(tmp_path / "f.csv")
