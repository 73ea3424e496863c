"""Run many tasks, first in this process, then in others if it takes long.

Each task writes its result atomically, so interrupted work is resumed by skipping the tasks that have results.
"""

import logging
import time
from collections.abc import Callable, Sequence

from raincast.system.pool import Pool, Progress, Result, Task, Tick

log = logging.getLogger(__name__)

ALONE_SECONDS = 10.0
"""The time that a process needs to start; shorter work is done before another process would begin."""


class Teller:
    """Counts finished items for a progress bar and, once a minute, for the log; `what` names them in the log."""

    EVERY_SECONDS = 60.0

    def __init__(self, done: int, total: int, progress: Progress | None, what: str) -> None:
        self.before, self.total, self.progress, self.what = done, total, progress, what
        self.own = self.others = 0
        self.began = self.told = time.monotonic()

    def more(self, number: int) -> None:
        """Add `number` items finished in this process."""
        self.own += number
        self._tell()

    def there(self, number: int) -> None:
        """Set the number of items finished in other processes."""
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
    """Call `function(task, tick)` for tasks in this process; return the tasks that are left after `seconds`.

    `note` is called with each task and its result or error; an exception from `note` ends the work. The work also
    continues beyond `seconds` until `enough` returns True.
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
    """Run tasks like `run_here` but in other processes, in order of completion. Arguments are pickled."""
    with Pool(processes) as pool:
        for number, outcome in pool.run(function, tasks, large=True, progress=tell.there):
            note(tasks[number], outcome)
