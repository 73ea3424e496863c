"""Atomic writes of files and folders, and checks of zip files before anything in them is used."""

import os
import shutil
import stat
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from raincast.system.faults import naming_disk

_MAX_MEMBERS = 100_000
_MAX_RATIO = 20
"""Maximum size of the unpacked members relative to the file; float32 weights have about 1.1."""


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


def check_zip(file: BinaryIO, *, packed: bool = False) -> None:
    """Verify all checksums of a zip file by torch.

    Raises ValueError if a member is damaged, compressed or occurs twice.

    torch stores members uncompressed, so a file that unpacks to more than its size was made to exhaust the memory.
    torch itself does not verify checksums: flipped bits would be used as weights. `packed` members may be
    compressed.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len(members) > _MAX_MEMBERS or len({member.filename for member in members}) < len(members):
                raise ValueError(f"it has {len(members)} members, some of them twice or more than {_MAX_MEMBERS}")
            if not packed and any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("its members are compressed, which torch does not do")
            if sum(member.file_size for member in members) > size * (_MAX_RATIO if packed else 1):
                raise ValueError("its members are much larger than the file")
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    finally:
        file.seek(0)
    if broken is not None:
        raise ValueError(f"{broken} does not match its checksum")
