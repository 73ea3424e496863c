"""Sums that do not depend on the order, nor on how they were cut."""

import math

import numpy as np
import pytest

from raincast.evaluation.event_sums import EventSums, FixedPoint


def test_additions_have_no_rounding():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4000, 3)) * 10.0 ** rng.integers(-6, 9, (4000, 3))
    total = FixedPoint.of(np.zeros(3))
    for row in values:
        total = total + FixedPoint.of(row)
    backwards = FixedPoint.of(np.zeros(3))
    for row in values[::-1]:
        backwards = FixedPoint.of(row) + backwards
    assert (total.coarse == backwards.coarse).all() and (total.fine == backwards.fine).all()
    exact = [math.fsum(column) for column in values.T]
    np.testing.assert_allclose(total.values(), exact, rtol=1e-15)


@pytest.mark.parametrize("value", [0.0, -0.3, 1e-12, 1 / 3, -(2.0**51) - 0.5, 2.0**40 + 2.0**-12, 0.1 + 0.2])
def test_values_come_back(value):
    assert FixedPoint.of(np.array([value])).values()[0] == pytest.approx(value, rel=1e-15, abs=2.0**-60)


@pytest.mark.parametrize("value", [np.nan, np.inf, -(2.0**52)])
def test_what_is_no_number_or_too_large_is_refused(value):
    with pytest.raises(ValueError, match=r"not a finite number below 2\^52"):
        FixedPoint.of(np.array([1.0, value]))


def test_events_merge_and_travel_as_plain_arrays():
    rng = np.random.default_rng(1)
    windows = [(f"day {n % 3}", {"a": rng.integers(0, 9, 4), "b": rng.normal(size=(2, 2))}) for n in range(12)]
    whole = EventSums()
    parts = [EventSums(), EventSums()]
    for number, (event, named) in enumerate(windows):
        whole.add(event, named)
        parts[number // 5 % 2].add(event, named)
    merged = EventSums()
    for part in reversed(parts):
        merged.merge(EventSums.from_arrays(part.arrays()))
    assert merged.num_windows == whole.num_windows == 12 and sorted(merged.names) == ["a", "b", "windows"]
    events = [f"day {n}" for n in range(4)]  # the last has no window
    for name in ("a", "b"):
        assert (merged.stacked(name, events) == whole.stacked(name, events)).all()
        assert not whole.stacked(name, events)[3].any()
    direct = sum(named["b"] for event, named in windows if event == "day 1")
    np.testing.assert_allclose(whole.stacked("b", ["day 1"])[0], direct)
