"""`ingest.py audit=…`: of an archive, of a checkpoint, and of one whose archive has changed."""

import logging
import shutil
from pathlib import Path

import pytest
from running import compose_config

from raincast import assembly
from raincast.archive import Archive, write_part
from raincast.commands.ingest import run
from raincast.schema import RAIN, mock_archive


def test_an_archive_is_audited_with_given_windows(tiny_archive: Path, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        run(compose_config("ingest", tmp_path, f"audit={tiny_archive}", "data.input_steps=3", "data.lead_steps=3"))
    assert "No frame is in two splits; the nearest are" in caplog.text
    assert "the same as in checkpoints trained with these settings" in caplog.text


def test_a_checkpoint_is_audited_with_its_own(tiny_run: Path, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        run(compose_config("ingest", tmp_path, f"audit={tiny_run}/checkpoints/last.ckpt"))
    assert "the same as in the checkpoint" in caplog.text


def test_a_changed_archive_is_told(
    tiny_run: Path, tiny_archive: Path, tmp_path: Path, caplog, monkeypatch
) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(tiny_archive, grown)
    archive = Archive.open(grown)
    more = mock_archive(6, *archive.grid.shape, start=str(archive.times[-1] + 20 * archive.step))
    more = more.assign_coords(archive.grid.to_coords())
    more[RAIN].attrs["cell_methods"] = archive.meaning.cell_methods
    write_part(more, grown / "z.nc")
    monkeypatch.setattr(assembly, "archive_path", lambda *_, **__: grown)
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as stopped:
        run(compose_config("ingest", tmp_path, f"audit={tiny_run}/checkpoints/last.ckpt"))
    assert stopped.value.code == 1
    assert "its archive or its split has changed" in caplog.text
