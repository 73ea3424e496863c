"""Wetness of an archive by frame and crop, computed once and cached for the next run.

Only frames of training windows are read, so training never looks at the test split.
"""

import hashlib
import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raincast.archive import Archive
from raincast.archive.rates import CHUNKS, CODE_MM_H
from raincast.system.files import atomic
from raincast.system.lock import waited_for
from raincast.system.paths import cache_folder
from raincast.system.remote import RemotePath

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Lattice:
    """Crops at offsets `y` and `x`, spaced by half their size, with the last one at the far edge."""

    y: npt.NDArray[np.int64]
    x: npt.NDArray[np.int64]
    crop: tuple[int, int]

    @classmethod
    def of(cls, shape: tuple[int, int], crop: tuple[int, int]) -> "Lattice":
        """Return the lattice on a grid of `shape`."""
        y, x = (
            np.append(np.arange(0, size - side, max(1, side // 2)), size - side).astype(np.int64)
            for size, side in zip(shape, crop, strict=True)
        )
        return cls(y, x, crop)

    def means(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the mean of (T, H, W) over each crop: (T, crops), row by row."""
        rows, columns = (
            ((np.arange(size) >= starts[:, None]) & (np.arange(size) < starts[:, None] + side)).astype(np.float32)
            for size, starts, side in zip(values.shape[1:], (self.y, self.x), self.crop, strict=True)
        )
        # sums over columns, then rows, as matrix products: crops overlap, but each pixel is read once
        sums = rows @ (values @ columns.T)
        means = (sums / np.float32(self.crop[0] * self.crop[1])).reshape(len(values), -1)
        return means.astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class RainTable:
    """Rain of each frame of an archive in each crop of a lattice, (T, crops) float32.

    `amount` is the mean of 1 − exp(−R/s) over the crop, with 0 for unobserved pixels; `observed` is the observed
    share of the crop.
    """

    amount: npt.NDArray[np.float32]
    observed: npt.NDArray[np.float32]


def rain_table(
    archive: Archive,
    lattice: Lattice,
    rain_scale: float,
    *,
    needed: npt.NDArray[np.bool_] | None = None,
    progress: Progress | None = None,
) -> RainTable:
    """Return the table of the `needed` frames (T,), or of all, from the cache or by reading them.

    Other frames are not read, and are 0 unless they are in the cache. The cache is kept per file of the archive,
    so only new files of a growing archive are read. `progress` is called with the frames done and in total.
    """
    if needed is None:
        needed = np.ones(archive.num_times, bool)
    try:
        path = cache_folder() / "rain" / f"{_name(archive, lattice, rain_scale)}.npz"
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        log.debug("The rain table of %s is not cached: %s", archive.path, error)
        return _stack(_complete(archive, lattice, rain_scale, {}, needed, progress))
    # one process reads the archive while the others wait
    with waited_for(path.with_suffix(".lock")):
        known = _load(path)
        parts = _complete(archive, lattice, rain_scale, known, needed, progress)
        if parts.keys() != known.keys() or any(parts[key] is not known[key] for key in parts):
            _save(path, parts)
    return _stack(parts)


def _name(archive: Archive, lattice: Lattice, rain_scale: float) -> str:
    """Return a hash of everything that determines the table, except the frames."""
    settings = (str(archive.path.resolve()), archive.variable, archive.grid.shape, lattice.crop, float(rain_scale))
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:24]


def part_key(path: Path) -> str:
    """Return a key that changes whenever the file does."""
    if isinstance(path, RemotePath):
        return f"{path.sight():x}"
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    digest = hashlib.sha256(path.name.encode())
    for file in files:
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:24]


def _complete(
    archive: Archive,
    lattice: Lattice,
    rain_scale: float,
    known: dict[str, npt.NDArray[np.float32]],
    needed: npt.NDArray[np.bool_],
    progress: Progress | None,
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the tables (2, T, crops) of all parts in order of time, NaN for frames neither known nor needed."""
    parts = {}
    todo = {}
    for part in archive.parts:
        key = part_key(part.path)
        parts[key] = known.get(
            key, np.full((2, part.num_times, lattice.y.size * lattice.x.size), np.nan, np.float32)
        )
        unread = needed[part.first : part.first + part.num_times] & np.isnan(parts[key][0, :, 0])
        if unread.any():
            parts[key] = parts[key].copy()
            todo[key] = part.first, np.flatnonzero(unread)
    total, done = sum(frames.size for _, frames in todo.values()), 0
    for key, (first, frames) in todo.items():
        for run in _runs(frames):
            stored = archive.read_stored(first + int(run[0]), run.size)
            parts[key][:, run] = _weigh(stored, lattice, rain_scale)
            done += run.size
            if progress:
                progress(done, total)
    return parts


def _runs(frames: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Split frames into consecutive runs that end with chunks, so that each chunk is unpacked once."""
    cuts = np.flatnonzero((np.diff(frames) > 1) | (frames[1:] % CHUNKS[0] == 0)) + 1
    return np.split(frames, cuts)


def _weigh(
    frames: npt.NDArray[np.int16] | npt.NDArray[np.float32], lattice: Lattice, rain_scale: float
) -> npt.NDArray[np.float32]:
    """Return amount and observed share of frames (T, H, W): (2, T, crops)."""
    if frames.dtype == np.int16:
        observed = frames >= 0
        # a lookup table is many times faster than the exponential
        amount = _amounts(rain_scale)[frames.view(np.uint16)]
    else:
        observed = np.isfinite(frames)
        rates = np.where(observed, frames, np.float32(0)).astype(np.float32)
        amount = -np.expm1(-rates / np.float32(rain_scale))
    return np.stack([lattice.means(amount), lattice.means(observed.astype(np.float32))])


def _amounts(rain_scale: float) -> npt.NDArray[np.float32]:
    """Return 1 − exp(−R/s) of every code, indexed by its bits as uint16; 0 for codes that are not rates."""
    codes = np.arange(2**16).astype(np.uint16).view(np.int16)
    rates = np.maximum(codes, 0) * CODE_MM_H
    return (-np.expm1(-rates / rain_scale)).astype(np.float32)


def _stack(parts: dict[str, npt.NDArray[np.float32]]) -> RainTable:
    both = np.nan_to_num(np.concatenate([*parts.values()], axis=1), nan=0.0)
    return RainTable(both[0], both[1])


def _load(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    try:
        with np.load(path) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError):
        return {}  # absent or damaged: computed again


def _save(path: Path, parts: dict[str, npt.NDArray[np.float32]]) -> None:
    try:
        with atomic(path) as partial, partial.open("wb") as file:
            np.savez(file, **parts)  # type: ignore[arg-type]  # the stub takes the keywords for options
    except OSError as error:
        log.warning("The rain table of the archive could not be cached in %s: %s", path, error)
