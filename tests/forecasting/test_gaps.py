"""Missing frames, dry input, what does not fit: each has its fate, and the forecast says which."""

import numpy as np
import pytest
from checking import query, rates_of
from forecasting.standing import moving, pipeline

from raincast import schema
from raincast.baselines import Extrapolation, Persistence
from raincast.forecasting import NoInput, Products
from raincast.forecasting.files.dataset import FILLED, MISSING, OUTSIDE_REACH
from raincast.forecasting.gaps import Past, past_of


def without(frames, *numbers):
    return frames.isel(time=[n for n in range(frames.sizes["time"]) if n not in numbers])


def test_whole_input_goes_to_the_network_as_it_is():
    frames, made = moving(), pipeline()
    forecast = made(frames)
    assert forecast.attrs["forecast_method"] == "network" and forecast.attrs["missing_input_frames"] == "none"
    np.testing.assert_array_equal(made.forecaster.seen[0][0, :, 0], frames["rain_rate"].values)
    np.testing.assert_array_equal(forecast["rain_rate"].values[5], frames["rain_rate"].values[-1])
    assert forecast["init_time"].values == frames["time"].values[-1]


def test_a_gap_within_the_budget_repeats_the_frame_before_as_in_training():
    frames, made = moving(), pipeline()
    forecast = made(without(frames, 2), frames["time"].values[-1])
    seen = made.forecaster.seen[0][0, :, 0]
    np.testing.assert_array_equal(seen[2], frames["rain_rate"].values[1])
    assert forecast.attrs["forecast_method"] == "network"
    assert forecast.attrs["missing_input_frames"] == "2026-01-01T00:10"
    filled = forecast["quality_flag"].values & FILLED > 0
    assert filled[:, :-2].all() and not filled[:, -2:].any()  # what nobody ever looked at is missing, not filled


def test_beyond_the_budget_the_rain_moves_on_and_without_motion_it_stays():
    frames = moving(8)
    made = pipeline(max_missing=0)
    forecast = made(without(frames, 4), frames["time"].values[-1])
    assert forecast.attrs["forecast_method"] == "extrapolation" and not made.forecaster.seen
    rain = frames["rain_rate"].values[4:].copy()
    rain[0] = np.nan
    expected = rates_of(Extrapolation(), rain[None, :, None], 6)[0, :, 0]
    np.testing.assert_array_equal(forecast["rain_rate"].values[:, :-2], expected[:, :-2])

    assert forecast.attrs["frames_used"] == "2026-01-01T00:25, 2026-01-01T00:30, 2026-01-01T00:35"

    alone = made(without(frames, 4, 5, 6), frames["time"].values[-1])
    assert alone.attrs["forecast_method"] == "persistence"
    assert alone.attrs["frames_used"] == "2026-01-01T00:35"
    rain[:3] = np.nan
    expected = rates_of(Persistence(), rain[None, :, None], 6)[0, :, 0]
    np.testing.assert_array_equal(alone["rain_rate"].values[:, :-2], expected[:, :-2])


def test_fewer_than_no_missing_frames_are_refused():
    with pytest.raises(ValueError, match="max_missing=-1: give a number of input frames, 0 or more"):
        pipeline(max_missing=-1)


def test_on_large_grids_the_motion_of_blocks_moves_the_pixels(monkeypatch):
    from raincast.forecasting import motion

    frames = moving(10, 96, 128, speed=4)
    rain = frames["rain_rate"].values
    past = past_of(frames.isel(time=slice(0, 4)))
    asked = query(past.rain[None, :, None], 6)
    whole = motion.Fallback().predict(asked).rates[0, :, 0, :-2]
    # 4400 × 3800 goes in blocks of 6²
    assert motion.extrapolation_bytes((4400, 3800)) == 4400 * 3800 * motion.MOTION_BYTES / 36
    monkeypatch.setattr(motion, "MOTION_PIXELS", 50)
    found = motion.Fallback().predict(asked)
    blocks = found.rates[0, :, 0]
    assert found.done == ("extrapolation",) and blocks.shape == (*whole.shape[:1], 96, 128)
    # away from the west, where nothing comes in
    inside = (slice(None), slice(0, 94), slice(32, None))
    error = np.abs(blocks[inside] - rain[4:][inside]).mean()
    stays = np.abs(rain[3][inside[1:]] - rain[4:][inside]).mean()
    assert error < 0.3 * stays, (error, stays, np.abs(whole - rain[4:, :-2])[:, :, 32:].mean())
    assert not np.array_equal(blocks[:, :-2], whole)


def test_the_newest_frame_may_not_be_filled_but_moves_on_over_its_gap():
    frames, made = moving(8), pipeline(max_missing=3)
    forecast = made(without(frames, 7), frames["time"].values[-1])
    assert forecast.attrs["forecast_method"] == "extrapolation"
    assert forecast["time"].values[0] == frames["time"].values[-1] + np.timedelta64(5, "m")
    rain = frames["rain_rate"].values[4:].copy()
    rain[-1] = np.nan
    expected = rates_of(Extrapolation(), rain[None, :, None], 6)[0, :, 0]
    np.testing.assert_array_equal(forecast["rain_rate"].values[:, :-2], expected[:, :-2])


def test_motion_crosses_the_gap_before_the_newest_frame():
    frames, made = moving(14, 48, 96), pipeline(max_missing=0)
    now = frames["time"].values[7]
    forecast = made(without(frames, 6), now)
    assert forecast.attrs["forecast_method"] == "extrapolation"
    assert forecast.attrs["frames_used"] == "2026-01-01T00:25, 2026-01-01T00:35"
    # away from the west, where nothing comes in, and from what nobody looks at
    inside = (slice(None), slice(0, 40), slice(24, None))
    came, rates = frames["rain_rate"].values[8:14][inside], forecast["rain_rate"].values[inside]
    error, stays = np.abs(rates - came).mean(), np.abs(frames["rain_rate"].values[7][inside[1:]] - came).mean()
    assert error < 0.2 * stays, (error, stays)
    # quality follows the same motion: what comes in from the west is beyond reach
    away = (forecast["quality_flag"].values & OUTSIDE_REACH) > 0
    assert away[5, 8:40, :8].mean() > 0.9 and away[5, 8:40, 16:].mean() < 0.1


def test_a_frame_without_one_observed_pixel_is_missing():
    frames, made = moving(), pipeline()
    frames["rain_rate"][1] = np.nan
    assert made(frames).attrs["missing_input_frames"] == "2026-01-01T00:05"
    frames["rain_rate"][:] = np.nan
    with pytest.raises(NoInput, match="All pixels of the frames"):
        made(frames)


def test_dry_input_makes_a_dry_forecast_without_the_network():
    frames, made = moving(), pipeline(thresholds=[0.5, 2])
    frames["rain_rate"][:] = frames["rain_rate"].where(frames["rain_rate"].isnull(), 0.004)
    forecast = made(frames)
    assert forecast.attrs["forecast_method"] == "dry" and not made.forecaster.seen
    assert (forecast["rain_rate"][:, :-2] == 0).all() and forecast["rain_rate"][:, -2:].isnull().all()
    assert (forecast["rain_rate_exceedance"][:, :, :-2] == 0).all()
    frames["rain_rate"][3, 5, 5] = 0.02
    assert made(frames).attrs["forecast_method"] == "network"


def test_of_more_frames_those_up_to_the_init_time_count():
    frames, made = moving(8), pipeline()
    forecast = made(frames, "2026-01-01T00:25")
    np.testing.assert_array_equal(forecast["rain_rate"].values[0], frames["rain_rate"].values[5])
    np.testing.assert_array_equal(made(frames)["rain_rate"].values[0], frames["rain_rate"].values[7])


def test_flags_say_what_was_never_seen_and_what_comes_from_outside():
    forecast = pipeline()(moving(speed=4))
    flags = forecast["quality_flag"].values
    assert forecast["rain_rate"].attrs["ancillary_variables"] == "quality_flag"
    assert ((flags[:, -2:] & MISSING) > 0).all() and not (flags[:, :-2] & MISSING).any()
    np.testing.assert_array_equal((flags & MISSING) > 0, forecast["rain_rate"].isnull())
    away = (flags & OUTSIDE_REACH) > 0
    # rain moves to the east by 4 pixels a step: after 6 steps what is 24 pixels from the western edge came in
    assert away[5, 8:40, :16].mean() > 0.9 and away[5, 8:40, 34:].mean() < 0.1
    assert away[0].mean() < away[5].mean()
    assert not (pipeline(reach=False)(moving())["quality_flag"].values & OUTSIDE_REACH).any()


def test_another_unit_and_name_are_understood():
    frames = moving()
    foreign = frames.rename(rain_rate="pr")
    foreign["pr"] = foreign["pr"] / 3600
    foreign["pr"].attrs = frames["rain_rate"].attrs | {"units": "kg m-2 s-1"}
    np.testing.assert_allclose(
        pipeline()(foreign)["rain_rate"].values, pipeline()(frames)["rain_rate"].values, rtol=1e-6
    )


def test_other_steps_pixels_and_quantities_are_refused_or_recorded():
    frames = moving()
    with pytest.raises(ValueError, match=r"steps of 5 min, the input has 10 min"):
        pipeline()(schema.mock_archive(4, 48, 64, step_minutes=10.0))
    coarse = frames.assign_coords(x=frames["x"] * 2, y=frames["y"] * 2)
    with pytest.raises(ValueError, match=r"1000 × 1000 \(y × x\), the input has 2000 × 2000.*other_grid=true"):
        pipeline()(coarse)
    allowed = pipeline(other_grid=True)(coarse)
    assert allowed.attrs["trained_on_pixels"] == "1000 × 1000"
    assert allowed.attrs["input_pixels"] == "2000 × 2000"
    frames["rain_rate"].attrs["cell_methods"] = "time: mean"
    assert pipeline()(frames).attrs["trained_on_cell_methods"] == "time: point"
    with pytest.raises(ValueError, match="No variable is a rain rate"):
        pipeline()(frames.rename(rain_rate="dbz").assign(dbz=frames["rain_rate"].assign_attrs(units="dBZ")))


def test_means_over_another_period_than_the_step_stay_such_and_a_warning_says_so(caplog):
    frames = moving()
    frames["rain_rate"].attrs["cell_methods"] = "time: mean"
    forecast = pipeline()(frames.assign_attrs(accumulation_minutes=60.0, zr_a=200.0, zr_b=1.5, zr_from="the file"))
    assert forecast.attrs["accumulation_minutes"] == 60 and forecast.attrs["zr_from"] == "the file"
    assert (np.diff(forecast["time_bounds"].values, axis=1) == np.timedelta64(1, "h")).all()
    assert "The input holds means over 60 min, one frame every 5 min, and so does the forecast" in caplog.text
    assert "accumulation_minutes" not in pipeline()(frames).attrs


def test_a_hash_of_the_input_travels_with_the_forecast():
    frames = moving()
    first, again = (pipeline()(frames).attrs["input_sha256"] for _ in range(2))
    frames["rain_rate"][0, 0, 0] = 1.5
    assert first == again != pipeline()(frames).attrs["input_sha256"]


def test_a_gap_at_the_beginning_stays_missing():
    rain = np.full((3, 2, 2), 1.0, np.float32)
    rain[0] = np.nan
    past = Past(rain, np.array([True, False, False]), np.arange(3).astype("datetime64[ns]"))
    assert np.isnan(past.filled()[0]).all() and past.fits(1) and not past.fits(0)


def test_products_are_made_of_the_last_observation_of_each_pixel():
    frames = moving()
    frames["rain_rate"][3, :, :8] = np.nan
    products = Products(accumulations=[10], onset=1.0, matched=True)
    forecast = pipeline(products=products)(frames)
    newest = past_of(frames).newest()
    np.testing.assert_array_equal(newest[:, :8], frames["rain_rate"].values[2, :, :8])
    np.testing.assert_array_equal(newest[:, 8:], frames["rain_rate"].values[3, :, 8:])
    assert (forecast["time_to_onset"].values[newest >= 1] == 0).all()
    assert {"rain_amount_10min", "rain_rate_matched"} <= set(forecast)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_gives_no_numbers_is_replaced_by_extrapolation_and_it_says_so(value, caplog):
    """All pixels were missing, flagged good, and the watcher counted a success."""
    frames, made = moving(), pipeline()
    whole = made.forecaster.predict

    def broken(query):
        prediction = whole(query)
        prediction.rates[:, 2:, :, 5:9] = value
        return prediction

    made.forecaster.predict = broken
    forecast = made(frames)
    assert forecast.attrs["forecast_method"] == "extrapolation" and "not finite" in caplog.text
    assert "frames_used" in forecast.attrs
    rain = frames["rain_rate"].values
    expected = rates_of(Extrapolation(), rain[None, :, None], 6)[0, :, 0]
    np.testing.assert_array_equal(forecast["rain_rate"].values[:, :-2], expected[:, :-2])
