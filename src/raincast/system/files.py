"""Files and folders that appear whole or not at all."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple


class Sight(NamedTuple):
    """Tells one state of a file from another. A file or store that takes another's place has another inode."""

    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> "Sight":
        """As it is now; OSError where it is gone."""
        stat = path.stat()
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns)


def sight_of(path: Path) -> int:
    """A number that is another once `path` is another file or store, or has changed; OSError where it is gone."""
    return hash(Sight.of(path))


@contextmanager
def atomic(path: Path, *, sole: bool = False, durable: bool = False, keep_suffix: bool = False) -> Iterator[Path]:
    """Yield a path to write a file or a folder to. It takes the name `path` at the end, unless there was an error.

    Readers of `path` find the old content or the new one. The folder of `path` is made if need be.

    `sole`: no other process writes `path`, so what a killed process left half-written is overwritten; else each
    thread writes to a name of its own. `durable`: the content reaches the disk before the name does, so that a
    power cut leaves the old content or the new one. `keep_suffix`: the yielded path ends as `path` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = "" if sole else f".{os.getpid()}.{threading.get_ident()}"
    name = f"{path.stem}{writer}.partial{path.suffix}" if keep_suffix else f"{path.name}{writer}.partial"
    partial = path.with_name(f".{name}")
    try:
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
    """Write `text` as UTF-8 by `atomic`; returns `path`."""
    with atomic(path, sole=sole) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def remove(path: Path) -> None:
    """Remove a file, or a folder with all in it; nothing happens where there is neither, or it cannot be done."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Let a file or the names in a folder reach the disk, where the system can (folders: not on Windows)."""
    with suppress(OSError) if path.is_dir() else nullcontext():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def put_in_place(new: Path, path: Path) -> None:
    """Give the folder `new` the name `path`.

    A folder that is there steps aside first, so for a moment there is none. `restore` brings the old one back
    where a process died in that moment.
    """
    if not path.exists():
        new.rename(path)
        return
    aside = path.with_name(f".{path.name}.aside")
    path.rename(aside)
    new.rename(path)
    shutil.rmtree(aside)


def restore(folder: Path) -> None:
    """Bring back the folders in `folder` that stepped aside for new ones which never came."""
    for aside in folder.glob(".*.aside"):
        path = folder / aside.name[1:].removesuffix(".aside")
        if path.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(path)
