"""Checks of zip files written by torch, before anything in them is used."""

import os
import zipfile
import zlib
from typing import BinaryIO

MAX_MEMBERS = 100_000


MAX_RATIO = 20
"""Maximum size of the unpacked members relative to the file; float32 weights have about 1.1."""


def check_zip(file: BinaryIO, *, packed: bool = False) -> None:
    """Verify all checksums. Raises ValueError if a member is damaged, compressed or occurs twice.

    torch stores members uncompressed, so a file that unpacks to more than its size was made to exhaust the memory.
    torch itself does not verify checksums: flipped bits would be used as weights. `packed` members may be
    compressed.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS or len({member.filename for member in members}) < len(members):
                raise ValueError(f"it has {len(members)} members, some of them twice or more than {MAX_MEMBERS}")
            if not packed and any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("its members are compressed, which torch does not do")
            if sum(member.file_size for member in members) > size * (MAX_RATIO if packed else 1):
                raise ValueError("its members are much larger than the file")
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    finally:
        file.seek(0)
    if broken is not None:
        raise ValueError(f"{broken} does not match its checksum")
