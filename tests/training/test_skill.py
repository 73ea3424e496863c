"""How far ahead of the baselines a network is, against sums by hand."""

import math

import numpy as np
import pytest
import torch

from raincast.training.skill import RainScores, better, score_names, useful_lead, validation_scores

NAN = math.nan


def test_a_network_that_is_its_baseline_has_no_skill() -> None:
    rain = RainScores((0.5, 5.0), 3)
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.rand(4, 3, 1, 8, 8, generator=generator) * 10 for _ in range(2))
    rain.update(pred, target, torch.ones_like(pred, dtype=torch.bool))
    scores = rain.compute()
    named = validation_scores(scores, {"same": scores}, thresholds=(0.5, 5.0), step_minutes=5.0)
    assert list(named) == score_names(["same"], thresholds=(0.5, 5.0), lead_steps=3, step_minutes=5.0)[1:]
    for name in ("skill_csi_0.5mm", "skill_csi_5mm", "ahead_5mm", "useful_lead_5mm", "skill_mse"):
        assert named[f"val/{name}_same"] == 0
    assert named["val/csi_5mm"] == pytest.approx(float(scores["csi"][1].mean()))
    assert named["lead/csi_5mm_010min"] == float(scores["csi"][1, 1])


def test_skill_is_the_share_of_what_was_left_to_gain() -> None:
    own = {"csi": [[0.8, 0.5, NAN]], "hss": [[1.0] * 3], "pod": [[1.0] * 3], "far": [[0.0] * 3],
           "frequency_bias": [[2.0, 0.5, 1.0]], "mae": [1.0] * 3, "rmse": [1.0, 2.0, NAN]}  # fmt: skip
    other = {"csi": torch.tensor([[0.6, 0.75, 0.1]]), "rmse": torch.tensor([2.0, 2.0, 2.0])}
    named = validation_scores(
        {name: torch.tensor(values) for name, values in own.items()},
        {"flow": other}, thresholds=(1.0,), step_minutes=5.0,
    )  # fmt: skip
    # (0.8 − 0.6) / 0.4 = 0.5 and (0.5 − 0.75) / 0.25 = −1; the third lead is undefined
    assert named["val/skill_csi_1mm_flow"] == pytest.approx((0.5 - 1) / 2)
    assert named["val/ahead_1mm_flow"] == 0.5 and named["val/useful_lead_1mm_flow"] == 5.0
    assert named["val/skill_mse_flow"] == pytest.approx((1 - 0.25 + 0) / 2)
    assert named["val/bias_1mm"] == pytest.approx(3.5 / 3)
    assert named["val/bias_error_1mm"] == pytest.approx((0.5 + 0.5 + 0) / 3)  # twice is as far off as half


@pytest.mark.parametrize(
    ("own", "minutes"),
    [
        ([0.6, 0.6, 0.6], 30.0),  # to the end
        ([0.6, 0.6, 0.5], 20.0),  # level is not ahead
        ([0.4, 0.6, 0.6], 0.0),
        ([0.6, NAN, 0.6], 30.0),
        ([0.6, 0.6, NAN], 20.0),
        ([NAN, NAN, NAN], NAN),
    ],
)
def test_useful_lead_ends_where_the_baseline_is_reached(own: list[float], minutes: float) -> None:
    np.testing.assert_equal(useful_lead(torch.tensor(own), torch.full((3,), 0.5), 10.0), minutes)


def test_every_logged_score_has_a_direction_but_the_bias() -> None:
    names = score_names(["persistence"], thresholds=(0.5, 10.0), lead_steps=2, step_minutes=7.5)
    assert "lead/csi_10mm_7.5min" in names and "lead/csi_10mm_015min" in names
    assert [name for name in names if better(name) is None] == ["val/bias_0.5mm", "val/bias_10mm"]
    lower = {name.split("_")[0] for name in names if better(name) == "min"}
    assert lower == {"val/loss", "val/mae", "val/rmse", "val/far", "val/bias"}
