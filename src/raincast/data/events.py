"""Splits by event: a list has the periods of rain, and no event is in two splits."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raincast.data.windows import (
    SPLITS,
    TimeRange,
    Times,
    check_fractions,
    draw_splits,
    embargo_of,
    in_order,
    parse_utc,
    with_embargo,
)


@dataclass(frozen=True)
class EventSplit:
    """The events of a CSV file with the columns `start` and `stop` (UTC, stop excluded).

    A column `split` assigns them (train, val, test); without it, whole events are drawn at random by `fractions`
    and `seed`. Frames outside events belong to no split. If events of different splits are closer than
    `embargo_minutes` (None: the length of a window), the later one starts later.
    """

    events: str | Path
    fractions: Sequence[float] = (0.7, 0.15, 0.15)
    embargo_minutes: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for invalid fractions."""
        check_fractions(self.fractions)

    def ranges(self, times: Times, step: np.timedelta64, window: np.timedelta64) -> list[TimeRange]:
        """Return the events that have frames, in order. Raises ValueError for a wrong list or an overlap."""
        rows = self._rows()
        given = [row.get("split") or "" for row in rows]
        if any(given) and set(given) - set(SPLITS):
            wrong = sorted(set(given) - set(SPLITS))
            raise ValueError(
                f"{self.events}: the column split holds {wrong}; give {', '.join(SPLITS)} in every row."
            )
        events = [
            TimeRange(row["split"] if any(given) else "", parse_utc(row["start"]), parse_utc(row["stop"]))
            for row in rows
        ]
        events = [event for event in in_order(events) if _holds_frames(event, times)]
        if not any(given):
            names = draw_splits(len(events), self.fractions, self.seed)
            events = [TimeRange(name, e.start, e.stop) for name, e in zip(names, events, strict=True)]
        return with_embargo(events, embargo_of(self.embargo_minutes, window))

    def _rows(self) -> list[dict[str, str]]:
        try:
            with Path(self.events).open(encoding="utf-8", newline="") as file:
                rows = [*csv.DictReader(file)]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"data.split.events={self.events} cannot be read: {error}") from error
        if not rows or not {"start", "stop"} <= set(rows[0]):
            found = ", ".join(rows[0]) if rows else "nothing"
            raise ValueError(
                f"data.split.events={self.events} needs a header with start, stop and optionally split, and one "
                f"row per event; found: {found}."
            )
        return rows


def _holds_frames(event: TimeRange, times: Times) -> bool:
    begin, end = np.searchsorted(times, [event.start, event.stop])
    return bool(begin < end)
