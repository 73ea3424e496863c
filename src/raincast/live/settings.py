"""Settings of a watcher (output, delays, age limits), and its clock."""

import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Protocol

import numpy as np

from raincast import schema


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a watcher, explained in `conf/forecast.yaml`; None means no limit, or never."""

    output: str | Path
    once: bool = False
    until: str | None = None
    poll_s: float = 2.0
    settle_s: float = 5.0
    deadline_s: float = 120.0
    max_age_minutes: float | None = 20.0
    keep_hours: float | None = 48.0
    verify: bool = True
    skill_hours: float = 24.0
    thresholds: tuple[float, ...] = (0.5, 1.0, 5.0)
    sprog_pixels: int = 1_000_000

    def __post_init__(self) -> None:
        """Raise ValueError for impossible values, or values that contradict each other."""
        for name in ("poll_s", "deadline_s", "skill_hours"):
            if not getattr(self, name) > 0:
                raise ValueError(f"live.{name}={getattr(self, name)} has to be above 0.")
        if self.settle_s < 0:
            raise ValueError(f"live.settle_s={self.settle_s}: give 0 (never wait) or more seconds.")
        for name in ("max_age_minutes", "keep_hours"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"live.{name}={value} has to be above 0; null is no limit.")
        self._check_retention()
        object.__setattr__(self, "thresholds", tuple(float(t) for t in self.thresholds))
        if self.until is not None:
            self.until_seconds()

    def _check_retention(self) -> None:
        if self.keep_hours is None:
            return
        if self.max_age_minutes is None or self.max_age_minutes > 60 * self.keep_hours:
            age = "null" if self.max_age_minutes is None else f"{self.max_age_minutes:g}"
            raise ValueError(
                f"live.keep_hours={self.keep_hours:g} removes forecasts that live.max_age_minutes={age} would "
                "make again after a restart. Take live.keep_hours=null, or a smaller live.max_age_minutes."
            )

    def until_seconds(self) -> float | None:
        """Return `until` in seconds since 1970; raises ValueError if it is not a time."""
        if self.until is None:
            return None
        try:
            return float(schema.parse_utc(self.until).astype("datetime64[ms]").astype(np.int64)) / 1000
        except ValueError as error:
            raise ValueError(f"live.until={self.until}: write 2026-11-25T22:00 (UTC).") from error


class Clock(Protocol):
    """A clock that tells the time and waits; tests replace it so that a day passes in seconds."""

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
