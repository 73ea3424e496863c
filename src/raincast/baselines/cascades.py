"""S-PROG and ANVIL: rain is advected, and each scale decays at its own rate (pysteps)."""

import numpy as np

from raincast.baselines.evolution import DRY_RATE, Evolution, from_decibels, to_decibels
from raincast.forecaster import Query

DRY_THRESHOLD = 10.0 * np.log10(DRY_RATE)
AR_ORDER = 2
"""Order of the autoregressive models in time, the default of all these methods."""


class SProg(Evolution):
    """S-PROG (Seed 2003): small scales decay as fast as they decorrelate, so the forecast becomes smooth.

    It is the fair reference for squared error. A window of 12 steps takes 0.3 s on 128 × 128, 1.4 s on 256 × 256
    (one core). It needs 3 frames; otherwise see `Evolution`.
    """

    name = "sprog"

    def __init__(self, *, num_scales: int = 6, method: str = "lucas_kanade", motion_frames: int = 3) -> None:
        """`num_scales` is the number of cascade levels."""
        super().__init__(num_frames=AR_ORDER + 1, method=method, motion_frames=motion_frames)
        self.num_scales = num_scales

    def _evolve(self, frames: np.ndarray, motion: np.ndarray, num_steps: int, query: Query) -> np.ndarray:
        from pysteps.nowcasts.sprog import forecast

        decibels = forecast(
            to_decibels(frames),
            motion,
            num_steps,
            precip_thr=DRY_THRESHOLD,
            n_cascade_levels=self.num_scales,
            ar_order=AR_ORDER,
        )
        return from_decibels(decibels)


class Anvil(Evolution):
    """ANVIL (Pulkkinen et al. 2020) on rain rates: growth and decay continue, separately by scale and place.

    A window of 12 steps takes 0.6 s on 128 × 128, 2.4 s on 256 × 256 (one core). It needs `ar_order` + 2 frames;
    otherwise see `Evolution`.
    """

    name = "anvil"

    def __init__(
        self,
        *,
        ar_order: int = AR_ORDER,
        num_scales: int = 6,
        method: str = "lucas_kanade",
        motion_frames: int = 3,
    ) -> None:
        """`ar_order` is 1 or 2, `num_scales` the number of cascade levels. Raises ValueError for another order."""
        if ar_order not in (1, 2):
            raise ValueError(f"ar_order={ar_order}: choose 1 or 2.")
        super().__init__(num_frames=ar_order + 2, method=method, motion_frames=motion_frames)
        self.ar_order = ar_order
        self.num_scales = num_scales

    def _evolve(self, frames: np.ndarray, motion: np.ndarray, num_steps: int, query: Query) -> np.ndarray:
        from pysteps.nowcasts.anvil import forecast

        rain: np.ndarray = forecast(
            frames, motion, num_steps, n_cascade_levels=self.num_scales, ar_order=self.ar_order
        )
        return rain
