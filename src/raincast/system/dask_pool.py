"""Run tasks on the workers of a dask cluster. Workers may die, and so may the process that submitted the tasks."""

import asyncio
import contextlib
import logging
import os
import queue
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raincast.system.pool import Pool, Result, Task, Tick
from raincast.version import __version__

log = logging.getLogger(__name__)

CONNECT_SECONDS = 6.0
PATIENCE_SECONDS = 60.0
"""Time in which a cluster may be without workers, because batch systems are slow to start new ones."""
POLL_SECONDS = 0.5
_REMEDY = (
    "All workers must see the archive and the files by the same paths (a shared file system), and write there."
)
_one_at_a_time = threading.Lock()
"""In a worker: HDF5 and netCDF are not thread-safe, whatever `--nthreads` says."""


class Cluster(Pool):
    """A pool of the workers of the dask cluster at `scheduler` (tcp://host:8786), with one task per worker.

    At most `workers` tasks are submitted at once; None is one for each worker process. A file in `folder`, the
    archive, permits workers to work. A worker that does not see it is on another file system, or its client has
    ended; the next process that locks the archive removes the file. Raises ValueError if dask is not installed,
    and on entering if the cluster is not found or its workers cannot do the work.
    """

    def __init__(self, scheduler: str, folder: Path, workers: int | None = None) -> None:
        super().__init__(workers)
        try:
            import distributed  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"scheduler={scheduler} needs dask.distributed: pip install -e '.[cluster]', or leave it out."
            ) from error
        self.scheduler = scheduler
        self._permit = _Permit(folder.absolute() / f".cluster.{uuid.uuid4().hex}.partial", _versions())
        self._client: Any = None

    def __enter__(self) -> "Cluster":
        """Connect, and check that each worker can do the work."""
        self._client = _connect(self.scheduler)
        try:
            self._permit.path.touch()
            self._check_workers()
        except BaseException:
            self._close(at_once=True)
            raise
        return self

    def run(
        self,
        function: Callable[[Task, Tick], Result],
        tasks: Sequence[Task],
        *,
        large: bool,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, Result | Exception]]:
        """Run tasks like `Pool.run`, always on the workers, with progress after each task.

        dask gives a task whose worker died to another one, up to `distributed.scheduler.allowed-failures` times
        (a setting of the scheduler); after that its result is an error.
        """
        todo = deque(enumerate(tasks))
        given: dict[str, tuple[int, Any]] = {}
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        done, last_seen = 0, time.monotonic()
        while todo or given:
            room = self._room()
            last_seen = time.monotonic() if room else last_seen
            if self._client.status == "closed" or time.monotonic() - last_seen > PATIENCE_SECONDS:
                yield from ((number, self._lost()) for number, _ in [*given.values(), *todo])
                return
            while todo and len(given) < room:
                number, task = todo.popleft()
                future = self._give(_Call(function, task, self._permit))
                given[future.key] = number, future
                future.add_done_callback(ended.put)
            with contextlib.suppress(queue.Empty):
                number, future = given.pop(ended.get(timeout=POLL_SECONDS).key)
                result, ticks = _outcome(future)
                done += ticks
                if progress is not None:
                    progress(done)
                yield number, result

    def _room(self) -> int:
        """Return the number of tasks that may be submitted at once; 0 while there are no workers."""
        try:
            num_workers = len(self._client.nthreads()) if self._client.status == "running" else 0
        except OSError:
            return 0
        return min(num_workers, self.workers or num_workers)

    def _give(self, call: "_Call") -> Any:
        # dask searches arguments for nested tasks, but not the function
        return self._client.submit(call, key=f"{call.function.__name__}-{uuid.uuid4().hex}", pure=False)

    def _lost(self) -> Exception:
        what = "the scheduler" if self._client.status != "running" else "all workers"
        return ValueError(f"{what} of the dask cluster at {self.scheduler} went away. Run the command again.")

    def _check_workers(self) -> None:
        """Raise ValueError if there is no worker, or with the problems of the workers."""
        num_threads = self._client.nthreads()
        if not num_threads:
            raise ValueError(
                f"The dask cluster at scheduler={self.scheduler} has no workers. Start some: "
                f"dask worker {self.scheduler} --nworkers 4 --nthreads 1"
            )
        answers = self._client.run(self._permit.problem, on_error="return")
        problems = [_words(address, answer) for address, answer in answers.items() if answer is not None]
        if problems:
            raise ValueError(
                f"{len(problems)} of {len(answers)} workers of the dask cluster at scheduler={self.scheduler} "
                "cannot ingest:\n  " + "\n  ".join(sorted(problems)[:5])
            )
        if max(num_threads.values()) > 1:
            log.warning(
                "The workers at %s have up to %d threads, but each process handles one day at a time: start them "
                "with --nworkers N --nthreads 1",
                self.scheduler,
                max(num_threads.values()),
            )
        log.info("On %d workers of the dask cluster at %s", len(num_threads), self.scheduler)

    def _close(self, *, at_once: bool) -> None:
        """Withdraw the permission: waiting tasks are dropped, running ones stop after their next frame."""
        self._permit.path.unlink(missing_ok=True)
        if self._client is not None:
            # when the client closes, the scheduler drops its tasks
            self._client.close(timeout=CONNECT_SECONDS)
            self._client = None


@dataclass(frozen=True)
class _Permit:
    """Permission to work on an archive: the file `path` in it, for workers with the same `versions`."""

    path: Path
    versions: dict[str, str]

    def is_valid(self) -> bool:
        """Return True if the file exists. It is opened, because network file systems cache mere existence."""
        try:
            self.path.open("rb").close()
        except OSError:
            return False
        return True

    def problem(self) -> str | None:
        """Return why this worker cannot work, or None. Called in the worker."""
        mine = _versions()
        if mine != self.versions:
            pairs = [f"{name} {mine[name]} ({here} here)" for name, here in self.versions.items()]
            return f"{_me()} would write different bytes, with {', '.join(pairs)}. Install the same versions."
        if not self.is_valid():
            return f"{_me()} does not see {self.path.parent} as it is here. {_REMEDY}"
        if not os.access(self.path.parent, os.W_OK):
            return f"{_me()} has no permission to write into {self.path.parent}. {_REMEDY}"
        return None


@dataclass(frozen=True, eq=False)
class _Call:
    """Call of `function(task, tick)` in a worker while the permission lasts; returns the result and the ticks."""

    function: Callable[[Any, Tick], Any]
    task: Any
    permit: _Permit

    def __call__(self) -> tuple[Any, int]:
        done = 0

        def tick(more: int) -> None:
            nonlocal done
            done += more
            # a thread cannot be killed: without this check it would go on writing after its ingest had ended
            if not self.permit.is_valid():
                raise RuntimeError(f"stopped because {self.permit.path} was removed: nobody waits for this task")

        with _one_at_a_time:
            problem = self.permit.problem()  # check workers that joined later, too
            if problem:
                raise RuntimeError(problem)
            return self.function(self.task, tick), done


def _connect(scheduler: str) -> Any:
    from distributed import Client

    try:
        # a client may wait forever for a server that does not answer, so ask for its identity first; use a thread,
        # because a notebook runs its own event loop
        with ThreadPoolExecutor(1) as thread:
            kind = thread.submit(asyncio.run, asyncio.wait_for(_kind(scheduler), CONNECT_SECONDS)).result()
        if kind != "Scheduler":
            raise ValueError(f"it is a {kind}")
        return Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else f"silent for {CONNECT_SECONDS:g} s"
        raise ValueError(
            f"No dask scheduler answers at scheduler={scheduler} ({reason}). Start one with `dask scheduler`, "
            "which prints its address (tcp://HOST:8786), or leave scheduler out to ingest on this machine."
        ) from error


async def _kind(address: str) -> str:
    """Return the type of the dask server at this address."""
    from distributed import rpc

    async with rpc(address) as server:  # type: ignore[no-untyped-call]
        identity = await server.identity()
    return str(identity["type"])


def _outcome(future: Any) -> tuple[Any, int]:
    """Return the result or error of a finished future, and its ticks."""
    from distributed import CancelledError, KilledWorker

    try:
        result, done = future.result()
    except KilledWorker as error:
        times, last = error.allowed_failures + 1, error.last_worker.address
        return RuntimeError(f"its worker died {times} times, last {last}, perhaps killed for lack of memory"), 0
    except CancelledError:
        return ValueError("the dask cluster dropped it, or its scheduler went away. Run the command again."), 0
    except Exception as error:  # the caller decides; the other tasks continue
        return error, 0
    return result, done


def _versions() -> dict[str, str]:
    """Return the versions of the packages that determine the bytes of an archive."""
    return {"raincast": __version__} | {name: version(name) for name in ("netCDF4", "zarr")}


def _me() -> str:
    return f"The worker on {socket.gethostname()} (process {os.getpid()})"


def _words(address: str, answer: Any) -> str:
    if isinstance(answer, str):
        return answer
    return f"The worker {address}: {answer}. Install raincast {__version__} there."
