"""Quality flags of a forecast: never observed, outside the reach of observations, or filled."""

import numpy as np
import numpy.typing as npt

from raincast.baselines.motion import advect
from raincast.baselines.past import evenly_spaced
from raincast.forecasting.files.dataset import FILLED, MISSING, OUTSIDE_REACH
from raincast.forecasting.gaps import Past
from raincast.forecasting.motion import MOTION_FRAMES, block_means, coarse_motion

COARSE_PIXELS = 200
"""The longest side in pixels of the grid on which the motion for the reach is estimated."""


def quality_flags(past: Past, lead_steps: int, *, reach: bool = True) -> npt.NDArray[np.uint8]:
    """The bits of the quality flag (`files.dataset`), (lead, H, W).

    `FILLED`: some of the pixel's input was missing. `MISSING`: all of it was. `OUTSIDE_REACH`: traced back along
    the motion of the newest frames, the pixel comes from where nothing was observed; never set without motion or
    with `reach=False`.
    """
    observed = np.isfinite(past.rain)
    seen: npt.NDArray[np.bool_] = np.logical_or.reduce(observed)
    still = np.where(seen, np.where(observed.all(axis=0), 0, FILLED), MISSING).astype(np.uint8)
    flags = np.repeat(still[None], lead_steps, axis=0)
    if reach and not past.dry:
        flags |= np.where(_outside_reach(past, seen, lead_steps), np.uint8(OUTSIDE_REACH), np.uint8(0))
    return flags


def _outside_reach(past: Past, seen: npt.NDArray[np.bool_], lead_steps: int) -> npt.NDArray[np.bool_]:
    """(lead, H, W), or (1, 1, 1) if there is no motion."""
    numbers, spacing = evenly_spaced(past.rain, MOTION_FRAMES)
    motion, size = coarse_motion(past.rain[numbers], COARSE_PIXELS, spacing=spacing)
    if motion is None:
        return np.zeros((1, 1, 1), np.bool_)
    coarse = block_means(seen.astype(np.float32), size)
    # traced back from each pixel; outside the grid it is 0
    away = (advect(coarse, motion, lead_steps) < 0.5) & (coarse >= 0.5)
    H, W = seen.shape
    return away.repeat(size, axis=1).repeat(size, axis=2)[:, :H, :W] & seen
