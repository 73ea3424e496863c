"""Find the files that patterns match, and tell files that only accompany radar files."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from raincast.archive.head import is_zarr
from raincast.system.remote import find, is_remote

_MAGIC = frozenset("*?[")
_SUFFIXES = frozenset(
    (
        *(".csv", ".doc", ".docx", ".html", ".htm", ".ini", ".ipynb", ".json", ".log", ".md", ".pdf"),
        *(".prj", ".py", ".rst", ".sh", ".tfw", ".toml", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".yml"),
        *(".asc", ".md5", ".md5sum", ".sha1", ".sha256", ".sha512", ".sig"),
        *(".lock", ".part", ".partial", ".tmp"),
    )
)
_NAMES = frozenset(
    (
        *("changelog", "checksum", "checksums", "copying", "desktop", "index", "licence", "license", "ls-lr"),
        *("manifest", "md5sum", "md5sums", "notice", "readme", "thumbs"),
        *("sha1sums", "sha256sum", "sha256sums", "sha512sums"),
    )
)


def accompanies(path: Path) -> bool:
    """Return True if a file is, by its name, a README, a checksum or the like, or an incomplete transfer."""
    return path.suffix.lower() in _SUFFIXES or path.stem.lower() in _NAMES


def find_files(files: str | Path | Sequence[str | Path], key: str = "files") -> list[Path]:
    """Return the files and Zarr stores that match patterns and paths, without repeats, sorted within each pattern.

    A folder stands for the visible files and Zarr stores in it. As in a shell, wildcards do not match hidden
    files. `**` follows symbolic links and gives each file once. A string that matches nothing is split at commas
    and spaces into several patterns.

    Raises FileNotFoundError, with the contents of the nearest folder, for a pattern that matches nothing; `key` is
    the config key that gave it.
    """
    patterns = [files] if isinstance(files, str | Path) else files
    if not len(patterns):
        raise FileNotFoundError(f"{key}: the list of files is empty.")
    return list(dict.fromkeys(path for pattern in patterns for path in _match_any(pattern, key)))


def _match_any(pattern: str | Path, key: str) -> list[Path]:
    try:
        return _match(pattern, key)
    except FileNotFoundError:
        parts = [part for part in re.split(r"[,\s]+", str(pattern)) if part]
        if len(parts) < 2:
            raise
        found = []
        for part in parts:
            try:
                found += _match(part, key)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"No file matches {key}={str(pattern)!r}, nor {part!r} of it. Several patterns are written "
                    f"'{key}=A,B', in quotes; a path with spaces or commas is written {key}=\"'PATH'\". {error}"
                ) from error
        return found


def _match(pattern: str | Path, key: str) -> list[Path]:
    if is_remote(pattern):
        found = find(str(pattern))
        if not found:
            raise FileNotFoundError(
                f"No file matches {key}={pattern}: there is none of this name, or the server lists no files."
            )
        return found
    path = Path(pattern).expanduser()
    if path.exists() and (path.is_file() or is_zarr(path)):
        return [path]
    if path.is_dir():
        matches = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    else:
        folder, rest = _split(path)
        # Path.glob does not follow links below ** before Python 3.13
        names = glob.iglob(str(rest), root_dir=folder, recursive=True) if folder.is_dir() else ()  # noqa: PTH207
        matches = sorted({folder / name for name in names})
    stores = {match for match in matches if match.is_dir() and is_zarr(match)}
    # a pattern with ** also matches the chunks inside a store
    found = [m for m in matches if m in stores or (m.is_file() and not stores & set(m.parents))]
    if "**" in path.parts:  # symbolic links may give several paths to one file
        found = list({match.resolve(): match for match in reversed(found)}.values())[::-1]
    if not found:
        near = path if path.is_dir() else folder
        raise FileNotFoundError(f"No file matches {key}={pattern}. {_contents(near, key)}")
    return found


def _split(path: Path) -> tuple[Path, Path]:
    """Split into the folder before the first wildcard and the pattern. A folder may itself be called `[0-2]`."""
    parts = path.parts
    wild = (i for i, part in enumerate(parts) if _MAGIC & set(part) and not Path(*parts[: i + 1]).is_dir())
    first = next(wild, len(parts) - 1)
    return Path(*parts[:first]), Path(*parts[first:])


def _contents(folder: Path, key: str) -> str:
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    holds = ", ".join(names[:8]) + more if names else "nothing"
    below = f" For files in its folders: {key}='{folder}/**/*'." if any(n.endswith("/") for n in names) else ""
    return (
        f"{folder.absolute()} holds {holds}.{below} Quote a pattern so that the shell leaves it: {key}='DIR/*.h5'"
    )
