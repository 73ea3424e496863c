"""STEPS and LINDA: ensembles whose spread represents the forecast error (pysteps)."""

import importlib.util
import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from raincast.baselines.evolution import AR_ORDER, DRY_THRESHOLD, Evolution, from_decibels, to_decibels
from raincast.forecaster import Gives, Prediction, Query, share_of_members


@dataclass(kw_only=True, eq=False, repr=False)
class Ensemble(Evolution):
    """`num_members` forecasts of the same rain; their mean is the deterministic forecast.

    The same window always gets the same members, because the noise depends only on `seed` and the frames. The
    motion is perturbed in km/h, with `km_per_pixel` and `step_minutes` from the query unless given. If the
    forecast is extrapolation or persistence (see `Evolution`), all members are equal.
    """

    gives: ClassVar[Gives] = Gives(members=True, probabilities=True)
    num_members: int = 20
    seed: int = 0
    km_per_pixel: float | None = None
    step_minutes: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for fewer than 2 members, and for sizes that are not above 0."""
        super().__post_init__()
        if self.num_members < 2:
            raise ValueError(f"num_members={self.num_members}: an ensemble needs at least 2.")
        km, minutes = self.km_per_pixel, self.step_minutes
        if not all(value > 0 for value in (km, minutes) if value is not None):
            raise ValueError(f"km_per_pixel={km}, step_minutes={minutes}: both must be above 0.")

    def predict(self, query: Query) -> Prediction:
        """Return the mean and, if requested, the members and the share of them that reach each threshold.

        Raises ValueError if the pixel size is neither given nor in the query, and as `Evolution`.
        """
        if not (self.km_per_pixel or query.pixel_km):
            raise ValueError(f"{self.name} needs the size of a pixel: give the query a grid or pixel_km.")
        members, done = self._members(query)
        mean = members.mean(axis=2, keepdims=True)
        if not query.thresholds:
            return Prediction(mean, members if query.members else None, done=done)
        reached = share_of_members(members, query.thresholds)
        return Prediction(mean, members if query.members else None, reached, query.thresholds, done=done)

    def _evolve(self, frames: np.ndarray, motion: np.ndarray, num_steps: int, query: Query) -> np.ndarray:
        # pysteps seeds numpy's global generator: restore its state afterwards
        state = np.random.get_state()  # noqa: NPY002
        try:
            members = self._draw(frames, motion, num_steps, query, zlib.crc32(frames.tobytes(), self.seed))
        finally:
            np.random.set_state(state)  # noqa: NPY002
        return members.swapaxes(0, 1)

    def _draw(self, frames: np.ndarray, motion: np.ndarray, num_steps: int, query: Query, seed: int) -> np.ndarray:
        """Forecast (num_frames, H, W) mm/h to members (M, num_steps, H, W) mm/h."""
        raise NotImplementedError

    def _km(self, query: Query) -> float:
        km = self.km_per_pixel or query.pixel_km
        assert km is not None  # `predict` checks it
        return km


@dataclass(kw_only=True, eq=False, repr=False)
class Steps(Ensemble):
    """STEPS (Bowler et al. 2006): S-PROG in which noise with the same spectrum replaces the lost scales.

    A window with 20 members and 12 steps takes 5 s on 128 × 128, 20 s on 256 × 256 (one core). It needs 3 frames;
    otherwise see `Ensemble`. `num_scales` is the number of cascade levels.
    """

    name = "steps"
    num_scales: int = 6

    def _draw(self, frames: np.ndarray, motion: np.ndarray, num_steps: int, query: Query, seed: int) -> np.ndarray:
        from pysteps.nowcasts.steps import forecast

        decibels = forecast(
            to_decibels(frames),
            motion,
            num_steps,
            n_ens_members=self.num_members,
            n_cascade_levels=self.num_scales,
            precip_thr=DRY_THRESHOLD,
            kmperpixel=self._km(query),
            timestep=self.step_minutes or query.step_minutes,
            ar_order=AR_ORDER,
            seed=seed,
        )
        return from_decibels(decibels)


@dataclass(kw_only=True, eq=False, repr=False)
class Linda(Ensemble):
    """LINDA (Pulkkinen et al. 2021), for intense local rain: each cell grows, decays and blurs separately.

    A window with 20 members and 12 steps takes 1 minute on 64 × 64 and more than 3 on 128 × 128 (one core), so use
    it for single events. It needs 3 frames, and scikit-image to detect the cells; otherwise see `Ensemble`.
    `num_cells` is the maximum number of cells.
    """

    name = "linda"
    num_cells: int = 25

    def __post_init__(self) -> None:
        """Raise ValueError without scikit-image."""
        super().__post_init__()
        if importlib.util.find_spec("skimage") is None:
            raise ValueError('linda needs scikit-image to find rain cells: pip install "raincast[linda]".')

    def _draw(self, frames: np.ndarray, motion: np.ndarray, num_steps: int, query: Query, seed: int) -> np.ndarray:
        from pysteps.nowcasts.linda import forecast

        rain: np.ndarray = forecast(
            frames,
            motion,
            num_steps,
            max_num_features=self.num_cells,
            n_ens_members=self.num_members,
            kmperpixel=self._km(query),
            timestep=self.step_minutes or query.step_minutes,
            seed=seed,
        )
        return rain
