"""Which files are ready, and what is remembered of them: a clock and a folder, no radar."""

import os
import socket
from pathlib import Path

import pytest
import zarr

from raincast.ingest.readers.cf import CF
from raincast.live.folder import CORRUPT, TAKEN, TRIES, Folder


def put(path: Path, content: bytes, changed: float) -> Path:
    path.write_bytes(content)
    os.utime(path, (changed, changed))
    return path


def test_a_file_is_ready_when_it_has_not_changed_for_a_while(tmp_path: Path) -> None:
    folder = Folder(tmp_path, settle_s=10)
    assert folder.look(0) == []
    path = put(tmp_path / "a.h5", b"half", 100)
    assert folder.look(100) == [] and folder.look(109) == []
    put(path, b"half and half", 109.5)
    assert folder.look(110) == [] and folder.look(119) == []
    assert folder.look(120) == [path] and folder.arrived(path) == 110


def test_a_change_that_keeps_the_size_or_the_date_is_seen(tmp_path: Path) -> None:
    folder = Folder(tmp_path, settle_s=0)
    path = put(tmp_path / "a.h5", b"old", 100)
    assert folder.look(200) == [path]
    folder.decide(path, TAKEN)
    assert folder.look(201) == []
    put(path, b"new", 150)  # another date
    assert folder.look(202) == [path]
    folder.decide(path, TAKEN)
    put(path, b"longer", 150)  # another size
    assert folder.look(203) == [path]
    folder.decide(path, TAKEN)
    other = put(tmp_path / "b.h5", b"longer", 150)
    other.replace(path)  # another file in its place
    assert folder.look(204) == [path]


def test_what_was_there_before_the_watcher_has_been_settling_since_it_was_written(tmp_path: Path) -> None:
    old, fresh = put(tmp_path / "old.h5", b"1", 50), put(tmp_path / "fresh.h5", b"2", 98)
    folder = Folder(tmp_path, settle_s=10)
    assert folder.look(100) == [old] and folder.num_waiting == 2
    ahead = put(tmp_path / "ahead.h5", b"3", 5000)  # the sender's clock is wrong
    assert folder.look(108) == [old, fresh]
    assert folder.look(118) == [old, fresh, ahead]


def test_an_unreadable_file_is_tried_again_and_then_given_up_until_it_changes(tmp_path: Path) -> None:
    path = put(tmp_path / "a.h5", b"spoilt", 0)
    folder = Folder(tmp_path, settle_s=10)
    looks = []
    for now in range(100, 400, 5):
        if folder.look(now):
            looks.append(now)
            assert folder.failed(path, now) == (len(looks) == TRIES)
    assert looks == [100, 120, 160] and folder.entries[path].fate == CORRUPT
    put(path, b"whole", 400)
    assert folder.look(400) == [] and folder.look(410) == [path]


def test_hidden_files_and_what_is_no_radar_are_not_seen(tmp_path: Path) -> None:
    for name in (".a.h5.Xy12", "a.h5.part", "ingest_report.json", "notes.txt"):
        put(tmp_path / name, b"x", 0)
    (tmp_path / "folder").mkdir()
    folder = Folder(tmp_path, settle_s=0)
    assert folder.look(100) == [] and folder.num_waiting == 0


def test_what_is_no_regular_file_is_not_seen(tmp_path: Path) -> None:
    """Whoever opens a FIFO waits for a writer, and hears no signal."""
    os.mkfifo(tmp_path / "fifo.h5")
    (tmp_path / "link.h5").symlink_to(tmp_path / "fifo.h5")
    (tmp_path / "device.h5").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.h5"))
        assert Folder(tmp_path, settle_s=0).look(1e12) == []
        assert Folder(f"{tmp_path}/*.h5", settle_s=0).look(1e12) == []


def test_a_store_with_a_fifo_inside_is_refused(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w").create_array("rain", shape=(2, 2), dtype="f4")
    os.mkfifo(tmp_path / "a.zarr" / "rain" / "c")
    with pytest.raises(ValueError, match=r"rain/c is not a regular file"):
        CF().scan(tmp_path / "a.zarr")


def test_decisions_hold_while_the_folder_is_gone(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.h5").write_bytes(b"a")
    folder = Folder(tmp_path / "in", settle_s=0)
    folder.decide(folder.look(1e12)[0], TAKEN)
    (tmp_path / "in").rename(tmp_path / "away")
    assert folder.look(1e12) == []
    (tmp_path / "away").rename(tmp_path / "in")
    assert folder.look(1e12) == []


def test_a_pattern_finds_files_in_subfolders_and_may_match_nothing_yet(tmp_path: Path) -> None:
    folder = Folder(f"{tmp_path}/**/*.h5", settle_s=0)
    assert folder.look(100) == []
    (tmp_path / "2026").mkdir()
    path = put(tmp_path / "2026" / "a.h5", b"x", 0)
    assert folder.look(101) == [path]


def test_decisions_outlive_the_watcher_and_go_with_the_file(tmp_path: Path) -> None:
    taken, removed = put(tmp_path / "a.h5", b"1", 10), put(tmp_path / "b.h5", b"2", 20)
    folder = Folder(tmp_path, settle_s=0)
    folder.look(100)
    folder.decide(taken, TAKEN, newest=600.0)
    folder.decide(removed, CORRUPT)
    again = Folder(tmp_path, settle_s=0)
    again.from_state(folder.to_state(10))
    assert again.look(200) == [] and again.taken_since(600.0) == [taken] and again.taken_since(601.0) == []
    removed.unlink()
    again.look(201)
    assert list(again.entries) == [taken]
    assert list(folder.to_state(1)) == [str(removed)]  # those that changed last
