"""Run tasks in processes, with progress; any of the processes may be killed."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeVar

from raincast.system.heap import pause_collector, resume_collector

log = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")
Tick = Callable[[int], None]
"""Called with the number of further steps done."""
Progress = Callable[[int, int], None]
"""Called with the numbers of steps done and in total."""

MOST = 8  # more processes would wait for the disk
POLL_SECONDS = 0.2


class ProcessDied(RuntimeError):
    """The result of a task whose process died."""


class Pool:
    """Up to `workers` processes, started when first needed; with one, tasks run in this process.

    None is one per core, at most `MOST`, or one for work that is not large. Processes are spawned, because the
    HDF5 library does not survive a fork: the main module of a program needs `if __name__ == "__main__":`. Raises
    ValueError for an invalid number of workers.
    """

    def __init__(self, workers: int | None = 1) -> None:
        if workers is not None and (not isinstance(workers, int) or workers < 1):
            raise ValueError(f"workers={workers} must be a whole number from 1, or null for one per core.")
        self.workers = workers
        self._context = multiprocessing.get_context("spawn")
        self._executor: ProcessPoolExecutor | None = None
        self._size = 0
        self._lifeline: Connection | None = None
        self._counts: Any = None

    def __enter__(self) -> "Pool":
        """Return the pool; processes are started when needed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all processes, after an error immediately."""
        self._close(at_once=kind is not None)

    def run(
        self,
        function: Callable[[Task, Tick], Result],
        tasks: Sequence[Task],
        *,
        large: bool,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, Result | Exception]]:
        """Call `function(task, tick)` for each task; yield its number and its result or error, as they finish.

        `progress` is called with the sum of all ticks, which never decreases. If the process of a task dies (out
        of memory, for example), its result is an error too.
        """
        processes = min(self._num_processes(large), len(tasks))
        if processes <= 1:
            yield from _run_here(function, tasks, progress)
            return
        todo = dict(enumerate(tasks))
        total = _Total(progress)
        unexplained = 0
        while todo:
            for number, outcome in self._run_there(function, todo, processes, total):
                del todo[number]
                yield number, outcome
            if not todo:
                return
            # a process died and broke the pool; tasks begin in order, so the first remaining ones were running
            suspects = {number: todo.pop(number) for number in sorted(todo)[:processes]}
            culprits = 0
            for number, outcome in self._run_alone(function, suspects, total):
                culprits += isinstance(outcome, ProcessDied)
                yield number, outcome
            unexplained += not culprits
            if unexplained > 1:  # all processes together may need too much memory
                processes = max(1, processes - 1)

    def _num_processes(self, large: bool) -> int:
        if self.workers is not None:
            return self.workers
        return min(num_cores(), MOST) if large else 1

    def _run_there(
        self,
        function: Callable[[Task, Tick], Result],
        todo: dict[int, Task],
        processes: int,
        total: "_Total",
    ) -> Iterator[tuple[int, Result | Exception]]:
        executor = self._start(processes)
        try:
            with _deaf_to_interrupts():  # processes started here keep the mask
                futures = {executor.submit(_call, function, todo[number]): number for number in sorted(todo)}
        except BrokenProcessPool:
            return
        pending = set(futures)
        while pending:
            done, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
            ended = [(futures[future], future.exception(), future) for future in done]
            total.finished += sum(future.result()[1] for _, error, future in ended if error is None)
            total.tell(sum(self._counts))
            for number, error, future in ended:
                if error is None:
                    yield number, future.result()[0]
                elif isinstance(error, Exception) and not isinstance(error, BrokenProcessPool):
                    yield number, error

    def _run_alone(
        self, function: Callable[[Task, Tick], Result], suspects: dict[int, Task], total: "_Total"
    ) -> Iterator[tuple[int, Result | Exception]]:
        """Run suspects one at a time: one that dies now is the culprit."""
        self._close(at_once=True)
        for number, task in suspects.items():
            told = list(self._run_there(function, {number: task}, 1, total))
            if not told:
                self._close(at_once=True)
            yield from told or [(number, ProcessDied("its process died, perhaps killed for lack of memory"))]

    def _start(self, size: int) -> ProcessPoolExecutor:
        if self._executor is not None and self._size >= size:
            return self._executor
        self._close(at_once=False)
        # each process has its own counter, so none can die while holding a lock
        self._counts = self._context.RawArray("q", size)
        numbers = self._context.Value("i", 0)
        end, self._lifeline = self._context.Pipe(duplex=False)
        self._size = size
        self._executor = ProcessPoolExecutor(
            size, self._context, initializer=_begin_worker, initargs=(end, self._counts, numbers)
        )
        return self._executor

    def _close(self, *, at_once: bool) -> None:
        if self._executor is None or self._lifeline is None:
            return
        if at_once:
            self._lifeline.close()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._lifeline.close()
        self._executor = None


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_number() -> int:
    """Return the number of this process in its pool, from 0; 0 in the main process."""
    return _place[1] if _place is not None else 0


def _run_here(
    function: Callable[[Task, Tick], Result], tasks: Sequence[Task], progress: Callable[[int], None] | None
) -> Iterator[tuple[int, Result | Exception]]:
    done = 0

    def tick(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done)

    for number, task in enumerate(tasks):
        outcome: Result | Exception
        try:
            outcome = function(task, tick)
        except Exception as error:  # the caller decides; the other tasks continue
            outcome = error
        yield number, outcome


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Block SIGINT within the block. Ctrl-C reaches all processes of a terminal; the main one ends the others.

    New processes inherit the mask, so none is interrupted during its imports.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Total:
    """The sum of ticks of finished tasks and of running ones, which their processes count."""

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self.progress, self.finished, self.told = progress, 0, 0

    def tell(self, running: int) -> None:
        # a task that has ended but is not yet reported is in neither number, so the sum could decrease
        self.told = max(self.told, self.finished + running)
        if self.progress is not None:
            self.progress(self.told)


_place: tuple[Any, int] | None = None
"""In a worker: the counters of all workers, and the index of its own."""


def _begin_worker(lifeline: Connection, counts: Any, numbers: Any) -> None:
    """Initialise a worker: choose its counter, and make it end with the main process."""
    global _place
    pause_collector()  # until the modules of the first task are imported
    with numbers.get_lock():
        _place = counts, numbers.value % len(counts)
        numbers.value += 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems without signal masks
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()


def _die_with(lifeline: Connection) -> None:
    """Exit this process immediately once the other end is closed, by the main process or by its death.

    This is safe at any moment, because results are written atomically.
    """
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    os._exit(1)


def _call(function: Callable[[Task, Tick], Result], task: Task) -> tuple[Result, int]:
    """Call the function; return its result and its ticks."""
    assert _place is not None
    resume_collector()
    counts, number = _place

    def tick(more: int) -> None:
        counts[number] += more

    counts[number] = 0
    result = function(task, tick)
    done, counts[number] = counts[number], 0
    return result, done
