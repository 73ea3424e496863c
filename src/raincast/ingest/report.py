"""What an ingest did: returned, logged, and written beside the day files."""

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
"""Missing times that are told one by one: between one file of a wrong year and the others there are millions."""
BLOCK = 2**16


@dataclass(frozen=True)
class IngestReport:
    """Counts of frames, and each frame or file that was left out with its reason.

    `num_present` frames were offered and in the archive before; `num_capped` counts pixels. `duplicates` and
    `off_step` say time and file. `num_missing` times are due between the first and the last frame offered and not
    in the archive, `missing_times` are the first `MOST_LISTED` of them; `empty_times` are those whose frame had
    every pixel missing. `failed_days` were not written, for want of disk or memory say, and are as they were: run
    the same ingest again. `differing` frames changed since they were ingested, `num_replaced` of them were taken;
    `accompanying` files are READMEs, checksums and the like.
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
        """Where `save` writes it."""
        return self.archive / NAME

    @property
    def problems(self) -> int:
        """How many files were bad and days failed."""
        return len(self.bad_files) + len(self.failed_days)

    def save(self) -> None:
        """Write it as JSON beside the day files."""
        content = dataclasses.asdict(self) | {"archive": str(self.archive)}
        write_text(self.path, json.dumps(content, indent=2) + "\n", sole=True)

    def reasons(self) -> str:
        """Why frames were left out, in one line."""
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
        return (
            f"{what} and were replaced" if self.num_replaced else f"{what}: replace=true takes those of the files"
        )

    def _accompany(self) -> str:
        names = ", ".join(Path(name).name for name in self.accompanying[:3])
        return (
            f"{len(self.accompanying)} files that are no radar data ({names}{' …' * (len(self.accompanying) > 3)})"
        )

    def __str__(self) -> str:
        """One line for the user."""
        reasons = self.reasons()
        return (
            f"{self.archive}: {self.num_written} frames written, {self.num_present} were there, "
            f"{self.num_missing} times missing, {self.seconds:.1f} s" + (f" ({reasons})" if reasons else "")
        )


def missing_times(
    first: np.datetime64, last: np.datetime64, kept: Times, step: np.timedelta64
) -> tuple[int, Times]:
    """How many times from `first` to `last` are due and not in `kept`, and the first `MOST_LISTED` of them."""
    num_due = int((last - first) // step) + 1
    kept = kept[(kept >= first) & (kept <= last)]
    found = [kept[:0]]
    for start in range(0, num_due, BLOCK):
        due = first + step * np.arange(start, min(start + BLOCK, num_due))
        found.append(due[~np.isin(due, kept)])
        if sum(times.size for times in found) >= MOST_LISTED:
            break
    return num_due - kept.size, np.concatenate(found)[:MOST_LISTED]
