"""Memory that a step frees is there for the next one, and what was imported is not collected."""

import os
import subprocess
import sys

import pytest

ROUNDS = """
import resource
from raincast.system.heap import keep_freed_memory

kept = {keep} and keep_freed_memory()
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(2**23) for _ in range(6)]
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(kept), faults[-1])
"""
PAGES = 6 * 2**23 // os.sysconf("SC_PAGE_SIZE")


def page_faults(*, keep: bool, **more: str) -> tuple[bool, int]:
    """Whether memory is kept, and the page faults of the third time that 48 MiB are taken and freed."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", ROUNDS.format(keep=keep)]
    done = subprocess.run(command, env=plain | more, check=True, capture_output=True, text=True)
    kept, faults = done.stdout.split()
    return kept == "1", int(faults)


def test_freed_memory_is_kept() -> None:
    kept, faults = page_faults(keep=True)
    if not kept:
        pytest.skip("this malloc is not glibc's")
    assert faults < PAGES / 100
    assert page_faults(keep=False)[1] > PAGES / 2, "glibc gives it back of its own"


def test_what_the_environment_says_of_malloc_stays() -> None:
    kept, faults = page_faults(keep=True, MALLOC_MMAP_THRESHOLD_="131072")
    assert not kept
    if sys.platform == "linux" and os.confstr("CS_GNU_LIBC_VERSION"):
        assert faults > PAGES / 2


def test_the_collector_leaves_out_what_was_imported_and_nothing_later() -> None:
    code = (
        "import gc; from raincast.system.heap import pause_collector, resume_collector\n"
        "pause_collector(); paused = not gc.isenabled(); kept = [[] for _ in range(9)]; resume_collector()\n"
        "frozen = gc.get_freeze_count(); later = [[] for _ in range(9)]; pause_collector(); resume_collector()\n"
        "print(paused, gc.isenabled(), frozen > 9, gc.get_freeze_count() == frozen)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True"] * 4
