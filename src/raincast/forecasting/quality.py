"""What is known of each pixel of a forecast: never observed, beyond the reach of what was, or filled."""

import numpy as np
import numpy.typing as npt

from raincast.baselines.motion import advect
from raincast.baselines.past import evenly_spaced
from raincast.forecasting.files.dataset import FILLED, MISSING, OUTSIDE_REACH
from raincast.forecasting.gaps import Past
from raincast.forecasting.motion import MOTION_FRAMES, block_means, coarse_motion

COARSE_PIXELS = 200
"""Pixels along the longer side on which the motion for the reach is sought: a map of where, not of how much."""


def quality_flags(past: Past, lead_steps: int, *, reach: bool = True) -> npt.NDArray[np.uint8]:
    """Bits of `output.forecast_dataset`'s flags, (lead, H, W).

    `FILLED`: some of the pixel's input was missing, `MISSING`: all of it was. `OUTSIDE_REACH`: followed back along
    the motion of the newest frames, it comes from where nobody looked; 0 without a motion, or where `reach` is
    false.
    """
    observed = np.isfinite(past.rain)
    seen: npt.NDArray[np.bool_] = np.logical_or.reduce(observed)
    still = np.where(seen, np.where(observed.all(axis=0), 0, FILLED), MISSING).astype(np.uint8)
    flags = np.repeat(still[None], lead_steps, axis=0)
    if reach and not past.dry:
        flags |= np.where(_outside_reach(past, seen, lead_steps), np.uint8(OUTSIDE_REACH), np.uint8(0))
    return flags


def _outside_reach(past: Past, seen: npt.NDArray[np.bool_], lead_steps: int) -> npt.NDArray[np.bool_]:
    """(lead, H, W), or (1, 1, 1) where there is no motion."""
    numbers, spacing = evenly_spaced(past.rain, MOTION_FRAMES)
    motion, size = coarse_motion(past.rain[numbers], COARSE_PIXELS, spacing=spacing)
    if motion is None:
        return np.zeros((1, 1, 1), np.bool_)
    coarse = block_means(seen.astype(np.float32), size)
    # followed back from each pixel; what comes from outside the grid is 0
    away = (advect(coarse, motion, lead_steps) < 0.5) & (coarse >= 0.5)
    H, W = seen.shape
    return away.repeat(size, axis=1).repeat(size, axis=2)[:, :H, :W] & seen
