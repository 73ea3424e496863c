"""Tell faults of this machine (disk, file handles, memory) from faults of a file.

Libraries report a full disk as "NetCDF: HDF error" or "Permission denied", and call an intact file damaged if no
more files can be opened. Therefore the machine is checked after an error.
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
    """A limit of this machine, not a fault of a file. `errno` is the kind, the message says what to do."""

    def __str__(self) -> str:
        """Return the message without the errno."""
        return str(self.strerror)


@contextmanager
def naming_disk(folder: Path) -> Iterator[None]:
    """Wrap code that writes into `folder`: raise MachineError instead of a library's error for a full disk."""
    try:
        yield
    except MachineError:
        raise
    except Exception as error:
        raise_if_disk(folder, error)
        raise_if_handles(error)
        raise


def raise_if_disk(folder: Path, error: BaseException) -> None:
    """Raise MachineError if `folder` cannot be written to: full or read-only disk, or no permission."""
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
    """Raise MachineError if this process or the machine can open no more files, a possible cause of `error`."""
    numbers = {n for one in _chain(error) if (n := _errno(one)) is not None}
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as found:
        numbers.add(found.errno or 0)
    if numbers.isdisjoint(HANDLES):
        return
    raise MachineError(
        errno.EMFILE,
        f"No more files can be opened: this process may open {_most_handles()} at once, and all are in use. The "
        "files are not damaged. Allow more (ulimit -n 4096), or use fewer processes.",
    ) from error


def reason_of(error: BaseException) -> str | None:
    """Return the fault of this machine that caused an error, as a message; None for other errors."""
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
    said = _HDF5_ERRNO.search(str(error))  # h5py gives the number in the message
    return int(said[1]) if said else None


def _words(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        mount = folder.resolve()
        while not mount.is_mount() and mount != mount.parent:
            mount = mount.parent
        return f"{error.strerror}, on the disk at {mount}. Free some space, or write elsewhere"
    return str(error.strerror)


def _most_handles() -> int | str:
    try:
        import resource
    except ImportError:  # Windows
        return "a limited number"
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
