"""Locks, and file systems that have none."""

import errno
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from raincast.system.lock import held, is_held, waited_for


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
