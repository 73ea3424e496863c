"""Read the chunks of a netCDF file with h5py and zstandard directly into the memory of a batch.

This bypasses netCDF4 for speed: h5py opens files much faster, one decompressor serves all chunks while HDF5's
filter creates one for each, and a window is not copied before it is rotated and stacked.
"""

import functools
import itertools
import math
import operator
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import zstandard
from xarray.backends import CachingFileManager
from xarray.backends.lru_cache import LRUCache
from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK

from raincast.archive.head import DAMAGE
from raincast.system.remote import RemotePath

ZSTD_FILTER = 32015
"""HDF5's filter number of zstd: github.com/HDFGroup/hdf5_plugins, RegisteredFilterPlugins."""
CODES = np.dtype("<i2")
Codes = npt.NDArray[np.int16]
MOST_OPEN = 128
OWN_HANDLES = 24
"""File handles reserved for other purposes: standard streams, pipes to workers, logs, outputs."""
UNREADABLE = (*DAMAGE, OSError, zstandard.ZstdError)


def most_open() -> int:
    """Return how many files each of two caches may keep open within the limit of the process."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MOST_OPEN
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_OPEN if allowed < 0 else max(1, min(MOST_OPEN, (allowed - OWN_HANDLES) // 2))


@functools.cache
def open_files() -> LRUCache[Any, Any]:
    """Return the LRU cache of open archive files."""
    return LRUCache(most_open(), on_evict=lambda _, file: file.close())


class Unpacked:
    """LRU cache of an archive's unpacked chunks in a process, at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.num_bytes = 0
        self.decompressor = zstandard.ZstdDecompressor()
        self.numbers = itertools.count()
        self._chunks: OrderedDict[tuple[int, int, int, int], Codes] = OrderedDict()

    def get(self, key: tuple[int, int, int, int]) -> Codes | None:
        """Return the chunk if it is cached, else None."""
        chunk = self._chunks.get(key)
        if chunk is not None:
            self._chunks.move_to_end(key)
        return chunk

    def keep(self, key: tuple[int, int, int, int], chunk: Codes) -> None:
        """Add a chunk and evict the least recently used ones."""
        self._chunks[key] = chunk
        self.num_bytes += chunk.nbytes
        while self.num_bytes > self.limit:
            self.num_bytes -= self._chunks.popitem(last=False)[1].nbytes


@dataclass(eq=False)
class ChunkedCodes:
    """Codes (T, H, W) in chunks that are compressed with zstd only.

    On any error of `read`, use netCDF4 instead: it fills chunks that were never written, and reports damage.
    `has_negative` is True once a chunk had a negative code other than missing. Chunks are checked right after they
    are unpacked, while they are in the processor's cache: a check of each window would take five times as long. A
    chunk that was evicted and is unpacked again is the same, and is not checked again.
    """

    number: int
    variable: bytes
    files: CachingFileManager[Any]
    shape: tuple[int, int, int]
    chunk: tuple[int, int, int]
    unpacked: Unpacked
    has_negative: bool = False
    opened: tuple[Any, Any] = (None, None)
    """The file that was read last, with its variable."""

    @functools.cached_property
    def checked(self) -> npt.NDArray[np.bool_]:
        """Return the mask of chunks, by their number along each axis, that were checked; none at first."""
        sizes = zip(self.shape, self.chunk, strict=True)
        return np.zeros([-(-size // length) for size, length in sizes], np.bool_)

    @functools.cached_property
    def num_bytes(self) -> int:
        """Return the size of an unpacked chunk."""
        return CODES.itemsize * math.prod(self.chunk)

    @classmethod
    def of(cls, path: Path, variable: str, unpacked: Unpacked) -> "ChunkedCodes | None":
        """Open the variable; return None if it has another layout."""
        files: CachingFileManager[Any] = CachingFileManager(
            _open_hdf5, path, lock=NETCDF4_PYTHON_LOCK, cache=open_files()
        )
        with NETCDF4_PYTHON_LOCK:
            try:
                found = files.acquire(needs_lock=False)[variable]
            except OSError:  # netCDF in the classic format
                return None
            layout = found.id.get_create_plist()
            filters = [layout.get_filter(number)[0] for number in range(layout.get_nfilters())]
            if found.ndim != 3 or found.dtype != CODES or filters != [ZSTD_FILTER]:
                files.close(needs_lock=False)
                return None
            # a new number per opened file, so that a replaced file does not get cached chunks of the old one
            return cls(next(unpacked.numbers), variable.encode(), files, found.shape, found.chunks, unpacked)

    def read(self, *window: slice, out: Codes | None = None) -> Codes:
        """Return the codes of a window of times, rows and columns, in `out` (a view with any strides) if given."""
        ranges = [range(*part.indices(size)) for part, size in zip(window, self.shape, strict=True)]
        if out is None:
            out = np.empty([len(wanted) for wanted in ranges], np.int16)
        times, rows, columns = (list(_pieces(*pair)) for pair in zip(ranges, self.chunk, strict=True))
        with NETCDF4_PYTHON_LOCK:  # otherwise another thread's open could evict and close this file
            file = self.files.acquire(needs_lock=False)
            if file is not self.opened[0]:  # opening the variable takes about as long as copying two chunks
                self.opened = file, h5py.h5d.open(file.id, self.variable)
            dataset = self.opened[1]
            for t, time, to_time in times:
                for y, row, to_row in rows:
                    band = out[to_time, to_row]
                    for x, column, to_column in columns:
                        band[:, :, to_column] = self._chunk(dataset, (t, y, x))[time, row, column]
        return out

    def _chunk(self, dataset: Any, index: tuple[int, int, int]) -> Codes:
        """Return the whole chunk with these numbers along time, y and x."""
        key = (self.number, *index)
        kept = self.unpacked.get(key)
        if kept is not None:
            return kept
        origin = tuple(map(operator.mul, index, self.chunk))
        unfiltered, packed = dataset.read_direct_chunk(origin)
        # check the stated size first: a damaged zstd frame may state any size, which would be allocated
        if not unfiltered and zstandard.frame_content_size(packed) == self.num_bytes:
            packed = self.unpacked.decompressor.decompress(packed)
        if len(packed) != self.num_bytes:
            raise ValueError(f"The chunk at {origin} has {len(packed)} bytes, not {self.num_bytes}.")
        chunk: Codes = np.ndarray(self.chunk, CODES, packed)
        if not self.checked[index]:
            # as unsigned numbers, negative codes are above the code of missing, 2**15
            self.has_negative |= bool(np.maximum.reduce(np.frombuffer(packed, np.uint16)) > 2**15)
            self.checked[index] = True
        self.unpacked.keep(key, chunk)
        return chunk


def _open_hdf5(path: Path) -> h5py.File:
    return h5py.File(path.open() if isinstance(path, RemotePath) else str(path))


def _pieces(wanted: range, length: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield, for each chunk along an axis, its number, the slice within it and the slice within `wanted`."""
    assert wanted.step == 1, f"a step of {wanted.step} in a window"
    for origin in range(wanted.start - wanted.start % length, wanted.stop, length):
        low, high = max(wanted.start, origin), min(wanted.stop, origin + length)
        yield origin // length, slice(low - origin, high - origin), slice(low - wanted.start, high - wanted.start)
