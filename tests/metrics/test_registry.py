"""What the registry says of each score."""

import math

import numpy as np
import pytest

from raincast.metrics.registry import SCORES


@pytest.mark.parametrize(
    ("name", "better", "worse"),
    [
        ("csi", 0.4, 0.2),
        ("far", 0.2, 0.4),
        ("frequency_bias", 0.5, 2.1),  # half as often is as far off as twice too often
        ("mean_error", -0.1, 0.2),
        ("spread_error_ratio", 1.0, 0.9),
        ("effective_resolution", 4.0, 8.0),
    ],
)
def test_badness_is_smaller_for_the_better_value(name, better, worse):
    good, bad = SCORES[name].badness(np.array([better, worse]))
    assert good < bad


def test_a_score_that_orders_nothing_has_no_best():
    assert np.isnan(SCORES["observed_frequency"].badness(np.array([0.1, 0.9]))).all()


def test_headings_state_the_unit():
    headings = {name: SCORES[name].heading for name in ("csi", "mae", "effective_resolution")}
    assert headings == {"csi": "CSI", "mae": "MAE mm/h", "effective_resolution": "effective resolution km"}


def test_every_score_is_described_and_has_a_direction_or_an_ideal_or_neither():
    for name, score in SCORES.items():
        assert score.long_name and score.better in (-1, 0, 1), name
        assert not (score.better and score.ideal is not None), name
        assert score.ideal is None or math.isfinite(score.ideal), name
