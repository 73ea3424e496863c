"""What the files offer, before any frame is read: times, grid and step; and which files are bad."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from raincast.ingest.offers import Offers, Times
from raincast.ingest.readers import Reader
from raincast.ingest.workers import Pool, Tick
from raincast.schema import Grid

FILES_PER_TASK = 32
MANY_FILES = 1000  # a process takes 2 s to start, a head some milliseconds to read


class BadFileError(ValueError):
    """A file that cannot be used, where the user wants to stop at the first."""


@dataclass(frozen=True, eq=False)
class Found:
    """All frames of all good files; the grid is that of the earliest frame, and all files are on it."""

    offers: Offers
    grid: Grid
    step_minutes: float | None
    bad_files: dict[str, str]


@dataclass(eq=False)
class _Heads:
    """What a few files say of themselves, by their number; each grid once."""

    times: dict[int, Times] = field(default_factory=dict)
    steps: dict[int, float | None] = field(default_factory=dict)
    grids: list[Grid] = field(default_factory=list)
    grid_of: dict[int, int] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)

    def add(self, number: int, times: Times, step_minutes: float | None, grid: Grid) -> None:
        if not times.size:
            return
        self.times[number], self.steps[number] = times, step_minutes
        self.grid_of[number] = self._number_of(grid)

    def update(self, other: "_Heads") -> None:
        for number, times in other.times.items():
            self.add(number, times, other.steps[number], other.grids[other.grid_of[number]])
        self.bad |= other.bad

    def _number_of(self, grid: Grid) -> int:
        for number, known in enumerate(self.grids):
            if known is grid or _equal(known, grid):
                return number
        self.grids.append(grid)
        return len(self.grids) - 1


def _equal(one: Grid, other: Grid) -> bool:
    same = one.crs_wkt == other.crs_wkt and one.shape == other.shape
    return same and np.array_equal(one.y, other.y) and np.array_equal(one.x, other.x)


def reason(path: Path, error: Exception) -> str:
    """Why a file is bad, in words that name it."""
    text = str(error)
    return (
        text if isinstance(error, ValueError) and str(path) in text else f"{path}: {type(error).__name__}: {text}"
    )


def scan(
    reader: Reader,
    paths: Sequence[Path],
    pool: Pool,
    *,
    raise_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Look at all files; ValueError for two grids or steps, which no single archive can hold, and for no frame."""
    tasks = [
        (reader, first, list(paths[first : first + FILES_PER_TASK]), raise_bad)
        for first in range(0, len(paths), FILES_PER_TASK)
    ]
    parts: dict[int, _Heads] = {}
    tell = None if progress is None else lambda done: progress(done, len(paths))
    for number, heads in pool.run(_scan_some, tasks, large=len(paths) >= MANY_FILES, progress=tell):
        if isinstance(heads, Exception):
            raise heads
        parts[number] = heads
    found = _Heads()
    for number in range(len(tasks)):  # in the order of the files, whichever process was first
        found.update(parts.pop(number))
    bad_files = {str(paths[number]): why for number, why in found.bad.items()}
    if not found.times:
        reasons = "; ".join(list(bad_files.values())[:3])
        raise ValueError(f"Not one of {len(paths)} files could be read: {reasons or 'they hold no frames'}")
    offers = Offers.of_files(found.times)
    grid = found.grids[found.grid_of[int(offers.files[0])]]
    _check_one_grid(found, paths, grid)
    return Found(offers, grid, _check_one_step(found, paths), bad_files)


def _scan_some(task: tuple[Reader, int, list[Path], bool], tick: Tick) -> _Heads:
    reader, first, paths, raise_bad = task
    heads = _Heads()
    for number, path in enumerate(paths, first):
        try:
            head = reader.scan(path)
        except Exception as error:  # whatever a library throws at one file, the others go on
            if raise_bad:
                raise BadFileError(reason(path, error)) from error
            heads.bad[number] = reason(path, error)
        else:
            heads.add(number, head.times.astype("datetime64[ns]"), head.step_minutes, head.grid)
        tick(1)
    return heads


def _check_one_grid(found: _Heads, paths: Sequence[Path], grid: Grid) -> None:
    for number, other in enumerate(found.grids):
        if other is not grid and not grid.same_as(other):
            first, odd = (
                next(
                    path
                    for i, path in enumerate(paths)
                    if i in found.grid_of and found.grids[found.grid_of[i]] is g
                )
                for g in (grid, found.grids[number])
            )
            raise ValueError(
                f"The files are of two grids: {first} is {place(grid)}, {odd} is {place(other)}. "
                "Ingest each into its own archive."
            )


def _check_one_step(found: _Heads, paths: Sequence[Path]) -> float | None:
    first, step_minutes = next(iter(found.steps.items()))
    for number, other in found.steps.items():
        if other != step_minutes:
            raise ValueError(
                f"The files are of two steps: {step_minutes} min in {paths[first]}, {other} min in "
                f"{paths[number]}. Ingest each into its own archive."
            )
    return step_minutes


def place(grid: Grid) -> str:
    """A grid in a few words."""
    return f"{grid.shape[0]} × {grid.shape[1]} pixels from y={grid.y[0]:g}, x={grid.x[0]:g}"
