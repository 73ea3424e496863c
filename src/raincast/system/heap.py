"""The memory that malloc keeps."""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters in glibc's malloc.h."""
NEVER = -1
LARGEST = 32 * 2**20
"""Bytes; glibc refuses more."""


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed, of blocks up to 32 MiB; False where that is not done.

    It is not done where the malloc is not glibc's, and where the environment sets it (MALLOC_…_, GLIBC_TUNABLES).

    A step frees its activations, and the next one wants them again. By default glibc gives the top of its heap
    back each time, and the kernel hands it out anew page by page, filled with zeros: 7,000 to 26,000 page faults
    and 3 to 10 % of a step of `experiment=convlstm`, more or less by chance of what lies on top. The most
    that the process holds stays the same. See mallopt(3).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    # either of them alone would end glibc's own choice of the other
    return all([mallopt(TRIM_THRESHOLD, NEVER), mallopt(MMAP_THRESHOLD, LARGEST)])
