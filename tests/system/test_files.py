"""Files and folders that appear whole or not at all."""

from pathlib import Path

import pytest

from raincast.system.files import atomic, write_text


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
