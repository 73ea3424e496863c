"""Limits on the sizes that a file may declare, checked before memory is allocated.

A header or a compressed stream can request any amount: 10 MB of gzip unpack to 10 GB, and 55 kB of HDF5 declare an
image of 75 GB. An image may have `DEFAULT_MEGAPIXELS`, unless `limited` sets another limit, and one piece (an
unpacked file, a chunk, a coordinate) 8 bytes for each of those pixels.
"""

import bz2
import contextlib
import io
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import h5py
import zstandard

from raincast.system.remote import RemotePath, zarr_store

DEFAULT_MEGAPIXELS = 50.0
"""Twice the largest operational composite: MRMS (United States, 0.01 degrees) has 24.5."""
PIXEL_BYTES = 8
PIECE = 2**20
_megapixels: ContextVar[float] = ContextVar("max_megapixels", default=DEFAULT_MEGAPIXELS)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@contextmanager
def limited(megapixels: float) -> Iterator[None]:
    """Limit images to `megapixels` million pixels within the block."""
    token = _megapixels.set(megapixels)
    try:
        yield
    finally:
        _megapixels.reset(token)


def max_bytes() -> int:
    """Return the largest allowed size of a piece in bytes."""
    return PIXEL_BYTES * _max_pixels()


def check_image(*shape: int) -> None:
    """Raise ValueError if an image of `shape` exceeds the limit."""
    if min(shape, default=1) < 0 or math.prod(shape) > _max_pixels():
        size = " × ".join(map(str, shape))
        raise ValueError(f"it claims an image of {size} pixels, {_remedy()}")


def check_bytes(number: int) -> None:
    """Raise ValueError if a piece of `number` bytes exceeds the limit."""
    if number > max_bytes():
        raise ValueError(f"it claims {number} bytes in one piece, {_remedy()}")


def read_all(stream: _Readable) -> bytes:
    """Read the rest of a stream, packed or not. Raises ValueError as soon as it exceeds the limit."""
    content = bytearray()
    while piece := stream.read(min(PIECE, max_bytes() + 1 - len(content))):
        content += piece
        if len(content) > max_bytes():
            raise ValueError(f"it holds more than {max_bytes()} bytes, {_remedy()}")
    return bytes(content)


@contextmanager
def open_hdf5(source: Path | BinaryIO, *, checked: bool = True) -> Iterator[h5py.File]:
    """Open an untrusted HDF5 file, checked by `check_hdf5` and `check_chunks`."""
    with h5py.File(source) as file:
        if checked:
            check_hdf5(file)
            check_chunks(file)
        yield file


def check_hdf5(file: h5py.File) -> None:
    """Raise ValueError if an HDF5 file refers to other files or declares pieces above the limit.

    With external links, external storage or virtual datasets, an untrusted file could read any other file as rain.
    """
    linked = file.id.links.visit(_other_file, info=True)
    if linked is not None:
        raise ValueError(f"{linked} is a link to another file, which is not followed")
    for name, dataset in _datasets(file):
        layout = dataset.get_create_plist()
        if layout.get_external_count() or layout.get_layout() == h5py.h5d.VIRTUAL:
            raise ValueError(f"{name} is stored in another file, which is not read")
        chunk = layout.get_chunk() if layout.get_layout() == h5py.h5d.CHUNKED else ()
        _check_declared(name, dataset.shape, chunk, dataset.get_type().get_size())


def check_chunks(file: h5py.File) -> None:
    """Raise ValueError if a packed chunk unpacks to more than the limit, whatever size it declares."""
    for name, dataset in _datasets(file):
        layout = dataset.get_create_plist()
        filters = [layout.get_filter(number)[0] for number in range(layout.get_nfilters())]
        packers = [_PACKERS[number] for number in filters if number in _PACKERS]
        if len(packers) > 1:
            raise ValueError(f"{name} is compressed by {len(packers)} filters in a row, which is not read")
        for unpack, ratio in packers:
            if dataset.get_storage_size() * ratio > max_bytes():
                for offset in _chunks_above(max_bytes() // ratio, dataset):
                    _check_unpacked(name, unpack(dataset.read_direct_chunk(offset)[1]))


def check_file(path: Path) -> None:
    """Apply `check_hdf5` to an HDF5 file, and the same checks to a Zarr store; ignore other files."""
    if path.is_dir():
        import zarr

        store: Any = zarr_store(path) if isinstance(path, RemotePath) else path
        if store is path:
            _check_regular(path)
        for name, array in zarr.open_group(store, mode="r").arrays():
            _check_declared(name, array.shape, array.chunks, array.dtype.itemsize)
    elif isinstance(path, RemotePath):
        with path.open() as content, h5py.File(content) as file:
            check_hdf5(file)
    elif h5py.is_hdf5(path):
        with h5py.File(path) as file:
            check_hdf5(file)


def check_unpacking(path: Path) -> None:
    """Apply `check_chunks` to an HDF5 file; ignore other files."""
    if path.is_file() and h5py.is_hdf5(path):
        with h5py.File(path) as file:
            check_chunks(file)


def _check_regular(folder: Path) -> None:
    """Raise ValueError for a FIFO, device or socket in a store: opening one may block forever."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                _check_regular(Path(entry.path))
            elif not entry.is_file():
                raise ValueError(f"{entry.path} is not a regular file")


def _check_declared(name: str, shape: Sequence[int], chunk: Sequence[int], item_bytes: int) -> None:
    """Raise ValueError for a chunk, or a one-dimensional array (which is read whole), above the limit.

    Readers take single images of arrays with more dimensions, and call `check_image`.
    """
    piece = max(math.prod(chunk) if chunk else 0, shape[0] if len(shape) == 1 else 0)
    if piece * item_bytes > max_bytes():
        raise ValueError(f"{name} declares {piece * item_bytes} bytes in one piece, {_remedy()}")


class _Inflated:
    """A zlib stream that is read piece by piece."""

    def __init__(self, packed: bytes) -> None:
        self.unpacker, self.left = zlib.decompressobj(), packed

    def read(self, size: int) -> bytes:
        piece = self.unpacker.decompress(self.left, size)
        self.left = self.unpacker.unconsumed_tail
        return piece


# HDF5 filter number → decompressor and maximum compression ratio
_PACKERS: dict[int, tuple[Callable[[bytes], _Readable], int]] = {
    h5py.h5z.FILTER_DEFLATE: (_Inflated, 1032),
    307: (lambda packed: bz2.BZ2File(io.BytesIO(packed)), 2_000_000),
    32015: (lambda packed: zstandard.ZstdDecompressor().stream_reader(packed), 32_768),
}


def _check_unpacked(name: str, stream: _Readable) -> None:
    done = 0
    with contextlib.suppress(zlib.error, zstandard.ZstdError, OSError, EOFError):  # HDF5 itself reports damage
        while piece := stream.read(PIECE):
            done += len(piece)
            if done > max_bytes():
                raise ValueError(f"a chunk of {name} unpacks to more than {max_bytes()} bytes, {_remedy()}")


def _datasets(file: h5py.File) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []

    def see(name: bytes, info: Any) -> None:
        if info.type == h5py.h5o.TYPE_DATASET:
            found.append((name.decode("utf-8", "replace"), h5py.h5d.open(file.id, name)))

    h5py.h5o.visit(file.id, see, info=True)
    return found


def _chunks_above(most: int, dataset: Any) -> list[tuple[int, ...]]:
    """Return the offsets of the chunks whose packed size exceeds `most` bytes."""
    found: list[tuple[int, ...]] = []
    dataset.chunk_iter(lambda chunk: found.append(chunk.chunk_offset) if chunk.size > most else None)
    return found


def _other_file(name: bytes, info: Any) -> str | None:
    """Return the name of a link to another file, None for other links."""
    inside = info.type in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT)
    return None if inside else name.decode("utf-8", "replace")


def _max_pixels() -> int:
    return round(1e6 * _megapixels.get())


def _remedy() -> str:
    return (
        f"and max_megapixels={_megapixels.get():g} allows {max_bytes()} bytes: it is damaged, or made to exhaust "
        "the memory. If it is correct, set a larger max_megapixels=…"
    )
