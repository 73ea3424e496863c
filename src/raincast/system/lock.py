"""Locks: one writer per archive, one command per folder, one run per run folder."""

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from raincast.system.files import remove, restore

log = logging.getLogger(__name__)

NAME = ".ingest.lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Error numbers of network file systems without locks."""
_RUN_LOCK = ".run.lock"
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Environment variables in which torchrun, Lightning, SLURM and LSF pass a process its rank."""
_made: dict[Path, list[Path]] = {}
"""Folders that this process has created, each with the parent folders that it also created."""


@contextmanager
def held(lock: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `lock`. Raises ValueError(`refusal`) at once if another process holds it.

    Its folder is created if needed. The system releases the lock of a process that dies.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(_acquired(lock, timeout=0))
        except Timeout:
            # do not wait: runs started by a timer would pile up
            raise ValueError(refusal) from None
        yield


@contextmanager
def waited_for(lock: Path) -> Iterator[None]:
    """Wait until no other process holds the file `lock`, then hold it."""
    with _acquired(lock, timeout=-1):
        yield


def is_held(lock: Path) -> bool | None:
    """Return True if a process holds the file `lock`; None where the file system has no locks."""
    file = FileLock(lock)
    try:
        file.acquire(timeout=0)
    except Timeout:
        return True
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        return None
    file.release()
    return False


@contextmanager
def _acquired(lock: Path, *, timeout: float) -> Iterator[None]:
    file = FileLock(lock)
    try:
        file.acquire(timeout=timeout)
    except (NotImplementedError, OSError) as error:
        if isinstance(error, Timeout) or (isinstance(error, OSError) and error.errno not in NO_LOCKS):
            raise
        log.warning("%s: this file system has no locks (%s). Do not run two commands on it at once.", lock, error)
    try:
        yield
    finally:
        file.release()


@contextmanager
def locked(archive: Path) -> Iterator[None]:
    """Lock the folder `archive` for this process. Raises ValueError at once if another process has it.

    The folder is created if needed, and removed at the end if it stayed empty. Partial files of killed writers are
    removed.
    """
    is_new = not archive.is_dir()
    refusal = (
        f"Another ingest is writing {archive} ({archive / NAME} is locked). Run this again when it is done: "
        "it then adds what is missing."
    )
    with held(archive / NAME, refusal):
        try:
            _remove_partials(archive)
            yield
        finally:
            _remove_partials(archive)
            if is_new and not any(path.name != NAME for path in archive.iterdir()):
                (archive / NAME).unlink(missing_ok=True)
                archive.rmdir()


def _remove_partials(archive: Path) -> None:
    restore(archive)
    for partial in archive.glob(".*.partial"):
        remove(partial)


def is_first_process() -> bool:
    """Return True if this process is the only one of its run, or the one of rank 0.

    Lightning's `rank_zero_only.rank` is that of when Lightning was imported: wrong in a process forked after that.
    """
    return not any(int(os.environ.get(rank, "0")) for rank in _RANKS)


def own_folder(path: Path) -> Path:
    """Create a folder for a new run: `path`, or `path` with a number if another run has it already."""
    number = 1
    while not make_folder(path if number == 1 else path.with_name(f"{path.name}-{number}")):
        number += 1
    return path if number == 1 else path.with_name(f"{path.name}-{number}")


def make_folder(path: Path) -> bool:
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
    if all(entry.name in (".hydra", _RUN_LOCK) or entry.suffix == ".log" for entry in path.iterdir()):
        shutil.rmtree(path)
        for folder in around:
            with suppress(OSError):  # another run uses it
                folder.rmdir()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Lock a run folder for this process. Raises ValueError at once if another process uses it."""
    with held(
        path / _RUN_LOCK, f"Another process is using the run folder {path}. Wait for it, or choose another."
    ):
        yield
