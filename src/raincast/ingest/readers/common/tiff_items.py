"""TIFF tags and GDAL's metadata items, read without GDAL."""

import gzip
import html
import re
import struct
import zlib
from pathlib import Path
from typing import IO, NamedTuple

from raincast.archive.limits import check_bytes
from raincast.ingest.readers import starts_with
from raincast.ingest.readers.common.packed import GZIP_SIGNATURE

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GDAL_METADATA = 42112  # the tag
_MOST_ENTRIES, _MOST_BYTES = 4096, 2**20
_DAMAGE = (OSError, EOFError, zlib.error, struct.error, OverflowError, ValueError)


class Entry(NamedTuple):
    """A tag's value: the number of values, and the offset of the text, or the text itself if it is short."""

    num_values: int
    place: int
    short: bytes


def tiff_directory(path: Path) -> dict[int, Entry]:
    """Return the tags of a (Big)TIFF's first directory, gzipped or plain; empty for other or damaged files."""
    try:
        with _opened(path) as file:
            return _read_directory(file)
    except _DAMAGE:
        return {}


def tiff_items(path: Path) -> dict[str, str]:
    """Return the items of the tag GDAL_METADATA by name, plus 'NAME unit' for items with a unit.

    FMI wraps the XML of the items in another item, so GDAL escapes its brackets twice. Raises ValueError for a
    damaged header.
    """
    try:
        with _opened(path) as file:
            entry = _read_directory(file).get(GDAL_METADATA)
            content = b"" if entry is None else _read_text(file, entry)
    except _DAMAGE as error:
        raise ValueError(f"its TIFF header is damaged: {error or type(error).__name__}") from error
    text = content.split(b"\0")[0].decode("utf-8", "replace")
    items: dict[str, str] = {}
    for attributes, value in re.findall(r"<Item ([^>]*)>([^<]*)<", html.unescape(html.unescape(text))):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', attributes))
        name = pairs.get("name", "")
        items[name] = value.strip()
        if "unit" in pairs:
            items[f"{name} unit"] = pairs["unit"]
    return items


def find_items(path: Path) -> dict[str, str]:
    """Return the items as `tiff_items`; empty for other or damaged files."""
    try:
        return tiff_items(path)
    except ValueError:
        return {}


def _opened(path: Path) -> IO[bytes]:
    if starts_with(path, GZIP_SIGNATURE):
        return gzip.open(path)  # type: ignore[return-value]
    return path.open("rb")


def _read_directory(file: IO[bytes]) -> dict[int, Entry]:
    """Read the first directory of a TIFF 6.0 or BigTIFF; empty if the byte order or the version is unknown."""
    start = file.read(8)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None:
        return {}
    (version,) = struct.unpack(order + "H", start[2:4])
    if version not in (42, 43):
        return {}
    big = version == 43
    (place,) = struct.unpack(order + ("Q" if big else "I"), file.read(8) if big else start[4:])
    check_bytes(place)  # seeking in a gzip unpacks everything before
    file.seek(place)
    (number,) = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
    layout = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    content = file.read(layout.size * min(number, _MOST_ENTRIES))
    whole = len(content) - len(content) % layout.size
    return {
        tag: Entry(count, int.from_bytes(value, "little" if order == "<" else "big"), value)
        for tag, _, count, value in layout.iter_unpack(content[:whole])
    }


def _read_text(file: IO[bytes], entry: Entry) -> bytes:
    if entry.num_values <= len(entry.short):
        return entry.short[: entry.num_values]
    check_bytes(entry.place)
    file.seek(entry.place)
    return file.read(min(entry.num_values, _MOST_BYTES))
