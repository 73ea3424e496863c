"""Rain that moves on as it did, unchanged: extrapolation along motion (pysteps)."""

import logging

import numpy as np

from raincast.baselines.motion import advect, check_method, find_motion
from raincast.baselines.past import evenly_spaced, look_back, persist
from raincast.forecaster import EXTRAPOLATION, PERSISTENCE, Gives, Prediction, Query

log = logging.getLogger(__name__)


class Extrapolation:
    """Rain moves on as it did: motion by `method` and semi-Lagrangian advection, both by pysteps.

    Motion is taken from up to `motion_frames` frames that end at the last frame with an observation: consecutive
    ones, or where the one before it is missing, evenly spaced ones over the gap (`evenly_spaced`). Where that last
    frame has missing pixels, the pixel's last valid observation is moved. Without motion to
    follow (no rain, a single frame, a grid smaller than `SMALLEST_GRID`, nothing to track) the forecast
    is persistence. What flows in from outside the grid is 0.

    Methods: `lucas_kanade`; `vet`, variational echo tracking (Laroche and Zawadzki 1995), of 3 frames at
    most; `darts`, motion in Fourier space (Ruzanski et al. 2011), which needs 3 frames and underestimates
    motion in few of them; `farneback` (Farnebäck 2003). The last three are named after it.

    A window of 12 steps takes (one core, 128 × 128 and 256 × 256): 0.1 and 0.5 s, `vet` 1.4 and 4 s, `darts` 0.3
    and 0.4 s, `farneback` 0.1 and 0.3 s.
    """

    gives = Gives()

    def __init__(self, *, method: str = "lucas_kanade", motion_frames: int = 3) -> None:
        """At least two frames make a motion."""
        check_method(method)
        if motion_frames < 2:
            raise ValueError(f"motion_frames={motion_frames}: motion needs at least 2 frames.")
        self.name = "extrapolation" if method == "lucas_kanade" else f"extrapolation_{method}"
        self.method = method
        self.motion_frames = motion_frames
        self._told = False

    def predict(self, query: Query) -> Prediction:
        """Rates alone; ValueError for lead times that are no multiples of the step."""
        made = [self._predict_one(frames, query.num_steps) for frames in query.rain[:, :, 0]]
        rates = np.stack([rates for rates, _ in made])[:, :, None]
        return Prediction(query.at_lead_times(rates), done=tuple(done for _, done in made))

    def _predict_one(self, frames: np.ndarray, num_steps: int) -> tuple[np.ndarray, str]:
        """(T, H, W) → (num_steps, H, W), and how it was made."""
        past = look_back(frames, 1)
        numbers, spacing = evenly_spaced(frames, self.motion_frames)
        motion = find_motion(frames[numbers], self.method, spacing=spacing)
        if motion is None:
            self._tell()
            return persist(frames, num_steps), PERSISTENCE
        return advect(past.filled[-1], motion, past.age + num_steps)[past.age :], EXTRAPOLATION

    def _tell(self) -> None:
        if not self._told:
            log.info("No motion to follow in some windows: %s is persistence there.", self.name)
            self._told = True
