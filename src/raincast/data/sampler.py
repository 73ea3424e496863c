"""Sampling of windows and crops for each epoch and rank.

All randomness of a sample (window, crop, flip) is drawn here, in the main process, from (seed, epoch), and sent to
the data-loading workers as a `Place`. Samples therefore do not depend on the number of workers and ranks.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from raincast.archive import Archive
from raincast.data.rain import Lattice, rain_table
from raincast.data.windows import frame_slots

NUM_ORIENTATIONS = 8
"""Four quarter turns, each with or without mirroring."""


class Place(NamedTuple):
    """A sample: slot of its first frame, top-left pixel, size in pixels, and augmentation.

    `orientation` 0 is unchanged; rain is multiplied by `gain`; `source` is the number of the archive.
    """

    start: int
    y: int
    x: int
    height: int
    width: int
    orientation: int = 0
    gain: float = 1.0
    source: int = 0


class EvalSampler(Sampler[Place]):
    """Yields every place once, in order, distributed over the ranks. Never padded, so nothing counts twice."""

    def __init__(self, places: Sequence[Place], *, rank: int = 0, world_size: int = 1) -> None:
        self.places = places[rank::world_size]

    def __iter__(self) -> Iterator[Place]:
        """Iterate over this rank's places."""
        return iter(self.places)

    def __len__(self) -> int:
        """Return the number of this rank's places."""
        return len(self.places)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Places that training may draw, with their weights: (N,) arrays.

    `source` is the number of the archive, `grids` are the archives' shapes, `spacing` is the distance of places.
    """

    start: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    x: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]
    source: npt.NDArray[np.int64]
    crop: tuple[int, int]
    spacing: tuple[int, int]
    grids: tuple[tuple[int, int], ...]

    @classmethod
    def join(cls, each: Sequence["Candidates"], factors: Sequence[float]) -> "Candidates":
        """Join the candidates of several archives, multiplying each archive's weights by its factor."""
        return cls(
            start=np.concatenate([own.start for own in each]),
            y=np.concatenate([own.y for own in each]),
            x=np.concatenate([own.x for own in each]),
            weight=np.concatenate([own.weight * factor for own, factor in zip(each, factors, strict=True)]),
            source=np.concatenate([np.full_like(own.start, number) for number, own in enumerate(each)]),
            crop=each[0].crop,
            spacing=each[0].spacing,
            grids=tuple(own.grids[0] for own in each),
        )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings for drawing and augmenting training crops.

    A crop with rain R in mm/h is drawn in proportion to
    min(1, min_weight + rain_weight · mean(1 − exp(−R / rain_scale))), the acceptance probability of DGMR
    (Ravuri et al. 2021). Crops with an observed share below `min_coverage` are left out. `augment` flips and
    rotates crops; `jitter` is the standard deviation of the logarithm of a factor on each crop's rain.
    """

    augment: bool = True
    jitter: float = 0.0
    min_coverage: float = 0.5
    rain_weight: float = 0.1
    min_weight: float = 1e-4
    rain_scale: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        for name, good, allowed in (
            ("jitter", self.jitter >= 0, "from 0 up"),
            ("min_coverage", 0 <= self.min_coverage <= 1, "from 0 to 1"),
            ("rain_weight", self.rain_weight >= 0, "from 0 up"),
            ("min_weight", self.min_weight > 0, "above 0"),
            ("rain_scale", self.rain_scale > 0, "above 0"),
        ):
            if not good:
                raise ValueError(f"data.sampling.{name}={getattr(self, name)}: give a number {allowed}.")


class TrainSampler(Sampler[Place]):
    """Draws `num_samples` places per epoch without replacement, shifted and oriented at random.

    A place is drawn in proportion to its weight (`Sampling`). All ranks draw the same epoch and take every
    world_size-th place, so N ranks see the same places as one. With `only`, every epoch repeats the first `only`
    places of the first epoch.
    """

    def __init__(
        self,
        candidates: Candidates,
        num_samples: int,
        sampling: Sampling,
        *,
        seed: int,
        only: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.candidates = candidates
        self.num_samples = min(num_samples, candidates.start.size) if only is None else num_samples
        self.only = only
        self.sampling = sampling
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.seen = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each epoch, also after a resume."""
        # Lightning also calls it once before it knows of the resume, when workers already begin to load
        self.epoch = max(epoch, self.seen[0])

    def go_on(self, epoch: int, num_samples: int) -> None:
        """Resume in this epoch after its first `num_samples` places, counted over all ranks."""
        self.seen = (epoch, num_samples)
        self.set_epoch(0)

    def __len__(self) -> int:
        """Return the number of places per rank, the same for all."""
        return self.num_samples // self.world_size

    def __iter__(self) -> Iterator[Place]:
        """Iterate over this rank's places of the current epoch."""
        places = self._draw(self.epoch) if self.only is None else self._again(self.only)
        places = places[: len(self) * self.world_size]
        epoch, num_seen = self.seen
        return iter(places[(num_seen if epoch == self.epoch else 0) + self.rank :: self.world_size])

    def _again(self, only: int) -> list[Place]:
        few = self._draw(0)[:only]
        return list(itertools.islice(itertools.cycle(few), self.num_samples))

    def _draw(self, epoch: int) -> list[Place]:
        rng = np.random.default_rng((self.seed, epoch))
        c = self.candidates
        # the n smallest of Exp(1)/w are a weighted draw without replacement (Efraimidis and Spirakis 2006)
        keys = rng.exponential(size=c.weight.size) / c.weight
        chosen = np.argsort(keys, kind="stable")[: self.num_samples]
        # without this an epoch would begin with the wettest crops and end with the driest
        chosen = rng.permutation(chosen)
        source = c.source[chosen]
        largest = np.array(c.grids)[source] - np.array(c.crop)
        y = _jitter(rng, c.y[chosen], c.spacing[0], largest[:, 0])
        x = _jitter(rng, c.x[chosen], c.spacing[1], largest[:, 1])
        turn = rng.integers(0, NUM_ORIENTATIONS, chosen.size) if self.sampling.augment else np.zeros_like(chosen)
        # drawn last, so that the places are the same with and without it
        jitter = self.sampling.jitter
        gain = np.exp(jitter * rng.standard_normal(chosen.size)) if jitter else np.ones(chosen.size)
        columns = (c.start[chosen], y, x, turn, gain, source)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [Place(start, py, px, *c.crop, o, g, s) for start, py, px, o, g, s in rows]


def _jitter(
    rng: np.random.Generator, position: npt.NDArray[np.int64], spacing: int, largest: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    moved = position + rng.integers(-(spacing // 2), spacing // 2 + 1, position.size)
    clipped: npt.NDArray[np.int64] = np.clip(moved, 0, largest)
    return clipped


def tile_positions(size: int, crop: int) -> list[int]:
    """Return offsets of adjacent crops without overlap; the remainder at the far edge is not used."""
    return list(range(0, size - crop + 1, crop))


def find_candidates(
    archive: Archive,
    starts: npt.NDArray[np.int64],
    num_frames: int,
    crop: tuple[int, int],
    sampling: Sampling,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Candidates:
    """Weight each crop of a half-crop lattice, in each training window, by its rain.

    `starts` are slots. The observed share of a crop counts all frames of the window, missing ones included.
    Raises ValueError if no crop is observed enough.
    """
    lattice = Lattice.of(archive.grid.shape, crop)
    slots = frame_slots(archive.times, archive.step)
    table = rain_table(
        archive, lattice, sampling.rain_scale, needed=_in_windows(slots, starts, num_frames), progress=progress
    )
    rain, observed = (_window_means(a, slots, starts, num_frames) for a in (table.amount, table.observed))
    # tolerance for rounding errors of the shares
    kept = observed >= sampling.min_coverage - 1e-6
    if not kept.any():
        raise ValueError(
            f"No crop of {crop[0]}×{crop[1]} pixels is observed to {sampling.min_coverage:.0%} in any training "
            f"window; the best is {observed.max():.1%}. Lower data.sampling.min_coverage or data.crop."
        )
    window, place = np.nonzero(kept)
    return Candidates(
        start=starts[window],
        y=lattice.y[place // lattice.x.size],
        x=lattice.x[place % lattice.x.size],
        weight=np.minimum(1.0, sampling.min_weight + sampling.rain_weight * rain[kept]),
        source=np.zeros(window.size, np.int64),
        crop=crop,
        spacing=(max(1, crop[0] // 2), max(1, crop[1] // 2)),
        grids=(archive.grid.shape,),
    )


def _in_windows(
    slots: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], num_frames: int
) -> npt.NDArray[np.bool_]:
    """Return the mask of frames in `slots` that belong to a window."""
    ordered = np.sort(starts)
    begin = np.searchsorted(ordered, slots - num_frames, side="right")
    end = np.searchsorted(ordered, slots, side="right")
    found: npt.NDArray[np.bool_] = end > begin
    return found


def _window_means(
    per_frame: npt.NDArray[np.float32],
    slots: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    num_frames: int,
) -> npt.NDArray[np.float64]:
    """Return means over the slots of each window, (N, crops); a missing frame counts as 0."""
    sums = np.concatenate([np.zeros((1, per_frame.shape[1])), per_frame.cumsum(0, dtype=np.float64)])
    begin, end = np.searchsorted(slots, starts), np.searchsorted(slots, starts + num_frames)
    means: npt.NDArray[np.float64] = (sums[end] - sums[begin]) / num_frames
    return means
