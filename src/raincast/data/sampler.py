"""Which places of which windows are seen in which epoch and by which rank.

Everything random about a sample (window, crop, flip) is drawn here, in the main process, from
(seed, epoch), and travels to the data-loading workers as a `Place`. A sample is then the same whatever the
number of workers and ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from raincast.archive import Archive

NUM_ORIENTATIONS = 8
"""Four quarter turns, each as it is or mirrored."""


class Place(NamedTuple):
    """A sample: first frame, top-left pixel, size in pixels, and orientation (0 = as it is)."""

    start: int
    y: int
    x: int
    height: int
    width: int
    orientation: int = 0


class EvalSampler(Sampler[Place]):
    """Every place once, in order, dealt to the ranks in turn; never padded, so nothing counts twice."""

    def __init__(self, places: Sequence[Place], *, rank: int = 0, world_size: int = 1) -> None:
        self.places = places[rank::world_size]

    def __iter__(self) -> Iterator[Place]:
        """This rank's places."""
        return iter(self.places)

    def __len__(self) -> int:
        """Number of this rank's places."""
        return len(self.places)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Places that training may draw, with the weight of each: (N,) arrays."""

    start: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    x: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]
    crop: tuple[int, int]
    spacing: tuple[int, int]


class TrainSampler(Sampler[Place]):
    """`num_samples` places an epoch, drawn without repeats by rain weight, moved and turned at random.

    Rain-weighted: a place is drawn in proportion to the acceptance probability
    q = min(1, q_min + m·mean(1 − exp(−R/s))) of DGMR (Ravuri et al. 2021). All ranks draw the same epoch
    and take every world_size-th place, so N ranks see what one would.
    """

    def __init__(
        self,
        candidates: Candidates,
        num_samples: int,
        *,
        grid_shape: tuple[int, int],
        augment: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.candidates = candidates
        self.num_samples = min(num_samples, candidates.start.size)
        self.grid_shape = grid_shape
        self.augment = augment
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch, after a resume too."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of places for each rank, the same for all."""
        return self.num_samples // self.world_size

    def __iter__(self) -> Iterator[Place]:
        """This rank's places of the current epoch."""
        places = self._draw()[: len(self) * self.world_size]
        return iter(places[self.rank :: self.world_size])

    def _draw(self) -> list[Place]:
        rng = np.random.default_rng((self.seed, self.epoch))
        c = self.candidates
        # the n smallest of Exp(1)/w are a weighted draw without repeats (Efraimidis and Spirakis 2006)
        keys = rng.exponential(size=c.weight.size) / c.weight
        chosen = np.argsort(keys, kind="stable")[: self.num_samples]
        # in that order an epoch would begin with the wettest crops and end with the driest
        chosen = rng.permutation(chosen)
        y = _jitter(rng, c.y[chosen], c.spacing[0], self.grid_shape[0] - c.crop[0])
        x = _jitter(rng, c.x[chosen], c.spacing[1], self.grid_shape[1] - c.crop[1])
        turn = rng.integers(0, NUM_ORIENTATIONS, chosen.size) if self.augment else np.zeros_like(chosen)
        rows = np.stack([c.start[chosen], y, x], axis=1)
        return [
            Place(int(s), int(py), int(px), *c.crop, int(o)) for (s, py, px), o in zip(rows, turn, strict=True)
        ]


def _jitter(
    rng: np.random.Generator, position: npt.NDArray[np.int64], spacing: int, largest: int
) -> npt.NDArray[np.int64]:
    moved = position + rng.integers(-(spacing // 2), spacing // 2 + 1, position.size)
    clipped: npt.NDArray[np.int64] = np.clip(moved, 0, largest)
    return clipped


def tile_positions(size: int, crop: int) -> list[int]:
    """Offsets of crops that lie side by side without overlap; what is left over at the far edge is not used."""
    return list(range(0, size - crop + 1, crop))


def _lattice(size: int, crop: int) -> npt.NDArray[np.int64]:
    """Offsets half a crop apart, the last at the far edge."""
    inner = np.arange(0, size - crop, max(1, crop // 2))
    return np.append(inner, size - crop).astype(np.int64)


def find_candidates(
    archive: Archive,
    starts: npt.NDArray[np.int64],
    num_frames: int,
    crop: tuple[int, int],
    *,
    min_coverage: float,
    rain_weight: float,
    min_weight: float,
    rain_scale: float,
    progress: Callable[[int, int], None] | None = None,
) -> Candidates:
    """Read the frames of the training windows once, and weigh each crop of a half-crop lattice by its rain.

    Crops of which less than `min_coverage` (0 to 1) was observed are left out. ValueError where none is left.
    """
    for name, value, good in (
        ("min_coverage", min_coverage, 0 <= min_coverage <= 1),
        ("rain_weight", rain_weight, rain_weight >= 0),
        ("min_weight", min_weight, min_weight > 0),
        ("rain_scale", rain_scale, rain_scale > 0),
    ):
        if not good:
            raise ValueError(f"data.{name}={value}: min_coverage is 0 to 1, rain_weight from 0 up, others over 0.")
    ys, xs = _lattice(archive.grid.shape[0], crop[0]), _lattice(archive.grid.shape[1], crop[1])
    frames = np.unique(starts[:, None] + np.arange(num_frames))
    rain = np.zeros((archive.num_times + 1, ys.size * xs.size))
    covered = np.zeros_like(rain)
    for done, frame in enumerate(frames):
        rates = archive.read(int(frame), 1)[0]
        observed = np.isfinite(rates)
        amount = np.where(observed, -np.expm1(-np.nan_to_num(rates) / rain_scale), 0.0)
        rain[frame + 1] = _box_means(amount, ys, xs, crop)
        covered[frame + 1] = _box_means(observed, ys, xs, crop)
        if progress:
            progress(done + 1, frames.size)
    window_rain, window_covered = (_window_means(a, starts, num_frames) for a in (rain, covered))
    kept = window_covered >= min_coverage
    if not kept.any():
        raise ValueError(
            f"No crop of {crop[0]}×{crop[1]} pixels is observed to {min_coverage:.0%} in any training window; "
            f"the best is {window_covered.max():.1%}. Lower data.min_coverage or data.crop."
        )
    window, place = np.nonzero(kept)
    weight = np.minimum(1.0, min_weight + rain_weight * window_rain[kept])
    return Candidates(
        start=starts[window],
        y=ys[place // xs.size],
        x=xs[place % xs.size],
        weight=weight,
        crop=crop,
        spacing=(max(1, crop[0] // 2), max(1, crop[1] // 2)),
    )


def _box_means(
    values: npt.NDArray[np.generic],
    ys: npt.NDArray[np.int64],
    xs: npt.NDArray[np.int64],
    crop: tuple[int, int],
) -> npt.NDArray[np.float64]:
    """Mean over the crop at each (y, x) of the lattice, by a summed-area table."""
    table = np.pad(values.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    top, bottom, left, right = ys, ys + crop[0], xs, xs + crop[1]
    sums = (
        table[np.ix_(bottom, right)]
        - table[np.ix_(top, right)]
        - table[np.ix_(bottom, left)]
        + table[np.ix_(top, left)]
    )
    means: npt.NDArray[np.float64] = (sums / (crop[0] * crop[1])).ravel()
    return means


def _window_means(
    per_frame: npt.NDArray[np.float64], starts: npt.NDArray[np.int64], num_frames: int
) -> npt.NDArray[np.float64]:
    """Means over the frames of each window; row i + 1 of `per_frame` is frame i."""
    sums = per_frame.cumsum(0)
    means: npt.NDArray[np.float64] = (sums[starts + num_frames] - sums[starts]) / num_frames
    return means
