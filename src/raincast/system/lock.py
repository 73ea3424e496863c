"""One writer an archive, one command a folder."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from raincast.system.files import remove, restore

log = logging.getLogger(__name__)

NAME = ".ingest.lock"


@contextmanager
def held(lock: Path, refusal: str) -> Iterator[None]:
    """Hold the file `lock` alone, its folder made if need be; ValueError(`refusal`) at once where another does.

    The system takes the lock from a process that dies.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = FileLock(lock)
    try:
        file.acquire(timeout=0)
    except Timeout:
        # waiting would pile up the runs of a timer
        raise ValueError(refusal) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        log.warning("%s: this file system has no locks (%s). Let no two commands use it at once.", lock, error)
    try:
        yield
    finally:
        file.release()


@contextmanager
def locked(archive: Path) -> Iterator[None]:
    """Keep the folder `archive`, made if need be, to this process; ValueError at once where another has it.

    Whatever a killed writer left half-written is removed, and the folder too if it was made in vain.
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
