"""The status file for monitors: JSON, replaced atomically at every look at the folder."""

import json
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from raincast.live.settings import text_of
from raincast.system.files import write_text

LATENCIES = 288
ERRORS = 5
WAITING, WORKING, STOPPED = "waiting", "working", "stopped"


@dataclass
class Record:
    """A watcher's record of its work; all but `latencies` and `errors` survive a restart.

    `counts` are of frames: forecast, late, stale, frozen, empty, future, refused, failed; and of files: taken,
    repeated, corrupt, other. Times are seconds since 1970.
    """

    counts: Counter[str] = field(default_factory=Counter)
    missed_deadlines: int = 0
    last_missed: dict[str, Any] | None = None
    last_success: dict[str, Any] | None = None
    newest_frame: float | None = None
    newest_forecast: float | None = None
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))
    errors: deque[dict[str, str]] = field(default_factory=lambda: deque(maxlen=ERRORS))

    def succeed(self, *, init_time: float, written: float, arrived: float, deadline_s: float, path: Path) -> bool:
        """Record a forecast, `written` after its frame had `arrived`; return True if it met the deadline."""
        latency = max(0.0, written - arrived)
        self.latencies.append(latency)
        self.counts["forecast"] += 1
        made = {
            "init_time": text_of(init_time),
            "written": text_of(written),
            "latency_s": round(latency, 2),
            "in_time": latency <= deadline_s,
            "file": str(path),
        }
        if latency > deadline_s:
            self.missed_deadlines += 1
            self.last_missed = made
        if self.newest_forecast is None or init_time > self.newest_forecast:
            self.newest_forecast, self.last_success = init_time, made
        return latency <= deadline_s

    def recover(self, *, init_time: float, written: float, path: Path) -> None:
        """Record a forecast that a killed run wrote without recording it."""
        self.counts["forecast"] += 1
        if self.newest_forecast is None or init_time > self.newest_forecast:
            self.newest_forecast = init_time
            self.last_success = {
                "init_time": text_of(init_time),
                "written": text_of(written),
                "latency_s": None,
                "in_time": None,
                "file": str(path),
            }

    def fail(self, what: str, reason: str, now: float) -> None:
        """Record an error for the status."""
        self.errors.append({"time": text_of(now), "what": what, "reason": reason})

    def to_state(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return {
            "counts": dict(self.counts),
            "missed_deadlines": self.missed_deadlines,
            "last_missed": self.last_missed,
            "last_success": self.last_success,
            "newest_frame": self.newest_frame,
            "newest_forecast": self.newest_forecast,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Record":
        """Restore the record of an earlier run."""
        return cls(**{**state, "counts": Counter(state["counts"])})

    def to_status(self, now: float) -> dict[str, Any]:
        """Return the record's part of the status file."""
        seconds = list(self.latencies)
        return {
            "last_success": self.last_success,
            "newest_frame": None if self.newest_frame is None else text_of(self.newest_frame),
            "data_age_s": None if self.newest_frame is None else round(now - self.newest_frame, 1),
            "latency_s": {
                "last": round(seconds[-1], 2) if seconds else None,
                "median": round(median(seconds), 2) if seconds else None,
                "max": round(max(seconds), 2) if seconds else None,
            },
            "missed_deadlines": {"count": self.missed_deadlines, "last": self.last_missed},
            "counts": dict(sorted(self.counts.items())),
            "errors": list(self.errors),
        }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace `path` atomically: a reader finds the old file or the new one."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a file of `write_json`; None if it is absent or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
