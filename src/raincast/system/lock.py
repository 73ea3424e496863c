"""Locks: one writer per archive, one command per folder."""

import errno
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from raincast.system.files import remove, restore

log = logging.getLogger(__name__)

NAME = ".ingest.lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Error numbers of network file systems without locks."""


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
