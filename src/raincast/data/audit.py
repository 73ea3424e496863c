"""Audit that no frame is in two splits, frame by frame, from the windows alone."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raincast.data.source import Source
from raincast.data.windows import SPLITS, Starts


@dataclass(frozen=True)
class Audit:
    """Frames that the windows of each split cover.

    `num_windows` and `num_frames` are by split; `shared` has the slots of frames common to each pair of splits;
    `closest` is the smallest number of steps between frames of two splits, None if there is only one split.
    """

    num_windows: dict[str, int]
    num_frames: dict[str, int]
    shared: dict[tuple[str, str], npt.NDArray[np.int64]]
    closest: int | None

    @property
    def passed(self) -> bool:
        """Return True if no frame is in two splits."""
        return not any(slots.size for slots in self.shared.values())


def audit(starts: Mapping[str, Starts], num_frames: int, present: npt.NDArray[np.int64]) -> Audit:
    """Audit windows of `num_frames` slots that begin at `starts`; `present` are the slots that have a frame."""
    num_slots = int(present[-1]) + 1
    there = np.zeros(num_slots, np.bool_)
    there[present] = True
    covered = {name: _covered(starts[name], num_frames, num_slots) & there for name in SPLITS}
    pairs = [*itertools.combinations(SPLITS, 2)]
    return Audit(
        num_windows={name: int(starts[name].size) for name in SPLITS},
        num_frames={name: int(covered[name].sum()) for name in SPLITS},
        shared={(a, b): np.flatnonzero(covered[a] & covered[b]) for a, b in pairs},
        closest=_closest(covered),
    )


def same_times(
    times: npt.NDArray[np.datetime64],
    of_others: npt.NDArray[np.datetime64],
    step: np.timedelta64,
) -> int:
    """Return the number of `times` that are less than a step from one of `of_others`; both ascend."""
    if not of_others.size:
        return 0
    after = np.searchsorted(of_others, times).clip(0, of_others.size - 1)
    nearest = np.minimum(abs(of_others[after] - times), abs(of_others[(after - 1).clip(0)] - times))
    return int((nearest < step).sum())


def window_times(source: Source, starts: Starts) -> npt.NDArray[np.datetime64]:
    """Return the times of all slots in the windows that begin at `starts`, ascending."""
    if not starts.size:
        return source.archive.times[:0]
    covered = _covered(starts, source.num_slots, int(starts[-1]) + source.num_slots)
    times: npt.NDArray[np.datetime64] = source.archive.times[0] + np.flatnonzero(covered) * source.archive.step
    return times


def _covered(starts: Starts, num_frames: int, num_slots: int) -> npt.NDArray[np.bool_]:
    """Return the mask of slots that belong to a window."""
    changes = np.zeros(num_slots + 1, np.int64)
    np.add.at(changes, starts, 1)
    np.add.at(changes, starts + num_frames, -1)
    covered: npt.NDArray[np.bool_] = changes.cumsum()[:-1] > 0
    return covered


def _closest(covered: Mapping[str, npt.NDArray[np.bool_]]) -> int | None:
    """Return the number of steps between the closest frames of different splits."""
    slots = np.concatenate([np.flatnonzero(covered[name]) for name in SPLITS])
    owners = np.concatenate([np.full(int(covered[name].sum()), k) for k, name in enumerate(SPLITS)])
    order = np.argsort(slots, kind="stable")
    slots, owners = slots[order], owners[order]
    apart = np.diff(slots)[owners[1:] != owners[:-1]]
    return int(apart.min()) if apart.size else None
