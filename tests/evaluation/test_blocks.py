"""The length of events: longer than the memory of the differences, and no longer than it takes."""

import numpy as np
import pytest
import xarray as xr

from raincast.evaluation import Resampling, blocks, with_intervals


def memory(num: int, rho: float, rng: np.random.Generator) -> np.ndarray:
    """An AR(1) series of unit variance."""
    values = rng.normal(size=num + 100)
    for k in range(1, values.size):
        values[k] = rho * values[k - 1] + np.sqrt(1 - rho**2) * values[k]
    return values[100:]


def hourly(differences: np.ndarray, *, hours: np.ndarray | None = None, leads: int = 2) -> xr.Dataset:
    """Two forecasters by hour, of equal skill but for `differences` (hour,), on the same pixels."""
    num = differences.size
    rng = np.random.default_rng(1)
    ease = rng.normal(0, 0.1, num)
    hits = np.stack([5000 + 1000 * (ease + sign * 0.1 * differences) for sign in (1, -1)])
    hits = np.repeat(hits[:, :, None, None], leads, axis=3).astype(np.int64)
    hours = np.arange(num) if hours is None else hours
    starts = np.datetime64("2026-06-05T00", "ns") + hours * np.timedelta64(3600, "s")
    dims = ("forecaster", "event", "threshold", "lead_time")
    return xr.Dataset(
        {
            "sum_hits": (dims, hits),
            "sum_misses": (dims, 10_000 - hits),
            "sum_false_alarms": (dims, 0 * hits),
            "sum_correct_negatives": (dims, 0 * hits),
            "num_windows": ("event", np.ones(num, np.int64)),
        },
        coords={
            "forecaster": ["a", "b"],
            "threshold": [1.0],
            "lead_time": [30.0, 60.0][:leads],
            "event": [blocks.event_name(start, 1) for start in starts],
            "event_start": ("event", starts),
        },
        attrs={"event_hours": 1},
    )


def test_the_memory_of_a_series_is_found_from_its_autocorrelation() -> None:
    rng = np.random.default_rng(0)
    for rho in (0.0, 0.5, 0.8):
        true = (1 + rho) / (1 - rho)  # 1 + 2 Σ rho^k
        found = np.mean([blocks.time_scale(np.arange(2000), memory(2000, rho, rng)[None]) for _ in range(8)])
        assert found == pytest.approx(true, rel=0.25, abs=0.2)


def test_gaps_do_not_shorten_it() -> None:
    series = memory(4000, 0.8, np.random.default_rng(2))
    kept = np.arange(4000) % 48 < 24  # every other day
    whole, gappy = (blocks.time_scale(np.flatnonzero(at), series[None, at]) for at in (kept | True, kept))
    assert gappy == pytest.approx(whole, rel=0.4)


def test_events_are_as_long_as_the_differences_remember() -> None:
    rng = np.random.default_rng(3)
    fresh, lasting = (blocks.automatic(hourly(memory(240, rho, rng))) for rho in (0.0, 0.9))
    assert fresh.attrs["event_hours"] <= 3 and lasting.attrs["event_hours"] >= 12
    assert fresh.attrs["event_hours_from"] == "autocorrelation"


def test_a_single_day_gives_an_answer_if_its_hours_are_independent() -> None:
    """One block a day, the rule before, could never decide anything on it."""
    scores = blocks.automatic(hourly(0.5 * memory(24, 0.0, np.random.default_rng(5)) + 1))
    assert scores.sizes["event"] >= 6
    assert int(with_intervals(scores, Resampling())["csi_mean_better"][0, 1, 0]) == 1


def test_windows_that_share_their_target_are_one_event() -> None:
    scores = hourly(memory(48, 0.0, np.random.default_rng(6)))
    longer = scores.assign_coords(lead_time=[150.0, 300.0])
    assert blocks.independent_hours(longer) >= 5


@pytest.mark.parametrize(("num", "rho"), [(24, 0.0), (24, 0.6), (120, 0.3), (240, 0.8)])
def test_forecasters_of_equal_skill_are_seldom_told_apart(num: int, rho: float) -> None:
    """Daily blocks on these would do so, too, but never answer; hourly ones err in up to half of all cases."""
    rng = np.random.default_rng(7)
    told = 0
    for _ in range(40):
        made = with_intervals(blocks.automatic(hourly(memory(num, rho, rng), leads=1)), Resampling(400))
        told += int(made["csi_mean_better"][0, 1, 0]) != 0
    assert told / 40 < 0.18  # 0.05 wanted; three standard errors and what short series cost


def test_merged_sums_are_those_of_their_hours() -> None:
    scores = hourly(memory(30, 0.0, np.random.default_rng(8)))
    days = blocks.merged(scores, 24)
    assert days["event"].values.tolist() == ["2026-06-05", "2026-06-06"] and days.attrs["event_hours"] == 24
    assert days["num_windows"].values.tolist() == [24, 6]
    np.testing.assert_array_equal(days["sum_hits"][:, 0], scores["sum_hits"][:, :24].sum("event"))
    assert days["sum_hits"].dims == scores["sum_hits"].dims and days["sum_hits"].dtype == np.int64
    with pytest.raises(ValueError, match="Events of 24 h cannot be merged into events of 36 h"):
        blocks.merged(days, 36)


def test_a_year_is_kept_by_blocks_that_fit_in_memory() -> None:
    hours = np.datetime64("2026-01-01T00") + np.arange(24 * 365)
    assert blocks.kept_hours(hours[:48]) == 1
    assert blocks.kept_hours(hours) == 12 and blocks.MOST_BLOCKS >= 8760 / 12


def test_an_event_is_named_by_its_first_hour_or_day() -> None:
    time = np.datetime64("2026-06-05T17:35")
    assert [blocks.event_name(time, hours) for hours in (1, 6, 24)] == [
        "2026-06-05T17",
        "2026-06-05T12",
        "2026-06-05",
    ]
