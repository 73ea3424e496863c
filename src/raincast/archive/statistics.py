"""Statistics of an archive, computed in one pass over its frames, block by block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from raincast.archive.rates import CHUNKS
from raincast.archive.series import Archive
from raincast.schema import CAPPED_PIXELS

WET_MM_H = 0.1
"""A pixel is wet above this rate in mm/h."""
RATE_EDGES = (0.0, WET_MM_H, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0)
"""Upper ends (inclusive) of the rate classes in mm/h: dry, drizzle, …; the last class is open."""
BLOCK_PIXELS = 2**23  # pixels read at once: 32 MB in float32, and a multiple of it during decoding

Counts = npt.NDArray[np.integer]
Field = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gap:
    """A gap of `num_missing` frames after the time `after`."""

    after: np.datetime64
    num_missing: int


@dataclass(frozen=True, eq=False)
class Statistics:
    """Counts over an archive's observed pixels; missing pixels are neither dry nor wet.

    `observed_pixels` and `wet_pixels` are per frame, (T,). `observed_frames`, `wet_frames` and `rain_sum` (mm/h,
    summed over frames) are per pixel, (H, W). `class_counts` has one class more than `RATE_EDGES`. `largest` is
    the highest rate in mm/h, at `largest_time`; NaN and NaT if nothing was observed. `num_capped` is None if the
    files do not state it.
    """

    archive: Archive
    observed_pixels: Counts
    wet_pixels: Counts
    observed_frames: Counts
    wet_frames: Counts
    rain_sum: Field
    class_counts: Counts
    largest: float
    largest_time: np.datetime64
    num_capped: int | None

    @property
    def num_due(self) -> int:
        """Return the number of frames that a complete series from first to last would have."""
        times = self.archive.times
        return int((times[-1] - times[0]) / self.archive.step) + 1

    @property
    def num_missing(self) -> int:
        """Return the number of missing frames."""
        return self.num_due - self.archive.num_times

    @cached_property
    def gaps(self) -> list[Gap]:
        """Return all gaps, longest first, then earliest."""
        times = self.archive.times
        num_missing = np.diff(times) // self.archive.step - 1
        places = np.flatnonzero(num_missing > 0)
        order = places[np.argsort(-num_missing[places], kind="stable")]
        return [Gap(times[place], int(num_missing[place])) for place in order]

    @property
    def mean_rain(self) -> Field:
        """Return each pixel's mean rate over its observed frames in mm/h, (H, W); NaN if never observed."""
        return _share(self.rain_sum, self.observed_frames)

    @property
    def wet_share(self) -> Field:
        """Return each pixel's share of wet frames among its observed frames, (H, W); NaN if never observed."""
        return _share(self.wet_frames, self.observed_frames)

    @property
    def frame_coverage(self) -> Field:
        """Return the observed share of the grid in each frame, (T,)."""
        return self.observed_pixels / self.observed_frames.size

    @property
    def frame_wet_share(self) -> Field:
        """Return the wet share of the observed pixels in each frame, (T,); NaN for a frame without any."""
        return _share(self.wet_pixels, self.observed_pixels)

    def wet_share_by(self, unit: str) -> tuple[npt.NDArray[np.datetime64], Field, Counts]:
        """Return the months (`unit` M) or days (D) with frames, and their wet shares and numbers of frames."""
        periods, which, num_frames = np.unique(
            self.archive.times.astype(f"datetime64[{unit}]"), return_inverse=True, return_counts=True
        )
        wet, observed = (
            np.bincount(which, weights=counts, minlength=periods.size)
            for counts in (self.wet_pixels, self.observed_pixels)
        )
        return periods, _share(wet, observed), num_frames


def measure(archive: Archive, progress: Callable[[int, int], None] | None = None) -> Statistics:
    """Compute the statistics of `archive`, reading every frame once.

    `progress` is called with the numbers of frames done and in total. Memory holds a block of frames, sums over
    the grid (16 bytes per pixel) and the times. Raises ValueError with the name of a file that cannot be read.
    """
    sums = _Sums(archive)
    capped: list[int | None] = []
    for part in archive.parts:
        # open each file as its own archive, so that its chunks are freed with it: a year's would take gigabytes
        file = Archive.open(part.path)
        capped.append(int(file.attrs[CAPPED_PIXELS]) if CAPPED_PIXELS in file.attrs else None)
        for first, num, rows in _blocks(file):
            sums.add(part.first + first, rows, file.read(first, num, y=rows))
            if progress is not None and rows.stop == archive.grid.shape[0]:
                progress(part.first + first + num, archive.num_times)
    return sums.result(None if None in capped else sum(filter(None, capped)))


def _blocks(file: Archive) -> Iterator[tuple[int, int, slice]]:
    """Yield first frame, number of frames and rows of blocks made of whole chunks, each chunk once."""
    height, width = file.grid.shape
    step = CHUNKS[1] * max(1, BLOCK_PIXELS // (CHUNKS[0] * CHUNKS[1] * width))
    for first in range(0, file.num_times, CHUNKS[0]):
        for row in range(0, height, step):
            yield first, min(CHUNKS[0], file.num_times - first), slice(row, min(row + step, height))


class _Sums:
    """The running sums of `measure`."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.observed_pixels, self.wet_pixels = (np.zeros(archive.num_times, np.int64) for _ in range(2))
        self.observed_frames, self.wet_frames = (np.zeros(archive.grid.shape, np.int32) for _ in range(2))
        self.rain_sum = np.zeros(archive.grid.shape)
        self.class_counts = np.zeros(len(RATE_EDGES) + 1, np.int64)
        self.largest, self.largest_time = np.nan, np.datetime64("NaT", "ns")

    def add(self, first: int, rows: slice, rain: npt.NDArray[np.float32]) -> None:
        """Add rows of the frames from `first` on, (T, H, W) in mm/h."""
        frames = slice(first, first + len(rain))
        observed, wet = ~np.isnan(rain), rain > WET_MM_H
        self.observed_pixels[frames] += observed.sum(axis=(1, 2))
        self.wet_pixels[frames] += wet.sum(axis=(1, 2))
        self.observed_frames[rows] += observed.sum(axis=0)
        self.wet_frames[rows] += wet.sum(axis=0)
        self.rain_sum[rows] += np.where(observed, rain, 0).sum(axis=0, dtype=np.float64)
        rates = rain[rain > 0]
        counts = np.bincount(
            np.searchsorted(np.array(RATE_EDGES, np.float32), rates), minlength=len(RATE_EDGES) + 1
        )
        counts[0] += np.count_nonzero(observed) - rates.size
        self.class_counts += counts
        if observed.any():
            self._find_largest(first, rain)

    def _find_largest(self, first: int, rain: npt.NDArray[np.float32]) -> None:
        place = int(np.nanargmax(rain))
        if not rain.flat[place] <= self.largest:
            self.largest = float(rain.flat[place])
            self.largest_time = self.archive.times[first + place // rain[0].size]

    def result(self, num_capped: int | None) -> Statistics:
        """Return the sums as `Statistics`."""
        return Statistics(**vars(self), num_capped=num_capped)


def _share(part: npt.NDArray[np.number], whole: npt.NDArray[np.number]) -> Field:
    """Return `part` / `whole`, NaN where `whole` is 0."""
    share = np.full(part.shape, np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return share
