"""Work of many tasks: begun in this process, and gone on with in others if it takes long.

Each task leaves its result on disk as a whole, so work that was interrupted goes on by leaving out the tasks whose
results are there.
"""

import logging
import time
from collections.abc import Callable, Sequence

from raincast.system.pool import Pool, Progress, Result, Task, Tick

log = logging.getLogger(__name__)

ALONE_SECONDS = 10.0
"""As long as a process needs to start: work that takes less is done before another process would begin."""


class Teller:
    """Adds up what is done, for a bar, and for a log where nobody watches; `what` says what it is, and done."""

    EVERY_SECONDS = 60.0

    def __init__(self, done: int, total: int, progress: Progress | None, what: str) -> None:
        self.before, self.total, self.progress, self.what = done, total, progress, what
        self.own = self.others = 0
        self.began = self.told = time.monotonic()

    def more(self, number: int) -> None:
        """So many more in this process."""
        self.own += number
        self._tell()

    def there(self, number: int) -> None:
        """So many so far in the others."""
        self.others = number
        self._tell()

    def _tell(self) -> None:
        new = self.own + self.others
        done = self.before + new
        if self.progress is not None:
            self.progress(done, self.total)
        now = time.monotonic()
        if now - self.told > self.EVERY_SECONDS and new:
            self.told = now
            minutes = (now - self.began) / new * (self.total - done) / 60
            log.info("%d of %d %s, about %.0f min left", done, self.total, self.what, minutes)


def run_here(
    function: Callable[[Task, Tick], Result],
    tasks: Sequence[Task],
    note: Callable[[Task, Result | Exception], None],
    tell: Teller,
    *,
    seconds: float | None = None,
    enough: Callable[[], bool] = lambda: True,
) -> Sequence[Task]:
    """Call `function(task, tick)` in this process; returns the tasks that are left after `seconds`.

    `note` is told each task with its result or its error; what `note` raises ends the work. Without `enough`, the
    work goes on here beyond `seconds`.
    """
    began = time.monotonic()
    for number, task in enumerate(tasks):
        if seconds is not None and time.monotonic() - began >= seconds and enough():
            return tasks[number:]
        outcome: Result | Exception
        try:
            outcome = function(task, tell.more)
        except Exception as error:  # `note` decides
            outcome = error
        note(task, outcome)
    return ()


def run_there(
    function: Callable[[Task, Tick], Result],
    tasks: Sequence[Task],
    note: Callable[[Task, Result | Exception], None],
    tell: Teller,
    *,
    processes: int,
) -> None:
    """Like `run_here`, in other processes, in the order in which tasks finish. Arguments are pickled."""
    with Pool(processes) as pool:
        for number, outcome in pool.run(function, tasks, large=True, progress=tell.there):
            note(tasks[number], outcome)
