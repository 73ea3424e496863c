"""Windows and splits against brute force."""

import logging

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raincast.data.windows import (
    SPLITS,
    BlockSplit,
    DateSplit,
    SplitWindows,
    TimeRange,
    split_windows,
    window_starts,
    with_embargo,
)

STEP = np.timedelta64(5, "m").astype("timedelta64[ns]")
DAY = 288  # frames
SINCE_1970 = int(np.datetime64("2026-03-01", "m").astype(np.int64)) // 5  # the number of frame 0


def times_of(frames) -> np.ndarray:
    """Times of these frame numbers; frame 0 is at midnight."""
    return np.datetime64("2026-03-01", "ns") + STEP * np.asarray(frames, dtype=np.int64)


def frames_of(windows: SplitWindows, split: str, num_frames: int) -> np.ndarray:
    return windows.starts[split][:, None] + np.arange(num_frames)


gappy = st.lists(st.integers(0, 40), min_size=1, max_size=40, unique=True).map(sorted)


@settings(max_examples=200, deadline=None)
@given(gappy, st.integers(1, 5), st.integers(1, 4), st.integers(0, 4))
def test_windows_may_lack_frames_but_never_the_newest_input(frames, inputs, leads, budget):
    slots = [frame - frames[0] for frame in frames]
    num_frames = inputs + leads
    brute = [
        start
        for start in range(slots[-1] - num_frames + 2)
        if sum(start + k not in slots for k in range(num_frames)) <= budget and start + inputs - 1 in slots
    ]
    found = window_starts(times_of(frames), STEP, num_frames, input_steps=inputs, max_missing=budget)
    assert found.tolist() == brute


@settings(max_examples=200, deadline=None)
@given(gappy, st.integers(1, 8))
def test_windows_are_all_runs_of_consecutive_frames(frames, num_frames):
    slots = [frame - frames[0] for frame in frames]
    brute = [slot for slot in slots if all(slot + k in slots for k in range(num_frames))]
    found = window_starts(times_of(frames), STEP, num_frames)
    assert found.dtype == np.int64
    assert found.tolist() == brute


@settings(max_examples=80, deadline=None)
@given(
    missing=st.sets(st.integers(0, 149), max_size=15),
    gap=st.integers(0, 100),
    num_frames=st.integers(1, 5),
    block=st.integers(6, 30),
    embargo=st.integers(0, 8),
    seed=st.integers(0, 5),
)
def test_block_split_against_brute_force(missing, gap, num_frames, block, embargo, seed):
    frames = [n + gap * (n > 90) for n in range(150) if n not in missing]
    times = times_of(frames)
    split = BlockSplit(
        block_minutes=5 * block, fractions=(0.5, 0.25, 0.25), embargo_minutes=5 * embargo, seed=seed
    )
    try:
        windows = split_windows(times, STEP, num_frames, split)
    except ValueError as error:
        assert "window" in str(error)
        assume(False)
    enough_blocks = len({(SINCE_1970 + number) // block for number in frames}) >= 3  # else cut into thirds
    owner = {}  # frame number → split
    for name in SPLITS:
        for window in frames_of(windows, name, num_frames):
            numbers = [frames[0] + int(slot) for slot in window]
            assert set(numbers) <= set(frames)
            first, last = ((SINCE_1970 + number) // block for number in (numbers[0], numbers[-1]))
            assert first == last or not enough_blocks  # whole windows within a block
            for number in numbers:
                assert owner.setdefault(number, name) == name
    for a, b in zip(sorted(owner), sorted(owner)[1:], strict=False):
        assert owner[a] == owner[b] or b - a > embargo


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_window_belongs_where_a_range_holds_all_its_frames(data):
    frames = data.draw(st.lists(st.integers(0, 60), min_size=20, max_size=60, unique=True).map(sorted))
    cuts = sorted(data.draw(st.lists(st.integers(0, 61), min_size=6, max_size=6)))
    named = list(zip(SPLITS, cuts[::2], cuts[1::2], strict=True))

    class Stated:
        def ranges(self, times, step, window):
            return [TimeRange(name, times_of(a), times_of(b)) for name, a, b in named]

    num_frames = data.draw(st.integers(1, 4))
    starts = window_starts(times_of(frames), STEP, num_frames)
    brute = {
        name: [int(i) for i in starts if all(a <= frames[0] + i + k < b for k in range(num_frames))]
        for name, a, b in named
    }
    if all(brute.values()):
        windows = split_windows(times_of(frames), STEP, num_frames, Stated())
        assert {name: own.tolist() for name, own in windows.starts.items()} == brute
    else:
        with pytest.raises(ValueError, match="No window of|leaves no window"):
            split_windows(times_of(frames), STEP, num_frames, Stated())


def test_starts_count_from_the_first_frame_of_the_archive():
    """Not from the first frame of the split: that would shift or empty the samples."""
    times = times_of(np.arange(10 * DAY))
    dates = DateSplit(
        train=[["2026-03-01", "2026-03-05"]],
        val=[["2026-03-06", "2026-03-08"]],
        test=[["2026-03-09", "2026-03-11"]],
        embargo_minutes=0,
    )
    windows = split_windows(times, STEP, 18, dates)
    for split, first_day, num_days in (("train", 0, 4), ("val", 5, 2), ("test", 8, 2)):
        expected = np.arange(first_day * DAY, (first_day + num_days) * DAY - 17)
        np.testing.assert_array_equal(windows.starts[split], expected)


def test_days_are_drawn_by_their_fractions_and_seed():
    times = times_of(np.arange(20 * DAY))
    split = BlockSplit(fractions=(0.7, 0.15, 0.15), embargo_minutes=0)
    ranges = split.ranges(times, STEP, STEP)
    assert [sum(r.split == name for r in ranges) for name in SPLITS] == [14, 3, 3]
    assert all(r.start == r.start.astype("datetime64[D]") for r in ranges)
    assert split.ranges(times, STEP, STEP) == ranges
    assert BlockSplit(embargo_minutes=0, seed=1).ranges(times, STEP, STEP) != ranges


def test_days_without_frames_are_not_drawn():
    """Ten events of a day, months apart, are ten blocks and not two thousand."""
    days = np.arange(10) * 211
    times = times_of((days[:, None] * DAY + np.arange(DAY)).ravel())
    windows = split_windows(times, STEP, 18, BlockSplit(fractions=(0.6, 0.2, 0.2)))
    assert [np.unique(windows.starts[name] // DAY).size for name in SPLITS] == [6, 2, 2]


def test_embargo_is_kept_after_another_split_only():
    def given_ranges(*ranges):
        return [TimeRange(name, times_of(a), times_of(b)) for name, a, b in ranges]

    kept = with_embargo(
        given_ranges(("train", 0, 10), ("train", 10, 20), ("val", 20, 22), ("train", 22, 40), ("val", 50, 60)),
        3 * STEP,
    )
    # val from 20 to 22 lies within the embargo of train, and is gone; train then goes on undisturbed
    assert kept == given_ranges(("train", 0, 10), ("train", 10, 20), ("train", 22, 40), ("val", 50, 60))
    kept = with_embargo(given_ranges(("train", 0, 10), ("val", 11, 20), ("test", 20, 30)), 3 * STEP)
    assert kept == given_ranges(("train", 0, 10), ("val", 13, 20), ("test", 23, 30))


def test_thirds_of_a_short_event_keep_windows_and_a_shorter_embargo():
    """92 frames and windows of 18: an embargo of 18 would leave a third of 30 frames no window."""
    windows = split_windows(times_of(np.arange(92)), STEP, 18, BlockSplit())
    # (30 − 18) / 2 = 6 frames of embargo leave 31 − 6 − 17 or 30 − 6 − 17 windows of the later thirds
    assert sorted(windows.starts[name].size for name in SPLITS) in ([7, 8, 13], [7, 8, 14], [8, 8, 13])
    starts = np.sort(np.concatenate([windows.starts[name] for name in SPLITS]))
    ends = starts[:-1][np.diff(starts) > 1] + 17
    begins = starts[1:][np.diff(starts) > 1]
    assert len(ends) == 2 and (begins - ends > 6).all()
    stated = split_windows(times_of(np.arange(92)), STEP, 18, BlockSplit(embargo_minutes=0))
    assert sum(stated.starts[name].size for name in SPLITS) == 92 - 3 * 17


@pytest.mark.parametrize("frames", [np.arange(36), np.r_[0:12, 500:524]], ids=["an hour", "two days"])
def test_fewer_than_three_blocks_are_cut_into_thirds_with_a_warning(frames, caplog):
    with caplog.at_level(logging.WARNING):
        windows = split_windows(times_of(frames), STEP, 4, BlockSplit(embargo_minutes=0))
    assert "fewer than three" in caplog.text and "share one event" in caplog.text
    # thirds of 12 frames hold 12 − 3 windows of 4 frames
    assert [windows.starts[name].size for name in SPLITS] == [9, 9, 9]


def test_three_blocks_need_no_warning(caplog):
    split_windows(times_of(np.arange(3 * DAY)), STEP, 4, BlockSplit())
    assert not caplog.records


DATES = {"train": [["2026-03-01", "2026-03-02"]], "val": [["2026-03-02", "2026-03-03"]]}


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ([["2026-03-02T12:00", "2026-03-04"]], "val until 2026-03-03T00.* and test from 2026-03-02T12.* overlap"),
        ([["2026-02-01", "2026-04-01"]], "overlap"),
        ([["2026-03-04", "2026-03-03"]], "test from 2026-03-04.* until 2026-03-03.* ends before it begins"),
        ([["2026-03-04", "the end"]], "'the end' is not a date; write 2015-07-28"),
        ([["20260304", "40000101"]], "'40000101' is outside the years"),
    ],
)
def test_dates_that_cannot_be_are_refused(test, message):
    with pytest.raises(ValueError, match=message):
        DateSplit(**DATES, test=test).ranges(times_of(np.arange(5 * DAY)), STEP, STEP)


def test_touching_dates_do_not_overlap_and_keep_the_embargo():
    split = DateSplit(**DATES, test=[["2026-03-03", "2026-03-04"]], embargo_minutes=60)
    windows = split_windows(times_of(np.arange(4 * DAY)), STEP, 1, split)
    assert windows.starts["val"].tolist() == [*range(DAY + 12, 2 * DAY)]  # 60 minutes are 12 frames
    assert windows.starts["test"].tolist() == [*range(2 * DAY + 12, 3 * DAY)]


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.4, 0.2), (1.0, 0.0, 0.0), (1.2, -0.1, -0.1)])
def test_fractions_that_are_none_are_refused(fractions):
    with pytest.raises(ValueError, match="three positive numbers that sum to 1"):
        BlockSplit(fractions=fractions)


def test_hash_changes_with_the_windows_and_only_then():
    times = times_of(np.arange(4 * DAY))

    def hash_of(times=times, num_frames=18, identity="a", **kwargs) -> str:
        return split_windows(times, STEP, num_frames, BlockSplit(**kwargs), identity=identity).hash

    plain = hash_of()
    assert hash_of() == plain
    changed = [
        hash_of(num_frames=17),
        hash_of(seed=3),
        hash_of(embargo_minutes=30),
        hash_of(identity="b"),
        hash_of(times=np.delete(times, 100)),
    ]
    assert len({plain, *changed}) == 6


def test_no_window_and_an_empty_split_say_what_to_change():
    span = r"from 20[-0-9]{8} [:0-9]{5} to 20[-0-9]{8} [:0-9]{5} UTC: lower data\.input_steps"
    with pytest.raises(ValueError, match=f"No window of 5 consecutive frames in 4 frames {span}"):
        split_windows(times_of([0, 1, 2, 3]), STEP, 5, BlockSplit())
    with pytest.raises(ValueError, match="no window of 18 frames for train and val .*data.split.embargo_minutes"):
        split_windows(times_of(np.arange(60)), STEP, 18, BlockSplit(embargo_minutes=300))


def test_description_names_each_split_once():
    windows = split_windows(times_of(np.arange(10 * DAY)), STEP, 18, BlockSplit())
    lines = windows.describe().splitlines()
    assert [line.split(":")[0].strip() for line in lines] == list(SPLITS)
    for line, name in zip(lines, SPLITS, strict=True):
        assert f" {windows.starts[name].size} windows" in line
