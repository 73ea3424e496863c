"""The chunks of a netCDF file in our codes, unpacked past netCDF4 and straight into the memory of a batch.

h5py opens a file much faster than netCDF4; one decompressor serves all chunks, where HDF5's filter makes one for
each; and no window is copied before it is turned and stacked.
"""

import itertools
import math
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
from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK

from raincast.archive.head import DAMAGE

ZSTD_FILTER = 32015
"""Its number among the filters of HDF5: github.com/HDFGroup/hdf5_plugins, RegisteredFilterPlugins."""
CODES = np.dtype("<i2")
Codes = npt.NDArray[np.int16]
UNREADABLE = (*DAMAGE, OSError, zstandard.ZstdError)


class Unpacked:
    """What a process keeps unpacked of an archive: `limit` bytes of the chunks that were used last."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.num_bytes = 0
        self.decompressor = zstandard.ZstdDecompressor()
        self.numbers = itertools.count()
        self._chunks: OrderedDict[tuple[int, int, int, int], Codes] = OrderedDict()

    def get(self, key: tuple[int, int, int, int]) -> Codes | None:
        """The chunk, if it is kept."""
        chunk = self._chunks.get(key)
        if chunk is not None:
            self._chunks.move_to_end(key)
        return chunk

    def keep(self, key: tuple[int, int, int, int], chunk: Codes) -> None:
        """In the place of those that were unused for longest."""
        self._chunks[key] = chunk
        self.num_bytes += chunk.nbytes
        while self.num_bytes > self.limit:
            self.num_bytes -= self._chunks.popitem(last=False)[1].nbytes


@dataclass(frozen=True, eq=False)
class ChunkedCodes:
    """Codes (T, H, W) in chunks that are packed by zstd and nothing else.

    An error of `read`, of whatever kind, says no more than that netCDF4 should be asked: chunks that were never
    written are for it to fill, and it has the words for damage.
    """

    number: int
    variable: bytes
    files: CachingFileManager[Any]
    shape: tuple[int, int, int]
    chunk: tuple[int, int, int]
    unpacked: Unpacked

    @classmethod
    def of(cls, path: Path, variable: str, unpacked: Unpacked) -> "ChunkedCodes | None":
        """None for a variable that lies there in another way."""
        files: CachingFileManager[Any] = CachingFileManager(h5py.File, str(path), lock=NETCDF4_PYTHON_LOCK)
        with NETCDF4_PYTHON_LOCK:
            try:
                found = files.acquire(needs_lock=False)[variable]
            except OSError:  # netCDF in its classic format
                return None
            layout = found.id.get_create_plist()
            filters = [layout.get_filter(number)[0] for number in range(layout.get_nfilters())]
            if found.ndim != 3 or found.dtype != CODES or filters != [ZSTD_FILTER]:
                files.close(needs_lock=False)
                return None
            # a file that took the place of another is not to be given its chunks
            return cls(next(unpacked.numbers), variable.encode(), files, found.shape, found.chunks, unpacked)

    def read(self, *window: slice, out: Codes | None = None) -> Codes:
        """The codes of a window of times, rows and columns: in `out`, a view of any strides, if it is given."""
        ranges = [range(*part.indices(size)) for part, size in zip(window, self.shape, strict=True)]
        if out is None:
            out = np.empty([len(wanted) for wanted in ranges], np.int16)
        times, rows, columns = (list(_pieces(*pair)) for pair in zip(ranges, self.chunk, strict=True))
        with NETCDF4_PYTHON_LOCK:  # or a file that another thread opens could close ours
            dataset = h5py.h5d.open(self.files.acquire(needs_lock=False).id, self.variable)
            for t, time, to_time in times:
                for y, row, to_row in rows:
                    band = out[to_time, to_row]
                    for x, column, to_column in columns:
                        band[:, :, to_column] = self._chunk(dataset, (t, y, x))[time, row, column]
        return out

    def _chunk(self, dataset: Any, origin: tuple[int, int, int]) -> Codes:
        """The whole chunk whose first pixel is `origin`."""
        key = (self.number, *origin)
        kept = self.unpacked.get(key)
        if kept is not None:
            return kept
        num_bytes = CODES.itemsize * math.prod(self.chunk)
        unfiltered, packed = dataset.read_direct_chunk(origin)
        # a damaged frame may say any size, and that much would be allocated
        if not unfiltered and zstandard.frame_content_size(packed) == num_bytes:
            packed = self.unpacked.decompressor.decompress(packed)
        if len(packed) != num_bytes:
            raise ValueError(f"The chunk at {origin} has {len(packed)} bytes, not {num_bytes}.")
        chunk: Codes = np.frombuffer(packed, CODES).reshape(self.chunk)
        self.unpacked.keep(key, chunk)
        return chunk


def _pieces(wanted: range, length: int) -> Iterator[tuple[int, slice, slice]]:
    """Of the pixels `wanted`, chunk by chunk: where it begins, which of its own they are, which of `wanted`."""
    assert wanted.step == 1, f"a step of {wanted.step} in a window"
    for origin in range(wanted.start - wanted.start % length, wanted.stop, length):
        low, high = max(wanted.start, origin), min(wanted.stop, origin + length)
        yield origin, slice(low - origin, high - origin), slice(low - wanted.start, high - wanted.start)
