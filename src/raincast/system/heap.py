"""Keep freed memory in malloc."""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters in glibc's malloc.h."""
NEVER = -1
LARGEST = 32 * 2**20
"""Bytes; glibc refuses more."""


def keep_freed_memory() -> bool:
    """Make malloc keep freed blocks of up to 32 MiB; return False if that was not possible.

    Nothing is changed if malloc is not glibc's, or if the environment configures it (MALLOC_…_, GLIBC_TUNABLES).

    A training step frees its activations, and the next one allocates them again. By default glibc returns the top
    of its heap each time, and the kernel hands it out again page by page, filled with zeros. This costs 7,000 to
    26,000 page faults and 3 to 10 % of a step of `experiment=convlstm`, depending on what happens to be on top.
    The peak memory of the process stays the same. See mallopt(3).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    # set both: setting one disables glibc's dynamic choice of the other
    return all([mallopt(TRIM_THRESHOLD, NEVER), mallopt(MMAP_THRESHOLD, LARGEST)])
