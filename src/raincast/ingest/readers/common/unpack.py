"""Unpacking of files as services send them: plain, gzipped, bzipped, or several in a tar."""

import bz2
import gzip
import io
import itertools
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raincast.archive.limits import read_all
from raincast.ingest.readers import starts_with

GZIP_SIGNATURE = b"\x1f\x8b"


def first_bytes(path: Path, number: int) -> bytes:
    """Return the first `number` unpacked bytes; fewer or none if the file is shorter, damaged or absent."""
    try:
        with path.open("rb") as file:
            start = file.read(len(GZIP_SIGNATURE))
            file.seek(0)
            if start != GZIP_SIGNATURE:
                return file.read(number)
            with gzip.open(file) as unpacked:
                return unpacked.read(number)
    except (OSError, EOFError, zlib.error):
        return b""


def all_bytes(path: Path) -> bytes:
    """Return the whole unpacked content. Raises ValueError for a damaged gzip or more than `limits.max_bytes`."""
    try:
        with path.open("rb") as file:
            packed = file.read(len(GZIP_SIGNATURE)) == GZIP_SIGNATURE
            file.seek(0)
            return read_all(gzip.GzipFile(fileobj=file) if packed else file)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"its gzip is damaged: {error}") from error


BZIP2_SIGNATURE = b"BZh"
Stream = io.BufferedReader | gzip.GzipFile | bz2.BZ2File
"""An unpacked file. Seeking backwards is slow."""

# a damaged or hostile tar may claim any size: a month of 5 min frames has 8928 files, a header takes kilobytes
_MOST_MEMBERS = 10_000
_MOST_BYTES_AT_ONCE = 2**24
_LOOKED_AT = 4
_DAMAGE = (ValueError, OSError, EOFError, zlib.error, tarfile.TarError)


@contextmanager
def unpacked(path: Path) -> Iterator[Iterator[tuple[str, Stream]]]:
    """Yield the files in `path` as (name, stream), in order: the members of a tar, or the file itself, named ''.

    Read each stream before requesting the next. Nested containers are not unpacked. Raises ValueError or OSError
    for damage, also while the streams are read.
    """
    try:
        with path.open("rb") as file:
            yield _files(file)
    except (zlib.error, tarfile.TarError) as error:
        raise ValueError(f"it is damaged: {error}") from error


def first_bytes_inside(path: Path, number: int) -> list[bytes]:
    """Return the first `number` bytes of each of the first files in `path`; empty if it is damaged or absent."""
    try:
        with unpacked(path) as files:
            return [stream.read(number) for _, stream in itertools.islice(files, _LOOKED_AT)]
    except _DAMAGE:
        return []


@contextmanager
def in_member(name: str) -> Iterator[None]:
    """Add the name of a tar member to errors; '' leaves them unchanged."""
    try:
        yield
    except _DAMAGE as error:
        if not name:
            raise
        raise ValueError(f"{name} in it: {error or type(error).__name__}") from error


def read_exactly(stream: Stream, number: int) -> bytes:
    """Read `number` bytes. Raises ValueError if there are fewer; memory is taken only for bytes that exist."""
    chunks, left = [], number
    while left and (chunk := stream.read(min(left, 2**20))):
        chunks.append(chunk)
        left -= len(chunk)
    if left:
        raise ValueError(f"it ends early: {left} of {number} bytes are missing")
    return b"".join(chunks)


def at_end(stream: Stream) -> bool:
    """Return True at the end of the stream; reaching it also verifies the checksum of packed data."""
    return not stream.peek(1)


class _Bounded(io.BufferedReader):
    """Refuses the sizes that a damaged tar header may request."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MOST_BYTES_AT_ONCE:
            raise ValueError(f"its tar is damaged: it claims a header of {size} bytes")
        return super().read(size)


def _files(file: io.BufferedReader) -> Iterator[tuple[str, Stream]]:
    stream = _unzipped(file)
    start = stream.read(tarfile.BLOCKSIZE)
    stream.seek(0)
    if start[257:262] != b"ustar":  # POSIX.1-1988, and GNU's
        yield "", stream
        return
    last = "its beginning"
    stream = _Bounded(stream)
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for number, member in enumerate(tar):
            if number >= _MOST_MEMBERS:
                raise ValueError(f"it has more than {_MOST_MEMBERS} members: split it")
            content = tar.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, _unzipped(content)  # type: ignore[arg-type]
            last = member.name
        # tarfile takes a damaged header for the end of the tar
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"its tar is damaged, or ends early, after {last}")


def _unzipped(stream: Stream) -> Stream:
    start = stream.read(len(BZIP2_SIGNATURE))
    stream.seek(0)
    if start.startswith(GZIP_SIGNATURE):
        return gzip.GzipFile(fileobj=stream)
    return bz2.BZ2File(stream) if start == BZIP2_SIGNATURE else stream


SIGNATURES = (b"CDF\x01", b"CDF\x02")  # classic and 64-bit offset; scipy cannot read 64-bit data, CDF\x05


def check_whole(path: Path) -> None:
    """Raise ValueError if a netCDF-3 file ends before its last variable; ignore other files."""
    if not starts_with(path, *SIGNATURES):
        return
    from scipy.io import netcdf_file

    try:
        # mmap reads the header and compares each variable's extent with the file size
        file = netcdf_file(path, "r", mmap=True)
    except (ValueError, TypeError, LookupError, AssertionError, OverflowError) as error:
        raise ValueError("its header is damaged, or it ends before its last variable") from error
    file.variables.clear()  # they would keep the map open
    file.close()
