"""Tasks of an evaluation: some windows of one forecaster, whose sums are kept on disk."""

import logging
import multiprocessing
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raincast.data.dataset import Sample
from raincast.data.sampler import Place
from raincast.evaluation.event_sums import EventSums
from raincast.evaluation.metrics import Scoring
from raincast.evaluation.queries import Scored
from raincast.forecaster import Forecaster
from raincast.schema import Grid
from raincast.system.files import atomic
from raincast.system.provenance import peak_memory_gib

if TYPE_CHECKING:
    from raincast.data.radar import RadarData

log = logging.getLogger(__name__)

KEEP_SECONDS = 20.0
"""Scoring time per file of sums, and the most that an interruption can lose."""


@dataclass(frozen=True, eq=False)
class ScoringWork:
    """Everything that a process needs to score.

    It is sent to other processes, which open data and forecasters once. `makers` and the `folders` of sums are
    keyed by forecaster name. `batch_size` windows, cut from `grid`, are forecast at once.
    """

    key: str
    data: "Callable[[], RadarData]"
    makers: Mapping[str, Callable[[], Forecaster]]
    folders: Mapping[str, Path]
    scoring: Scoring
    batch_size: int
    grid: Grid | None = None


@dataclass(frozen=True)
class Task:
    """Consecutive windows for one forecaster; `first` is the number of the first, at which a batch begins."""

    work: ScoringWork
    forecaster: str
    first: int
    places: tuple[Place, ...]


class _Opened:
    def __init__(self, work: ScoringWork) -> None:
        if multiprocessing.parent_process() is not None and not logging.root.handlers:
            # other processes have no log yet, and baselines report windows that they cannot forecast
            logging.basicConfig(level=logging.INFO, format="%(message)s")
        self.key = work.key
        self.data = work.data()
        self.scored: dict[str, Scored] = {}

    def forecaster(self, task: Task) -> Scored:
        work, name = task.work, task.forecaster
        if name not in self.scored:
            forecaster = work.makers[name]()
            self.scored[name] = Scored(forecaster, work.scoring, lead_steps=self.data.lead_steps, grid=work.grid)
        return self.scored[name]


_opened: _Opened | None = None
"""The data and forecasters of this process."""


def close() -> None:
    """Release data and forecasters."""
    global _opened
    _opened = None


@dataclass(frozen=True)
class Spent:
    """CPU seconds of a task, imports included, and the peak memory of its process so far."""

    process: int
    cpu_seconds: float
    peak_gib: float


@dataclass
class Cost:
    """Time and memory of scoring; windows scored before an interruption are excluded."""

    began: float = field(default_factory=time.monotonic)
    wall_seconds: float = 0.0
    windows: dict[str, int] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    """Keyed by forecaster, as `windows` is."""
    peaks: dict[int, float] = field(default_factory=dict)
    """GiB, keyed by process."""

    def add(self, task: Task, spent: Spent) -> None:
        """Add a task."""
        name = task.forecaster
        self.windows[name] = self.windows.get(name, 0) + len(task.places)
        self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + spent.cpu_seconds
        self.peaks[spent.process] = spent.peak_gib

    def end(self) -> None:
        """Record the time, and the memory of this process."""
        self.wall_seconds = time.monotonic() - self.began
        self.peaks[os.getpid()] = peak_memory_gib()

    def attrs(self) -> dict[str, Any]:
        """Return attributes for scores.nc. Shared libraries are counted once per process."""
        each = (f"{name} {self.cpu_seconds[name] / number:.3g}" for name, number in self.windows.items())
        return {
            "wall_seconds": round(self.wall_seconds, 1),
            "peak_memory_gib": round(sum(self.peaks.values()), 2),
            "num_processes": len(self.peaks),
            "cpu_seconds_per_window": ", ".join(each) or "no new windows",
        }


def score(task: Task, tick: Callable[[int], None]) -> Spent:
    """Score the windows of a task and keep their sums in its folder; `tick` receives the size of each batch."""
    global _opened
    before = time.process_time()
    if _opened is None or _opened.key != task.work.key:
        _opened = _Opened(task.work)
    scored, work = _opened.forecaster(task), task.work
    sums, first, began = EventSums(), task.first, time.monotonic()
    for start, batch in _batches(_opened.data, task):
        with one_thread():
            work.scoring.add(sums, scored.predict(batch), batch)
        end = start + len(batch["input"])
        last = end == task.first + len(task.places)
        if last or time.monotonic() - began > KEEP_SECONDS:
            keep(sums, work.folders[task.forecaster], first, end)
            sums, first, began = EventSums(), end, time.monotonic()
        tick(end - start)
    return Spent(os.getpid(), time.process_time() - before, peak_memory_gib())


def _batches(data: "RadarData", task: Task) -> Iterator[tuple[int, Sample]]:
    """Yield batches that hold the same windows wherever a task begins, as results may depend on the batch."""
    size = task.work.batch_size
    for offset in range(0, len(task.places), size):
        stored = data.dataset.batch(task.places[offset : offset + size])
        yield task.first + offset, data.dataset.decode(stored)


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread, so that sums do not depend on the number of processes, to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def keep(sums: EventSums, folder: Path, first: int, end: int) -> None:
    """Write the sums of windows `first` to before `end` atomically."""
    with atomic(folder / f"{first:09}-{end:09}.npz", durable=True) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **sums.arrays())  # type: ignore[arg-type]  # no sum has the name of its own flag


def kept(folder: Path) -> dict[tuple[int, int], Path]:
    """Return the files of `folder` by (first, end) of their windows.

    An unreadable file (after a power cut, say) is removed with a warning, and its windows are scored again.
    """
    found = {}
    for path in sorted(folder.glob("*-*.npz")):
        first, _, end = path.stem.partition("-")
        try:
            read(path)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            log.warning("%s is damaged (%s): its windows are scored again.", path, error or type(error).__name__)
            path.unlink(missing_ok=True)
            continue
        found[int(first), int(end)] = path
    return found


def read(path: Path) -> EventSums:
    """Read a file written by `keep`."""
    with np.load(path) as arrays:
        return EventSums.from_arrays(dict(arrays))
