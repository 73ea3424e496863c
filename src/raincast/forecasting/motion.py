"""Motion on grids of any size: what pysteps needs to find it is more than a kilobyte a pixel."""

import numpy as np
import numpy.typing as npt

from raincast.archive.codes import bands
from raincast.baselines.motion import advect, find_motion, quiet
from raincast.baselines.past import evenly_spaced, look_back, persist
from raincast.forecaster import EXTRAPOLATION, PERSISTENCE, Gives, Prediction, Query, Rain

MOTION_PIXELS = 800
"""Pixels along the longer side of the grid on which the motion for an extrapolation is sought, at most."""
MOTION_BYTES = 1300
"""a pixel of that grid: distances to the 20 nearest features, their places, weights and two components"""
ADVECTION_BYTES = 300
"""a pixel of a grid that is advected as a whole: places, motion and their steps in float64, and the maps twice"""


MOTION_FRAMES = 3


class Fallback:
    """The forecast where too many frames are missing: the rain moves on, or stays where no motion is found."""

    name = "fallback"
    gives = Gives()

    def predict(self, query: Query) -> Prediction:
        """Rates alone; ValueError for lead times that are no multiples of the step."""
        made = [_moved_on(frames, query.num_steps) for frames in query.rain[:, :, 0]]
        rates = np.stack([rates for rates, _ in made])[:, :, None]
        return Prediction(query.at_lead_times(rates), done=tuple(done for _, done in made))

    def frames_used(self, frames: Rain, done: str) -> npt.NDArray[np.intp]:
        """The numbers of the frames, of (T, H, W), that a forecast `done` so is made of.

        They show the motion, and the last of them is the one that moves; of persistence it is the one that stays.
        """
        numbers, _ = evenly_spaced(frames, MOTION_FRAMES)
        return numbers if done == EXTRAPOLATION else numbers[-1:]


def _moved_on(frames: Rain, num_steps: int) -> tuple[Rain, str]:
    """(T, H, W) → (num_steps, H, W) in mm/h, and how it was made."""
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
    """(H, W) → (num_steps, H, W): pixels come from where their places between the blocks' centres come from."""
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
            for axis, component in enumerate(back[::-1]):  # x comes first there
                places[axis] += size * map_coordinates(component, between, order=1, mode="nearest")
            map_coordinates(rain, places, output=moved[step, rows], order=1, mode="constant", cval=0.0)
    return moved


def extrapolation_bytes(shape: tuple[int, ...]) -> float:
    """What the fallback takes at most on a grid of `shape` (H, W)."""
    size = _block_size(shape, MOTION_PIXELS)
    return shape[0] * shape[1] * (MOTION_BYTES / size**2 + (ADVECTION_BYTES if size == 1 else 0))


def coarse_motion(frames: Rain, longest: int, *, spacing: int = 1) -> tuple[npt.NDArray[np.float64] | None, int]:
    """The motion in `frames` (T, H, W), `spacing` steps apart, on blocks, at most `longest` along a side.

    (2, rows, columns), x first, in blocks a step, or None where there is nothing to track; and the size of a
    block in pixels.
    """
    size = _block_size(frames.shape[1:], longest)
    if size > 1:
        frames = np.stack([block_means(frame, size) for frame in frames])
    return find_motion(frames, "lucas_kanade", spacing=spacing), size


def _block_size(shape: tuple[int, ...], longest: int) -> int:
    return max(1, -(-max(shape) // longest))


def block_means(frame: Rain, size: int) -> Rain:
    """(H, W) → means over blocks of `size`² pixels, of what was observed; NaN where nothing was."""
    H, W = frame.shape
    rows, columns = np.arange(0, H, size), np.arange(0, W, size)

    def sums(values: Rain) -> Rain:
        added: Rain = np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)
        return added

    observed = np.isfinite(frame)
    count = sums(observed.astype(np.float32))
    total = sums(np.where(observed, frame, 0).astype(np.float32))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
