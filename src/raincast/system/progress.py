"""Progress bars on the terminal."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")


def fitting(texts: Sequence[str], width: int) -> str:
    """Return the first text that fits into `width`, else the last one cut to it, so that no line wraps."""
    last = texts[-1]
    short = last if len(last) <= width else f"{last[: max(0, width - 1)]}…"
    return next((text for text in texts if len(text) <= width), short)


class Bar:
    """A progress bar on the terminal that appears with the first step and disappears when done."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "Bar":
        """Return the bar; nothing is drawn yet."""
        return self

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` steps are done."""
        if self._progress is None:
            console = Console(stderr=True)
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=12),
                MofNCompleteColumn(),
                _Rate(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=console, transient=True)
            self._progress.start()
            label = fitting([self.label], console.width - 12 - 2 * len(str(total)) - 22)
            self._task = self._progress.add_task(label, total=total)
        assert self._task is not None
        self._progress.update(self._task, completed=done, total=total)
        if done >= total:
            self._stop()

    def advance_of(self, total: int) -> "Callable[[int], None]":
        """Return a function that takes the number of further steps done."""
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            self.update(done, total)

        return advance

    def __exit__(self, *_: object) -> None:
        """Clear the line."""
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None  # frees the terminal line for another bar


def short(path: Path) -> str:
    """Return `path` relative to the working directory if that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
