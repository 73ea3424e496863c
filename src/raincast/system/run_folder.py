"""Run folders: each run creates its own and locks it while it runs."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raincast.system.lock import held

LOCK = ".run.lock"
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Environment variables in which torchrun, Lightning, SLURM and LSF pass a process its rank."""

_made: dict[Path, list[Path]] = {}
"""Folders that this process has created, each with the parent folders that it also created."""


def is_first_process() -> bool:
    """Return True if this process is the only one of its run, or the one of rank 0.

    Lightning's `rank_zero_only.rank` is that of when Lightning was imported: wrong in a process forked after that.
    """
    return not any(int(os.environ.get(rank, "0")) for rank in RANKS)


def own(path: Path) -> Path:
    """Create a folder for a new run: `path`, or `path` with a number if another run has it already."""
    number = 1
    while not make(path if number == 1 else path.with_name(f"{path.name}-{number}")):
        number += 1
    return path if number == 1 else path.with_name(f"{path.name}-{number}")


def make(path: Path) -> bool:
    """Create the folder; return False if it exists already."""
    while True:
        around = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            return False
        except FileNotFoundError:
            continue  # another run has just removed the empty parent folder
        _made[path.absolute()] = around
        return True


def remove_if_empty(path: Path) -> None:
    """Remove a run folder that this process created and that holds only Hydra's files and logs."""
    around = _made.get(path.absolute())
    if around is None or not path.is_dir():
        return
    if all(entry.name in (".hydra", LOCK) or entry.suffix == ".log" for entry in path.iterdir()):
        shutil.rmtree(path)
        for folder in around:
            with suppress(OSError):  # another run uses it
                folder.rmdir()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Lock a run folder for this process. Raises ValueError at once if another process uses it."""
    with held(path / LOCK, f"Another process is using the run folder {path}. Wait for it, or choose another."):
        yield
