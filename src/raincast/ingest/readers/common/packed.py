"""Bytes of files that services send gzipped or plain."""

import gzip
import zlib
from pathlib import Path

from raincast.archive.limits import read_all

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
