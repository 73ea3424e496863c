"""What a perfect, an empty, a shifted and a blurred forecast do to each score, as its definition says."""

import numpy as np
import pytest
import torch
import xarray as xr

from raincast.evaluation import SCORES, Metrics, evaluate
from raincast.forecaster import Gives, Prediction

LEADS, SIZE, SHIFT = 6, 48, 4
METRICS = Metrics(
    (0.5, 2.0, 10.0),
    pools=(4, 16),
    scales=(1, 5, 21),
    areal_scales=(4, 16, 64),  # the last has no place
    spectrum=True,
    accumulations=(10, 30),
    amounts=(0.2, 1.0),
    onset=True,
)


def blobs() -> np.ndarray:
    """(4 windows, 2 + LEADS, 1, SIZE, SIZE) mm/h: round cells that grow, on dry ground, away from the edges."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    rain = np.zeros((4, 2 + LEADS, 1, SIZE, SIZE), np.float32)
    for window in rain:
        for _ in range(6):
            at, width = rng.uniform(14, SIZE - 14, 2), rng.uniform(2, 4)
            for step, frame in enumerate(window[:, 0]):
                peak = rng.uniform(1, 3) * (step + 1)
                frame += peak * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * width**2))
    return np.where(rain < 0.1, 0, rain).astype(np.float32)


RAIN = blobs()


class Says:
    """Answers with frames that it was given, window by window."""

    gives = Gives()

    def __init__(self, name: str, frames: np.ndarray) -> None:
        self.name, self.frames = name, iter(frames)

    def predict(self, query):
        return Prediction(np.stack([next(self.frames) for _ in query.rain]))


class Members(Says):
    """The same as an ensemble: (T, M, H, W) a window."""

    gives = Gives(members=True, probabilities=True)

    def predict(self, query):
        members = super().predict(query).rates
        shares = np.stack([(members >= rate).mean(axis=2) for rate in query.thresholds], axis=2)
        return Prediction(members.mean(axis=2, keepdims=True), members, shares, query.thresholds)


@pytest.fixture(scope="module")
def scores() -> xr.Dataset:
    truth, spread = RAIN[:, 2:], np.array([0.8, 0.9, 1.1, 1.2], np.float32).reshape(1, 1, 4, 1, 1)
    tensor = torch.from_numpy(truth)
    blurred = torch.nn.functional.avg_pool2d(tensor.flatten(0, 1), 9, 1, 4).view_as(tensor).numpy()
    said = [
        Says("perfect", truth),
        Says("empty", 0 * truth),
        Says("shifted", np.roll(truth, SHIFT, -1)),
        Says("blurred", blurred),
        Says("late", np.concatenate([0 * truth[:, :3], truth[:, :-3]], 1)),
        Members("sure", np.repeat(truth, 4, 2)),
        Members("spread", truth * spread),
        Members("wrong", np.roll(truth, SHIFT, -1) * spread),
        Members("alone", truth),
    ]
    times = np.datetime64("2026-01-01T12", "s").astype(np.int64) + 86400 * torch.arange(4)
    batch = {"input": torch.from_numpy(RAIN[:, :2]), "target": tensor, "target_mask": torch.ones_like(tensor).bool(),
             "time": times, "y": torch.zeros(4), "x": torch.zeros(4)}  # fmt: skip
    return evaluate(said, [batch], METRICS, lead_steps=LEADS, step_minutes=5.0, pixel_km=1.0)


ZERO_IS_PERFECT = {"far", "mean_error", "mae", "rmse", "balanced_mse", "balanced_mae", "onset_far", "brier"}


def test_a_perfect_forecast_is_perfect_in_everything(scores):
    perfect = scores.sel(forecaster="perfect")
    looked_at = 0
    for name, score in SCORES.items():
        plain = name.removeprefix("pooled_").removeprefix("accumulated_")
        if (
            name not in scores
            or perfect[name].isnull().all()
            or name in ("spectrum", "observed_spectrum", "effective_resolution")
        ):
            continue
        values = perfect[name].values[~np.isnan(perfect[name].values)]
        np.testing.assert_allclose(values, 0 if plain in ZERO_IS_PERFECT else 1, atol=1e-9, err_msg=name)
        assert score.long_name
        looked_at += 1
    assert looked_at >= 30
    assert (perfect["effective_resolution"] == scores["wavelength"][-1]).all()
    sure = scores.sel(forecaster="sure")
    for name in (
        *("crps", "fair_crps", "spread", "ensemble_mean_rmse", "brier", "brier_reliability"),
        *("areal_crps", "areal_spread", "energy_score", "fair_energy_score", "variogram_score"),
    ):
        own = sure[name] if "areal_scale" not in sure[name].dims else sure[name].sel(areal_scale=[4, 16])
        assert (own == 0).all(), name
    assert (sure["accumulated_crps"].sel(accumulation=30).dropna("lead_time") == 0).all()
    np.testing.assert_allclose(sure["member_spectrum_ratio"], 1, rtol=1e-9)
    assert (sure["member_effective_resolution"] == scores["wavelength"][-1]).all()
    assert (sure["roc_area"] == 1).all()
    np.testing.assert_allclose(sure["brier_resolution"], sure["brier_uncertainty"], rtol=1e-12)


def test_an_empty_forecast_hits_nothing(scores):
    empty = scores.sel(forecaster="empty")
    for name in (
        "csi",
        "pod",
        "frequency_bias",
        "f1",
        "ets",
        "hss",
        "fss",
        "pooled_csi",
        "onset_pod",
        "spectrum_ratio",
    ):
        values = empty[name].values
        assert (values[~np.isnan(values)] == 0).all() and (values == 0).any(), name
    for name in ("far", "correlation", "uncentred_correlation", "pooled_far", "effective_resolution"):
        assert empty[name].isnull().all(), name
    observed = RAIN[:, 2:].astype(np.float64)
    np.testing.assert_allclose(empty["mean_error"], -observed.mean((0, 2, 3, 4)), rtol=1e-6)
    np.testing.assert_allclose(empty["mae"], observed.mean((0, 2, 3, 4)), rtol=1e-6)


def test_a_shift_costs_position_and_nothing_else(scores):
    shifted, perfect = (scores.sel(forecaster=name) for name in ("shifted", "perfect"))
    np.testing.assert_array_equal(shifted["frequency_bias"], perfect["frequency_bias"])
    np.testing.assert_allclose(shifted["mean_error"], 0, atol=1e-9)
    np.testing.assert_allclose(shifted["spectrum_ratio"], 1, rtol=1e-9)
    assert (shifted["csi"] < 0.8).all() and (shifted["rmse"] > 0).all()
    assert (shifted["fss"].diff("scale") > 0).all() and (shifted["fss"].isel(scale=-1) > 0.9).all()
    assert (shifted["pooled_csi"].sel(pool=16) > shifted["csi"]).all()


def test_blur_costs_detail_and_heavy_rain(scores):
    blurred = scores.sel(forecaster="blurred")
    np.testing.assert_allclose(blurred["mean_error"], 0, atol=1e-3)
    short = scores["wavelength"] < 9
    assert (blurred["spectrum_ratio"].where(short, drop=True) < 0.3).all()
    assert (blurred["effective_resolution"] > 9).all() and (blurred["effective_resolution"] < 30).all()
    assert (blurred["frequency_bias"].sel(threshold=10.0).dropna("lead_time") < 1).all()
    assert np.isfinite(blurred["frequency_bias"].sel(threshold=10.0)).any()


def test_a_late_forecast_misses_the_onset_and_accumulates_too_little(scores):
    late = scores.sel(forecaster="late")
    assert (late["onset_pod"].isel(threshold=0).dropna("lead_time")[:3] == 0).all()
    ends = late["accumulated_mean_error"].sel(accumulation=30.0)
    assert np.flatnonzero(ends.notnull()).tolist() == [LEADS - 1] and float(ends[-1]) < 0
    assert np.flatnonzero(late["accumulated_mae"].sel(accumulation=10.0).notnull()).tolist() == [1, 3, 5]


def test_an_ensemble_that_knows_its_error_is_the_best(scores):
    spread, wrong = (scores.sel(forecaster=name) for name in ("spread", "wrong"))
    assert (spread["crps"] < wrong["crps"]).all() and (spread["fair_crps"] < spread["crps"]).all()
    assert (spread["spread"] > 0).all() and (wrong["spread_error_ratio"] < 1).all()
    assert (spread["brier"] <= wrong["brier"]).all() and (spread["roc_area"] >= wrong["roc_area"]).all()
    total = scores["sum_ensemble_ranks"].sel(forecaster="spread").sum(["event", "rank"])
    np.testing.assert_allclose(total, 4 * SIZE * SIZE)
    without = scores.sel(forecaster=["perfect", "empty", "alone"])
    for name in ("crps", "areal_crps", "accumulated_crps", "energy_score", "member_spectrum"):
        assert without[name].isnull().all(), "they state no members, or one"


def test_members_are_scored_in_boxes_sums_and_as_maps(scores):
    spread, wrong = (scores.sel(forecaster=name) for name in ("spread", "wrong"))
    boxes = {"areal_scale": [4.0, 16.0]}
    for name in ("areal_crps", "energy_score"):
        assert (spread[name].sel(boxes) < wrong[name].sel(boxes)).all(), name
        assert spread[name].sel(areal_scale=64).isnull().all(), "no box of 64 km fits"
    assert (spread["areal_fair_crps"].sel(boxes) < spread["areal_crps"].sel(boxes)).all()
    # a shift matters less, the larger the box
    assert (wrong["areal_crps"].sel(areal_scale=16) < wrong["areal_crps"].sel(areal_scale=4)).all()
    assert scores["areal_box"].values.tolist() == [4, 16, 64] and scores["areal_scale"].units == "km"
    counts = scores["sum_areal_ensemble_ranks"].sel(forecaster="spread").sum(["event", "rank"])
    np.testing.assert_allclose(counts, np.repeat([[4 * 12**2], [4 * 3**2], [0]], LEADS, 1))
    ends = spread["accumulated_crps"].sel(accumulation=30.0)
    assert np.flatnonzero(ends.notnull()).tolist() == [LEADS - 1] and ends.units == "mm"
    # all four members are 0.8 to 1.2 times the truth: so is the sum of half an hour, in mm
    amount = RAIN[:, 2:].astype(np.float64).sum(1) / 12
    np.testing.assert_allclose(ends[-1], (0.15 - 0.5 * 2.8 / 16) * amount.mean(), rtol=1e-4)
    np.testing.assert_allclose(spread["member_spectrum_ratio"], np.mean([0.64, 0.81, 1.21, 1.44]), rtol=1e-5)


def test_sums_by_hour_are_those_of_all_events(scores):
    hours = scores["hourly_hits"].sum(["threshold", "lead_time", "forecaster"])
    assert np.flatnonzero(hours).tolist() == [12]
    xr.testing.assert_equal(
        scores["hourly_hits"].sum("hour"), scores["sum_hits"].sum("event").rename("hourly_hits")
    )
    assert int(scores["hourly_num_windows"].sel(hour=12)) == 4 and scores.sizes["event"] == 4


def test_all_that_can_be_scored_is_there_with_its_support(scores):
    elsewhere = {
        name for name in SCORES if name.startswith(("sal_", "uncalibrated_"))
    }  # scikit-image, calibration
    promised = {
        *("csi", "pod", "far", "frequency_bias", "hss", "ets", "f1", "mean_error", "mae", "rmse", "correlation"),
        *("uncentred_correlation", "balanced_mse", "balanced_mae", "pooled_csi", "pooled_hss", "fss", "spectrum"),
        *("spectrum_ratio", "effective_resolution", "crps", "fair_crps", "brier", "brier_reliability", "roc_area"),
        *(
            "brier_resolution",
            "brier_uncertainty",
            "observed_frequency",
            "stated_probability",
            "spread_error_ratio",
        ),
        *("accumulated_csi", "accumulated_mae", "onset_csi", "sum_ensemble_ranks", "sum_hits", "hourly_hits"),
    }
    assert promised | (SCORES.keys() - elsewhere) <= scores.keys()
    assert set(scores["effective_resolution"].dims) == {"forecaster", "lead_time"}
    assert set(scores["fss"].dims) == {"forecaster", "threshold", "scale", "lead_time"}
