"""Motion of rain and advection along it, by pysteps."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator

import numpy as np

from raincast.baselines.past import evenly_spaced, look_back, persist
from raincast.forecaster import EXTRAPOLATION, PERSISTENCE, Gives, Prediction, Query
from raincast.transforms import ZR

log = logging.getLogger(__name__)


SMALLEST_GRID = 8
"""Pixels per side below which optical flow has nothing to work on."""

DARTS_WAVES = 16
"""Waves along each axis that DARTS looks at, where the grid has as many.

Of shorter waves the phase turns by more than half a circle a step: with its default of 50, cells that move by
3 pixels a step on 128 × 128 seem to move by 1, with 16 by 2.
"""

FAILURES = (ValueError, IndexError, TypeError, ArithmeticError, RuntimeError)
"""What pysteps stops with on rain that it was not made for: too little, too constant, too small."""


def find_motion(frames: np.ndarray, method: str, *, spacing: int = 1) -> np.ndarray | None:
    """Pixels per step, (2, H, W) with x first, from frames in mm/h, `spacing` steps apart.

    None if there is nothing to track.
    """
    # 0 dBZ is 0.04 mm/h: drizzle below it would only blur the features to be tracked
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
    """(H, W) mm/h → (num_steps, H, W), semi-Lagrangian; what flows in from outside the grid is 0."""
    with quiet():
        from pysteps.extrapolation.semilagrangian import extrapolate

        moved = extrapolate(rain, motion, num_steps, outval=0.0)
    forecast: np.ndarray = np.maximum(moved, 0.0).astype(np.float32)
    return forecast


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Prints and warnings of others stay inside, and so do their changes to the warning filters.

    pysteps is imported inside of it, in functions: that takes seconds, prints, and adds warning filters.
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

    motion: np.ndarray = vet(dbz[-3:], verbose=False)  # three frames are the most that it takes
    return motion


def _darts(dbz: np.ndarray) -> np.ndarray:
    from pysteps.motion.darts import DARTS

    num_frames, height, width = dbz.shape
    # no more waves than the frames resolve: of those beyond, coefficients would be taken from others
    waves_x, waves_y = (max(1, min(DARTS_WAVES, size // 2 - 3)) for size in (width, height))
    # it knows no missing pixels, here they are dry; 2.5 frames of time are its least
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
"""Ways to find motion: (T, H, W) dBZ with NaN for missing → (2, H, W) pixels per step, x first."""


def check_method(method: str) -> None:
    """ValueError where there is no such way to find motion."""
    if method not in METHODS:
        raise ValueError(f"method={method} is unknown: choose one of {', '.join(METHODS)}.")


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
