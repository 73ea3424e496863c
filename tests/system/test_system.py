"""Files that appear whole or not at all, locks, memory that is kept, and what a run was made of."""

import errno
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from raincast.system import provenance
from raincast.system.files import atomic, write_text
from raincast.system.lock import held, is_held, waited_for


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("settings", [{}, {"sole": True}, {"durable": True}, {"keep_suffix": True}])
def test_the_old_content_stays_until_the_new_is_whole(tmp_path, settings):
    path = tmp_path / "new folder" / "a.txt"
    write_text(path, "old")
    with atomic(path, **settings) as partial:
        assert (partial.suffix == ".txt") == settings.get("keep_suffix", False)
        partial.write_text("new")
        assert path.read_text() == "old" and partial.name.startswith(".")
    assert path.read_text() == "new" and names(path.parent) == ["a.txt"]


def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(OSError, match="full"), atomic(path) as partial:
        partial.write_text("ne")
        raise OSError("the disk is full")
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_folder_takes_the_place_of_another(tmp_path):
    for number in range(2):
        with atomic(tmp_path / "a.zarr", durable=True) as partial:
            partial.mkdir()
            (partial / str(number)).touch()
        assert names(tmp_path) == ["a.zarr"] and names(tmp_path / "a.zarr") == [str(number)]


def test_who_writes_alone_takes_up_what_a_killed_process_left(tmp_path):
    (tmp_path / ".a.txt.partial").write_text("half of it, and longer than the whole")
    write_text(tmp_path / "a.txt", "whole", sole=True)
    assert (tmp_path / "a.txt").read_text() == "whole" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_a_file_system_without_locks_is_said_and_used(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As network file systems are mounted here and there: no command ends by it, and none takes a lock for free."""

    def none(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(FileLock, "_acquire", none)
    done = []
    with held(tmp_path / "a.lock", "taken"):
        done.append(1)
    with waited_for(tmp_path / "b.lock"):
        done.append(2)
    assert done == [1, 2] and caplog.text.count("has no locks") == 2
    assert is_held(tmp_path / "a.lock") is None


def test_another_error_is_no_lack_of_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FileLock, "_acquire", full)
    for take in (lambda: held(tmp_path / "a.lock", "taken").__enter__(), lambda: is_held(tmp_path / "a.lock")):
        with pytest.raises(OSError, match="No space left"):
            take()


def _hold(path: Path, ready: Any, end: Any) -> None:
    with held(path, "taken"):
        ready.set()
        end.wait(60)


def test_a_lock_of_another_process_is_seen_and_ends_with_it(tmp_path: Path) -> None:
    context, path = multiprocessing.get_context("fork"), tmp_path / "a.lock"
    ready, end = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(path, ready, end))
    process.start()
    assert ready.wait(60) and is_held(path) is True
    with pytest.raises(ValueError, match="taken"), held(path, "taken"):
        pass
    process.kill()  # as the system does where memory is short
    process.join()
    assert is_held(path) is False
    with waited_for(path):
        pass


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


def test_the_hash_of_code_changes_with_the_packages_that_it_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    for name in ("metrics/deep/fss.py", "output/page.py", "schema.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"NAME = {name!r}\n")
    hashed = provenance.code_hash.__wrapped__  # without what it remembers
    whole, metrics, module = hashed(), hashed("metrics"), hashed("schema")
    assert len({whole, metrics, module}) == 3
    (tmp_path / "output" / "page.py").write_text("NAME = 1\n")
    assert hashed("metrics") == metrics and hashed("schema") == module and hashed() != whole
    (tmp_path / "metrics" / "deep" / "fss.py").write_text("NAME = 1\n")
    (tmp_path / "schema.py").write_text("NAME = 1\n")
    assert hashed("metrics") != metrics and hashed("schema") != module


def test_memory_is_that_of_this_process():
    assert 0.01 < provenance.peak_memory_gib() < 1000  # GiB: neither bytes nor KiB
