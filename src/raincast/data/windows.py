"""Windows of an archive, and their split into train, val and test.

A window is `num_frames` times, one step apart, at which the archive has frames; `max_missing` of them may be
absent. A split first assigns ranges of *times* to train, val and test. A window belongs to a split only if one
range of the split contains all its times, so no frame is ever in two splits.
"""

import hashlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from raincast import schema

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
Times = npt.NDArray[np.datetime64]
Starts = npt.NDArray[np.int64]
"""First times of windows as *slots*: steps since the archive's first frame."""


@dataclass(frozen=True)
class TimeRange:
    """The times from `start` to `stop` (excluded), and the split that they belong to."""

    split: str
    start: np.datetime64
    stop: np.datetime64


class Split(Protocol):
    """Assigns the times of an archive to train, val and test."""

    def ranges(self, times: Times, step: np.timedelta64, window: np.timedelta64) -> list[TimeRange]:
        """Return ascending ranges that do not overlap; `window` is the time that a window covers."""


@dataclass(frozen=True)
class BlockSplit:
    """Random assignment of whole blocks of time (days by default, weeks with 10080 min) to train, val and test.

    Rain within a block is correlated, so all its windows are in one split. If blocks of different splits touch,
    the first `embargo_minutes` of the later one (None: the length of a window) belong to no split. Blocks without
    frames are not drawn. An archive of fewer than three blocks is cut into three thirds instead, with a warning,
    because its splits share an event. The default embargo is then at most half of the time by which a third
    exceeds a window.
    """

    block_minutes: float = 1440.0
    fractions: Sequence[float] = (0.7, 0.15, 0.15)
    embargo_minutes: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for invalid fractions."""
        check_fractions(self.fractions)

    def ranges(self, times: Times, step: np.timedelta64, window: np.timedelta64) -> list[TimeRange]:
        """Return blocks that begin at multiples of the block length since 1970 (days: at 00 UTC)."""
        bounds = self._bounds(times, step)
        names = draw_splits(len(bounds), self.fractions, self.seed)
        blocks = [TimeRange(name, *bound) for name, bound in zip(names, bounds, strict=True)]
        return with_embargo(blocks, embargo_of(self.embargo_minutes, self._own_embargo(bounds, step, window)))

    def _own_embargo(
        self, bounds: Sequence[tuple[np.datetime64, np.datetime64]], step: np.timedelta64, window: np.timedelta64
    ) -> np.timedelta64:
        """Return the length of a window, or less between thirds of an event that would have no windows with it."""
        lengths = [stop - start for start, stop in bounds]
        if all(length == _minutes(self.block_minutes) for length in lengths):
            return window
        # half of a third's time beyond one window; the other half is for further windows
        spare = (int(np.min(lengths) // step) - int(window // step)) // 2
        return min(window, max(spare, 0) * step)

    def _bounds(self, times: Times, step: np.timedelta64) -> list[tuple[np.datetime64, np.datetime64]]:
        """Return start and stop of each block that has frames."""
        block = _minutes(self.block_minutes)
        midnight = np.datetime64(0, "ns")
        starts = midnight + np.unique((times - midnight) // block) * block
        if starts.size >= 3:
            return [(start, start + block) for start in starts]
        log.warning(
            "The archive has %d frames in %d block(s) of %g h, fewer than three: its frames are cut into three "
            "thirds instead. Its splits share one event, so its scores say little about new weather.",
            times.size,
            starts.size,
            self.block_minutes / 60,
        )
        edges = [times[0], times[times.size // 3], times[2 * times.size // 3], times[-1] + step]
        return list(itertools.pairwise(edges))


@dataclass(frozen=True)
class DateSplit:
    """Fixed dates: each of train, val and test is a list of [start, stop) pairs in UTC.

    If ranges of different splits are closer than `embargo_minutes` (None: the length of a window), the later one
    starts later.
    """

    train: Sequence[Sequence[str]]
    val: Sequence[Sequence[str]]
    test: Sequence[Sequence[str]]
    embargo_minutes: float | None = None

    def ranges(self, times: Times, step: np.timedelta64, window: np.timedelta64) -> list[TimeRange]:
        """Return the given ranges in order. Raises ValueError if one is reversed or two overlap."""
        stated = [
            TimeRange(split, parse_utc(start), parse_utc(stop))
            for split in SPLITS
            for start, stop in getattr(self, split)
        ]
        stated = in_order(stated)
        return with_embargo(stated, embargo_of(self.embargo_minutes, window))


@dataclass(frozen=True)
class TrainAll:
    """All times belong to train."""

    def ranges(self, times: Times, step: np.timedelta64, window: np.timedelta64) -> list[TimeRange]:
        """Return one range."""
        return [TimeRange("train", times[0], times[-1] + step)]


@dataclass(frozen=True)
class TestAll:
    """All times belong to test, for forecasters that were trained on none of them."""

    __test__ = False  # not a pytest class

    def ranges(self, times: Times, step: np.timedelta64, window: np.timedelta64) -> list[TimeRange]:
        """Return one range."""
        return [TimeRange("test", times[0], times[-1] + step)]


def in_order(stated: Sequence[TimeRange]) -> list[TimeRange]:
    """Sort ranges. Raises ValueError if one ends before it begins, or two overlap."""
    for r in stated:
        if r.stop <= r.start:
            raise ValueError(f"data.split: {r.split} from {r.start} until {r.stop} ends before it begins.")
    ordered = sorted(stated, key=lambda r: r.start)
    for earlier, later in itertools.pairwise(ordered):
        if later.start < earlier.stop:
            raise ValueError(
                f"data.split: {earlier.split} until {earlier.stop} and {later.split} from {later.start} overlap."
            )
    return ordered


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise ValueError unless `fractions` are three positive shares that sum to 1."""
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(
            f"data.split.fractions={list(fractions)}: give three positive numbers that sum to 1, for train, val "
            "and test."
        )


def draw_splits(num: int, fractions: Sequence[float], seed: int) -> list[str]:
    """Draw a split for each of `num` blocks or events: at least one val and one test, the rest train."""
    num_val, num_test = (max(1, round(f * num)) for f in fractions[1:])
    order = np.random.default_rng(seed).permutation(num)
    names = np.full(num, "train", dtype=object)
    names[order[:num_val]] = "val"
    names[order[num_val : num_val + num_test]] = "test"
    return [str(name) for name in names]


def parse_utc(text: str) -> np.datetime64:
    """Parse a date or time in UTC. Raises ValueError for anything else."""
    try:
        return schema.parse_utc(text)
    except ValueError as error:
        raise ValueError(f"data.split: {error}") from error


def _minutes(minutes: float) -> np.timedelta64:
    return np.timedelta64(round(minutes * 60e9), "ns")


def embargo_of(minutes: float | None, window: np.timedelta64) -> np.timedelta64:
    """Return the configured embargo, or the length of a window."""
    return window if minutes is None else _minutes(minutes)


def with_embargo(ranges: Sequence[TimeRange], embargo: np.timedelta64) -> list[TimeRange]:
    """Shorten ascending `ranges` so that each starts at least `embargo` after the end of any other split."""
    kept: list[TimeRange] = []
    last: dict[str, np.datetime64] = {}  # the end of the latest range of each split
    for current in ranges:
        others = [stop for split, stop in last.items() if split != current.split]
        start = max([current.start, *(stop + embargo for stop in others)])
        if start < current.stop:
            kept.append(TimeRange(current.split, start, current.stop))
            last[current.split] = current.stop
    return kept


def frame_slots(times: Times, step: np.timedelta64) -> npt.NDArray[np.int64]:
    """Return the slot of each frame: (T,) steps since the first."""
    slots: npt.NDArray[np.int64] = ((times - times[0]) // step).astype(np.int64)
    return slots


def window_starts(
    times: Times, step: np.timedelta64, num_frames: int, *, input_steps: int | None = None, max_missing: int = 0
) -> Starts:
    """Return the first slots (N,), ascending, of windows of `num_frames` that lack at most `max_missing` frames.

    The newest input frame, the last of `input_steps`, is never missing, because the forecast starts from it.
    """
    slots = frame_slots(times, step)
    num_slots = int(slots[-1]) + 1
    if num_slots < num_frames:
        return np.empty(0, dtype=np.int64)
    present = np.zeros(num_slots, np.bool_)
    present[slots] = True
    counts = np.concatenate([[0], np.cumsum(present)])
    valid = counts[num_frames:] - counts[: num_slots - num_frames + 1] >= num_frames - max_missing
    if max_missing and input_steps:
        valid &= present[input_steps - 1 : input_steps - 1 + valid.size]
    return np.flatnonzero(valid).astype(np.int64)


@dataclass(frozen=True, eq=False)
class SplitWindows:
    """The windows of each split, and a hash that changes if any window does."""

    starts: dict[str, Starts]
    ranges: list[TimeRange]
    hash: str

    def describe(self) -> str:
        """Return one line per split with the number of windows and their periods."""
        lines = []
        for split in SPLITS:
            own = [r for r in self.ranges if r.split == split]
            spans = ", ".join(f"{_short(r.start)} to {_short(r.stop)}" for r in own[:3])
            more = f" and {len(own) - 3} more" if len(own) > 3 else ""
            where = f" in {spans}{more} UTC" if own else ""
            lines.append(f"{split:>5}: {self.starts[split].size:6d} windows{where}")
        return "\n".join(lines)


def _short(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]")).replace("T", " ")


def split_windows(
    times: Times,
    step: np.timedelta64,
    num_frames: int,
    split: Split,
    *,
    identity: str = "",
    input_steps: int | None = None,
    max_missing: int = 0,
    needed: Sequence[str] = SPLITS,
) -> SplitWindows:
    """Assign each window to the split with a range that contains all its times.

    Raises ValueError if there is no window, or if one of the `needed` splits gets none.
    """
    starts = window_starts(times, step, num_frames, input_steps=input_steps, max_missing=max_missing)
    if starts.size == 0:
        raise ValueError(
            f"No window of {num_frames} consecutive frames in {times.size} frames from {_short(times[0])} to "
            f"{_short(times[-1])} UTC: lower data.input_steps or data.lead_steps, raise "
            f"data.max_missing={max_missing}, or ingest more files."
        )
    span = step * (num_frames - 1)
    ranges = split.ranges(times, step, span + step)
    first = times[0] + starts * step
    chosen: dict[str, Starts] = {}
    for name in SPLITS:
        inside = np.zeros(starts.size, dtype=bool)
        for r in ranges:
            if r.split == name:
                begin, end = np.searchsorted(first, [r.start, r.stop - span])
                inside[begin:end] = True
        chosen[name] = starts[inside]
    empty = [name for name in needed if chosen[name].size == 0]
    if empty:
        listing = "; ".join(f"{r.split} {_short(r.start)} to {_short(r.stop)}" for r in ranges[:12])
        more = f"; and {len(ranges) - 12} more" if len(ranges) > 12 else ""
        raise ValueError(
            f"The split leaves no window of {num_frames} frames for {' and '.join(empty)} in an archive from "
            f"{_short(times[0])} to {_short(times[-1])} ({listing}{more}). Lower data.input_steps, "
            "data.lead_steps or data.split.embargo_minutes, or set dates with data/split=dates. To score a "
            "forecaster that was trained on none of it on all of it: python evaluate.py split=all"
        )
    digest = hashlib.sha256(f"{identity} {num_frames} {max_missing}".encode())
    for name in SPLITS:
        digest.update(name.encode() + chosen[name].tobytes())
    return SplitWindows(starts=chosen, ranges=ranges, hash=digest.hexdigest()[:16])
