"""Memory of a process: malloc keeps what is freed, the garbage collector leaves out what was imported."""

import ctypes
import gc
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


def pause_collector() -> None:
    """Look for no cycles of garbage until `resume_collector`: while a process imports its modules.

    Importing torch, xarray and others makes a million objects that stay. The collector would look through them
    again and again, which takes 0.8 s of a forecast.
    """
    gc.disable()


def resume_collector() -> None:
    """Look for garbage again, except among the objects that exist at the first call."""
    if not gc.isenabled() and not gc.get_freeze_count():
        gc.freeze()
    gc.enable()
