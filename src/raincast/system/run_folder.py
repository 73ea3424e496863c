"""Run folders: each run makes one for itself, and locks it while it lasts."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raincast.system.lock import held

LOCK = ".run.lock"

_made: dict[Path, list[Path]] = {}
"""The folders that this process has made, each with the folders around it that it made, too."""


def own(path: Path) -> Path:
    """Make a folder for a new run: `path`, or `path` with a suffix where another run has it already."""
    number = 1
    while not make(path if number == 1 else path.with_name(f"{path.name}-{number}")):
        number += 1
    return path if number == 1 else path.with_name(f"{path.name}-{number}")


def make(path: Path) -> bool:
    """Make the folder; False where it is there already."""
    while True:
        around = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            return False
        except FileNotFoundError:
            continue  # another run has just removed the empty folder around it
        _made[path.absolute()] = around
        return True


def remove_if_empty(path: Path) -> None:
    """Remove a run folder that this process has made and that holds nothing but Hydra's own notes."""
    around = _made.get(path.absolute())
    if around is None or not path.is_dir():
        return
    if all(entry.name in (".hydra", LOCK) or entry.suffix == ".log" for entry in path.iterdir()):
        shutil.rmtree(path)
        for folder in around:
            with suppress(OSError):  # another run is in it
                folder.rmdir()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep a run folder to this process; ValueError at once where another uses it."""
    with held(path / LOCK, f"Another process is using the run folder {path}. Wait for its end, or take another."):
        yield
