"""Past rain in mm/h, NaN for missing, and what continues it: persistence, motion and advection by pysteps."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raincast.forecaster import EXTRAPOLATION, PERSISTENCE, Gives, Prediction, Query
from raincast.transforms import ZR

log = logging.getLogger(__name__)


SMALLEST_GRID = 8
"""Pixels per side below which optical flow does not work."""

DARTS_WAVES = 16
"""Maximum number of waves along each axis that DARTS uses.

The phase of shorter waves turns by more than half a circle per step: with DARTS' default of 50, cells that move by
3 pixels per step on 128 × 128 seem to move by 1, with 16 by 2.
"""

FAILURES = (ValueError, IndexError, TypeError, ArithmeticError, RuntimeError)
"""Errors of pysteps for unsuitable rain: too little, too uniform, or on too small a grid."""


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


def find_motion(frames: np.ndarray, method: str, *, spacing: int = 1) -> np.ndarray | None:
    """Return the motion (2, H, W) in pixels per step, x first, of frames (T, H, W) in mm/h, `spacing` steps apart.

    None if there is nothing to track.
    """
    # 0 dBZ is 0.04 mm/h: weaker drizzle would only blur the features to be tracked
    dbz = ZR(dry_dbz=0.0).to_dbz(np.where(np.isfinite(frames), frames, np.nan))
    wet = (dbz > 0).any(axis=(1, 2))
    if wet.sum() < 2 or min(frames.shape[1:]) < SMALLEST_GRID:
        return None
    with quiet():
        try:
            motion: np.ndarray = METHODS[method](dbz)
        except FAILURES:
            return None
    return motion / spacing if np.isfinite(motion).all() and motion.any() else None


def advect(rain: np.ndarray, motion: np.ndarray, num_steps: int) -> np.ndarray:
    """Advect rain (H, W) in mm/h to (num_steps, H, W), semi-Lagrangian, with 0 from outside the grid."""
    with quiet():
        from pysteps.extrapolation.semilagrangian import extrapolate

        moved = extrapolate(rain, motion, num_steps, outval=0.0)
    forecast: np.ndarray = np.maximum(moved, 0.0).astype(np.float32)
    return forecast


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress prints and warnings of other packages within the block, and undo changes of warning filters.

    pysteps is imported within it, in functions: the import takes seconds, prints, and adds warning filters.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _lucas_kanade(dbz: np.ndarray) -> np.ndarray:
    from pysteps.motion.lucaskanade import dense_lucaskanade

    motion: np.ndarray = dense_lucaskanade(dbz)
    return motion


def _vet(dbz: np.ndarray) -> np.ndarray:
    from pysteps.motion.vet import vet

    motion: np.ndarray = vet(dbz[-3:], verbose=False)  # it accepts at most three frames
    return motion


def _darts(dbz: np.ndarray) -> np.ndarray:
    from pysteps.motion.darts import DARTS

    num_frames, height, width = dbz.shape
    # no more waves than the frames resolve: coefficients beyond would wrap around to others
    waves_x, waves_y = (max(1, min(DARTS_WAVES, size // 2 - 3)) for size in (width, height))
    # DARTS does not support missing pixels, so they count as dry; it needs at least 3 frames
    motion: np.ndarray = DARTS(
        np.nan_to_num(dbz, nan=0.0), N_x=waves_x, N_y=waves_y, N_t=(num_frames - 1) // 2, verbose=False
    )
    return motion


def _farneback(dbz: np.ndarray) -> np.ndarray:
    from pysteps.motion.farneback import farneback

    motion: np.ndarray = farneback(dbz)
    return motion


METHODS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "lucas_kanade": _lucas_kanade,
    "vet": _vet,
    "darts": _darts,
    "farneback": _farneback,
}
"""Methods to find motion: from (T, H, W) dBZ, NaN for missing, to (2, H, W) pixels per step, x first."""


def check_motion(method: str, motion_frames: int) -> None:
    """Raise ValueError for an unknown method, or fewer than two frames."""
    if method not in METHODS:
        raise ValueError(f"method={method} is unknown: choose one of {', '.join(METHODS)}.")
    if motion_frames < 2:
        raise ValueError(f"motion_frames={motion_frames}: motion needs at least 2 frames.")


class Extrapolation:
    """Lagrangian extrapolation: motion by `method` and semi-Lagrangian advection, both by pysteps.

    Motion is computed from up to `motion_frames` frames that end at the last frame with an observation:
    consecutive ones or, if the one before it is missing, evenly spaced ones across the gap (`evenly_spaced`). A
    missing pixel of the last frame takes its last valid observation. Without motion (no rain, a single frame, a
    grid smaller than `SMALLEST_GRID`, nothing to track) the forecast is persistence. Rain from outside the grid is
    0.

    Methods: `lucas_kanade`; `vet`, variational echo tracking (Laroche and Zawadzki 1995), with at most 3 frames;
    `darts`, motion in Fourier space (Ruzanski et al. 2011), which needs 3 frames and underestimates motion from
    few frames; `farneback` (Farnebäck 2003). For the last three, the forecaster's name includes the method.

    A window of 12 steps takes (one core, 128 × 128 and 256 × 256): 0.1 and 0.5 s, `vet` 1.4 and 4 s, `darts` 0.3
    and 0.4 s, `farneback` 0.1 and 0.3 s.
    """

    gives = Gives()

    def __init__(self, *, method: str = "lucas_kanade", motion_frames: int = 3) -> None:
        """Raise ValueError for an unknown method, or fewer than two frames."""
        check_motion(method, motion_frames)
        self.name = "extrapolation" if method == "lucas_kanade" else f"extrapolation_{method}"
        self.method = method
        self.motion_frames = motion_frames
        self._told = False

    def predict(self, query: Query) -> Prediction:
        """Return rates only. Raises ValueError for lead times that are not multiples of the step."""
        made = [self._predict_one(frames, query.num_steps) for frames in query.rain[:, :, 0]]
        rates = np.stack([rates for rates, _ in made])[:, :, None]
        return Prediction(query.at_lead_times(rates), done=tuple(done for _, done in made))

    def _predict_one(self, frames: np.ndarray, num_steps: int) -> tuple[np.ndarray, str]:
        """Forecast frames (T, H, W) to (num_steps, H, W); also return how it was made."""
        past = look_back(frames, 1)
        numbers, spacing = evenly_spaced(frames, self.motion_frames)
        motion = find_motion(frames[numbers], self.method, spacing=spacing)
        if motion is None:
            if not self._told:
                log.info("No motion to follow in some windows: %s is persistence there.", self.name)
                self._told = True
            return persist(frames, num_steps), PERSISTENCE
        return advect(past.filled[-1], motion, past.age + num_steps)[past.age :], EXTRAPOLATION
