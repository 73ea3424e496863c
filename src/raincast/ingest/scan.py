"""Scan files before any frame is read: their times, grid and step, and which files are bad."""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raincast import schema
from raincast.archive.find import accompanies
from raincast.ingest.readers import Head, Reader
from raincast.schema import Grid, Meaning
from raincast.system.faults import MachineError
from raincast.system.pool import Pool, Tick

log = logging.getLogger(__name__)

Times = npt.NDArray[np.datetime64]


@dataclass(frozen=True, eq=False)
class Offers:
    """Frames on offer, sorted by time, quality, file and index; among equal times the first is preferred.

    `times` (N,) are valid times in ns, `files` (N,) file numbers in the order given, `indices` (N,) frame numbers
    within the file.
    """

    times: Times
    files: npt.NDArray[np.intp]
    indices: npt.NDArray[np.intp]

    @classmethod
    def of_files(cls, times: dict[int, Times], quality: dict[int, float] | None = None) -> "Offers":
        """Return all frames, given times and `quality` (default 0) by file number; needs at least one frame."""
        files = np.concatenate([np.full(of_file.size, file) for file, of_file in times.items()])
        indices = np.concatenate([np.arange(of_file.size) for of_file in times.values()])
        joined = np.concatenate(list(times.values())).astype("datetime64[ns]")
        of_file = quality or {}
        worse = np.concatenate([np.full(own.size, -of_file.get(file, 0.0)) for file, own in times.items()])
        order = np.lexsort((indices, files, worse, joined))
        return cls(joined[order], files[order].astype(np.intp), indices[order].astype(np.intp))

    @classmethod
    def joined(cls, one: "Offers", other: "Offers") -> "Offers":
        """Merge both in order of time; at equal times those of `one` come first."""
        times, files, indices = (
            np.concatenate([getattr(one, name), getattr(other, name)]) for name in ("times", "files", "indices")
        )
        order = np.argsort(times, kind="stable")
        return cls(times[order], files[order], indices[order])

    def __len__(self) -> int:
        """Number of frames, repeated times included."""
        return int(self.times.size)

    def take(self, which: npt.NDArray[np.bool_] | slice) -> "Offers":
        """Return a subset, in the same order."""
        return Offers(self.times[which], self.files[which], self.indices[which])

    def split_by_step(self, step_minutes: float, start: np.datetime64 | None) -> tuple["Offers", "Offers"]:
        """Split into frames on and off the step, counted from `start` (None: from the most frequent phase)."""
        step = schema.step_timedelta(step_minutes).astype(np.int64)
        phases = self.times.astype(np.int64) % step
        if start is not None:
            phase = start.astype("datetime64[ns]").astype(np.int64) % step
        else:
            values, counts = np.unique(phases, return_counts=True)
            phase = values[counts.argmax()]
        return self.take(phases == phase), self.take(phases != phase)

    def repeats(self) -> npt.NDArray[np.bool_]:
        """Return a mask of the frames with the same time as the one before."""
        repeats = np.zeros(len(self), bool)
        repeats[1:] = self.times[1:] == self.times[:-1]
        return repeats

    def by_day(self) -> list[tuple[np.datetime64, "Offers"]]:
        """Return the UTC days that have frames, each with its frames."""
        days, starts = np.unique(self.times.astype("datetime64[D]"), return_index=True)
        bounds = [*starts, len(self)]
        return [(day, self.take(slice(bounds[i], bounds[i + 1]))) for i, day in enumerate(days)]


FILES_PER_TASK = 32
MANY_FILES = 1000  # a process takes 2 s to start; a head is read in a few milliseconds


@dataclass(frozen=True, eq=False)
class Found:
    """All frames of all usable files. All are on `grid`, the grid of the earliest frame.

    `accompanying` are READMEs, checksums and the like.
    """

    offers: Offers
    grid: Grid
    step_minutes: float | None
    bad_files: dict[str, str]
    meanings: dict[int, Meaning]
    """Period of the rates by file number; absent if the reader's head does not state it."""
    quality: dict[int, float]
    """Quality by file number; 0 if none is stated."""
    accompanying: tuple[str, ...] = ()


@dataclass(eq=False)
class _Heads:
    """The heads of several files with frames, by file number; files on equal grids share one object."""

    good: dict[int, Head] = field(default_factory=dict)
    grids: list[Grid] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)
    accompanying: list[int] = field(default_factory=list)

    @property
    def meanings(self) -> dict[int, Meaning]:
        """Return what the rates are over time, by file number, where the head states it."""
        return {number: head.meaning for number, head in self.good.items() if head.meaning is not None}

    def add(self, number: int, head: Head) -> None:
        if head.times.size:
            times = head.times.astype("datetime64[ns]")
            self.good[number] = replace(head, times=times, grid=self._shared(head.grid))

    def leave_out(self, number: int, why: str) -> None:
        """Move a file from the good ones to the bad ones."""
        del self.good[number]
        self.bad[number] = why

    def update(self, other: "_Heads") -> None:
        for number, head in other.good.items():
            self.add(number, head)
        self.bad |= other.bad
        self.accompanying += other.accompanying

    def _shared(self, grid: Grid) -> Grid:
        for known in self.grids:
            if known is grid or _equal(known, grid):
                return known
        self.grids.append(grid)
        return grid


def _equal(one: Grid, other: Grid) -> bool:
    same = one.crs_wkt == other.crs_wkt and one.shape == other.shape
    return same and np.array_equal(one.y, other.y) and np.array_equal(one.x, other.x)


def reason(path: Path, error: Exception) -> str:
    """Return why a file is bad, as a message that names it."""
    text = str(error)
    return (
        text if isinstance(error, ValueError) and str(path) in text else f"{path}: {type(error).__name__}: {text}"
    )


def scan(
    reader: Reader,
    paths: Sequence[Path],
    pool: Pool,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Scan all files and check that they fit into one archive.

    A few files whose grid or step differs from the rest (`_few`) count as bad: their headers are damaged, or they
    belong to another product. Raises ValueError if there is no frame, or if the files have two grids or steps.
    """
    tasks = [
        (reader, first, list(paths[first : first + FILES_PER_TASK]))
        for first in range(0, len(paths), FILES_PER_TASK)
    ]
    parts: dict[int, _Heads] = {}
    tell = None if progress is None else lambda done: progress(done, len(paths))
    for number, heads in pool.run(_scan_some, tasks, large=len(paths) >= MANY_FILES, progress=tell):
        if isinstance(heads, Exception):
            raise heads
        parts[number] = heads
    found = _Heads()
    for number in range(len(tasks)):  # in the order of the files, not of completion
        found.update(parts.pop(number))
    if not found.good:
        reasons = "; ".join(list(found.bad.values())[:3])
        raise ValueError(f"None of {len(paths)} files could be read: {reasons or 'they hold no frames'}")
    _keep_one_grid(found, paths)
    _keep_one_meaning(found, paths)
    step_minutes = _keep_one_step(found, paths)
    quality = {number: head.quality for number, head in found.good.items()}
    offers = Offers.of_files({number: head.times for number, head in found.good.items()}, quality)
    grid = found.good[int(offers.files[0])].grid
    bad = {str(paths[number]): why for number, why in found.bad.items()}
    accompanying = tuple(str(paths[number]) for number in found.accompanying)
    return Found(offers, grid, step_minutes, bad, found.meanings, quality, accompanying)


def _scan_some(task: tuple[Reader, int, list[Path]], tick: Tick) -> _Heads:
    reader, first, paths = task
    heads = _Heads()
    for number, path in enumerate(paths, first):
        try:
            head = reader.scan(path)
        except MachineError:
            raise
        except Exception as error:  # a library may raise anything; the other files continue
            if accompanies(path) and not reader.recognises(path):
                heads.accompanying.append(number)
            else:
                heads.bad[number] = reason(path, error)
        else:
            heads.add(number, head)
        tick(1)
    return heads


def _keep_one_grid(found: _Heads, paths: Sequence[Path]) -> None:
    kinds: list[Grid] = []  # grids that differ by more than the direction of rows and columns
    first_like: dict[int, int] = {}  # by the identity of a grid
    for grid in found.grids:
        same = (number for number, other in enumerate(kinds) if grid.turn_to(other) is not None)
        first_like[id(grid)] = next(same, len(kinds))
        if first_like[id(grid)] == len(kinds):
            kinds.append(grid)
    main, odd = _most({file: first_like[id(head.grid)] for file, head in found.good.items()})
    names = [f"{paths[file]} is {place(found.good[file].grid)}" for file in (main[0], *odd)]
    if _few(odd, main):
        for file, name in zip(odd, names[1:], strict=True):
            found.leave_out(file, f"{name}, another grid than that of the others: {names[0]}")
    elif odd:
        raise ValueError(f"The files have two grids: {names[0]}, {names[1]}. Ingest each into its own archive.")


def _keep_one_step(found: _Heads, paths: Sequence[Path]) -> float | None:
    steps = {number: head.step_minutes for number, head in found.good.items()}
    main, odd = _most(steps)
    step_minutes = steps[main[0]]
    if _few(odd, main):
        for file in odd:
            found.leave_out(
                file, f"{paths[file]} has a step of {steps[file]} min, the others of {step_minutes} min"
            )
    elif odd:
        raise ValueError(
            f"The files have two steps: {step_minutes} min in {paths[main[0]]}, {steps[odd[0]]} min in "
            f"{paths[odd[0]]}. Ingest each into its own archive."
        )
    return step_minutes


def _keep_one_meaning(found: _Heads, paths: Sequence[Path]) -> None:
    """Raise ValueError if the files mix rates, rates from reflectivity, and averages over one or another period.

    Averages without a stated period are compatible with all others; their period follows from the step. Several
    products of one meaning are named in a warning.
    """
    meanings = found.meanings
    kinds = {
        file: (meaning.minutes if meaning.is_averaged else 0.0, meaning.from_reflectivity)
        for file, meaning in meanings.items()
    }
    stated = {file: (round(kind[0], 3), kind[1]) for file, kind in kinds.items() if kind[0] is not None}
    if not stated:
        return
    main, odd = _most(stated)
    if stated[main[0]][0] == 0.0:
        odd = sorted(kinds.keys() - set(main))
    names = [f"{paths[file]} holds {meanings[file]}" for file in (main[0], *odd)]
    if _few(odd, main):
        for file, name in zip(odd, names[1:], strict=True):
            found.leave_out(file, f"{name}; {names[0]}, as do most")
    elif odd:
        raise ValueError(f"{names[0]}, {names[1]}. They cannot be mixed: ingest each kind into its own archive.")
    first_of: dict[str, int] = {}
    for file, meaning in sorted(found.meanings.items()):
        first_of.setdefault(meaning.quantity, file)
    if len(first_of) > 1:
        listed = ", ".join(f"{name or 'not named'} in {paths[file]}" for name, file in first_of.items())
        log.warning("The files are of %d products, whose frames become one series: %s", len(first_of), listed)


def _most(kind_of: Mapping[int, Hashable]) -> tuple[list[int], list[int]]:
    """Return the files of the most frequent kind (ties: that of the first file) and the others, by number."""
    counts = Counter(kind_of[file] for file in sorted(kind_of))
    commonest = counts.most_common(1)[0][0]
    main = [file for file in sorted(kind_of) if kind_of[file] == commonest]
    return main, sorted(set(kind_of) - set(main))


def _few(odd: Sequence[int], main: Sequence[int]) -> bool:
    """True if the odd files are probably damaged: at most one, or a tenth of the others, and at least 3 others."""
    return 0 < len(odd) <= max(1, len(main) // 10) and len(main) >= 3


def place(grid: Grid) -> str:
    """Describe a grid in a few words."""
    return f"{grid.shape[0]} × {grid.shape[1]} pixels from y={grid.y[0]:g}, x={grid.x[0]:g}"
