"""Files as they arrive: which are new, which are still being written, what became of each.

    (new) → settling → ready → taken
                ↑         ├──→ unreadable: looked at again a few times, then corrupt
                │         └──→ other: of another grid or step
                └── size, time of change or inode are others than when it was decided on

A file is settled when it has not changed for `settle_s`. What was decided about a file holds until it changes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raincast.archive.head import is_zarr
from raincast.ingest.files import accompanies, find_files
from raincast.system.files import Sight

TAKEN, CORRUPT, OTHER, OLD = "taken", "corrupt", "other", "old"
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


class Folder:
    """A folder or quoted glob that files arrive in. Hidden files are not seen: transfers use such names."""

    def __init__(self, where: str | Path, *, settle_s: float) -> None:
        self.where = str(where)
        self.settle_s = settle_s
        self.entries: dict[Path, Entry] = {}
        self._looked = False

    def look(self, now: float) -> list[Path]:
        """The settled files that nothing was decided about, those changed first coming first."""
        present = dict(self._present())
        for path in self.entries.keys() - present.keys():
            del self.entries[path]
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
        """Files that are settling, or are to be looked at again."""
        return sum(entry.fate is None for entry in self.entries.values())

    def arrived(self, path: Path) -> float:
        """When the file was first seen as it is."""
        return self.entries[path].since

    def decide(self, path: Path, fate: str, *, newest: float = 0.0) -> None:
        """What became of a file, and of when its newest frame is; it is not looked at again until it changes."""
        if path in self.entries:
            self.entries[path].fate = fate
            self.entries[path].newest = newest

    def taken_since(self, time: float) -> list[Path]:
        """The files that were taken and hold frames of `time` or later, the newest coming last."""
        found = [(e.newest, path) for path, e in self.entries.items() if e.fate == TAKEN and e.newest >= time]
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
        decided = [(path, e) for path, e in self.entries.items() if e.fate not in (None, OLD)]
        decided.sort(key=lambda item: item[1].sight.changed_ns)
        return {
            str(path): [e.sight.inode, e.sight.size, e.sight.changed_ns, e.since, e.fate, e.newest]
            for path, e in decided[-most:]
        }

    def from_state(self, state: dict[str, Any]) -> None:
        """Take up what an earlier run decided."""
        for path, (inode, size, changed_ns, since, fate, newest) in state.items():
            self.entries[Path(path)] = Entry(Sight(inode, size, changed_ns), since, fate, newest)

    def _is_ready(self, entry: Entry, now: float) -> bool:
        return entry.fate is None and now - entry.since >= self.settle_s and now >= entry.not_before

    def _present(self) -> Iterator[tuple[Path, Sight]]:
        path = Path(self.where).expanduser()
        folder = path.is_dir() and not is_zarr(path)
        try:
            found = [Path(f) for f in path.iterdir()] if folder else find_files(self.where)
        except FileNotFoundError:  # nothing yet
            return
        for file in found:
            if file.name.startswith(".") or accompanies(file) or (file.is_dir() and not is_zarr(file)):
                continue
            try:
                yield file, Sight.of(file)
            except OSError:  # gone since the listing
                continue
