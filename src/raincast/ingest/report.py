"""The report of an ingest, which is returned, logged and written next to the day files."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raincast.ingest.scan import Times
from raincast.system.files import write_text

NAME = "ingest_report.json"
MOST_LISTED = 10_000
"""Limit on missing times listed one by one: a single file with a wrong year causes millions."""
BLOCK = 2**16


@dataclass(frozen=True)
class IngestReport:
    """Counts of frames, and each frame or file that was left out, with the reason.

    `num_present` counts offered frames that were in the archive before; `num_capped` counts pixels. `duplicates`
    and `off_step` give time and file. `num_missing` counts the times between the first and the last offered frame
    that are not in the archive; `missing_times` lists the first `MOST_LISTED` of them. `empty_times` had a frame
    with every pixel missing. `failed_days` could not be written (disk or memory was full, for example) and are
    unchanged: run the same ingest again. `differing` frames changed since they were ingested, and `num_replaced`
    of them were replaced. `accompanying` files are READMEs, checksums and the like.
    """

    archive: Path
    num_written: int
    num_present: int
    num_capped: int
    duplicates: tuple[str, ...]
    off_step: tuple[str, ...]
    bad_files: Mapping[str, str]
    failed_days: Mapping[str, str]
    empty_times: tuple[str, ...]
    num_missing: int
    missing_times: tuple[str, ...]
    seconds: float
    differing: tuple[str, ...] = ()
    num_replaced: int = 0
    accompanying: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Return the path that `save` writes to."""
        return self.archive / NAME

    @property
    def problems(self) -> int:
        """Return the number of bad files and failed days."""
        return len(self.bad_files) + len(self.failed_days)

    def save(self) -> None:
        """Write the report as JSON next to the day files."""
        content = dataclasses.asdict(self) | {"archive": str(self.archive)}
        write_text(self.path, json.dumps(content, indent=2) + "\n", sole=True)

    def reasons(self) -> str:
        """Return why frames were left out, in one line."""
        counts = {
            f"{len(self.failed_days)} days failed": self.failed_days,
            f"{len(self.bad_files)} bad files": self.bad_files,
            f"{len(self.empty_times)} frames with every pixel missing": self.empty_times,
            f"{len(self.off_step)} frames off the step": self.off_step,
            f"{len(self.duplicates)} duplicates": self.duplicates,
            self._differ(): self.differing,
            self._accompany(): self.accompanying,
        }
        parts = [words for words, what in counts.items() if what]
        first = next(iter([*self.failed_days.values(), *self.bad_files.values()]), "")
        return ", ".join(parts) + (f"; the first: {first}" if first else "")

    def _differ(self) -> str:
        what = f"{len(self.differing)} frames differ from the archive"
        return f"{what} and were replaced" if self.num_replaced else f"{what}: replace=true replaces them"

    def _accompany(self) -> str:
        names = ", ".join(Path(name).name for name in self.accompanying[:3])
        return f"{len(self.accompanying)} files without radar data ({names}{' …' * (len(self.accompanying) > 3)})"

    def __str__(self) -> str:
        """Return a summary for the user, in one line."""
        reasons = self.reasons()
        return (
            f"{self.archive}: {self.num_written} frames written, {self.num_present} already there, "
            f"{self.num_missing} times missing, {self.seconds:.1f} s" + (f" ({reasons})" if reasons else "")
        )


def missing_times(
    first: np.datetime64, last: np.datetime64, kept: Times, step: np.timedelta64
) -> tuple[int, Times]:
    """Return how many times from `first` to `last` are not in `kept`, and the first `MOST_LISTED` of them."""
    num_due = int((last - first) // step) + 1
    kept = kept[(kept >= first) & (kept <= last)]
    found = [kept[:0]]
    for start in range(0, num_due, BLOCK):
        due = first + step * np.arange(start, min(start + BLOCK, num_due))
        found.append(due[~np.isin(due, kept)])
        if sum(times.size for times in found) >= MOST_LISTED:
            break
    return num_due - kept.size, np.concatenate(found)[:MOST_LISTED]
