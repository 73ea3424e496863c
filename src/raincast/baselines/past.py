"""Past rain in mm/h, NaN for missing, and persistence."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raincast.forecaster import PERSISTENCE, Gives, Prediction, Query


class Persistence:
    """Persistence: each pixel's last valid observation, at every lead time."""

    name = "persistence"
    gives = Gives()

    def predict(self, query: Query) -> Prediction:
        """Return rates only, at any lead times."""
        num_leads = len(query.lead_minutes)
        rates = np.stack([persist(frames, num_leads) for frames in query.rain[:, :, 0]])[:, :, None]
        return Prediction(rates, done=(PERSISTENCE,) * len(rates))


@dataclass(frozen=True, eq=False)
class Past:
    """Consecutive frames (T, H, W) in mm/h that end at the last frame with an observation.

    In `filled`, a missing pixel has its last valid observation, or 0 if there is none. `age` is the number of
    steps since the last of these frames.
    """

    filled: np.ndarray
    age: int


def look_back(frames: np.ndarray, num_frames: int) -> Past:
    """Return the past of at most `num_frames` frames; one frame if nothing was ever observed."""
    observed = np.isfinite(frames).any(axis=(1, 2))
    last = int(np.flatnonzero(observed)[-1]) if observed.any() else 0
    first = last
    while first > 0 and observed[first - 1] and last - first + 1 < num_frames:
        first -= 1
    window = slice(first, last + 1)
    return Past(fill(frames[: last + 1])[window], len(frames) - 1 - last)


def evenly_spaced(frames: np.ndarray, num_frames: int) -> tuple[npt.NDArray[np.intp], int]:
    """Return the ascending indices of the frames to compute motion from, and their spacing in steps.

    They end at the last frame with an observation, and are at most `num_frames`. The spacing is the distance to
    the observed frame before it, which bridges a gap. If there is no other frame, only this one is returned, with
    spacing 1.
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
    """Return nonnegative frames (T, H, W) in which missing pixels have their last valid value, else 0."""
    filled = np.empty(frames.shape, dtype=np.float32)
    latest = np.zeros(frames.shape[1:], dtype=np.float32)
    for step, frame in enumerate(frames):
        latest = np.where(np.isfinite(frame), frame, latest)
        filled[step] = latest
    return np.maximum(filled, 0.0, dtype=np.float32)


def persist(frames: np.ndarray, num_steps: int) -> np.ndarray:
    """Return each pixel's last valid observation in frames (T, H, W), repeated: (num_steps, H, W)."""
    return np.repeat(fill(frames)[-1:], num_steps, axis=0)
