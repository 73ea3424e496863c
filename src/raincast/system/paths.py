"""Paths of what comes with raincast and of its cache, and the commands of this installation."""

import os
import re
import stat
import sys
from pathlib import Path

HYDRA_VERSION_BASE = "1.3"
PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = (PACKAGE.parents[1] / "train.py").is_file()
"""True if raincast runs from its repository, where each command has a script."""


def conf_dir() -> Path:
    """Return the folder of configs: next to src/ in a checkout, inside the package when installed from a wheel."""
    checkout = PACKAGE.parents[1] / "conf"
    return checkout if (checkout / "train.yaml").is_file() else PACKAGE / "conf"


def sample_path() -> Path:
    """Return the path of the real radar event that comes with raincast."""
    return PACKAGE / "sample" / "2016-07-11.nc"


def as_typed(text: str) -> str:
    """Return a text with its commands as the user types them: `raincast train` if there is no train.py."""
    if CHECKOUT and not sys.argv[0].startswith("raincast "):
        return text
    return re.sub(r"\bpython (train|evaluate|forecast|ingest|export)\.py\b", r"raincast \1", text)


def cache_folder() -> Path:
    """Return the folder for what raincast can recreate, such as compiled kernels and rain tables of archives.

    It is `$RAINCAST_CACHE`, or raincast's folder in the user's cache. Raises OSError if it cannot be made.
    """
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
