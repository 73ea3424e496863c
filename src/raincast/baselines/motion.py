"""Motion of rain and advection along it, by pysteps."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator

import numpy as np

from raincast.transforms import ZR

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
