"""Intervals: events are drawn, the same ones for all; "better" is said only where it is shown."""

import numpy as np
import pytest
import xarray as xr

from raincast.evaluation import Resampling, with_intervals
from raincast.evaluation.intervals import _quantiles, sentence, verdict
from raincast.evaluation.report.tables import difference_table, table_text


def scores(num_events: int, skill: dict[str, float], seed: int = 0, spread: float = 0.02) -> xr.Dataset:
    """Counts of events of equal size, whose CSI is near `skill`, shifted alike for all forecasters."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(0, 0.1, (num_events, 1, 4))  # how hard an event is, for all alike
    hits = np.stack(
        [np.clip(csi + ease + rng.normal(0, spread, ease.shape), 0.01, 0.99) * 10_000 for csi in skill.values()]
    ).astype(np.int64)
    dims = ("forecaster", "event", "threshold", "lead_time")
    return xr.Dataset(
        {
            "sum_hits": (dims, hits),
            "sum_misses": (dims, 10_000 - hits),
            "sum_false_alarms": (dims, 0 * hits),
            "sum_correct_negatives": (dims, 0 * hits),
        },
        coords={"forecaster": list(skill), "threshold": [1.0], "event": [f"day {n}" for n in range(num_events)]},
        attrs={"event_hours": 24},
    )


def test_a_paired_difference_is_shown_where_single_intervals_overlap():
    made = with_intervals(scores(30, {"a": 0.52, "b": 0.5}), Resampling())
    low, high = made["csi_mean_interval"].isel(threshold=0).values
    assert low[0] < high[1], "each by itself they overlap"
    assert made["csi_mean_better"].values[..., 0].tolist() == [[0, 1], [-1, 0]]
    assert made["far_mean_better"].values.any() == 0  # nothing is forecast falsely: no difference
    interval = made["csi_mean_difference_interval"].isel(threshold=0)
    np.testing.assert_array_equal(interval[:, 0, 1], -interval[::-1, 1, 0])
    assert interval[0, 0, 1] > 0


def test_less_is_better_where_it_is():
    good = scores(30, {"a": 0.6, "b": 0.4})
    good["sum_false_alarms"] = good["sum_misses"]
    assert with_intervals(good, Resampling())["far_mean_better"].values[0, 1, 0] == 1


def test_equal_forecasters_show_no_difference():
    shown = [
        int(with_intervals(scores(20, {"a": 0.5, "b": 0.5}, seed), Resampling())["csi_mean_better"][0, 1, 0])
        for seed in range(40)
    ]
    assert np.abs(shown).mean() < 0.2  # 5 % of them may, and some more of few events


@pytest.mark.parametrize(("num_events", "shown"), [(1, 0), (5, 0), (6, 1)])
def test_too_few_events_show_nothing(num_events, shown):
    made = with_intervals(scores(num_events, {"a": 0.9, "b": 0.2}), Resampling())
    assert int(made["csi_mean_better"][0, 1, 0]) == shown
    text = table_text(difference_table(made.assign(csi_mean=made["csi_mean"])))
    assert ("better" in text) == bool(shown)
    assert (f"too few events to decide ({num_events}; at least 6 are needed)" in text) != bool(shown)
    said = sentence(made)
    assert said == "By CSI, a is better than b at 1 mm/h." if shown else said.startswith("Too few events")
    assert made["csi_interval"].isnull().all() == (num_events == 1), "one event has no interval"


def test_seeded_and_against_the_definition():
    data = scores(12, {"a": 0.5, "b": 0.45})
    made, again = (with_intervals(data, Resampling(seed=3)) for _ in range(2))
    xr.testing.assert_identical(made, again)
    draws = np.random.default_rng(3).multinomial(12, [1 / 12] * 12, 1000)
    hits, misses = (data[name].values[:, :, 0] for name in ("sum_hits", "sum_misses"))
    trials = np.stack([(w @ hits) / (w @ (hits + misses)) for w in draws])  # (trial, forecaster, lead)
    # of 12 values t is 2.201, not 1.96, and the trials' spread is too small by √(11/12): Φ(−2.201·√(12/11)) = 0.0108
    ends = [0.0107566, 1 - 0.0107566]
    np.testing.assert_allclose(made["csi_interval"].values[:, :, 0], np.quantile(trials, ends, axis=0), rtol=1e-4)
    difference = (trials[:, 0] - trials[:, 1]).mean(-1)
    np.testing.assert_allclose(
        made["csi_mean_difference_interval"].values[:, 0, 1, 0],
        np.quantile(difference, ends),
        rtol=1e-4,
    )


def test_quantiles_of_trials_of_which_some_are_undefined():
    trials = np.random.default_rng(0).normal(size=(101, 3))
    trials[:20, 1], trials[:80, 2] = np.nan, np.nan
    found = _quantiles(trials, (0.1, 0.9))
    np.testing.assert_allclose(found[:, :2], np.nanquantile(trials[:, :2], [0.1, 0.9], axis=0))
    assert np.isnan(found[:, 2]).all()


def test_what_is_no_confidence_is_refused():
    with pytest.raises(ValueError, match=r"confidence=0\.999 .*resamples=100"):
        Resampling(100, 0.999)


def test_intervals_of_few_events_are_as_wide_as_those_of_students_t():
    """Plain percentiles of six events leave out the truth in 14 % of all cases, not 5."""
    rng, missed = np.random.default_rng(0), 0
    for seed in range(100):
        made = with_intervals(
            scores(6, {"a": 0.5, "b": 0.5}, seed=int(rng.integers(1e6))), Resampling(600, seed=seed)
        )
        missed += int(made["csi_mean_better"][0, 1, 0]) != 0
    assert missed / 100 < 0.1


def test_the_result_is_one_sentence_that_names_rivals_with_the_same_result_together():
    made = with_intervals(
        scores(8, {"net": 0.9, "sprog": 0.2, "steps": 0.2, "twin": 0.9}, spread=0.0), Resampling()
    )
    made = xr.concat([made, made.assign_coords(threshold=[5.0])], "threshold", data_vars="minimal")
    made["csi_mean_better"] = made["csi_mean_better"].copy()
    made["csi_mean_better"].loc[{"forecaster": "net", "reference": "twin"}] = [0, -1]
    assert sentence(made) == (
        "By CSI, net is better than sprog and steps at every threshold; worse than twin at 5 mm/h, undecided at 1 mm/h."
    )
    assert sentence(made.sel(forecaster=["net"])).startswith("net was scored alone")


def test_a_threshold_that_was_hardly_reached_is_called_undefined():
    data = scores(8, {"a": 0.9, "b": 0.2})
    for name in ("hits", "misses"):
        data[f"sum_{name}"][:, 1:] = 0  # one event alone has rain
    made = with_intervals(data.assign(sum_hits=data["sum_hits"] * 0), Resampling())
    made["csi_mean_difference_interval"] *= np.nan
    assert verdict(made, "b", 1.0) == "undefined: too little rain ≥ 1 mm/h"
