"""Rain that evolves as it moves (pysteps): S-PROG and ANVIL, and the base that STEPS and LINDA share with them."""

import logging
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from raincast.baselines.motion import (
    FAILURES,
    Past,
    advect,
    check_motion,
    evenly_spaced,
    find_motion,
    look_back,
    persist,
    quiet,
)
from raincast.forecaster import EXTRAPOLATION, PERSISTENCE, Gives, Prediction, Query

log = logging.getLogger(__name__)

DRY_RATE = 0.1
"""Rates in mm/h below this are dry for these methods."""

DRY_DECIBELS = -15.0
"""Value of no rain on the scale 10·log10(rate): 5 below `DRY_RATE`, as in pysteps' examples."""

AR_ORDER = 2
"""Order of the autoregressive models in time, the default of all these methods."""


@dataclass(kw_only=True, eq=False, repr=False)
class Evolution:
    """Rain that moves and evolves; each method only implements `_evolve`.

    A method needs `num_frames` consecutive frames. A missing pixel takes its last valid observation, or no rain if
    there is none. With fewer frames, if pysteps fails, and at pixels where pysteps gives NaN (rain from outside
    the grid), the forecast is extrapolation. Without motion (see `Extrapolation`) it is persistence. Each fallback
    is logged once.
    """

    name: ClassVar[str]
    gives: ClassVar[Gives] = Gives()
    num_frames: int = field(default=AR_ORDER + 1, init=False)
    num_members: int = field(default=1, init=False)
    method: str = "lucas_kanade"
    motion_frames: int = 3
    _told: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown method, or fewer than 2 frames."""
        check_motion(self.method, self.motion_frames)

    def predict(self, query: Query) -> Prediction:
        """Return rates, the mean of members if any. Raises ValueError for lead times not multiples of the step."""
        members, done = self._members(query)
        return Prediction(members.mean(axis=2, keepdims=True), done=done)

    def _members(self, query: Query) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return members (B, L, M, H, W) in mm/h, and how each sample's were made."""
        made = [self._members_of_one(frames, query) for frames in query.rain[:, :, 0]]
        return query.at_lead_times(np.stack([members for members, _ in made])), tuple(done for _, done in made)

    def _members_of_one(self, frames: np.ndarray, query: Query) -> tuple[np.ndarray, str]:
        """Return the members (num_steps, M, H, W) of frames (T, H, W), and how they were made."""
        num_steps = query.num_steps
        past = look_back(frames, self.num_frames)
        numbers, spacing = evenly_spaced(frames, self.motion_frames)
        motion = find_motion(frames[numbers], self.method, spacing=spacing)
        if motion is None:
            self._tell("no motion to follow", "persistence")
            return self._repeat(persist(frames, num_steps)), PERSISTENCE
        steps = past.age + num_steps
        plain = self._repeat(advect(past.filled[-1], motion, steps))
        evolved = self._try(past, motion, steps, query)
        if evolved is None:
            return plain[past.age :], EXTRAPOLATION
        filled = np.where(np.isfinite(evolved), np.maximum(evolved, 0.0), plain)
        return filled[past.age :], self.name

    def _try(self, past: Past, motion: np.ndarray, num_steps: int, query: Query) -> np.ndarray | None:
        """Return (num_steps, M, H, W) in mm/h, NaN where unknown, or None if the method cannot forecast."""
        if len(past.filled) < self.num_frames:
            self._tell(f"fewer than {self.num_frames} consecutive frames", "extrapolation")
            return None
        try:
            with quiet():
                frames = past.filled[-self.num_frames :].astype(np.float64)
                evolved = self._evolve(frames, motion, num_steps, query)
                # convert to float32 here, so that values too large for it count as not finite
                return evolved.astype(np.float32).reshape(num_steps, -1, *motion.shape[1:])
        except FAILURES as error:
            self._tell(f"pysteps failed ({type(error).__name__}: {error})", "extrapolation")
            return None

    def _evolve(self, frames: np.ndarray, motion: np.ndarray, num_steps: int, query: Query) -> np.ndarray:
        """Forecast (num_frames, H, W) to (num_steps, H, W) or (num_steps, M, H, W), mm/h; pysteps' errors pass."""
        raise NotImplementedError

    def _repeat(self, forecast: np.ndarray) -> np.ndarray:
        """Repeat a forecast (num_steps, H, W) for every member: (num_steps, M, H, W)."""
        return np.repeat(forecast[:, None], self.num_members, axis=1)

    def _tell(self, why: str, instead: str) -> None:
        if instead not in self._told:
            log.info("%s is %s in some windows: %s.", self.name, instead, why)
            self._told.add(instead)


def to_decibels(rain: np.ndarray) -> np.ndarray:
    """Convert mm/h to 10·log10(rate), `DRY_DECIBELS` below `DRY_RATE`; NaN stays NaN."""
    return np.where(rain < DRY_RATE, DRY_DECIBELS, 10.0 * np.log10(np.maximum(rain, DRY_RATE)))


def from_decibels(decibels: np.ndarray) -> np.ndarray:
    """Convert 10·log10(rate) to mm/h, 0 below `DRY_RATE`; NaN stays NaN."""
    rain: np.ndarray = 10.0 ** (decibels / 10.0)
    return np.where(rain < DRY_RATE * (1 - 1e-9), 0.0, rain)  # tolerance for rounding at DRY_RATE


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
class FastSProg(Evolution):
    """S-PROG as the default network computes it (`models.sprog`), in about half the time of pysteps'.

    Rates get the distribution of the newest frame, as those of `SProg`. Bands are octaves of wavelengths in km.
    The correlation with the fields of `SProg` is .99 after 5 and .96 after 60 minutes (FMI and MeteoSwiss,
    256 × 256); heavy rain is forecast somewhat better.
    """

    name = "sprog_fast"

    def predict(self, query: Query) -> Prediction:
        """As `Evolution`. Raises ValueError also if the pixel size is unknown."""
        if not query.pixel_km:
            raise ValueError(f"{self.name} needs the size of a pixel: give the query a grid or pixel_km.")
        return super().predict(query)

    def _evolve(self, frames: np.ndarray, motion: np.ndarray, num_steps: int, query: Query) -> np.ndarray:
        # pysteps, which imports this module for its importer, should not wait for PyTorch
        import torch

        from raincast.models.optical_flow import displacements, inside, move
        from raincast.models.sprog import sprog

        levels = torch.from_numpy(np.log(10.0) / 10.0 * to_decibels(frames)).float()
        flow = torch.from_numpy(motion[::-1].copy()).float()[None]  # y first
        far = displacements(flow, max(num_steps, len(frames) - 1))[0]
        older = move(levels[:-1, None], far[: len(frames) - 1].flip(0), border=True)[:, 0]
        field = sprog(
            torch.cat([older, levels[-1:]])[None],
            torch.ones_like(levels[:1]),
            torch.arange(1.0, num_steps + 1)[None],
            step_minutes=torch.tensor([query.step_minutes], dtype=torch.float32),
            pixel_km=torch.tensor([query.pixel_km], dtype=torch.float32),
            longest=num_steps,
        ).field[0]
        matched = torch.empty_like(field).flatten(1)
        newest = levels[-1].flatten().sort().values.expand_as(matched)
        matched.scatter_(1, field.flatten(1).argsort(dim=1), newest)
        moved = move(matched.view(-1, 1, *field.shape[1:]), far[:num_steps])
        moved = torch.where(inside(far[:num_steps]) > 0, moved, torch.nan)[:, 0]
        return from_decibels(10.0 / np.log(10.0) * moved.double().numpy())


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
