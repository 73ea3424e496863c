"""Time as a watcher sees it, so that a day can pass in seconds."""

import time
from threading import Event
from typing import Protocol

import numpy as np


class Clock(Protocol):
    """Seconds since 1970 (UTC), and waiting."""

    def now(self) -> float:
        """What time it is."""
        ...

    def wait(self, seconds: float, stop: Event) -> None:
        """Let time pass; returns early once `stop` is set."""
        ...


class SystemClock:
    """The machine's own."""

    def now(self) -> float:
        """What time it is."""
        return time.time()

    def wait(self, seconds: float, stop: Event) -> None:
        """Sleep, until `stop` at most."""
        stop.wait(seconds)


def seconds_of(time: np.datetime64) -> float:
    """A UTC time in seconds since 1970."""
    return float(time.astype("datetime64[ms]").astype(np.int64)) / 1000.0


def time_of(seconds: float) -> np.datetime64:
    """Seconds since 1970 as a UTC time."""
    time: np.datetime64 = np.datetime64(round(seconds * 1000), "ms").astype("datetime64[ns]")
    return time


def text_of(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601, to the second."""
    return f"{np.datetime64(round(seconds), 's')}Z"
