"""Where raincast keeps what it can make again: compiled kernels, the rain of archives."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$RAINCAST_CACHE`, or raincast's part of the user's cache folder; OSError where it cannot be made."""
    named = os.environ.get("RAINCAST_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named) if named else base / "raincast"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
