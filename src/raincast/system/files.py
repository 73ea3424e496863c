"""Atomic writes of files and folders."""

import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from raincast.system.faults import naming_disk


class Sight(NamedTuple):
    """Identifies the state of a file. A file or store that replaced another has another inode."""

    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> "Sight":
        """Return the current state. Raises OSError if `path` is absent, or neither a regular file nor a folder.

        Opening a FIFO, device or socket could block forever, without reacting to signals.
        """
        found = path.stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise OSError(f"{path} is not a regular file")
        return cls(found.st_ino, found.st_size, found.st_mtime_ns)


def sight_of(path: Path) -> int:
    """Return a number that changes when `path` is replaced or modified. Raises OSError if it is absent."""
    if (remote := getattr(path, "sight", None)) is not None:
        return int(remote())
    return hash(Sight.of(path))


@contextmanager
def atomic(path: Path, *, sole: bool = False, durable: bool = False, keep_suffix: bool = False) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, which is renamed to `path` at the end unless an error occurs.

    Readers of `path` find the old content or the new one. The folder of `path` is created if needed.

    `sole`: no other process writes `path`, so the temporary file of a killed process is overwritten; otherwise
    each thread uses its own temporary name. `durable`: the content reaches the disk before the name does, so a
    power cut leaves the old content or the new one. `keep_suffix`: the temporary path has the suffix of `path`.
    Raises MachineError if the disk is the reason why it cannot be written.
    """
    with naming_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    writer = "" if sole else f".{os.getpid()}.{threading.get_ident()}"
    name = f"{path.stem}{writer}.partial{path.suffix}" if keep_suffix else f"{path.name}{writer}.partial"
    partial = path.with_name(f".{name}")
    try:
        with naming_disk(path.parent):
            yield partial
            if durable:
                flush(partial)
            if partial.is_dir():
                put_in_place(partial, path)
            else:
                partial.replace(path)
            if durable:
                flush(path.parent)
    finally:
        remove(partial)


def write_text(path: Path, text: str, *, sole: bool = False) -> Path:
    """Write `text` atomically as UTF-8; return `path`."""
    with atomic(path, sole=sole) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents; do nothing if it is absent or cannot be removed."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, as far as the system can (no folders on Windows)."""
    with suppress(OSError) if path.is_dir() else nullcontext():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def put_in_place(new: Path, path: Path) -> None:
    """Rename the folder `new` to `path`.

    An existing folder is renamed first, so for a moment there is none. If a process died at that moment, `restore`
    brings the old one back.
    """
    if not path.exists():
        new.rename(path)
        return
    aside = path.with_name(f".{path.name}.aside")
    path.rename(aside)
    new.rename(path)
    shutil.rmtree(aside)


def restore(folder: Path) -> None:
    """Restore folders in `folder` that were renamed by `put_in_place` but never replaced."""
    for aside in folder.glob(".*.aside"):
        path = folder / aside.name[1:].removesuffix(".aside")
        if path.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(path)
