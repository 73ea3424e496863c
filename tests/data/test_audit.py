"""The audit finds what two splits share, and its counts are those of brute force."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raincast.data.audit import audit, same_times
from raincast.data.windows import SPLITS


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_audit_against_sets(data):
    present = sorted(data.draw(st.sets(st.integers(1, 60), min_size=1)) | {0})
    num_frames = data.draw(st.integers(1, min(6, present[-1] + 1)))
    last = present[-1] - num_frames + 1
    starts = {
        name: np.array(sorted(data.draw(st.sets(st.integers(0, last), max_size=6))), np.int64) for name in SPLITS
    }
    found = audit(starts, num_frames, np.array(present))
    frames = {
        name: {s + k for s in own.tolist() for k in range(num_frames)} & set(present)
        for name, own in starts.items()
    }
    assert found.num_frames == {name: len(own) for name, own in frames.items()}
    assert found.num_windows == {name: own.size for name, own in starts.items()}
    for (a, b), slots in found.shared.items():
        assert set(slots.tolist()) == frames[a] & frames[b]
    assert found.passed == (not any(frames[a] & frames[b] for a, b in found.shared))
    gaps = [abs(p - q) for a, b in found.shared for p in frames[a] for q in frames[b]]
    assert found.closest == (min(gaps) if gaps else None)


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)), st.integers(1, 8))
def test_same_times_against_all_pairs(times, others, step):
    expected = sum(any(abs(t - o) < step for o in others) for t in times)
    given_times, of_others = (np.array(sorted(own), "datetime64[m]") for own in (times, others))
    assert same_times(given_times, of_others, np.timedelta64(step, "m")) == expected


def test_one_shared_frame_is_found():
    starts = {"train": np.array([0, 1]), "val": np.array([5]), "test": np.array([20])}
    assert audit(starts, 4, np.arange(40)).passed  # train ends at slot 4
    found = audit(starts, 5, np.arange(40))
    assert not found.passed
    assert found.shared["train", "val"].tolist() == [5]
