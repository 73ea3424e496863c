"""Scoring of many windows and several forecasters on all cores; after an interruption, the same call resumes.

A task is some windows of one forecaster, whose sums are kept on disk.
"""

import logging
import multiprocessing
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
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
from raincast.system.engine import ALONE_SECONDS, Teller, run_here, run_there
from raincast.system.files import atomic
from raincast.system.lock import held
from raincast.system.pool import Progress, num_cores
from raincast.system.provenance import peak_memory_gib

if TYPE_CHECKING:
    from raincast.data.radar import RadarData

log = logging.getLogger(__name__)

MOST_WINDOWS = 64
"""Largest number of windows per task, so that all cores stay busy to the end."""
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


def run(
    work: ScoringWork,
    places: Sequence[Place],
    *,
    workers: int | None = None,
    here: Collection[str] = (),
    progress: Progress | None = None,
    cost: Cost | None = None,
) -> dict[str, EventSums]:
    """Return the sums of each forecaster of `work` over `places`.

    `progress(done, total)` counts windows × forecasters. With `workers=None` scoring begins in this process and
    continues in one process per core if it takes long; `workers=1` stays in this process. Forecasters in `here`
    (those on a GPU) run in this process while others run the rest. Sums are kept in the folders of `work` until
    `clear`, so finished windows are never scored again. `cost` records time and memory. Raises ValueError if
    another process scores the same windows, or a forecaster fails.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} must be a whole number of at least 1, or null for one per core.")
    with ExitStack() as stack:
        for name, folder in work.folders.items():
            refusal = (
                f"Another evaluation is scoring {name} on the same windows ({folder}): wait for it, or stop it."
            )
            stack.enter_context(held(folder.with_suffix(".lock"), refusal))
        todo, done = _plan(work, places, workers or num_cores())
        total = len(places) * len(work.makers)
        if done:
            log.info("%d of %d windows × forecasters were scored before and are skipped.", done, total)
        tell = Teller(done, total, progress, "windows × forecasters scored")
        cost = cost or Cost()
        try:
            _score_all(todo, workers, here, tell, cost)
        finally:
            close()
            cost.end()
        return {name: _gather(work.folders[name]) for name in work.makers}


def clear(work: ScoringWork) -> None:
    """Remove the kept sums after the scores are written."""
    for folder in work.folders.values():
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".lock").unlink(missing_ok=True)
        with suppress(OSError):  # others are being scored, or it is already gone
            folder.parent.rmdir()


def _plan(work: ScoringWork, places: Sequence[Place], workers: int) -> tuple[list[Task], int]:
    """Return the tasks left and the number of windows done. Forecasters take turns, as any may be the slowest."""
    size, todo, done = work.batch_size, [], 0
    num_batches = -(-len(places) // size)
    most = max(1, min(MOST_WINDOWS // size, -(-num_batches // (4 * workers))))
    for name, folder in work.folders.items():
        scored: set[int] = set()
        for first, end in kept(folder):
            scored.update(range(first // size, -(-end // size)))
            done += end - first
        runs = _runs([batch for batch in range(num_batches) if batch not in scored], most)
        todo += [
            (turn, Task(work, name, first * size, tuple(places[first * size : end * size])))
            for turn, (first, end) in enumerate(runs)
        ]
    return [task for _, task in sorted(todo, key=lambda item: item[0])], done


def _runs(numbers: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of runs of consecutive numbers, each of at most `most` numbers."""
    start = 0
    for k in range(1, len(numbers) + 1):
        if k == len(numbers) or numbers[k] != numbers[k - 1] + 1 or k - start == most:
            yield numbers[start], numbers[k - 1] + 1
            start = k


def _score_all(todo: list[Task], workers: int | None, here: Collection[str], tell: Teller, cost: Cost) -> None:
    def note(task: Task, outcome: Spent | Exception) -> None:
        if isinstance(outcome, Exception):
            raise _explained(task, outcome) from outcome
        cost.add(task, outcome)

    own = [task for task in todo if task.forecaster in here]
    others: Sequence[Task] = [task for task in todo if task.forecaster not in here]
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(run_here, score, own, note, tell) if own and others else None
        if not running and workers in (None, 1):
            seconds = None if workers == 1 or own else ALONE_SECONDS
            others = run_here(score, [*own, *others], note, tell, seconds=seconds)
        if others:
            run_there(score, others, note, tell, processes=workers or num_cores())
        if running:
            running.result()


def _explained(task: Task, error: Exception) -> Exception:
    if isinstance(error, (KeyboardInterrupt, MemoryError)):
        return error
    return ValueError(
        f"{task.forecaster} failed at windows {task.first} to {task.first + len(task.places) - 1}: "
        f"{error or type(error).__name__}. Finished windows are kept: fix the cause, and the same command resumes."
    )


def _gather(folder: Path) -> EventSums:
    sums = EventSums()
    for path in kept(folder).values():
        sums.merge(read(path))
    return sums
