"""Tasks on the workers of a dask cluster, in a way that any of them may die, and so may who asked for them."""

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
from types import TracebackType
from typing import Any

from raincast.system.pool import Pool, Result, Task, Tick
from raincast.version import __version__

log = logging.getLogger(__name__)

CONNECT_SECONDS = 6.0
PATIENCE_SECONDS = 60.0
"""How long a cluster may be without workers: a batch system takes some time to start others."""
POLL_SECONDS = 0.5
_REMEDY = (
    "All workers must see the archive and the files by the same paths (a shared file system), and write there."
)
_one_at_a_time = threading.Lock()
"""In a worker: HDF5 and netCDF do not survive two threads, whatever `--nthreads` says."""


class Cluster(Pool):
    """The workers of the dask cluster at `scheduler` (tcp://host:8786) in the place of processes: a task a worker.

    At most `workers` tasks are given away at once; None is one for each worker process that there is. A file in
    `folder`, the archive, is the permission to work: a worker that does not see it is on another file system, or
    nobody waits for it any more, and whoever locks the archive next takes it away. ValueError where dask is not
    installed, and on entering where no such cluster, or one that cannot do it, is found.
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
        """Connect, and ask each worker whether it can do it."""
        self._client = _connect(self.scheduler)
        try:
            self._permit.path.touch()
            self._check_workers()
        except BaseException:
            self._close(at_once=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the permission away: tasks that have not begun are dropped, others end with their next frame."""
        self._close(at_once=kind is not None)

    def run(
        self,
        function: Callable[[Task, Tick], Result],
        tasks: Sequence[Task],
        *,
        large: bool,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, Result | Exception]]:
        """As `Pool.run`, with progress once a task; all tasks, also few, go to the workers.

        A task whose worker dies is given to another by dask, as often as its scheduler's setting
        `distributed.scheduler.allowed-failures` says, and is an error after that.
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
        """The number of tasks that may be submitted at once; 0 while there are no workers."""
        try:
            num_workers = len(self._client.nthreads()) if self._client.status == "running" else 0
        except OSError:
            return 0
        return min(num_workers, self.workers or num_workers)

    def _give(self, call: "_Call") -> Any:
        # dask looks for tasks inside of arguments, but not inside of a function
        return self._client.submit(call, key=f"{call.function.__name__}-{uuid.uuid4().hex}", pure=False)

    def _lost(self) -> Exception:
        what = "the scheduler" if self._client.status != "running" else "all workers"
        return ValueError(f"{what} of the dask cluster at {self.scheduler} went away. Run the same again.")

    def _check_workers(self) -> None:
        """ValueError where there is no worker, and with what is wrong with each of them."""
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
                "The workers at %s have up to %d threads, but a process does one day at a time: start them "
                "with --nworkers N --nthreads 1",
                self.scheduler,
                max(num_threads.values()),
            )
        log.info("On %d workers of the dask cluster at %s", len(num_threads), self.scheduler)

    def _close(self, *, at_once: bool) -> None:
        self._permit.path.unlink(missing_ok=True)
        if self._client is not None:
            # with its client the scheduler forgets what that had asked for
            self._client.close(timeout=CONNECT_SECONDS)
            self._client = None


@dataclass(frozen=True)
class _Permit:
    """The permission to work on an archive: the file `path` in it, for workers that make the same bytes."""

    path: Path
    versions: dict[str, str]

    def is_valid(self) -> bool:
        """Whether the file is there: opened, for network file systems remember what merely was there."""
        try:
            self.path.open("rb").close()
        except OSError:
            return False
        return True

    def problem(self) -> str | None:
        """In a worker: why it cannot work, or None."""
        mine = _versions()
        if mine != self.versions:
            pairs = [f"{name} {mine[name]} ({here} here)" for name, here in self.versions.items()]
            return f"{_me()} would not make the same bytes, with {', '.join(pairs)}. Install the same versions."
        if not self.is_valid():
            return f"{_me()} does not see {self.path.parent} as it is here. {_REMEDY}"
        if not os.access(self.path.parent, os.W_OK):
            return f"{_me()} may not write into {self.path.parent}. {_REMEDY}"
        return None


@dataclass(frozen=True, eq=False)
class _Call:
    """`function(task, tick)` in a worker, for as long as the permission lasts; returns the sum of ticks, too."""

    function: Callable[[Any, Tick], Any]
    task: Any
    permit: _Permit

    def __call__(self) -> tuple[Any, int]:
        done = 0

        def tick(more: int) -> None:
            nonlocal done
            done += more
            # a thread cannot be killed: without this it would write after its ingest had ended
            if not self.permit.is_valid():
                raise RuntimeError(f"stopped, for {self.permit.path} is gone: nobody waits for this any more")

        with _one_at_a_time:
            problem = self.permit.problem()  # of a worker that came later, too
            if problem:
                raise RuntimeError(problem)
            return self.function(self.task, tick), done


def _connect(scheduler: str) -> Any:
    from distributed import Client

    try:
        # a client may wait for ever for who listens and does not speak, so one asks before; in a thread, for
        # a notebook has a loop of its own
        with ThreadPoolExecutor(1) as thread:
            kind = thread.submit(asyncio.run, asyncio.wait_for(_kind(scheduler), CONNECT_SECONDS)).result()
        if kind != "Scheduler":
            raise ValueError(f"it is a {kind}")
        return Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else f"silent for {CONNECT_SECONDS:g} s"
        raise ValueError(
            f"No dask scheduler answers at scheduler={scheduler} ({reason}). Start one with `dask scheduler`, "
            "which says its address (tcp://HOST:8786), or leave scheduler out to ingest on this machine."
        ) from error


async def _kind(address: str) -> str:
    """The scheduler at this address."""
    from distributed import rpc

    async with rpc(address) as server:  # type: ignore[no-untyped-call]
        identity = await server.identity()
    return str(identity["type"])


def _outcome(future: Any) -> tuple[Any, int]:
    """Result or error of a future that is done, and the ticks."""
    from distributed import CancelledError, KilledWorker

    try:
        result, done = future.result()
    except KilledWorker as error:
        times, last = error.allowed_failures + 1, error.last_worker.address
        return RuntimeError(f"its worker died {times} times, lastly {last}, perhaps killed for want of memory"), 0
    except CancelledError:
        return ValueError("the dask cluster dropped it, or its scheduler went away. Run the same again."), 0
    except Exception as error:  # the caller decides; the other tasks go on
        return error, 0
    return result, done


def _versions() -> dict[str, str]:
    """Versions of the packages that the bytes of an archive depend on."""
    return {"raincast": __version__} | {name: version(name) for name in ("netCDF4", "zarr")}


def _me() -> str:
    return f"The worker on {socket.gethostname()} (process {os.getpid()})"


def _words(address: str, answer: Any) -> str:
    if isinstance(answer, str):
        return answer
    return f"The worker {address}: {answer}. Install raincast {__version__} there."
