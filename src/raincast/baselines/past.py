"""What was seen: rain in mm/h with NaN where missing, and the forecast that it stays as it is."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raincast.forecaster import PERSISTENCE, Gives, Prediction, Query


class Persistence:
    """It will rain as it does now: each pixel's last valid observation, at every lead time."""

    name = "persistence"
    gives = Gives()

    def predict(self, query: Query) -> Prediction:
        """Rates alone, at any lead times."""
        num_leads = len(query.lead_minutes)
        rates = np.stack([persist(frames, num_leads) for frames in query.rain[:, :, 0]])[:, :, None]
        return Prediction(rates, done=(PERSISTENCE,) * len(rates))


@dataclass(frozen=True, eq=False)
class Past:
    """The consecutive frames, (T, H, W) in mm/h, that end at the last one with an observation.

    In `filled` a missing pixel has its last valid observation, 0 where there is none. `age` is how many steps
    ago the last of them was.
    """

    filled: np.ndarray
    age: int


def look_back(frames: np.ndarray, num_frames: int) -> Past:
    """The past in `frames`, of at most `num_frames` frames; of one if nothing was ever observed."""
    observed = np.isfinite(frames).any(axis=(1, 2))
    last = int(np.flatnonzero(observed)[-1]) if observed.any() else 0
    first = last
    while first > 0 and observed[first - 1] and last - first + 1 < num_frames:
        first -= 1
    window = slice(first, last + 1)
    return Past(fill(frames[: last + 1])[window], len(frames) - 1 - last)


def evenly_spaced(frames: np.ndarray, num_frames: int) -> tuple[npt.NDArray[np.intp], int]:
    """Which frames show the motion: their numbers, ascending, and the steps from one to the next.

    They end at the last frame with an observation, and are at most `num_frames`. A gap before it is crossed with
    the smallest step at which another frame was observed; without one, that frame is alone, and the step 1.
    """
    observed = np.isfinite(frames).any(axis=(1, 2))
    if not observed.any():
        return np.zeros(1, np.intp), 1
    seen = np.flatnonzero(observed)
    last = seen[-1]
    spacing = int(last - seen[-2]) if seen.size > 1 else 1
    numbers = [last]
    while len(numbers) < num_frames and numbers[-1] >= spacing and observed[numbers[-1] - spacing]:
        numbers.append(numbers[-1] - spacing)
    return np.array(numbers[::-1], np.intp), spacing


def fill(frames: np.ndarray) -> np.ndarray:
    """(T, H, W) → the same, not negative, with each missing pixel's last valid value, 0 where there is none."""
    filled = np.empty(frames.shape, dtype=np.float32)
    latest = np.zeros(frames.shape[1:], dtype=np.float32)
    for step, frame in enumerate(frames):
        latest = np.where(np.isfinite(frame), frame, latest)
        filled[step] = latest
    return np.maximum(filled, 0.0, dtype=np.float32)


def persist(frames: np.ndarray, num_steps: int) -> np.ndarray:
    """(T, H, W) → (num_steps, H, W): each pixel's last valid observation."""
    return np.repeat(fill(frames)[-1:], num_steps, axis=0)
