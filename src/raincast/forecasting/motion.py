"""Extrapolation on grids of any size, and quality flags that follow from the motion.

pysteps needs more than a kilobyte per pixel to estimate motion, so motion is estimated on a coarser grid.
"""

import numpy as np
import numpy.typing as npt

from raincast.archive.rates import bands
from raincast.baselines.motion import advect, evenly_spaced, find_motion, look_back, persist, quiet
from raincast.forecaster import EXTRAPOLATION, PERSISTENCE, Gives, Prediction, Query, Rain
from raincast.forecasting.files.dataset import FILLED, MISSING, OUTSIDE_REACH
from raincast.forecasting.gaps import Past

MOTION_PIXELS = 800
"""Longest side in pixels of the grid on which motion is estimated."""
MOTION_BYTES = 1300
"""Bytes per pixel of that grid: distances to the 20 nearest features, their indices, weights and two components"""
ADVECTION_BYTES = 300
"""Bytes per pixel of a grid advected at once: positions, motion and steps in float64, and the maps twice"""


MOTION_FRAMES = 3


class Fallback:
    """The forecaster for input with too many gaps: extrapolation, or persistence if no motion is found."""

    name = "fallback"
    gives = Gives()

    def predict(self, query: Query) -> Prediction:
        """Return rates only; raises ValueError for lead times that are not multiples of the step."""
        made = [_moved_on(frames, query.num_steps) for frames in query.rain[:, :, 0]]
        rates = np.stack([rates for rates, _ in made])[:, :, None]
        return Prediction(query.at_lead_times(rates), done=tuple(done for _, done in made))

    def frames_used(self, frames: Rain, done: str) -> npt.NDArray[np.intp]:
        """Return the indices of the frames (T, H, W) that were used for a forecast made as `done` says.

        Extrapolation uses those that show the motion and advects the last one; persistence uses the last one.
        """
        numbers, _ = evenly_spaced(frames, MOTION_FRAMES)
        return numbers if done == EXTRAPOLATION else numbers[-1:]


def _moved_on(frames: Rain, num_steps: int) -> tuple[Rain, str]:
    """Forecast (T, H, W) → (num_steps, H, W) in mm/h; also return the method."""
    numbers, spacing = evenly_spaced(frames, MOTION_FRAMES)
    motion, size = coarse_motion(frames[numbers], MOTION_PIXELS, spacing=spacing)
    if motion is None:
        return persist(frames, num_steps), PERSISTENCE
    seen = look_back(frames, 1)
    count = seen.age + num_steps
    newest = seen.filled[-1]
    moved = advect(newest, motion, count) if size == 1 else _advect_by_blocks(newest, motion, size, count)
    return moved[seen.age :], EXTRAPOLATION


def _advect_by_blocks(rain: Rain, motion: npt.NDArray[np.float64], size: int, num_steps: int) -> Rain:
    """Advect (H, W) → (num_steps, H, W); pixel displacements are interpolated between those of the blocks."""
    from scipy.ndimage import map_coordinates

    with quiet():
        from pysteps.extrapolation.semilagrangian import extrapolate
    H, W = rain.shape
    moved = np.empty((num_steps, H, W), np.float32)
    back: npt.NDArray[np.float64] | None = None
    for step in range(num_steps):
        with quiet():
            _, back = extrapolate(None, motion, [1], displacement_prev=back, return_displacement=True)
        assert back is not None
        for rows in bands((H, W)):
            places = np.mgrid[rows, 0:W].astype(np.float64)
            between = (places + 0.5) / size - 0.5
            for axis, component in enumerate(back[::-1]):  # pysteps puts x first
                places[axis] += size * map_coordinates(component, between, order=1, mode="nearest")
            map_coordinates(rain, places, output=moved[step, rows], order=1, mode="constant", cval=0.0)
    return moved


def extrapolation_bytes(shape: tuple[int, ...]) -> float:
    """Return the peak memory in bytes of the fallback on a grid of `shape` (H, W)."""
    size = _block_size(shape, MOTION_PIXELS)
    return shape[0] * shape[1] * (MOTION_BYTES / size**2 + (ADVECTION_BYTES if size == 1 else 0))


def coarse_motion(frames: Rain, longest: int, *, spacing: int = 1) -> tuple[npt.NDArray[np.float64] | None, int]:
    """Estimate the motion in `frames` (T, H, W), `spacing` steps apart, on at most `longest` blocks per side.

    Returns (2, rows, columns) in blocks per step, x first, or None if there is nothing to track; and the block
    size in pixels.
    """
    size = _block_size(frames.shape[1:], longest)
    if size > 1:
        frames = np.stack([block_means(frame, size) for frame in frames])
    return find_motion(frames, "lucas_kanade", spacing=spacing), size


def _block_size(shape: tuple[int, ...], longest: int) -> int:
    return max(1, -(-max(shape) // longest))


def block_means(frame: Rain, size: int) -> Rain:
    """Average the observed pixels of an (H, W) frame in blocks of `size`² pixels; NaN if there are none."""
    H, W = frame.shape
    rows, columns = np.arange(0, H, size), np.arange(0, W, size)

    def sums(values: Rain) -> Rain:
        added: Rain = np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)
        return added

    observed = np.isfinite(frame)
    count = sums(observed.astype(np.float32))
    total = sums(np.where(observed, frame, 0).astype(np.float32))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


COARSE_PIXELS = 200
"""Longest side in pixels of the grid on which the motion for the reach is estimated."""


def quality_flags(past: Past, lead_steps: int, *, pixel_km: float, reach: bool = True) -> npt.NDArray[np.uint8]:
    """Return the bits of the quality flag (`files.dataset`), (lead, H, W).

    `FILLED`: part of the pixel's input was missing. `MISSING`: all of it was. `OUTSIDE_REACH`: traced back along
    the motion of the newest frames, the pixel comes from where nothing was observed; never set with `reach=False`.
    """
    observed = np.isfinite(past.rain)
    seen: npt.NDArray[np.bool_] = np.logical_or.reduce(observed)
    still = np.where(seen, np.where(observed.all(axis=0), 0, FILLED), MISSING).astype(np.uint8)
    flags = np.repeat(still[None], lead_steps, axis=0)
    if reach and not past.dry:
        flags |= np.where(_outside_reach(past, seen, lead_steps, pixel_km), np.uint8(OUTSIDE_REACH), np.uint8(0))
    return flags


def _outside_reach(
    past: Past, seen: npt.NDArray[np.bool_], lead_steps: int, pixel_km: float
) -> npt.NDArray[np.bool_]:
    """Return a mask (lead, H, W), by the default network's motion: importing pysteps would take seconds."""
    import torch

    from raincast.models.lagrangian import motion
    from raincast.models.optical_flow import displacements, move

    numbers, spacing = evenly_spaced(past.rain, MOTION_FRAMES)
    size = _block_size(seen.shape, COARSE_PIXELS)
    frames = torch.from_numpy(np.stack([block_means(frame, size) for frame in past.rain[numbers]]))[None]
    coarse = torch.from_numpy(block_means(seen.astype(np.float32), size))
    with torch.inference_mode():
        flow = motion(frames, torch.tensor([pixel_km * size])) / spacing
        back = displacements(flow, lead_steps)[0]
        there = move(coarse.expand(lead_steps, 1, *coarse.shape), back)[:, 0]  # 0 outside the grid
        away = ((there < 0.5) & (coarse >= 0.5)).numpy()
    H, W = seen.shape
    return away.repeat(size, axis=1).repeat(size, axis=2)[:, :H, :W] & seen
