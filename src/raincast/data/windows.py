"""Which windows an archive holds, and which of them train, choose and test a network.

A window is `num_frames` consecutive frames without a missing one. A split assigns *times* to train, val and
test first, in ranges; a window belongs to a split only when one of its ranges holds every frame, so no frame is
ever in two.
"""

import hashlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
Times = npt.NDArray[np.datetime64]
Starts = npt.NDArray[np.int64]
"""Numbers of the first frames of windows, within the archive's `times`."""


@dataclass(frozen=True)
class TimeRange:
    """Frames from `start` up to, not including, `stop`, and the split they belong to."""

    split: str
    start: np.datetime64
    stop: np.datetime64


class Split(Protocol):
    """Assigns the times of an archive to train, val and test."""

    def ranges(self, times: Times, step: np.timedelta64) -> list[TimeRange]:
        """Ranges that do not overlap, ascending."""


@dataclass(frozen=True)
class BlockSplit:
    """Whole blocks of time (days by default), drawn at random from a seed into train, val and test.

    Rain of one block is alike, so windows of one block stand in one split only. Where blocks of different
    splits touch, the first `embargo_minutes` of the later one belong to nobody. Blocks without frames are
    not drawn. Frames of fewer than three blocks are cut into three shorter ones, with a warning: the
    splits share an event.
    """

    block_minutes: float = 1440.0
    fractions: Sequence[float] = (0.7, 0.15, 0.15)
    embargo_minutes: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse fractions that are none."""
        if len(self.fractions) != 3 or min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(
                f"data.split.fractions={list(self.fractions)}: give three positive numbers that sum to 1, "
                "for train, val and test."
            )

    def ranges(self, times: Times, step: np.timedelta64) -> list[TimeRange]:
        """Blocks that begin at whole multiples of the block length since 1970 (days: at 00 UTC)."""
        bounds = self._bounds(times, step)
        num_blocks = len(bounds)
        num_val, num_test = (max(1, round(f * num_blocks)) for f in self.fractions[1:])
        order = np.random.default_rng(self.seed).permutation(num_blocks)
        names = np.full(num_blocks, "train", dtype=object)
        names[order[:num_val]] = "val"
        names[order[num_val : num_val + num_test]] = "test"
        blocks = [TimeRange(name, *bound) for name, bound in zip(names, bounds, strict=True)]
        return with_embargo(blocks, _minutes(self.embargo_minutes))

    def _bounds(self, times: Times, step: np.timedelta64) -> list[tuple[np.datetime64, np.datetime64]]:
        """Start and stop of each block that holds frames."""
        block = _minutes(self.block_minutes)
        midnight = np.datetime64(0, "ns")
        starts = midnight + np.unique((times - midnight) // block) * block
        if starts.size >= 3:
            return [(start, start + block) for start in starts]
        log.warning(
            "The archive holds %d frames in %d block(s) of %g h, under three: its frames are cut into three "
            "thirds instead. Its splits share one event, so its scores say little about new weather.",
            times.size,
            starts.size,
            self.block_minutes / 60,
        )
        edges = [times[0], times[times.size // 3], times[2 * times.size // 3], times[-1] + step]
        return list(itertools.pairwise(edges))


@dataclass(frozen=True)
class DateSplit:
    """Stated dates: each of train, val and test is a list of [start, stop) pairs in UTC.

    Where ranges of different splits lie closer than `embargo_minutes`, the later one starts later.
    """

    train: Sequence[Sequence[str]]
    val: Sequence[Sequence[str]]
    test: Sequence[Sequence[str]]
    embargo_minutes: float = 180.0

    def ranges(self, times: Times, step: np.timedelta64) -> list[TimeRange]:
        """The stated ranges, ascending; ValueError where one is reversed or two overlap."""
        stated = [
            TimeRange(split, _utc(start), _utc(stop)) for split in SPLITS for start, stop in getattr(self, split)
        ]
        for r in stated:
            if r.stop <= r.start:
                raise ValueError(f"data.split: {r.split} from {r.start} until {r.stop} ends before it begins.")
        stated.sort(key=lambda r: r.start)
        for earlier, later in itertools.pairwise(stated):
            if later.start < earlier.stop:
                raise ValueError(
                    f"data.split: {earlier.split} until {earlier.stop} and {later.split} from "
                    f"{later.start} overlap."
                )
        return with_embargo(stated, _minutes(self.embargo_minutes))


def _utc(text: str) -> np.datetime64:
    try:
        return np.datetime64(str(text), "ns")
    except ValueError as error:
        raise ValueError(f"data.split: {text!r} is no date; write 2015-07-28 or 2015-07-28T06:00.") from error


def _minutes(minutes: float) -> np.timedelta64:
    return np.timedelta64(round(minutes * 60e9), "ns")


def with_embargo(ranges: Sequence[TimeRange], embargo: np.timedelta64) -> list[TimeRange]:
    """`ranges` (ascending), each starting at least `embargo` after the last frame of another split."""
    kept: list[TimeRange] = []
    for current in ranges:
        others = [r.stop for r in kept if r.split != current.split]
        start = max([current.start, *(stop + embargo for stop in others[-1:])])
        if start < current.stop:
            kept.append(TimeRange(current.split, start, current.stop))
    return kept


def window_starts(times: Times, step: np.timedelta64, num_frames: int) -> Starts:
    """First frames of all windows of `num_frames` frames that lie one step apart: (N,) int64."""
    if times.size < num_frames:
        return np.empty(0, dtype=np.int64)
    spans = times[num_frames - 1 :] - times[: times.size - num_frames + 1]
    return np.flatnonzero(spans == step * (num_frames - 1)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class SplitWindows:
    """The windows of each split, and a hash that changes when any of them does."""

    starts: dict[str, Starts]
    ranges: list[TimeRange]
    hash: str

    def describe(self) -> str:
        """One line a split: how many windows and from when to when."""
        lines = []
        for split in SPLITS:
            own = [r for r in self.ranges if r.split == split]
            spans = ", ".join(f"{_short(r.start)} to {_short(r.stop)}" for r in own[:3])
            more = f" and {len(own) - 3} more" if len(own) > 3 else ""
            lines.append(f"{split:>5}: {self.starts[split].size:6d} windows in {spans}{more}")
        return "\n".join(lines)


def _short(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]")).replace("T", " ")


def split_windows(
    times: Times, step: np.timedelta64, num_frames: int, split: Split, *, identity: str = ""
) -> SplitWindows:
    """Give each window to the split with a range that holds all its frames; ValueError where a split gets none."""
    starts = window_starts(times, step, num_frames)
    if starts.size == 0:
        raise ValueError(
            f"No window of {num_frames} consecutive frames in {times.size} frames from {times[0]} to "
            f"{times[-1]}: lower data.input_steps or data.lead_steps, or ingest more files."
        )
    ranges = split.ranges(times, step)
    first, last = times[starts], times[starts + num_frames - 1]
    chosen: dict[str, Starts] = {}
    for name in SPLITS:
        inside = np.zeros(starts.size, dtype=bool)
        for r in ranges:
            if r.split == name:
                inside |= (first >= r.start) & (last < r.stop)
        chosen[name] = starts[inside]
    empty = [name for name in SPLITS if chosen[name].size == 0]
    if empty:
        listing = "; ".join(f"{r.split} {_short(r.start)} to {_short(r.stop)}" for r in ranges)
        raise ValueError(
            f"The split leaves no window of {num_frames} frames for {' and '.join(empty)} in an archive from "
            f"{_short(times[0])} to {_short(times[-1])} ({listing}). Lower data.input_steps, data.lead_steps "
            "or data.split.embargo_minutes, or state dates with data/split=dates."
        )
    return SplitWindows(starts=chosen, ranges=ranges, hash=_hash(chosen, num_frames, identity))


def _hash(starts: dict[str, Starts], num_frames: int, identity: str) -> str:
    digest = hashlib.sha256(f"{identity} {num_frames}".encode())
    for name in SPLITS:
        digest.update(name.encode() + starts[name].tobytes())
    return digest.hexdigest()[:16]
