"""Splits by a list of events, and the audit of what two splits share."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raincast.data.audit import audit, same_times
from raincast.data.events import EventSplit
from raincast.data.windows import SPLITS, frame_slots, split_windows

STEP = np.timedelta64(5, "m").astype("timedelta64[ns]")
TIMES = np.datetime64("2026-03-01", "ns") + STEP * np.arange(20 * 288)


def listed(folder: Path, *rows: str, header: str = "start,stop") -> Path:
    path = folder / "events.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def days(*numbers: int) -> list[str]:
    return [f"2026-03-{n:02d}T06:00,2026-03-{n:02d}T18:00" for n in numbers]


def test_events_are_drawn_whole_and_the_time_between_belongs_to_nobody(tmp_path):
    split = EventSplit(listed(tmp_path, *days(*range(1, 11))), fractions=(0.6, 0.2, 0.2))
    windows = split_windows(TIMES, STEP, 18, split)
    owners = {}
    for name in SPLITS:
        for start in windows.starts[name]:
            first, last = TIMES[start], TIMES[start + 17]
            assert first.astype("datetime64[D]") == last.astype("datetime64[D]")
            assert 6 <= first.astype("datetime64[h]").astype(int) % 24 < 18
            assert owners.setdefault(str(first.astype("datetime64[D]")), name) == name
    assert sorted(owners.values()).count("train") == 6 and sorted(owners.values()).count("val") == 2
    # 12 hours hold 144 − 17 windows
    assert sum(own.size for own in windows.starts.values()) == 10 * 127
    assert audit(windows.starts, 18, frame_slots(TIMES, STEP)).passed
    other = EventSplit(split.events, fractions=(0.6, 0.2, 0.2), seed=1)
    assert split_windows(TIMES, STEP, 18, other).hash != windows.hash


def test_a_column_deals_the_events_out(tmp_path):
    rows = [f"{day},{name}" for day, name in zip(days(3, 1, 2), ("test", "train", "val"), strict=True)]
    ranges = EventSplit(listed(tmp_path, *rows, header="start,stop,split")).ranges(TIMES, STEP, 18 * STEP)
    assert [r.split for r in ranges] == ["train", "val", "test"]


def test_events_without_frames_do_not_take_part(tmp_path):
    path = listed(tmp_path, *days(1, 2, 3), "2031-01-01,2031-01-02")
    assert len(EventSplit(path).ranges(TIMES, STEP, 18 * STEP)) == 3


def test_touching_events_keep_a_window_apart(tmp_path):
    rows = ["2026-03-01,2026-03-02,train", "2026-03-02,2026-03-03,val", "2026-03-03,2026-03-04,test"]
    _, val, _ = EventSplit(listed(tmp_path, *rows, header="start,stop,split")).ranges(TIMES, STEP, 18 * STEP)
    assert val.start == np.datetime64("2026-03-02T01:30")  # 18 steps of 5 minutes


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("begin,end", days(1), "needs a header with start, stop.*found: begin, end"),
        ("start,stop", [], "found: nothing"),
        ("start,stop", ["2026-03-01,tomorrow"], "'tomorrow' is not a date"),
        ("start,stop", ["2026-03-01,2026-03-03", "2026-03-02,2026-03-04"], "overlap"),
        ("start,stop", ["2026-03-03,2026-03-02"], "ends before it begins"),
        ("start,stop,split", ["2026-03-01,2026-03-02,training"], r"\['training'\]; give train, val, test"),
        ("start,stop,split", ["2026-03-01,2026-03-02,train", "2026-03-02,2026-03-03,"], "in every row"),
    ],
)
def test_lists_that_are_wrong_are_refused(tmp_path, header, rows, message):
    with pytest.raises(ValueError, match=message):
        EventSplit(listed(tmp_path, *rows, header=header)).ranges(TIMES, STEP, 18 * STEP)


def test_a_list_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="events=.*nowhere.csv cannot be read"):
        EventSplit(tmp_path / "nowhere.csv").ranges(TIMES, STEP, 18 * STEP)


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
