"""Scores of several evaluations as one: paired where the pixels were the same, refused where nothing fits."""

import numpy as np
import pytest
import xarray as xr

from raincast.evaluation import finish, join

LEADS, EVENTS = [5.0, 10.0], ["2026-01-01", "2026-01-02", "2026-01-03"]


def evaluation(
    forecasters=("network", "persistence"), *, events=EVENTS, thresholds=(0.5, 1.0), leads=LEADS, seed=0, other=()
) -> xr.Dataset:
    """Sums as evaluate.py makes them; what was observed follows from the event, but for those of `other`."""
    shape = (len(forecasters), len(events), len(thresholds), len(leads))
    observed = np.empty(shape)
    for number, event in enumerate(events):
        rng = np.random.default_rng(int(event[-2:]) + 100 * (event in other))
        observed[:, number] = rng.integers(50, 90, (len(thresholds), len(leads)))
    table = {}
    hits = np.empty(shape)
    for row, name in enumerate(forecasters):  # persistence is the same in all
        rng = np.random.default_rng(seed if name == "network" else 7)
        hits[row] = np.floor(observed[row] * rng.uniform(size=(1, 1, 1)))
    table["hits"], table["misses"], table["false_alarms"] = hits, observed - hits, np.floor(hits / 2)
    table["correct_negatives"] = 1000 - observed - table["false_alarms"]
    dims = ("forecaster", "event", "threshold", "lead_time")
    sums = {f"sum_{name}": (dims, values.astype(np.int64)) for name, values in table.items()}
    hourly = {
        f"hourly_{name}": (("forecaster", "hour", *dims[2:]), np.ones((shape[0], 24, *shape[2:]), int))
        for name in table
    }
    return xr.Dataset(
        {**sums, **hourly, "num_windows": ("event", np.full(len(events), 4)), "hourly_num_windows": ("hour", np.full(24, 1))},
        coords={
            "forecaster": list(forecasters), "event": list(events), "hour": np.arange(24),
            "threshold": list(thresholds), "lead_time": list(leads),
        },
        attrs={"event_hours": 24, "num_windows": 4 * len(events)},
    )  # fmt: skip


def test_networks_stand_first_and_what_is_the_same_stands_once():
    a, b = evaluation(seed=1), evaluation(seed=2)
    joined = join({"a": a, "b": b})
    assert joined["forecaster"].values.tolist() == ["network (a)", "network (b)", "persistence"]
    for name, file, old in (
        ("network (a)", a, "network"),
        ("network (b)", b, "network"),
        ("persistence", b, "persistence"),
    ):
        own = finish(file.sum("event"))["csi"].sel(forecaster=old)
        np.testing.assert_allclose(joined["csi"].sel(forecaster=name), own)
    assert joined.attrs["num_windows"] == 12 and joined["num_windows"].values.tolist() == [4, 4, 4]
    assert "hourly_hits" in joined


def test_only_events_that_were_scored_on_the_same_pixels_count():
    a = evaluation(seed=1)
    b = evaluation(seed=2, events=[*EVENTS[1:], "2026-01-04"], other=[EVENTS[2]])
    joined = join({"a": a, "b": b})
    assert joined["event"].values.tolist() == [EVENTS[1]]
    own = finish(b.sel(event=[EVENTS[1]]).sum("event"))["csi"].sel(forecaster="network")
    np.testing.assert_allclose(joined["csi"].sel(forecaster="network (b)"), own)
    assert not [name for name in joined if str(name).startswith("hourly_")]  # they hold the other events, too


def test_of_coordinates_those_stay_that_all_have():
    a = evaluation(seed=1, thresholds=(0.5, 1.0, 5.0))
    b = evaluation(["other"], seed=2, leads=[10.0])
    for event in range(3):  # the same observation where both have it
        for name in ("hits", "misses", "false_alarms", "correct_negatives"):
            b[f"sum_{name}"][0, event] = a[f"sum_{name}"][0, event, :2, 1:]
    a["sum_fss_squares"] = (("forecaster", "event", "threshold", "scale", "lead_time"), np.ones((2, 3, 3, 1, 2)))
    joined = join({"a": a, "b": b})
    assert joined["threshold"].values.tolist() == [0.5, 1.0] and joined["lead_time"].values.tolist() == [10.0]
    assert joined["forecaster"].values.tolist() == ["network", "other", "persistence"]
    assert "sum_fss_squares" not in joined


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (evaluation(events=["2026-02-01"]), "No event is in all files"),
        (evaluation(thresholds=(2.0, 3.0)), r"No threshold is in all files: .*Evaluate both with the same"),
        (evaluation(other=EVENTS), "none was scored on the same pixels"),
        (evaluation().drop_vars("sum_hits"), "b has no sums by event"),
    ],
)
def test_what_does_not_fit_is_refused(second, message):
    with pytest.raises(ValueError, match=message):
        join({"a": evaluation(), "b": second})
