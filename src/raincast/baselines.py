"""Forecasts without training: persistence, and extrapolation along optical flow (pysteps).

A forecaster has a `name` and `forecast(rain, num_steps)`: rain rates in mm/h in, NaN where missing, and
rain rates in mm/h out, finite and not negative everywhere, 0 where nothing is known.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float32

from raincast.transforms import ZR

log = logging.getLogger(__name__)

Rain = Float32[np.ndarray, "b t c h w"]
"""mm/h, NaN = missing; channel 0 is rain"""

Forecast = Float32[np.ndarray, "b steps 1 h w"]
"""mm/h, finite and not negative"""

SMALLEST_GRID = 8
"""Pixels per side below which optical flow has nothing to work on."""


class Persistence:
    """It will rain as it does now: each pixel's last valid observation, at every lead time."""

    name = "persistence"

    def forecast(self, rain: Rain, num_steps: int) -> Forecast:
        """(B, T_in, C, H, W) mm/h → (B, num_steps, 1, H, W) mm/h."""
        _check(rain, num_steps)
        return np.stack([_persist(frames, num_steps) for frames in rain[:, :, 0]])[:, :, None]


class Extrapolation:
    """Rain moves on as it did: Lucas-Kanade motion and semi-Lagrangian advection, both by pysteps.

    Motion is taken from up to `motion_frames` consecutive frames that end at the last frame with an
    observation; where that frame has gaps, the pixel's last valid observation is moved. Without motion to
    follow (no rain, a single frame, a grid smaller than `SMALLEST_GRID`, nothing to track) the forecast
    is persistence. What flows in from outside the grid is 0.
    """

    name = "extrapolation"

    def __init__(self, *, motion_frames: int = 3) -> None:
        """At least two frames make a motion."""
        if motion_frames < 2:
            raise ValueError(f"motion_frames={motion_frames}: motion needs at least 2 frames.")
        self.motion_frames = motion_frames
        self._told = False

    def forecast(self, rain: Rain, num_steps: int) -> Forecast:
        """(B, T_in, C, H, W) mm/h → (B, num_steps, 1, H, W) mm/h."""
        _check(rain, num_steps)
        return np.stack([self._forecast_one(frames, num_steps) for frames in rain[:, :, 0]])[:, :, None]

    def _forecast_one(self, frames: np.ndarray, num_steps: int) -> np.ndarray:
        observed = np.isfinite(frames).any(axis=(1, 2))
        last = int(np.flatnonzero(observed)[-1]) if observed.any() else 0
        first = last
        while first > 0 and observed[first - 1] and last - first + 1 < self.motion_frames:
            first -= 1
        motion = _motion(frames[first : last + 1])
        if motion is None:
            self._tell()
            return _persist(frames, num_steps)
        age = len(frames) - 1 - last  # steps since the frame that is moved
        return _advect(_last_valid(frames), motion, age + num_steps)[age:]

    def _tell(self) -> None:
        if not self._told:
            log.info("No motion to follow in some windows: extrapolation is persistence there.")
            self._told = True


def _check(rain: np.ndarray, num_steps: int) -> None:
    if rain.ndim != 5 or 0 in rain.shape:
        raise ValueError(f"Expected rain of shape (B, T, C, H, W), found {rain.shape}. Add the missing axis.")
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: ask for at least one frame.")


def _last_valid(frames: np.ndarray) -> np.ndarray:
    """(T, H, W) → (H, W): the last finite value of each pixel, 0 where there is none."""
    latest = np.zeros(frames.shape[1:], dtype=np.float32)
    for frame in frames:
        latest = np.where(np.isfinite(frame), frame, latest)
    return np.maximum(latest, 0.0, dtype=np.float32)


def _persist(frames: np.ndarray, num_steps: int) -> np.ndarray:
    return np.repeat(_last_valid(frames)[None], num_steps, axis=0)


def _motion(frames: np.ndarray) -> np.ndarray | None:
    """Pixels per step, (2, H, W) with x first, from frames in mm/h; None if there is nothing to track."""
    # 0 dBZ is 0.04 mm/h: drizzle below it would only blur the features to be tracked
    dbz = ZR(dry_dbz=0.0).to_dbz(np.where(np.isfinite(frames), frames, np.nan))
    wet = (dbz > 0).any(axis=(1, 2))
    if wet.sum() < 2 or min(frames.shape[1:]) < SMALLEST_GRID:
        return None
    with _quiet():
        motion: np.ndarray = _pysteps()[0](dbz)
    return motion if np.isfinite(motion).all() and motion.any() else None


def _advect(rain: np.ndarray, motion: np.ndarray, num_steps: int) -> np.ndarray:
    with _quiet():
        moved = _pysteps()[1](rain, motion, num_steps, outval=0.0)
    forecast: np.ndarray = np.maximum(moved, 0.0).astype(np.float32)
    return forecast


def _pysteps() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Motion and advection; imported here because it takes seconds, prints, and adds warning filters."""
    from pysteps.extrapolation.semilagrangian import extrapolate
    from pysteps.motion.lucaskanade import dense_lucaskanade

    return dense_lucaskanade, extrapolate


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Prints and warnings of others stay inside, and so do their changes to the warning filters."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
