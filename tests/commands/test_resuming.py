"""Which run the same command goes on with, before anything is trained."""

import logging
from pathlib import Path

import pytest
from filelock import FileLock
from omegaconf import DictConfig
from running import TINY, compose_config

from raincast import assembly
from raincast.commands import resuming
from raincast.commands.train import train


def config(run_dir: Path, *overrides: str) -> DictConfig:
    return compose_config("train", run_dir, *TINY, *overrides)


def test_a_folder_is_one_process_s(tmp_path: Path) -> None:
    cfg = config(tmp_path, "resume=auto")
    with resuming.alone(cfg), pytest.raises(ValueError, match="Another process is training in"):
        train(cfg)
    with resuming.alone(cfg):
        pass
    held = FileLock(tmp_path / ".train.lock")
    with held, resuming.alone(config(tmp_path)):
        pass  # a run in a folder of its own asks nobody


def test_the_name_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(ValueError, match=r"already holds a run\. resume=auto continues it; another name="):
        train(config(tmp_path, "name=mine"))


def test_what_says_where_to_go_on_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"resume=last: give auto, or null\. To resume from a file, use checkpoint="
    ):
        train(config(tmp_path / "a", "resume=last"))
    with pytest.raises(ValueError, match=r"checkpoint=x\.ckpt and resume=auto both say"):
        train(config(tmp_path / "b", "resume=auto", "checkpoint=x.ckpt"))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    cfg = config(tmp_path, "resume=auto")
    assert resuming.finished(cfg) is None
    old = tmp_path / "where it was trained"  # the run folder was moved since
    resuming.note_finished(cfg, {"val/csi_1mm": 0.5}, best=old / "best.ckpt", last=old / "last.ckpt")
    result = train(config(tmp_path, "resume=auto"))
    assert result.metrics == {"val/csi_1mm": 0.5} and result.scores is None
    assert result.best == tmp_path / "checkpoints" / "best.ckpt"
    assert resuming.finished(config(tmp_path, "resume=auto", "trainer.max_epochs=9")) is None, "another run"
    assert resuming.finished(config(tmp_path)) is None, "nobody asked to go on"


def test_the_damaged_newest_is_left_for_the_one_before(
    tiny_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    data = (tiny_run / "checkpoints" / "last.ckpt").read_bytes()
    (folder / "previous.ckpt").write_bytes(data)
    (folder / "last.ckpt").write_bytes(data[: len(data) // 2])
    cfg = config(tmp_path, "resume=auto")
    with caplog.at_level(logging.INFO):
        found = resuming.find(cfg)
    assert found is not None and found.path == folder / "previous.ckpt"
    assert "last.ckpt is damaged" in caplog.text and "Resuming after step" in caplog.text
    assert cfg.checkpoint == str(folder / "previous.ckpt")


def test_what_changed_since_is_said(
    tiny_run: Path, tiny_archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = assembly.read_checkpoint(tiny_run / "checkpoints" / "last.ckpt")
    same = ["trainer.max_epochs=30", "trainer.check_val_every_n_epoch=10", "data.eval_stride=2"]
    cfg = config(tmp_path, f"data.archive={tiny_archive}", *same)
    resuming.check(cfg, old.info, old)
    assert not caplog.records
    resuming.check(config(tmp_path, f"data.archive={tiny_archive}", *same, "optimizer.lr=1e-5"), old.info, old)
    assert "Changed since the run was started: optimizer.lr 0.01, now 1e-05" in caplog.text


def test_loggers_of_a_run_killed_before_its_first_checkpoint(tmp_path: Path) -> None:
    cfg = config(tmp_path, "resume=auto")
    assert resuming.logger_ids(cfg, None) == {}
    resuming.note_logger_ids(cfg, {"wandb": "abc"})
    assert resuming.logger_ids(cfg, None) == {"wandb": "abc"}
    (tmp_path / "loggers.json").write_text('{"wan')
    assert resuming.logger_ids(cfg, None) == {}
