"""Damaged copies of a file: what a broken download, a full disk or a bad sector leaves."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from raincast.ingest.readers import Reader


def spoilt(content: bytes, *, seed: int = 0, head: int = 512, num: int = 40) -> Iterator[bytes]:
    """`num` truncations, `num` flipped bytes, half of them in the first `head`; nothing, zeros, noise."""
    rng = np.random.default_rng(seed)
    yield b""
    for length in rng.integers(1, len(content), num):
        yield content[:length]
    for bound in (min(head, len(content)), len(content)):
        for place in rng.integers(0, bound, num // 2):
            yield content[:place] + bytes([content[place] ^ int(rng.integers(1, 256))]) + content[place + 1 :]
    for start in rng.integers(0, len(content), 5):
        yield content[:start] + bytes(len(content[start : start + 64])) + content[start + 64 :]
    yield content[:8] + rng.bytes(len(content) - 8)
    yield rng.bytes(len(content))


def check_reads_or_names(reader: Reader, path: Path, copies: Iterator[bytes]) -> int:
    """Read each of the damaged copies at `path`: it works, or is a ValueError that names the file; how many were."""
    num_refused = 0
    for content in copies:
        path.write_bytes(content)
        assert reader.recognises(path) in (True, False)
        for call in (reader.scan, lambda p: reader.read(p, step_minutes=5)):
            try:
                call(path)
            except ValueError as error:
                assert path.name in str(error), error
                num_refused += 1
    return num_refused
