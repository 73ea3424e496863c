"""S-PROG and ANVIL: rain is advected, and each scale decays at its own rate (pysteps)."""

from dataclasses import dataclass

import numpy as np

from raincast.baselines.evolution import AR_ORDER, DRY_RATE, Evolution, from_decibels, to_decibels
from raincast.forecaster import Query

DRY_THRESHOLD = 10.0 * np.log10(DRY_RATE)


@dataclass(kw_only=True, eq=False, repr=False)
class SProg(Evolution):
    """S-PROG (Seed 2003): small scales decay as fast as they decorrelate, so the forecast becomes smooth.

    It is the fair reference for squared error. A window of 12 steps takes 0.3 s on 128 × 128, 1.4 s on 256 × 256
    (one core). It needs 3 frames; otherwise see `Evolution`. `num_scales` is the number of cascade levels.
    """

    name = "sprog"
    num_scales: int = 6

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


@dataclass(kw_only=True, eq=False, repr=False)
class Anvil(Evolution):
    """ANVIL (Pulkkinen et al. 2020) on rain rates: growth and decay continue, separately by scale and place.

    A window of 12 steps takes 0.6 s on 128 × 128, 2.4 s on 256 × 256 (one core). It needs `ar_order` + 2 frames;
    otherwise see `Evolution`. `num_scales` is the number of cascade levels.
    """

    name = "anvil"
    ar_order: int = AR_ORDER
    num_scales: int = 6

    def __post_init__(self) -> None:
        """Raise ValueError for an `ar_order` other than 1 or 2."""
        super().__post_init__()
        if self.ar_order not in (1, 2):
            raise ValueError(f"ar_order={self.ar_order}: choose 1 or 2.")
        self.num_frames = self.ar_order + 2

    def _evolve(self, frames: np.ndarray, motion: np.ndarray, num_steps: int, query: Query) -> np.ndarray:
        from pysteps.nowcasts.anvil import forecast

        rain: np.ndarray = forecast(
            frames, motion, num_steps, n_cascade_levels=self.num_scales, ar_order=self.ar_order
        )
        return rain
