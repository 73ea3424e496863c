"""A folder that takes the place of another, whole or not at all: what `Path.replace` does for a file."""

import ctypes
import os
import shutil
import sys
from pathlib import Path

_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_HERE = -100  # AT_FDCWD of fcntl.h


def put_in_place(new: Path, path: Path) -> None:
    """Give the folder `new` the name `path`; at once, in place of a folder that is there, where the system can.

    Elsewhere the old one steps aside first, and `restore` brings it back if that was the last thing done.
    """
    if not path.exists():
        new.rename(path)
    elif not _exchange(new, path):
        aside = path.with_name(f".{path.name}.aside")
        path.rename(aside)
        new.rename(path)
        shutil.rmtree(aside)


def restore(folder: Path) -> None:
    """Bring back the stores that stepped aside for new ones which never came."""
    for aside in folder.glob(".*.aside"):
        path = folder / aside.name[1:].removesuffix(".aside")
        if path.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(path)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step, and whether the system could."""
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    return bool(library.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)
