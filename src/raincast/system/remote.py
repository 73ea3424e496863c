"""Read files on web servers and in object stores, by any protocol of fsspec, and cache them on disk.

A `RemotePath` can be used in place of a `Path`. Files are read in blocks of 1 MiB, which stay in the cache folder
under a key made of the URL, size and version: a file that changed is read again. If a server breaks off, is slow
or sends a wrong number of bytes, the request is repeated; if that fails too, an error is raised. Data are never
cut short.
"""

import fnmatch
import hashlib
import importlib.util
import io
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PosixPath
from typing import Any, TypeVar

from raincast.system.faults import MachineError
from raincast.system.files import atomic
from raincast.system.paths import cache_folder

log = logging.getLogger(__name__)

BLOCK = 2**20
TRIES = 4
WAIT_S = 1.0
"""Seconds before the second try. The wait doubles each time."""
CONNECT_S, ANSWER_S = 15.0, 30.0
"""Timeouts of web servers in seconds: for the connection, and for the next bytes."""
RECHECK_S = 60.0
"""Seconds after which a file is checked for changes."""
CACHE_GIB = 10.0
"""Size limit of the cache; $RAINCAST_REMOTE_CACHE_GIB overrides it."""
VERSION_KEYS = ("etag", "lastmodified", "mtime", "updated", "generation", "versionid", "contentmd5", "created")
NO_PACKAGE = "{url} needs the package {package}: pip install -e \".[remote]\" (or pip install 'raincast[remote]')."
CATALOGUE = "mlcast"
"""mlcast://NAME is the Zarr store NAME of the catalogue in the package mlcast-datasets."""
Answer = TypeVar("Answer")


class RemotePath(PosixPath):
    """The URL of a remote file or folder as a path: https://host/a/b.nc, s3://bucket/a.zarr.

    `name`, `parent`, `/` and so on work as for local paths. `open` reads, `local` downloads a file into the cache.
    """

    def __str__(self) -> str:
        """Return the URL."""
        scheme, _, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest}"

    def __repr__(self) -> str:
        """Show the URL."""
        return f"RemotePath({str(self)!r})"

    def __fspath__(self) -> str:
        """Raise TypeError: functions of the operating system cannot open it."""
        raise TypeError(f"{self} is no local file")

    def __reduce__(self) -> Any:
        """Pickle the URL."""
        return as_path, (str(self),)

    def absolute(self) -> "RemotePath":
        """Itself."""
        return self

    def resolve(self, strict: bool = False) -> "RemotePath":
        """Itself."""
        return self

    def expanduser(self) -> "RemotePath":
        """Itself."""
        return self

    def exists(self, **_: Any) -> bool:
        """True for a file, and for a folder that the server lists."""
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        """True for a file. HTML pages, such as listings of folders, are not files."""
        try:
            info = _info(str(self))
        except FileNotFoundError:
            return False
        return info["type"] == "file" and info.get("mimetype") != "text/html"

    def is_dir(self, **_: Any) -> bool:
        """True if the server lists files in it, and for Zarr stores."""
        if self.suffix == ".zarr":
            return True
        return not self.is_file() and bool(self._listed())

    def stat(self, **_: Any) -> os.stat_result:
        """Raise FileNotFoundError: there is no local file."""
        raise FileNotFoundError(f"{self} is a remote file")

    def iterdir(self) -> "Iterator[RemotePath]":  # type: ignore[override]  # the paths are of this class
        """Yield what the server lists."""
        yield from sorted(as_path(name) for name in self._listed())  # type: ignore[misc]

    def glob(self, pattern: str, **_: Any) -> "Iterator[RemotePath]":  # type: ignore[override]
        """Yield the children whose names match `pattern`."""
        return (child for child in self.iterdir() if fnmatch.fnmatchcase(child.name, pattern))

    def open(self, mode: str = "rb", *_: Any, **__: Any) -> Any:
        """Open the file for reading."""
        if mode != "rb":
            raise ValueError(f"{self} can only be read.")
        return io.BufferedReader(RemoteFile(str(self)), BLOCK)

    def sight(self) -> int:
        """Return a number that changes with the file (a Zarr store: with its metadata). Checked once a minute."""
        return int(_version(str(_described(self)))[1][:15], 16)

    def local(self) -> Path:
        """Download the file into the cache; return the local path, whose name is the same."""
        url = str(self)
        size, key = _version(url)
        path = _cache() / key / "whole" / self.name
        if path.is_file() and (size is None or path.stat().st_size == size):
            os.utime(path)
            return path
        content = _fetch(url, lambda fs, name: _whole(fs.cat_file(name), size))
        with atomic(path) as partial:
            partial.write_bytes(content)
        _evict(len(content))
        return path

    def _listed(self) -> list[str]:
        url = str(self)
        try:
            found = _fetch(url, lambda fs, name: [fs.unstrip_protocol(n) for n in fs.ls(name, detail=False)])
        except FileNotFoundError:
            return []
        return [name.rstrip("/") for name in found if name.rstrip("/") != url]


def is_remote(path: Any) -> bool:
    """Return True for URLs other than file://."""
    return isinstance(path, RemotePath) or ("://" in str(path) and not str(path).startswith("file://"))


def as_path(path: str | Path) -> Path:
    """Return a `RemotePath` for a URL, otherwise a `Path`."""
    if isinstance(path, Path):
        return path
    if not is_remote(path):
        return Path(path.removeprefix("file://"))
    scheme, _, rest = path.partition("://")
    rest = rest.rstrip("/")
    if scheme == CATALOGUE and not rest.partition("/")[0].endswith(".zarr"):
        rest = f"{rest}.zarr"
    return RemotePath(f"{scheme}:/{rest}")


def local(path: Path) -> Path:
    """Return a local path, after a download if `path` is remote. Remote Zarr stores are returned unchanged."""
    return path.local() if isinstance(path, RemotePath) and path.suffix != ".zarr" else path


def find(pattern: str) -> list[Path]:
    """Return the files of a URL, sorted: a file, a folder that the server lists, or a pattern with wildcards."""
    url = str(as_path(pattern))
    if not set("*?[") & set(url):
        path = as_path(pattern)
        if path.suffix == ".zarr" or path.is_file():
            return [path]
        return [child for child in path.iterdir() if child.suffix and not child.name.startswith((".", "?"))]
    try:
        found = _fetch(url, lambda fs, name: [fs.unstrip_protocol(n) for n in fs.glob(name)])
    except FileNotFoundError:
        return []
    return sorted(as_path(name) for name in found)


def prefetch(paths: Iterable[Path]) -> None:
    """Download the first and the last block of remote files in parallel: they hold the metadata of netCDF."""

    def ends(path: RemotePath) -> None:
        with suppress(FileNotFoundError, IncompleteError):  # whoever reads it says so
            file = RemoteFile(str(path))
            for place in (0, max(0, file.size - 1)):
                file.seek(place)
                file.read(1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ends, [path for path in paths if isinstance(path, RemotePath) and path.suffix != ".zarr"]))


class RemoteFile(io.RawIOBase):
    """A remote file, read in blocks that are cached on disk."""

    def __init__(self, url: str) -> None:
        self.url = url
        size, self.key = _version(url)
        if size is None:  # known only after the download
            size = as_path(url).local().stat().st_size  # type: ignore[attr-defined]
        self.size: int = size
        self.place = 0
        etag = str(_info(url).get("ETag", ""))
        # servers that support it refuse to send a part of a newer file
        self._same = {"headers": {"If-Match": etag}} if etag.startswith('"') and url.startswith("http") else {}
        self._block = lru_cache(4)(self._load)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        self.place = max(0, base + offset)
        return self.place

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes. Raises MachineError or IncompleteError if the server does not deliver them."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), max(0, self.size - self.place))
        done = 0
        while done < wanted:
            number, start = divmod(self.place + done, BLOCK)
            piece = self._block(number)[start : start + wanted - done]
            view[done : done + len(piece)] = piece
            done += len(piece)
        self.place += done
        return done

    def _load(self, number: int) -> bytes:
        start, stop = number * BLOCK, min((number + 1) * BLOCK, self.size)
        path = _cache() / self.key / f"{number}"
        try:
            kept = path.read_bytes()
            if len(kept) == stop - start:
                os.utime(path)
                return kept
        except OSError:
            pass
        content = _fetch(self.url, lambda fs, name: self._range(fs, name, start, stop))
        with atomic(path) as partial:
            partial.write_bytes(content)
        _evict(len(content))
        return content

    def _range(self, fs: Any, name: str, start: int, stop: int) -> bytes:
        content: bytes = fs.cat_file(name, start=start, end=stop, **self._same)
        if len(content) == stop - start:
            return content
        if len(content) == self.size:  # the server does not support ranges
            return content[start:stop]
        raise IncompleteError(
            f"it says that it has {self.size} bytes; of those from {start} to {stop} {len(content)} came"
        )


def zarr_store(path: RemotePath) -> Any:
    """Open a remote Zarr store, whose chunks are cached on disk."""
    import asyncio

    from zarr.storage import LocalStore

    class Store(LocalStore):
        """A local copy, filled on access."""

        def __init__(self, root: Path, url: str) -> None:
            super().__init__(root, read_only=True)
            self.url = url

        def _get_file(self, key: str) -> bool:
            target = Path(self.root) / key
            if target.is_file():
                os.utime(target)
                return True
            url = f"{self.url}/{key}"
            try:
                content = _fetch(url, lambda fs, name: fs.cat_file(name))
            except FileNotFoundError:
                return False
            with atomic(target) as partial:
                partial.write_bytes(content)
            _evict(len(content))
            return True

        async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
            """Return the value of a key, or a part of it."""
            if not await asyncio.to_thread(self._get_file, key):
                return None
            return await super().get(key, prototype, byte_range)

        async def exists(self, key: str) -> bool:
            """Whether the key exists."""
            return await asyncio.to_thread(self._get_file, key)

        async def list_dir(self, prefix: str) -> Any:
            """Yield the names below a prefix, as listed by the server."""
            folder = as_path(f"{self.url}/{prefix}".rstrip("/"))
            for child in await asyncio.to_thread(lambda: list(folder.iterdir())):
                yield child.name

    root = _cache() / _version(str(_described(path)))[1] / "store"
    root.mkdir(parents=True, exist_ok=True)
    return Store(root, str(path))


class IncompleteError(OSError):
    """The server sent another number of bytes than it announced."""


def _whole(content: bytes, size: int | None) -> bytes:
    if size is not None and len(content) != size:
        raise IncompleteError(f"it says that it has {size} bytes; {len(content)} came")
    return content


def _fetch(url: str, ask: Callable[[Any, str], Answer]) -> Answer:
    """Return `ask(file system, name)`; repeat it if it fails.

    Raises FileNotFoundError and PermissionError at once. After the last try, raises IncompleteError if this file
    has another length than announced, otherwise MachineError.
    """
    fs, name = _filesystem(url)
    for number in range(TRIES):
        try:
            return ask(fs, name)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # each protocol has its own errors
            if number + 1 == TRIES:
                what = f"{type(error).__name__}: {error}".rstrip(": ")
                text = f"{url} cannot be fetched, {TRIES} times tried: {what}"
                if isinstance(error, IncompleteError) or type(error).__name__ == "ClientPayloadError":
                    raise IncompleteError(text) from error
                raise MachineError(0, text) from error
            log.info("%s: %s; asked again", url, error)
            time.sleep(WAIT_S * 2**number)
    raise AssertionError


def _filesystem(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the name in it. Raises ValueError if a package is missing."""
    import fsspec

    options: dict[str, Any] = {}
    if url.startswith(f"{CATALOGUE}://"):
        url, options = _catalogued(url)
    scheme = url.partition("://")[0]
    if scheme in ("http", "https"):
        try:
            import aiohttp
        except ImportError as error:
            raise ValueError(NO_PACKAGE.format(url=url, package="aiohttp")) from error
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=ANSWER_S)
        options |= {"client_kwargs": {"timeout": timeout}, "use_listings_cache": False}
    try:
        found: tuple[Any, str] = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(scheme, str(error))
        raise ValueError(NO_PACKAGE.format(url=url, package=package)) from error
    except ValueError as error:
        raise ValueError(f"{url}: {scheme}:// is no protocol of fsspec: {error}") from error
    return found


def _catalogued(url: str) -> tuple[str, dict[str, Any]]:
    """Return the URL and the options of a name in the catalogue. Raises ValueError if it is unknown."""
    import yaml

    name, _, rest = url.partition("://")[2].partition("/")
    name = name.removesuffix(".zarr")
    package = importlib.util.find_spec("mlcast_datasets")  # found, not imported: it imports intake
    if package is None or not package.submodule_search_locations:
        raise ValueError(f"{url} needs the package mlcast-datasets: pip install mlcast-datasets")
    folder = Path(package.submodule_search_locations[0]) / "catalog"
    known: dict[str, Any] = {}
    for file in sorted(folder.rglob("*.yml")):
        listed = yaml.safe_load(file.read_text(encoding="utf-8"))["sources"]
        known |= {key: node["args"] for key, node in listed.items() if node.get("driver") == "zarr"}
    if name not in known:
        raise ValueError(f"{CATALOGUE}://{name} is not in the catalogue; there are {', '.join(sorted(known))}.")
    where = str(known[name]["urlpath"]).rstrip("/")
    return (f"{where}/{rest}" if rest else where), dict(known[name].get("storage_options", {}))


_known: dict[tuple[int, str], tuple[float, dict[str, Any]]] = {}


def _info(url: str) -> dict[str, Any]:
    """Return the metadata of a file, at most one minute old."""
    key = (os.getpid(), url)
    told, info = _known.get(key, (-RECHECK_S, {}))
    if time.monotonic() - told >= RECHECK_S or not info:
        info = _fetch(url, _ask_info)
        _known[key] = time.monotonic(), info
    return info


def _ask_info(fs: Any, name: str) -> dict[str, Any]:
    fs.invalidate_cache()
    try:
        info: dict[str, Any] = fs.info(name)
    except FileNotFoundError as error:
        cause = error.__cause__
        # fsspec raises it for every failure of a web server
        if type(cause).__module__.startswith("aiohttp") or isinstance(cause, TimeoutError | OSError):
            if getattr(cause, "status", None) in (404, 410):
                raise
            raise OSError(f"{type(cause).__name__}: {cause}") from error
        raise
    return info


def _version(url: str) -> tuple[int | None, str]:
    """Return the size of a file (None if unknown) and a key made of its URL, size and version."""
    info = _info(url)
    told = sorted((k.lower().replace("-", "").replace("_", ""), str(v)) for k, v in info.items())
    version = [pair for pair in told if pair[0] in VERSION_KEYS]
    size = info.get("size")
    return size, hashlib.sha256(f"{url} {size} {version}".encode()).hexdigest()[:32]


def _described(path: RemotePath) -> RemotePath:
    """Return the file whose version stands for `path`: for a Zarr store, its metadata."""
    if path.suffix != ".zarr":
        return path
    for name in ("zarr.json", ".zmetadata", ".zgroup"):
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"{path} is no Zarr store: it has neither zarr.json nor .zgroup.")


def _cache() -> Path:
    return cache_folder() / "remote"


_added = CACHE_GIB * 2**30


def _evict(num_bytes: int) -> None:
    """Remove the least recently used files if the cache exceeds its limit. Checks after every 5 % of it."""
    global _added
    most = float(os.environ.get("RAINCAST_REMOTE_CACHE_GIB", CACHE_GIB)) * 2**30
    _added += num_bytes
    if _added < most / 20:
        return
    _added = 0.0
    kept = []
    for file in _cache().rglob("*"):
        try:
            status = file.stat()
        except OSError:  # removed by another process
            continue
        if file.is_file():
            kept.append((status.st_mtime, status.st_size, file))
    total = sum(size for _, size, _ in kept)
    for _, size, file in sorted(kept):
        if total <= most:
            return
        file.unlink(missing_ok=True)
        total -= size
