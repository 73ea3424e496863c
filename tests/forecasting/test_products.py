"""Depths, onset, matched rates, and tables at places."""

import csv
import json

import numpy as np
import pytest
import xarray as xr
from checking import check_encoded
from forecasting.test_forecast_file import STEP, cf_errors, flagged, latlon_grid, swiss_grid
from pyproj import Transformer
from standing import pipeline

from raincast import schema
from raincast.forecasting import Products
from raincast.forecasting.files.dataset import forecast_dataset, with_exceedance, with_members
from raincast.forecasting.files.locations import Location, pixels_of, read_places
from raincast.forecasting.files.netcdf import write_forecast, write_zarr
from raincast.forecasting.files.places import write_place_members, write_places
from raincast.forecasting.files.products import QUANTILES, with_amounts, with_matched, with_onset


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


AMOUNTS, SPAN, THRESHOLD = (0.2, 1.0), 15, 1.0


def ensemble(rain, grid):
    """Five members, by the factors 0 to 2 of the rates, and rain that stops in some of them."""
    members = (np.linspace(0, 2, 5, dtype=np.float32)[None, :, None, None] * rain[:, None]).copy()
    members[3:, 1:3] *= np.float32(0)
    return with_members(flagged(rain, grid), members)


def with_products(rain, grid, newest):
    return with_onset(with_amounts(ensemble(rain, grid), [SPAN], AMOUNTS), THRESHOLD, newest)


def brute(wet, now, known):
    """Onset and end of one member at one pixel in steps: None for not within the forecast, "?" for not known."""
    series = [now, *wet]
    onset = next((n for n, is_wet in enumerate(series) if is_wet and all(known[:n])), None if all(known) else "?")
    if not all(known):
        return onset, "?"
    wets = [n for n, is_wet in enumerate(series) if is_wet]
    if not wets:
        return onset, "never"
    return onset, None if wets[-1] == len(wet) else wets[-1] + 1


def quantile_of(values, share):
    """The value that `share` of the members does not exceed; NaN where that is none within the forecast."""
    ordered = sorted(np.inf if value in (None, "?") else value for value in values)
    if not ordered:
        return np.nan
    value = ordered[max(0, int(np.ceil(share * len(ordered))) - 1)]
    return np.nan if value == np.inf else value * STEP


def test_what_members_say_is_counted_pixel_by_pixel(rain):
    newest = np.where(np.isnan(rain[0]), np.nan, rain[2]).astype(np.float32)
    made = with_products(rain, schema.mock_grid(), newest)
    members = made["rain_rate_members"].values
    known = np.isfinite(rain) & (made["quality_flag"].values < 2)
    for y, x in np.ndindex(12, 10):
        seen = known[:, y, x]
        for lead in range(6):
            shares = made["rain_amount_15min_exceedance"].values[lead, :, y, x]
            if lead < 2 or not seen[lead - 2 : lead + 1].all():
                assert np.isnan(shares).all()
                continue
            sums = members[lead - 2 : lead + 1, :, y, x].sum(axis=0) / 12
            np.testing.assert_allclose(shares, [(sums >= amount).mean() for amount in AMOUNTS])
        found = [brute(members[:, m, y, x] >= 1, newest[y, x] >= 1, seen) for m in range(5)]
        onsets, ends = zip(*found, strict=True)
        for number, share in enumerate(QUANTILES):
            onset = made["time_to_onset_quantile"].values[number, y, x]
            np.testing.assert_equal(float(onset), quantile_of(onsets, share), str((y, x, onsets)))
            wanted = np.nan if "?" in ends else quantile_of([end for end in ends if end != "never"], share)
            np.testing.assert_equal(float(made["time_to_end_quantile"].values[number, y, x]), wanted)
        begins = made["probability_of_onset"].values[y, x]
        certain = "?" not in onsets
        np.testing.assert_allclose(begins, np.mean([o is not None for o in onsets]) if certain else np.nan)
        still = made["probability_of_no_end"].values[y, x]
        np.testing.assert_allclose(still, np.mean([end is None for end in ends]) if seen.all() else np.nan)
        _, end = brute(rain[:, y, x] >= 1, newest[y, x] >= 1, seen)
        np.testing.assert_equal(
            float(made["time_to_end"].values[y, x]), np.nan if isinstance(end, str) or end is None else end * STEP
        )
    assert np.isfinite(made["time_to_end_quantile"]).any() and (made["probability_of_onset"] > 0).any()


def test_what_is_not_known_is_neither_dry_nor_without_end():
    """No member brings rain, but the right columns come from where nobody looked from 20 minutes on."""
    rain = np.zeros((6, 12, 10), np.float32)
    rain[:, :2, :3] = np.nan
    made = with_products(rain, schema.mock_grid(), rain[0])
    for name in ("probability_of_onset", "probability_of_no_end"):
        assert np.isnan(made[name].values[:, 7:]).all() and np.isnan(made[name].values[:2, :3]).all()
        assert (made[name].values[2:, :7] == 0).all()
    assert np.isnan(made["rain_amount_15min_exceedance"].values[3:, :, :, 7:]).all()
    wet = with_products(rain + 5, schema.mock_grid(), rain[0] + 5)
    assert (wet["time_to_onset_quantile"].values[:, 3:] == 0).all()  # it rains now, whatever comes


def test_amounts_need_a_period_and_members():
    with pytest.raises(ValueError, match=r"products.amounts=.* give products.accumulations=\[60\] too"):
        Products(amounts=[5])
    for wrong in ([0, 5], [5, 2]):
        with pytest.raises(ValueError, match="give mm above 0, increasing"):
            Products(accumulations=[30], amounts=wrong)
    with pytest.raises(ValueError, match="shares of members. Give members=20 too"):
        pipeline(products=Products(accumulations=[30], amounts=[5]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_files_of_members_open_in_xarray_pysteps_and_a_checker(rain, tmp_path):
    from pysteps.io import import_netcdf_pysteps

    made = with_products(rain, schema.mock_grid(), rain[0])
    path = write_forecast(made, tmp_path / "a.nc")
    zarr = write_zarr(made, tmp_path / "a.zarr")
    names = [
        "rain_amount_15min_exceedance",
        "time_to_onset_quantile",
        "time_to_end_quantile",
        "probability_of_onset",
    ]
    for file in (path, zarr):
        engine = {"engine": "zarr", "consolidated": False} if file == zarr else {}
        with xr.open_dataset(file, decode_timedelta=False, **engine) as read:
            check_encoded(read["rain_rate_members"], made["rain_rate_members"])
            for name in names:
                np.testing.assert_allclose(read[name], made[name], atol=0.051)
            assert read["rain_amount_15min_exceedance"].dims == ("lead_time", "amount", "y", "x")
            assert schema.find_rain_variable(read) == schema.RAIN
    theirs = write_forecast(made, tmp_path / "b.nc", for_pysteps=True)
    precip, metadata = import_netcdf_pysteps(str(theirs), onerror="raise")
    assert precip.shape == (5, 6, 12, 10) and metadata["unit"] == "mm/h"
    check_encoded(precip, made["rain_rate_members"].transpose("member", "lead_time", "y", "x").values)
    pytest.importorskip("compliance_checker", reason="the CF checker is not installed")
    assert cf_errors(path) == [] and cf_errors(theirs) == []


def catchment(grid, rows, columns, name):
    """A polygon around these pixels."""
    to_degrees = Transformer.from_crs(grid.crs_wkt, 4326, always_xy=True)
    (top, bottom), (left, right) = rows, columns
    y, x = grid.y[0] - 1000 * np.array([top, bottom]), grid.x[0] + 1000 * np.array([left, right])
    # edges are straight in degrees: with points along them
    along = np.linspace(0, 1, 30)
    xs = np.concatenate(
        [x[0] + along * (x[1] - x[0]), np.full(30, x[1]), x[1] - along * (x[1] - x[0]), np.full(30, x[0])]
    )
    ys = np.concatenate(
        [np.full(30, y[0]), y[0] + along * (y[1] - y[0]), np.full(30, y[1]), y[1] - along * (y[1] - y[0])]
    )
    return Location(name, polygons=((np.stack(to_degrees.transform(xs, ys), axis=1),),))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_members_over_catchments(rain, tmp_path):
    grid = schema.mock_grid()
    newest = rain[0]
    made = with_products(rain, grid, newest)
    whole = catchment(grid, (4.5, 8.5), (1.5, 5.5), "whole")  # 4 × 4 pixels
    half = catchment(grid, (4.5, 8.5), (-2.9, 1.5), "half")  # a bit less than half of it is in the grid
    most = catchment(grid, (4.5, 8.5), (-1.5, 2.5), "most")
    unseen = catchment(grid, (-0.5, 1.5), (-0.5, 2.5), "unseen")
    edge = catchment(grid, (4.5, 8.5), (6.5, 9.4), "edge")  # known up to 15 minutes
    away = Location("away", (0.0, 0.0))
    places = [whole, half, most, unseen, edge, away]
    assert pixels_of(whole, grid).inside == 1
    assert pixels_of(half, grid).inside == pytest.approx(2.0 / 4.4, abs=0.01)
    assert pixels_of(most, grid).inside == pytest.approx(0.75, abs=0.01)
    with write_places(made, places, tmp_path / "a.csv", newest).open() as file:
        rows = {(row["place"], row["lead_minutes"]): row for row in csv.DictReader(file)}
    chance = "probability_of_0.2_mm_in_15_min"
    means = made["rain_rate_members"].values[:, :, 5:9, 2:6].mean(axis=(2, 3))
    sums = means[3:6].sum(axis=0) / 12
    row = rows["whole", "30"]
    assert float(row[chance]) == pytest.approx((sums >= 0.2).mean()) and row["known"] == "1"
    reached = [[now, *of] for now, of in zip([newest[5:9, 2:6].mean() >= 1] * 5, (means >= 1).T, strict=True)]
    onsets = sorted(next((n * STEP for n, is_wet in enumerate(one) if is_wet), np.inf) for one in reached)
    assert float(row["time_to_onset_50pct_minutes"] or np.inf) == onsets[2]
    assert float(row["probability_of_onset"]) == pytest.approx(np.isfinite(onsets).mean())
    assert rows["most", "30"]["observed"] == rows["most", "30"]["known"] == "0.75" and rows["most", "30"][chance]
    for name in ("half", "unseen", "away"):  # too little is known: nothing is said, and nothing is dry
        assert rows[name, "30"][chance] == rows[name, "30"]["probability_of_onset"] == ""
    assert rows["half", "30"]["rain_rate_mm_h"] and float(rows["half", "30"]["observed"]) < 0.5
    assert (
        rows["edge", "15"][chance]
        and rows["edge", "20"][chance] == rows["edge", "30"]["probability_of_no_end"] == ""
    )
    path = write_place_members(made, places, tmp_path / "places.nc", newest)
    with xr.open_dataset(path, decode_timedelta=True) as file:
        read = file.set_index(place="place_name")
        assert list(read["place"].values) == [place.name for place in places]
        np.testing.assert_allclose(read["rain_rate_members"].sel(place="whole"), means, rtol=1e-3)
        np.testing.assert_allclose(read["rain_amount_15min_members"].sel(place="whole")[5], sums, rtol=1e-3)
        assert read["rain_amount_15min_exceedance"].dims == ("place", "lead_time", "amount")
        assert read["rain_rate_members"].sel(place=["half", "unseen", "away"]).isnull().all()
        assert read["time_to_onset_quantile"].attrs["threshold_mm_h"] == 1
    pytest.importorskip("compliance_checker", reason="the CF checker is not installed")
    assert cf_errors(path) == []
