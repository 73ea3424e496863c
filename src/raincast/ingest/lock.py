"""One writer an archive."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from raincast.archive.swap import restore

NAME = ".ingest.lock"


@contextmanager
def locked(archive: Path) -> Iterator[None]:
    """Keep the folder `archive`, made if need be, to this process; ValueError at once where another has it.

    Whatever a killed writer left half-written is removed, and the folder too if it was made in vain.
    The system takes the lock from a process that dies.
    """
    is_new = not archive.is_dir()
    archive.mkdir(parents=True, exist_ok=True)
    lock = FileLock(archive / NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        # waiting would pile up the runs of a timer
        raise ValueError(
            f"Another ingest is writing {archive} ({archive / NAME} is locked). Run this again when it is done: "
            "it then adds what is missing."
        ) from None
    try:
        _remove_partials(archive)
        yield
    finally:
        _remove_partials(archive)
        if is_new and not any(path.name != NAME for path in archive.iterdir()):
            (archive / NAME).unlink(missing_ok=True)
            archive.rmdir()
        lock.release()


def _remove_partials(archive: Path) -> None:
    restore(archive)
    for partial in archive.glob(".*.partial"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
