"""The contract of every forecaster: queries, predictions, and a forecaster of one's own scored as its page says."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from checking import query
from forecasting.standing import moving, pipeline
from running import REPO

from raincast.evaluation import Metrics, Scored, Scoring
from raincast.forecaster import Gives, Prediction, Query, ThresholdError, exceeded, share_around
from raincast.schema import mock_grid

RAIN = np.random.default_rng(0).gamma(0.4, 5.0, (2, 3, 1, 6, 8)).astype(np.float32)


def test_a_query_for_steps_has_their_lead_times():
    asked = query(RAIN, 3, step_minutes=2.5)
    assert asked.lead_minutes == (2.5, 5.0, 7.5) and asked.num_steps == 3
    assert asked.lead_steps.tolist() == [1, 2, 3]
    every_step = np.arange(6).reshape(2, 3)
    assert asked.at_lead_times(every_step) is every_step
    some = dataclasses.replace(asked, lead_minutes=[5.0, 7.5])
    assert some.at_lead_times(every_step).tolist() == [[1, 2], [4, 5]]
    assert some.lead_times.tolist() == np.array([300, 450], "timedelta64[s]").astype("timedelta64[ns]").tolist()
    odd = dataclasses.replace(asked, lead_minutes=[4.0])
    assert odd.lead_times / np.timedelta64(1, "m") == 4
    with pytest.raises(ValueError, match=r"lead_minutes=\[4.0\]: this forecaster has a step of 2.5 min"):
        _ = odd.num_steps


def test_a_query_knows_where_its_samples_lie_and_can_be_cut():
    grid = mock_grid(20, 30)
    covariates = {"past": RAIN.repeat(2, 2), "future": RAIN[:, :2]}
    motion = np.zeros((2, 2, 6, 8)) + np.arange(8)
    asked = query(RAIN, 2, grid=grid, pixel_km=None, y=[3, 0], x=[5, 22], covariates=covariates, motion=motion)
    assert asked.pixel_km == 1.0
    assert asked.sample_grid(1).same_as(grid.crop(0, 22, 6, 8))
    cut = asked.crop(slice(2, 5), slice(1, 8))
    np.testing.assert_array_equal(cut.rain, RAIN[..., 2:5, 1:8])
    np.testing.assert_array_equal(cut.covariates["past"], covariates["past"][..., 2:5, 1:8])
    assert cut.motion.shape == (2, 2, 3, 7) and cut.motion[0, 0, 0, 0] == 1
    assert cut.sample_grid(0).same_as(grid.crop(5, 6, 3, 7))
    with pytest.raises(ValueError, match="The grid is not known"):
        query(RAIN, 2).sample_grid(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rain": RAIN[0]}, r"shape \(B, T, C, H, W\), found \(3, 1, 6, 8\)"),
        ({"rain": RAIN[:0]}, r"found \(0, 3, 1, 6, 8\)"),
        ({"step_minutes": 0.0}, "step_minutes=0.0"),
        ({"lead_minutes": []}, r"lead_minutes=\[\] must be at least one"),
        ({"lead_minutes": [10.0, 5.0]}, "above 0 and increasing"),
        ({"thresholds": [2.0, 1.0]}, r"thresholds=\[2.0, 1.0\] must be in mm/h, above 0 and increasing"),
        ({"times": np.zeros(3, "datetime64[s]")}, "times has 3 values: give one for each of 2 samples"),
        ({"y": [1]}, "y has 1 values"),
        ({"motion": np.zeros((2, 6, 8))}, r"motion has shape \(2, 6, 8\)"),
    ],
)
def test_queries_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(query(RAIN, 2), **change)
    with pytest.raises(ValueError, match="num_steps=0"):
        query(RAIN, 0)


def test_predictions_of_another_shape_are_refused():
    asked = query(RAIN, 2, thresholds=[1.0, 5.0])
    rates = np.zeros((2, 2, 1, 6, 8), np.float32)
    good = Prediction(rates, rates.repeat(3, 2), rates.repeat(2, 2), (1.0, 5.0), done=("a", "b"))
    good.check(asked, "mine")
    assert good.sample(1).done == ("b",) and good.sample(1).members.shape == (1, 2, 3, 6, 8)
    for change, message in (
        (
            {"rates": rates[:, :1]},
            r"mine gives rates of shape \(2, 1, 1, 6, 8\), the query asks for \(2, 2, 1, 6, 8\)",
        ),
        ({"members": rates[0]}, "mine gives members of shape"),
        ({"probabilities": rates}, "mine gives probabilities of shape"),
        ({"done": ("a",)}, "says how 1 samples were made"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(good, **change).check(asked, "mine")


def test_reaching_counts_as_exceeding():
    rates = np.array([0.0, 1.0, 2.0], np.float32).reshape(1, 1, 1, 1, 3)
    assert exceeded(rates, [1.0, 1.5])[0, 0, :, 0].tolist() == [[0, 1, 1], [0, 0, 1]]


class Choosy:
    """States probabilities at 1 mm/h alone; keeps its queries."""

    name = "choosy"
    gives = Gives(probabilities=True)

    def __init__(self) -> None:
        self.asked: list[Query] = []

    def predict(self, query: Query) -> Prediction:
        self.asked.append(query)
        if set(query.thresholds) - {1.0}:
            raise ThresholdError("only at 1 mm/h")
        rates = np.nan_to_num(query.rain[:, -1:]).repeat(2, 1)
        return Prediction(rates, probabilities=exceeded(rates, [1.0]) if query.thresholds else None)


def test_who_has_no_probability_at_a_threshold_is_scored_by_its_rates(caplog):
    batch = {
        "input": torch.from_numpy(RAIN), "time": torch.tensor([0, 300]), "y": torch.tensor([0, 1]),
        "x": torch.tensor([2, 3]),
    }  # fmt: skip
    choosy = Choosy()
    scored = Scored(choosy, Scoring(Metrics((1.0, 5.0)), 5.0, 2.0), lead_steps=2, grid=mock_grid(20, 30))
    for _ in range(2):
        prediction = scored.predict(batch)
        assert prediction.probabilities is None and prediction.rates.shape == (2, 2, 1, 6, 8)
    assert [len(asked.thresholds) for asked in choosy.asked] == [2, 0, 0] and len(caplog.records) == 1
    assert not any(asked.members for asked in choosy.asked)
    first = choosy.asked[0]
    assert first.times.tolist() == np.array([0, 300], "datetime64[s]").tolist()
    assert (list(first.y), list(first.x), first.pixel_km, first.step_minutes) == ([0, 1], [2, 3], 2.0, 5.0)
    one = Scored(choosy, Scoring(Metrics((1.0,)), 5.0), lead_steps=2).predict(batch)
    np.testing.assert_array_equal(one.probabilities, exceeded(one.rates, [1.0]))


class Whole:
    """Depends on the whole grid, and gives back the rain that it was shown."""

    name = "whole"
    gives = Gives(whole_grid=True)

    def predict(self, query: Query) -> Prediction:
        self.tile_shape = query.tile_shape
        return Prediction(np.broadcast_to(query.rain[:, -1:], (1, 6, 1, *query.rain.shape[-2:])))


def test_a_forecaster_that_needs_the_whole_grid_is_told_how_large_a_tile_may_be():
    made, frames = pipeline(reach=False), moving()
    made.forecaster = Whole()
    forecast = made(frames)
    assert made.forecaster.tile_shape is None and forecast.attrs["forecast_method"] == "whole"
    frames["rain_rate"][:, :4] = np.nan  # nothing was ever observed there: the pipeline writes into its own copy
    made(frames)
    made.memory.gib, made.memory.overlap = 0.51, 8
    made(frames)
    assert made.forecaster.tile_shape is not None and max(made.forecaster.tile_shape) < 64


def test_the_page_about_own_forecasters_runs(tiny_archive):
    page = (REPO / "docs" / "own_forecaster.md").read_text(encoding="utf-8")
    score, run = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in score.splitlines() if line and "import" not in line]) <= 15
    names: dict[str, object] = {}
    exec(score.replace("data/mine", str(tiny_archive)), names)
    csi = names["scores"]["csi"].sel(threshold=1)
    assert csi["forecaster"].values.tolist() == ["fading", "persistence"]
    assert np.isfinite(csi).all() and not np.array_equal(csi[0], csi[1])
    exec(run.replace("data/mine", str(tiny_archive)), names)
    forecast = names["forecast"]
    assert forecast.sizes["lead_time"] == 6 and forecast.attrs["forecast_method"] == "fading"
    shown = forecast["rain_rate"].values
    np.testing.assert_allclose(shown[1], shown[0] * 0.9**0.5, rtol=1e-4)


def test_probabilities_of_a_forecast_without_any_are_shares_of_its_neighbourhood() -> None:
    """By brute force: a square of 1 km per minute, at least 3 pixels, of the observed pixels within the grid."""
    rng = np.random.default_rng(1)
    rates = rng.gamma(0.5, 4.0, (2, 3, 1, 17, 13)).astype(np.float32)
    rates[0, :, 0, :4, :4] = np.nan
    found = share_around(rates, [0.5, 5.0], [1.0, 5.0, 10.0], 2.0)
    for lead, half in enumerate((1, 1, 2)):  # 10 min at 2 km: 5 pixels
        for y, x in ((0, 0), (6, 5), (16, 12), (4, 4)):
            around = rates[:, lead, 0, max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
            for number, threshold in enumerate((0.5, 5.0)):
                expected = (around >= threshold).sum(axis=(1, 2)) / np.maximum(
                    np.isfinite(around).sum(axis=(1, 2)), 1
                )
                np.testing.assert_allclose(found[1, lead, number, y, x], expected[1], atol=1e-6)
                if np.isfinite(around[0]).any():
                    np.testing.assert_allclose(found[0, lead, number, y, x], expected[0], atol=1e-6)
    assert (found[1] >= 0).all() and (found[1] <= 1).all()
    assert ((found > 0) & (found < 1)).any(), "not the 0 and 1 of the rates themselves"
