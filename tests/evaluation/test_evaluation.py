"""Scores of forecasters over windows: sums first, the same windows and mask for all."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch.utils.data import DataLoader

from raincast.archive import Archive, write_part
from raincast.baselines import Persistence
from raincast.data.dataset import WindowDataset
from raincast.data.sampler import Place
from raincast.data.source import Source
from raincast.evaluation import evaluate
from raincast.forecaster import Gives, Prediction
from raincast.metrics.registry import BALANCED, CATEGORICAL, CONTINUOUS
from raincast.schema import mock_archive

THRESHOLDS = (0.5, 2.0, 10.0)
LEADS = 3


@pytest.fixture(scope="module")
def windows(tmp_path_factory) -> WindowDataset:
    """Two hours from 23 UTC, with a corner that was never seen: two events."""
    folder = tmp_path_factory.mktemp("archive")
    write_part(mock_archive(24, start="2026-01-01T23:00"), folder / "a.nc")
    return WindowDataset([Source(Archive.open(folder), 2, LEADS)])


def batches(windows: WindowDataset, batch_size: int = 3, starts=range(20)) -> list:
    loader = DataLoader(windows, batch_size=batch_size, sampler=[Place(s, 0, 0, 12, 10) for s in starts])
    return [*map(windows.decode, loader)]


class Says:
    """A forecaster that answers with the frames it was made with, in the order of the windows."""

    gives = Gives()

    def __init__(self, name: str, frames) -> None:
        self.name = name
        self.frames = iter(frames)

    def predict(self, query):
        return Prediction(np.stack([next(self.frames) for _ in query.rain]))


def truth(samples, fill: float = 0.0) -> list[np.ndarray]:
    return [np.nan_to_num(target.numpy(), nan=fill) for batch in samples for target in batch["target"]]


def noisy(samples) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [frame * rng.uniform(0.3, 2, frame.shape).astype(np.float32) for frame in truth(samples)]


def scored(forecasters, samples, **kwargs) -> xr.Dataset:
    given = {"thresholds": THRESHOLDS, "lead_steps": LEADS, "step_minutes": 5.0} | kwargs
    return evaluate(forecasters, samples, **given)


def test_perfect_forecaster_scores_perfectly(windows):
    samples = batches(windows)
    best = scored([Says("perfect", truth(samples))], samples).isel(forecaster=0)
    for name in ("csi", "pod", "frequency_bias", "hss", "ets", "f1"):
        assert (best[name] == 1).all(), name
    for name in ("correlation", "uncentred_correlation"):
        np.testing.assert_allclose(best[name], 1)
    for name in ("far", "mae", "rmse", "mean_error", *BALANCED):
        assert (best[name] == 0).all(), name


def test_no_rain_hits_nothing_and_undefined_is_nan(windows):
    samples = batches(windows)
    zeros = [np.zeros_like(frame) for frame in truth(samples)]
    thresholds = (0.5, 300.0)  # the second is never reached
    never = scored([Says("dry", zeros)], samples, thresholds=thresholds).isel(forecaster=0)
    for name in ("csi", "pod", "frequency_bias"):
        np.testing.assert_array_equal(never[name], [[0.0] * LEADS, [np.nan] * LEADS])
    assert never["far"].isnull().all()
    observed = np.concatenate([b["target"][b["target_mask"]].numpy().ravel() for b in samples])
    assert float(never["sum_count"].sum()) == observed.size
    np.testing.assert_allclose(
        (never["mean_error"] * never["sum_count"].sum("event")).sum(), -observed.sum(dtype=np.float64), rtol=1e-6
    )


def test_chunked_equals_whole(windows):
    results = []
    for size in (1, 3, 20):
        samples = batches(windows, size)
        results.append(scored([Says("noisy", noisy(samples)), Persistence()], samples))
    for other in results[1:]:
        for name in results[0]:
            exact = (name.startswith("sum_") and results[0][name].dtype.kind == "i") or name in CATEGORICAL
            compare = xr.testing.assert_identical if exact else xr.testing.assert_allclose
            compare(other[name], results[0][name])


def test_events_are_days_of_the_newest_input_and_add_up(windows):
    samples = batches(windows)
    scores = scored([Says("noisy", noisy(samples)), Persistence()], samples, event_hours=24)
    # newest inputs from 23:05, every 5 minutes: 11 windows before midnight, 9 after
    assert scores.event.values.tolist() == ["2026-01-01", "2026-01-02"]
    pixels = 12 * 10 - 4
    assert scores["sum_count"].isel(forecaster=0, lead_time=0).values.tolist() == [11 * pixels, 9 * pixels]
    assert scores.attrs["num_windows"] == 20
    for event, own in (("2026-01-01", range(11)), ("2026-01-02", range(11, 20))):
        alone = batches(windows, 4, own)
        day = scored([Persistence()], alone, event_hours=24).isel(forecaster=0, event=0)
        same = scores.sel(forecaster="persistence", event=event)
        for name in scores:
            if name.startswith("sum_"):
                np.testing.assert_allclose(same[name], day[name], rtol=1e-12)
    pooled = scores.sum("event")
    hits, misses, false_alarms = (pooled[f"sum_{n}"] for n in ("hits", "misses", "false_alarms"))
    np.testing.assert_array_equal(scores["csi"], hits / (hits + misses + false_alarms))
    np.testing.assert_allclose(scores["mae"], pooled["sum_absolute_error"] / pooled["sum_count"], rtol=1e-12)


def test_pooled_counts_are_no_mean_of_ratios(windows):
    """A window without rain leaves CSI as it is."""
    samples = batches(windows, 1, range(2))
    forecast = noisy(samples)
    alone = scored([Says("a", forecast[:1])], samples[:1])
    samples[1]["target"] = torch.zeros_like(samples[1]["target"])
    samples[1]["target_mask"] = torch.ones_like(samples[1]["target_mask"])
    both = scored([Says("a", [forecast[0], 0 * forecast[1]])], samples)
    xr.testing.assert_equal(both["csi"], alone["csi"])


@pytest.mark.parametrize("rubbish", [0.0, 1e4, np.nan])
def test_masked_pixels_do_not_matter(windows, rubbish):
    samples = batches(windows)
    forecast = noisy(samples)
    plain = scored([Says("a", forecast)], samples)
    for batch in samples:
        batch["target"] = torch.where(batch["target_mask"], batch["target"], rubbish)
    masks = [mask.numpy() for batch in samples for mask in batch["target_mask"]]
    changed = [np.where(mask, frame, np.float32(rubbish)) for mask, frame in zip(masks, forecast, strict=True)]
    xr.testing.assert_identical(scored([Says("a", changed)], samples), plain)


def test_scores_agree_with_the_package_scores(windows):
    outside = pytest.importorskip("scores.categorical")
    continuous = pytest.importorskip("scores.continuous")
    samples = batches(windows)
    ours = scored([Says("noisy", noisy(samples))], samples).isel(forecaster=0)
    dims = ("window", "lead_time", "channel", "y", "x")
    observed = xr.DataArray(np.stack(truth(samples, np.nan)), dims=dims)
    forecast = xr.DataArray(np.stack(noisy(samples)), dims=dims).where(observed.notnull())
    for number, threshold in enumerate(THRESHOLDS):
        table = outside.ThresholdEventOperator(default_event_threshold=threshold).make_contingency_manager(
            forecast, observed
        )
        basic = table.transform(preserve_dims="lead_time")
        for name, theirs in {
            "csi": basic.critical_success_index(),
            "pod": basic.probability_of_detection(),
            "far": basic.false_alarm_ratio(),
            "frequency_bias": basic.frequency_bias(),
            "hss": basic.heidke_skill_score(),
            "ets": basic.gilberts_skill_score(),
            "f1": basic.f1_score(),
        }.items():
            np.testing.assert_allclose(ours[name][number], theirs, rtol=1e-12, err_msg=name)
    for name, function in {
        "mae": continuous.mae,
        "rmse": continuous.rmse,
        "mean_error": continuous.mean_error,
        "correlation": continuous.correlation.pearsonr,
    }.items():
        theirs = function(forecast, observed, preserve_dims="lead_time")
        np.testing.assert_allclose(ours[name], theirs, rtol=1e-5, err_msg=name)


def test_all_forecasters_see_the_same_windows(windows):
    samples = batches(windows)
    both = scored([Says("perfect", truth(samples)), Persistence()], samples)
    assert both.forecaster.values.tolist() == ["perfect", "persistence"]
    alone = scored([Persistence()], samples)
    xr.testing.assert_identical(both.sel(forecaster=["persistence"]), alone)
    assert (both["sum_count"][0] == both["sum_count"][1]).all()


def test_coordinates_have_units_and_the_first_lead_is_one_step(windows):
    scores = scored([Persistence()], batches(windows), step_minutes=7.5)
    assert scores.lead_time.values.tolist() == [7.5, 15.0, 22.5]
    assert scores.lead_time.attrs["units"] == "minutes"
    assert scores.threshold.values.tolist() == list(THRESHOLDS) and scores.threshold.attrs["units"] == "mm h-1"
    for name in (*CATEGORICAL, *CONTINUOUS, *BALANCED):
        assert scores[name].attrs["long_name"]
    assert all(scores[name].attrs["units"] == "mm h-1" for name in ("mean_error", "mae", "rmse"))
    assert all(scores[name].attrs["units"] == "1" for name in ("correlation", *BALANCED))


SCALES = {"scales": (1, 4, 16), "pixel_km": 2.0}


def test_fss_of_perfect_dry_and_shifted_forecasts(windows):
    samples = batches(windows)
    shifted = [np.roll(frame, 2, axis=-1) for frame in truth(samples)]
    dry = [0 * frame for frame in truth(samples)]
    answers = {"perfect": truth(samples), "shifted": shifted, "dry": dry}
    scores = scored([Says(name, frames) for name, frames in answers.items()], samples, **SCALES)
    fss = scores["fss"].sel(threshold=0.5)
    assert fss.dims == ("forecaster", "scale", "lead_time") and scores["box"].values.tolist() == [1, 2, 8]
    assert (fss.sel(forecaster="perfect") == 1).all() and (fss.sel(forecaster="dry") == 0).all()
    assert (fss.sel(forecaster="shifted").diff("scale") > 0).all()
    assert scores["scale"].attrs["units"] == "km" and scores["fss"].attrs["long_name"]


def test_fss_of_one_pixel_is_f1_and_its_sums_are_kept_by_event(windows):
    samples = batches(windows)
    scores = scored([Says("noisy", noisy(samples)), Persistence()], samples, **SCALES)
    np.testing.assert_allclose(scores["fss"].isel(scale=0), scores["f1"], rtol=1e-12)
    difference, squares = (scores[f"sum_fss_{key}"] for key in ("squared_difference", "squares"))
    assert difference.dims == ("forecaster", "event", "threshold", "scale", "lead_time")
    np.testing.assert_allclose(scores["fss"], 1 - difference.sum("event") / squares.sum("event"))
    for size in (1, 20):  # chunked equals whole
        other = batches(windows, size)
        again = scored([Says("noisy", noisy(other)), Persistence()], other, **SCALES)
        xr.testing.assert_allclose(again["fss"], scores["fss"], rtol=1e-12)
    bare = scored([Says("noisy", noisy(samples)), Persistence()], samples)
    xr.testing.assert_identical(bare, scores[list(bare)].drop_vars(["scale", "box"], errors="ignore"))
    assert "fss" not in bare


def test_scales_need_the_size_of_a_pixel_and_stand_once(windows):
    with pytest.raises(ValueError, match=r"scales=\[1, 4\] in km: give pixel_km"):
        scored([Persistence()], batches(windows), scales=[1, 4])
    with pytest.raises(ValueError, match="none may repeat"):
        scored([Persistence()], batches(windows), scales=[4, 4], pixel_km=1.0)


def test_progress_counts_windows(windows):
    seen = []
    scored([Persistence()], batches(windows), progress=seen.append)
    assert seen == [3] * 6 + [2]


def test_names_twice_and_no_windows_are_refused(windows):
    with pytest.raises(ValueError, match=r"Two forecasters share a name: \['persistence', 'persistence'\]"):
        scored([Persistence(), Persistence()], batches(windows))
    with pytest.raises(ValueError, match="no window to score"):
        scored([Persistence()], [])


def test_a_forecast_with_nan_where_it_is_scored_is_an_error(windows):
    samples = batches(windows)
    with pytest.raises(ValueError, match="pred has NaN in"):
        scored([Says("broken", [frame * np.nan for frame in truth(samples)])], samples)
