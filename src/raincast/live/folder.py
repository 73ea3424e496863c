"""Files as they arrive: which are new, which are still being written, what became of each.

    (new) → settling → ready → taken
                ↑         ├──→ unreadable: looked at again a few times, then corrupt
                │         ├──→ other: of another grid or step
                │         └──→ future: looked at again once the clock has reached its frames
                └── size, time of change or inode are others than when it was decided on

A file is settled when it has not changed for `settle_s`. What was decided about a file holds until it changes.
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
"""How often an unreadable file is looked at before it counts as corrupt, waiting twice as long each time."""


@dataclass
class Entry:
    """A file: how it looked when last looked at, since when, and what was decided; None: nothing yet."""

    sight: Sight
    since: float
    fate: str | None = None
    newest: float = 0.0
    """The time of its newest frame, seconds since 1970."""
    tries: int = 0
    not_before: float = 0.0
    handled: set[int] = field(default_factory=set)
    """Frames, by their number in the file, that were taken or passed over while the file was not decided on."""


class Folder:
    """A folder or quoted glob that files arrive in. Hidden files are not seen: transfers use such names."""

    def __init__(self, where: str | Path, *, settle_s: float) -> None:
        self.where = str(where)
        self.settle_s = settle_s
        self.entries: dict[Path, Entry] = {}
        self._looked = False

    def look(self, now: float) -> list[Path]:
        """The settled files that nothing was decided about, those changed first coming first."""
        try:
            present = dict(self._present())
        except FileNotFoundError:  # nothing yet, or gone for a while: what was decided holds when it comes back
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
                # what was there before the watcher has been settling since it was written
                since = now if self._looked else min(now, sight.changed_ns / 1e9)
                self.entries[path] = Entry(sight, since)
        self._looked = True
        ready = [path for path, entry in self.entries.items() if self._is_ready(entry, now)]
        return sorted(ready, key=lambda path: (self.entries[path].sight.changed_ns, str(path)))

    @property
    def num_waiting(self) -> int:
        """Files that are settling, or are to be looked at again soon."""
        return sum(entry.fate is None for entry in self.entries.values())

    def arrived(self, path: Path) -> float:
        """When the file was first seen as it is."""
        return self.entries[path].since

    def decide(self, path: Path, fate: str, *, newest: float = 0.0) -> None:
        """What became of a file, and of when its newest frame is; it is not looked at again until it changes."""
        if path in self.entries:
            self.entries[path].fate = fate
            self.entries[path].newest = newest
            self.entries[path].handled.clear()

    def postpone(self, path: Path, until: float) -> None:
        """A file holds frames of a time that the clock has not reached: it is looked at again then."""
        if path in self.entries:
            self.entries[path].fate = FUTURE
            self.entries[path].not_before = until

    def handle(self, path: Path, number: int) -> None:
        """Frame `number` of a file was taken or passed over, for good."""
        if path in self.entries:
            self.entries[path].handled.add(number)

    def has_handled(self, path: Path, number: int) -> bool:
        """Whether it was, by this run or one before."""
        return path in self.entries and number in self.entries[path].handled

    def is_postponed(self, path: Path) -> bool:
        """Whether a file is known to hold frames of the future."""
        return path in self.entries and self.entries[path].fate == FUTURE

    def taken_since(self, time: float) -> list[Path]:
        """The files of which frames of `time` or later were taken, the newest coming last."""
        found = [
            (math.inf if e.handled else e.newest, path)
            for path, e in self.entries.items()
            if e.handled or (e.fate == TAKEN and e.newest >= time)
        ]
        return [path for _, path in sorted(found)]

    def failed(self, path: Path, now: float) -> bool:
        """A file could not be read; True once that is final: it is corrupt until it changes."""
        entry = self.entries.get(path)
        if entry is None or entry.fate == CORRUPT:
            return False
        entry.tries += 1
        entry.not_before = now + self.settle_s * 2**entry.tries
        entry.fate = CORRUPT if entry.tries >= TRIES else None
        return entry.fate == CORRUPT

    def changed(self, path: Path) -> bool:
        """Whether a file is another than when it was looked at, or gone."""
        try:
            return path not in self.entries or Sight.of(path) != self.entries[path].sight
        except OSError:
            return True

    def to_state(self, most: int) -> dict[str, Any]:
        """What was decided about the `most` files that changed last, as plain data."""
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
        """Take up what an earlier run decided."""
        for path, said in state.items():
            rest = {key: value for key, value in said.items() if key not in ("sight", "handled")}
            self.entries[Path(path)] = Entry(Sight(*said["sight"]), handled=set(said["handled"]), **rest)

    def _is_ready(self, entry: Entry, now: float) -> bool:
        open_ = entry.fate in (None, FUTURE)
        return open_ and now - entry.since >= self.settle_s and now >= entry.not_before

    def _follow_clock(self, entry: Entry, now: float) -> None:
        """Where the clock was set back, no file waits for the time that it has lost."""
        entry.since = min(entry.since, now)
        if entry.fate is None:
            entry.not_before = min(entry.not_before, now + self.settle_s * 2**TRIES)

    def _present(self) -> Iterator[tuple[Path, Sight]]:
        """The files that are there; OSError where the folder cannot be listed."""
        path = Path(self.where).expanduser()
        folder = path.is_dir() and not is_zarr(path)
        for file in list(path.iterdir()) if folder else find_files(self.where, "watch"):
            if file.name.startswith(".") or accompanies(file) or (file.is_dir() and not is_zarr(file)):
                continue
            try:
                yield file, Sight.of(file)
            except OSError:  # gone since the listing, or no file
                continue
