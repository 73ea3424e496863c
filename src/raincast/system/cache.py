"""The cache folder for data that raincast can recreate: compiled kernels, rain tables of archives."""

import os
import stat
from pathlib import Path


def cache_folder() -> Path:
    """Return `$RAINCAST_CACHE`, or raincast's folder in the user's cache. Raises OSError if it cannot be made."""
    named = os.environ.get("RAINCAST_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named) if named else base / "raincast"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def check_owner(path: Path) -> None:
    """Raise PermissionError if users other than this one and root could have written code at `path`."""
    if not hasattr(os, "geteuid"):
        return  # Windows has no such modes; its cache is in the user's profile
    found = path.stat()
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"other users could have written {path} (owner {found.st_uid}, mode {stat.filemode(found.st_mode)}): "
            f"run chmod go-w {path}, or set RAINCAST_CACHE to your own folder"
        )
