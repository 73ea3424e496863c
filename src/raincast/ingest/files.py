"""Which files the user means, from patterns."""

from collections.abc import Sequence
from pathlib import Path

from raincast.archive.head import is_zarr

_MAGIC = frozenset("*?[")


def find_files(files: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files and Zarr folders of patterns and paths, without repeats: by name within each pattern.

    A folder that is an archive stands for its parts.

    FileNotFoundError, with what lies beside, for a pattern or path that nothing matches.
    """
    patterns = [files] if isinstance(files, str | Path) else files
    return list(dict.fromkeys(path for pattern in patterns for path in _match(pattern)))


def _match(pattern: str | Path) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.exists() and (path.is_file() or is_zarr(path)):
        return [path]
    if path.is_dir() and (parts := sorted(path.glob("*.nc")) or sorted(path.glob("*.zarr"))):
        return parts
    folder, rest = _split(path)
    matches = sorted(folder.glob(str(rest))) if rest.parts and folder.is_dir() else []
    stores = {match for match in matches if match.is_dir() and is_zarr(match)}
    # a pattern with ** also meets the chunks inside a store
    found = [m for m in matches if m in stores or (m.is_file() and not stores & set(m.parents))]
    if not found:
        raise FileNotFoundError(f"No file matches files={pattern}. {_beside(path if path.is_dir() else folder)}")
    return found


def _split(path: Path) -> tuple[Path, Path]:
    """The folder before the first wildcard, and the pattern from there."""
    parts = path.parts
    first = next((i for i, part in enumerate(parts) if _MAGIC & set(part)), len(parts) - 1)
    return Path(*parts[:first]), Path(*parts[first:])


def _beside(folder: Path) -> str:
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    holds = ", ".join(names[:8]) + more if names else "nothing"
    return f"{folder.absolute()} holds {holds}. Quote a pattern so that the shell leaves it: files='DIR/*.h5'"
