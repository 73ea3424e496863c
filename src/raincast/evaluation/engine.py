"""Scoring of many windows and several forecasters on all cores; after an interruption, the same call resumes."""

import logging
import shutil
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

from raincast.data.sampler import Place
from raincast.evaluation import work as parts
from raincast.evaluation.event_sums import EventSums
from raincast.evaluation.work import Cost, ScoringWork, Spent, Task
from raincast.system.engine import ALONE_SECONDS, Teller, run_here, run_there
from raincast.system.lock import held
from raincast.system.pool import Progress, num_cores

log = logging.getLogger(__name__)

MOST_WINDOWS = 64
"""Largest number of windows per task, so that all cores stay busy to the end."""


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
            parts.close()
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
        for first, end in parts.kept(folder):
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
        running = thread.submit(run_here, parts.score, own, note, tell) if own and others else None
        if not running and workers in (None, 1):
            seconds = None if workers == 1 or own else ALONE_SECONDS
            others = run_here(parts.score, [*own, *others], note, tell, seconds=seconds)
        if others:
            run_there(parts.score, others, note, tell, processes=workers or num_cores())
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
    for path in parts.kept(folder).values():
        sums.merge(parts.read(path))
    return sums
