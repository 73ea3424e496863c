"""What is wrong with this machine (disk, handles, memory), told apart from what is wrong with a file.

Libraries call a full disk "NetCDF: HDF error" or "Permission denied", and a whole file damaged where no more files
can be opened. So after an error the machine is asked.
"""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENODEV, errno.ESTALE)
HANDLES = (errno.EMFILE, errno.ENFILE)
_PROBE = bytes(2**20)
_HDF5_ERRNO = re.compile(r"errno = (\d+)")


class MachineError(OSError):
    """A limit of this machine, and no fault of a file; `errno` says which, the text what to do."""

    def __str__(self) -> str:
        """The text alone."""
        return str(self.strerror)


@contextmanager
def naming_disk(folder: Path) -> Iterator[None]:
    """Around what writes into `folder`: MachineError in the place of what a library says of a full disk."""
    try:
        yield
    except MachineError:
        raise
    except Exception as error:
        raise_if_disk(folder, error)
        raise_if_handles(error)
        raise


def raise_if_disk(folder: Path, error: BaseException) -> None:
    """MachineError where nothing can be written into `folder`: a full or read-only disk, a missing right."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(_PROBE)
            os.fsync(probe.fileno())
    except OSError as found:
        if found.errno in HANDLES:
            return
        raise MachineError(found.errno, f"{folder} cannot be written to: {_words(found, folder)}.") from error


def raise_if_handles(error: BaseException | None = None) -> None:
    """MachineError where this process, or the machine, can open no more files, which may be what went wrong."""
    numbers = {n for one in _chain(error) if (n := _errno(one)) is not None}
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as found:
        numbers.add(found.errno or 0)
    if numbers.isdisjoint(HANDLES):
        return
    raise MachineError(
        errno.EMFILE,
        f"No more files can be opened: this process may have {_most_handles()} at once, and all are in use. The "
        "files are not damaged. Allow more (ulimit -n 4096), or use fewer processes.",
    ) from error


def reason_of(error: BaseException) -> str | None:
    """What of this machine an error is about, in words; None where it is about something else."""
    for one in _chain(error):
        if isinstance(one, MachineError):
            return str(one)
        if isinstance(one, MemoryError) or "not enough memory" in str(one) or "out of memory" in str(one).lower():
            return f"There is not enough memory: {str(one).splitlines()[0] if str(one) else 'none is left'}"
        if _errno(one) in (*DISK, errno.EACCES, errno.EPERM):
            return str(one)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _errno(error: BaseException) -> int | None:
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:
        return number
    said = _HDF5_ERRNO.search(str(error))  # h5py states the number in the text
    return int(said[1]) if said else None


def _words(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        mount = folder.resolve()
        while not mount.is_mount() and mount != mount.parent:
            mount = mount.parent
        return f"{error.strerror}, on the disk at {mount}. Free some, or write elsewhere"
    return str(error.strerror)


def _most_handles() -> int | str:
    try:
        import resource
    except ImportError:  # Windows
        return "only so many"
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
