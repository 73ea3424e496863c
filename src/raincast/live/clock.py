"""The clock of a watcher, which tests replace so that a day passes in seconds."""

import time
from threading import Event
from typing import Protocol

import numpy as np


class Clock(Protocol):
    """A clock that tells the time and waits."""

    def now(self) -> float:
        """Return the time in seconds since 1970 (UTC)."""
        ...

    def wait(self, seconds: float, stop: Event) -> None:
        """Wait for `seconds`; return early if `stop` is set."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return the time in seconds since 1970 (UTC)."""
        return time.time()

    def wait(self, seconds: float, stop: Event) -> None:
        """Sleep for `seconds`, or until `stop` is set."""
        stop.wait(seconds)


def seconds_of(time: np.datetime64) -> float:
    """Convert a UTC time to seconds since 1970."""
    return float(time.astype("datetime64[ms]").astype(np.int64)) / 1000.0


def time_of(seconds: float) -> np.datetime64:
    """Convert seconds since 1970 to a UTC time."""
    time: np.datetime64 = np.datetime64(round(seconds * 1000), "ms").astype("datetime64[ns]")
    return time


def text_of(seconds: float) -> str:
    """Format seconds since 1970 as ISO 8601, to the second."""
    return f"{np.datetime64(round(seconds), 's')}Z"
