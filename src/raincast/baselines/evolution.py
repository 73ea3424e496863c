"""What forecasts share in which rain changes as it moves: S-PROG, ANVIL, STEPS, LINDA (pysteps)."""

import logging

import numpy as np

from raincast.baselines.motion import FAILURES, advect, check_method, find_motion, quiet
from raincast.baselines.past import Past, evenly_spaced, look_back, persist
from raincast.forecaster import EXTRAPOLATION, PERSISTENCE, Gives, Prediction, Query

log = logging.getLogger(__name__)

DRY_RATE = 0.1
"""mm/h: less than that is no rain to these methods."""

DRY_DECIBELS = -15.0
"""Where no rain lies on their scale of 10·log10(rate): 5 below `DRY_RATE`, as in the examples of pysteps."""


class Evolution:
    """Rain moves and changes; `_evolve` is the one thing that each method adds.

    They need `num_frames` consecutive frames, in which a missing pixel is the pixel's last valid observation,
    or no rain where there is none. Where there are fewer, where pysteps stops, and at pixels where it gives
    NaN (those whose rain comes from outside the grid), the forecast is extrapolation; without motion to follow
    (see `Extrapolation`) it is persistence. Each of it is logged once.
    """

    name: str
    gives = Gives()
    num_members = 1

    def __init__(self, *, num_frames: int, method: str, motion_frames: int) -> None:
        check_method(method)
        if motion_frames < 2:
            raise ValueError(f"motion_frames={motion_frames}: motion needs at least 2 frames.")
        self.num_frames = num_frames
        self.method = method
        self.motion_frames = motion_frames
        self._told: set[str] = set()

    def predict(self, query: Query) -> Prediction:
        """Rates, the mean where there are members; ValueError for lead times that are no multiples of the step."""
        members, done = self._members(query)
        return Prediction(members.mean(axis=2, keepdims=True), done=done)

    def _members(self, query: Query) -> tuple[np.ndarray, tuple[str, ...]]:
        """(B, L, M, H, W) mm/h, and how each sample's were made."""
        made = [self._members_of_one(frames, query) for frames in query.rain[:, :, 0]]
        return query.at_lead_times(np.stack([members for members, _ in made])), tuple(done for _, done in made)

    def _members_of_one(self, frames: np.ndarray, query: Query) -> tuple[np.ndarray, str]:
        """(T, H, W) → (num_steps, M, H, W)."""
        num_steps = query.num_steps
        past = look_back(frames, self.num_frames)
        numbers, spacing = evenly_spaced(frames, self.motion_frames)
        motion = find_motion(frames[numbers], self.method, spacing=spacing)
        if motion is None:
            self._tell("no motion to follow", "persistence")
            return self._repeat(persist(frames, num_steps)), PERSISTENCE
        steps = past.age + num_steps
        plain = self._repeat(advect(past.filled[-1], motion, steps))
        evolved = self._try(past, motion, steps, query)
        if evolved is None:
            return plain[past.age :], EXTRAPOLATION
        filled = np.where(np.isfinite(evolved), np.maximum(evolved, 0.0), plain)
        return filled[past.age :], self.name

    def _try(self, past: Past, motion: np.ndarray, num_steps: int, query: Query) -> np.ndarray | None:
        """(num_steps, M, H, W) in mm/h, NaN where unknown, or None where the method does not answer."""
        if len(past.filled) < self.num_frames:
            self._tell(f"fewer than {self.num_frames} consecutive frames", "extrapolation")
            return None
        try:
            with quiet():
                frames = past.filled[-self.num_frames :].astype(np.float64)
                evolved = self._evolve(frames, motion, num_steps, query)
                # in float32 first: what is too large for it is not finite either
                return evolved.astype(np.float32).reshape(num_steps, -1, *motion.shape[1:])
        except FAILURES as error:
            self._tell(f"pysteps stops ({type(error).__name__}: {error})", "extrapolation")
            return None

    def _evolve(self, frames: np.ndarray, motion: np.ndarray, num_steps: int, query: Query) -> np.ndarray:
        """(num_frames, H, W) mm/h → (num_steps, H, W) or (num_steps, M, H, W) mm/h; errors as pysteps has them."""
        raise NotImplementedError

    def _repeat(self, forecast: np.ndarray) -> np.ndarray:
        """The same for every member: (num_steps, H, W) → (num_steps, M, H, W)."""
        return np.repeat(forecast[:, None], self.num_members, axis=1)

    def _tell(self, why: str, instead: str) -> None:
        if instead not in self._told:
            log.info("%s is %s in some windows: %s.", self.name, instead, why)
            self._told.add(instead)


def to_decibels(rain: np.ndarray) -> np.ndarray:
    """mm/h → 10·log10 of it, `DRY_DECIBELS` below `DRY_RATE`."""
    return np.where(rain >= DRY_RATE, 10.0 * np.log10(np.maximum(rain, DRY_RATE)), DRY_DECIBELS)


def from_decibels(decibels: np.ndarray) -> np.ndarray:
    """10·log10 of mm/h → mm/h, 0 below `DRY_RATE`; NaN stays."""
    rain: np.ndarray = 10.0 ** (decibels / 10.0)
    return np.where(rain < DRY_RATE * (1 - 1e-9), 0.0, rain)  # a rounding error is no drizzle
