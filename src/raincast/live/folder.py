"""Files as they arrive: new, still being written, or decided on.

    (new) → settling → ready → taken
                ↑         ├──→ unreadable: looked at again a few times, then corrupt
                │         ├──→ other: of another grid or step
                │         └──→ future: looked at again once the clock has reached its frames
                └── size, modification time or inode have changed since the decision

A file is settled when it has not changed for `settle_s`. A decision about a file holds until the file changes.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raincast.archive.find import accompanies, find_files
from raincast.archive.head import is_zarr
from raincast.system.files import Sight

log = logging.getLogger(__name__)

TAKEN, CORRUPT, OTHER, OLD, FUTURE = "taken", "corrupt", "other", "old", "future"
TRIES = 3
"""Number of tries before an unreadable file counts as corrupt; the delay doubles each time."""


@dataclass
class Entry:
    """A file: its last seen state, when that began (seconds since 1970), and the decision (None: undecided)."""

    sight: Sight
    since: float
    fate: str | None = None
    newest: float = 0.0
    """Time of its newest frame in seconds since 1970."""
    tries: int = 0
    not_before: float = 0.0
    handled: set[int] = field(default_factory=set)
    """Numbers of the frames that were taken or skipped while the file was undecided."""


class Folder:
    """A folder or quoted glob in which files arrive. Hidden files are ignored: transfers use such names."""

    def __init__(self, where: str | Path, *, settle_s: float) -> None:
        self.where = str(where)
        self.settle_s = settle_s
        self.entries: dict[Path, Entry] = {}
        self._looked = False

    def look(self, now: float) -> list[Path]:
        """Return the settled, undecided files, in the order of their changes."""
        try:
            present = dict(self._present())
        except FileNotFoundError:  # nothing yet, or gone for a while: decisions hold when it comes back
            return []
        except OSError as error:
            log.warning("%s cannot be listed: %s", self.where, error)
            return []
        for path in self.entries.keys() - present.keys():
            del self.entries[path]
        for known in self.entries.values():
            self._follow_clock(known, now)
        for path, sight in present.items():
            entry = self.entries.get(path)
            if entry is None or entry.sight != sight:
                # files older than the watcher have been settling since they were written
                since = now if self._looked else min(now, sight.changed_ns / 1e9)
                self.entries[path] = Entry(sight, since)
        self._looked = True
        ready = [path for path, entry in self.entries.items() if self._is_ready(entry, now)]
        return sorted(ready, key=lambda path: (self.entries[path].sight.changed_ns, str(path)))

    @property
    def num_waiting(self) -> int:
        """Number of files that are settling or will be tried again soon."""
        return sum(entry.fate is None for entry in self.entries.values())

    def arrived(self, path: Path) -> float:
        """Return when the file was first seen in its current state, in seconds since 1970."""
        return self.entries[path].since

    def decide(self, path: Path, fate: str, *, newest: float = 0.0) -> None:
        """Record the decision about a file and the time of its newest frame; it holds until the file changes."""
        if path in self.entries:
            self.entries[path].fate = fate
            self.entries[path].newest = newest
            self.entries[path].handled.clear()

    def postpone(self, path: Path, until: float) -> None:
        """Look at a file again at the time `until`, because it has frames ahead of the clock."""
        if path in self.entries:
            self.entries[path].fate = FUTURE
            self.entries[path].not_before = until

    def handle(self, path: Path, number: int) -> None:
        """Record that frame `number` of a file was taken or skipped."""
        if path in self.entries:
            self.entries[path].handled.add(number)

    def has_handled(self, path: Path, number: int) -> bool:
        """Return True if this run or an earlier one took or skipped the frame."""
        return path in self.entries and number in self.entries[path].handled

    def is_postponed(self, path: Path) -> bool:
        """Return True if a file has frames ahead of the clock."""
        return path in self.entries and self.entries[path].fate == FUTURE

    def taken_since(self, time: float) -> list[Path]:
        """Return the files of which frames of `time` or later were taken, the newest last."""
        found = [
            (math.inf if e.handled else e.newest, path)
            for path, e in self.entries.items()
            if e.handled or (e.fate == TAKEN and e.newest >= time)
        ]
        return [path for _, path in sorted(found)]

    def failed(self, path: Path, now: float) -> bool:
        """Record that a file could not be read; return True if it now counts as corrupt, until it changes."""
        entry = self.entries.get(path)
        if entry is None or entry.fate == CORRUPT:
            return False
        entry.tries += 1
        entry.not_before = now + self.settle_s * 2**entry.tries
        entry.fate = CORRUPT if entry.tries >= TRIES else None
        return entry.fate == CORRUPT

    def changed(self, path: Path) -> bool:
        """Return True if a file has changed since the last look, or is gone."""
        try:
            return path not in self.entries or Sight.of(path) != self.entries[path].sight
        except OSError:
            return True

    def to_state(self, most: int) -> dict[str, Any]:
        """Return the decisions about the `most` files that changed last, as plain data."""
        decided = [(path, e) for path, e in self.entries.items() if e.fate is not None or e.handled]
        decided.sort(key=lambda item: item[1].sight.changed_ns)
        return {
            str(path): {
                "sight": [e.sight.inode, e.sight.size, e.sight.changed_ns],
                "since": e.since,
                "fate": e.fate,
                "newest": e.newest,
                "not_before": e.not_before,
                "handled": sorted(e.handled),
            }
            for path, e in decided[-most:]
        }

    def from_state(self, state: dict[str, Any]) -> None:
        """Restore the decisions of an earlier run."""
        for path, said in state.items():
            rest = {key: value for key, value in said.items() if key not in ("sight", "handled")}
            self.entries[Path(path)] = Entry(Sight(*said["sight"]), handled=set(said["handled"]), **rest)

    def _is_ready(self, entry: Entry, now: float) -> bool:
        open_ = entry.fate in (None, FUTURE)
        return open_ and now - entry.since >= self.settle_s and now >= entry.not_before

    def _follow_clock(self, entry: Entry, now: float) -> None:
        """If the clock was set back, do not let the file wait for the lost time."""
        entry.since = min(entry.since, now)
        if entry.fate is None:
            entry.not_before = min(entry.not_before, now + self.settle_s * 2**TRIES)

    def _present(self) -> Iterator[tuple[Path, Sight]]:
        """Yield the files of the folder; raises OSError if it cannot be listed."""
        path = Path(self.where).expanduser()
        folder = path.is_dir() and not is_zarr(path)
        for file in list(path.iterdir()) if folder else find_files(self.where, "watch"):
            if file.name.startswith(".") or accompanies(file) or (file.is_dir() and not is_zarr(file)):
                continue
            try:
                yield file, Sight.of(file)
            except OSError:  # gone since the listing, or no file
                continue
