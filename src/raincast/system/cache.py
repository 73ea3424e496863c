"""Where raincast keeps what it can make again: compiled kernels, the rain of archives."""

import os
import stat
from pathlib import Path


def cache_folder() -> Path:
    """`$RAINCAST_CACHE`, or raincast's part of the user's cache folder; OSError where it cannot be made."""
    named = os.environ.get("RAINCAST_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named) if named else base / "raincast"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def check_owner(path: Path) -> None:
    """PermissionError where others than this user and root could have written what would be loaded as code."""
    if not hasattr(os, "geteuid"):
        return  # Windows has no such modes; its cache lies in the user's profile
    found = path.stat()
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"others could have written {path} (owner {found.st_uid}, mode {stat.filemode(found.st_mode)}): "
            f"chmod go-w {path}, or name a folder of your own with RAINCAST_CACHE"
        )
