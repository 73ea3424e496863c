"""Checkpoints on disk, the rows of metrics.csv, and random streams, without a whole training run."""

import errno
import logging
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from raincast.training.durable.checkpointing import LastCheckpoint, StopSignals
from raincast.training.durable.continuing import (
    CheckpointNotWritten,
    ContinuedCSVLogger,
    DurableCheckpointIO,
    RandomStreams,
    damage,
    newest_whole,
)


def checkpoint(value: float) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((500,), value)}, "epoch": 3}


def value(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["state_dict"]["weight"][0])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "made" / "last.ckpt"
    DurableCheckpointIO().save_checkpoint(checkpoint(2.0), path)
    assert value(path) == 2.0
    assert damage(path) is None
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"], "nothing is left beside it"


def test_a_changed_byte_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """Within the weights torch itself loads it without a word."""
    path = tmp_path / "last.ckpt"
    weight = torch.randn(5000)
    torch.save({"weight": weight}, path)
    whole = path.read_bytes()
    noticed = 0
    for position in range(0, len(whole), 97):
        data = bytearray(whole)
        data[position] ^= 0x10
        path.write_bytes(data)
        if damage(path) is None:  # padding between records, dates
            assert torch.equal(torch.load(path, weights_only=True)["weight"], weight), position
        else:
            noticed += 1
    assert noticed > 0.9 * len(whole) / 97 * (weight.nbytes / len(whole))


@pytest.mark.parametrize("size", [0, 1, 1000, 2500])
def test_a_cut_file_is_noticed_and_the_one_before_is_used(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for path in (last, previous):
        DurableCheckpointIO().save_checkpoint(checkpoint(1.0), path)
    last.write_bytes(last.read_bytes()[:size])
    with caplog.at_level(logging.WARNING):
        assert newest_whole(last, previous) == previous
    assert "last.ckpt is damaged" in caplog.text
    assert not last.exists() and (tmp_path / "last.ckpt.damaged").stat().st_size == size
    assert newest_whole(last, previous) == previous, "also when asked again"


def test_without_a_checkpoint_there_is_none_and_without_a_whole_one_an_error(tmp_path: Path) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    assert newest_whole(last, previous) is None
    last.write_bytes(b"PK")
    previous.write_bytes(b"")
    with pytest.raises(ValueError, match=r"No checkpoint in .* is undamaged.*starts from scratch"):
        newest_whole(last, previous)
    assert newest_whole(last, previous) is None


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    DurableCheckpointIO().save_checkpoint(checkpoint(1.0), path)

    def full(state: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointNotWritten, match=r"No space left on device.*still holds last\.ckpt") as raised:
        DurableCheckpointIO().save_checkpoint(checkpoint(2.0), path)
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert value(path) == 1.0
    assert len(list(tmp_path.iterdir())) == 1


def test_the_device_that_is_always_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torch's own error of a failed write is told as the system's."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    path = tmp_path / "last.ckpt"
    (tmp_path / ".last.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(CheckpointNotWritten, match="No space left on device"):
        DurableCheckpointIO().save_checkpoint({"weight": torch.zeros(1_000_000)}, path)
    assert not path.exists()


def test_rows_of_later_steps_come_again(tmp_path: Path) -> None:
    first = ContinuedCSVLogger(tmp_path, name="csv", step=0)
    for step in range(5):
        first.log_metrics({"loss": float(step)}, step)
    first.log_metrics({"score": 0.5}, 4)
    path = tmp_path / "csv" / "version_0" / "metrics.csv"
    with path.open("a") as file:
        file.write("9,")  # a row that a kill cut
    again = ContinuedCSVLogger(tmp_path, name="csv", step=3)
    again.log_metrics({"loss": 30.0}, 3)
    again.log_metrics({"other": 1.0}, 3)
    assert path.read_text().split() == [
        "loss,other,score,step",
        "0.0,,,0",
        "1.0,,,1",
        "2.0,,,2",
        "30.0,,,3",
        ",1.0,,3",
    ]


def test_a_run_that_begins_removes_the_rows_of_one_killed_before_its_first_checkpoint(tmp_path: Path) -> None:
    for _ in range(2):
        logger = ContinuedCSVLogger(tmp_path, name="csv", step=0)
        logger.log_metrics({"loss": 1.0}, 0)
    assert (tmp_path / "csv" / "version_0" / "metrics.csv").read_text().split() == ["loss,step", "1.0,0"]


def test_a_full_disk_does_not_end_the_run_at_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = ContinuedCSVLogger(tmp_path, name="csv", step=0)
    logger.log_metrics({"loss": 1.0}, 0)
    path = tmp_path / "csv" / "version_0" / "metrics.csv"
    path.unlink()
    path.symlink_to("/dev/full")
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    for step in (1, 2):
        logger.log_metrics({"loss": 2.0}, step)
    assert caplog.text.count("cannot be written") == 1


def drawn(rank: int = 0, epoch: int = 0, batch: int = 0, seed: int = 1) -> list[float]:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(global_rank=rank, current_epoch=epoch, strategy=strategy)
    RandomStreams(seed).on_train_batch_start(trainer, None, None, batch)  # type: ignore[arg-type]
    return [float(torch.rand(())), float(np.random.rand()), random.random()]  # noqa: NPY002


def test_what_is_random_follows_from_where_the_run_is() -> None:
    torch.manual_seed(5)
    state, np_state, py_state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        expected = drawn(epoch=2, batch=3)
        torch.rand(7)
        assert drawn(epoch=2, batch=3) == expected
        others = [drawn(1, 2, 3), drawn(0, 3, 2), drawn(0, 2, 4), drawn(0, 2, 3, seed=2)]
        for other in others:
            assert all(a != b for a, b in zip(expected, other, strict=True))
    finally:
        torch.set_rng_state(state)
        np.random.set_state(np_state)  # noqa: NPY002
        random.setstate(py_state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_minutes": 0}, r"callbacks\.last\.every_minutes=0: give a number above 0"),
        ({"every_n_train_steps": -1}, r"callbacks\.last\.every_n_train_steps=-1"),
        ({"signals": ["SIGTREM"]}, r"Unknown signal SIGTREM: use SIGTERM"),
    ],
)
def test_keys_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        LastCheckpoint(tmp_path, **arguments)


def test_the_requeue_signal_puts_the_job_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a scontrol that notes what it was asked."""
    import signal

    asked = tmp_path / "asked"
    command = tmp_path / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    signals = StopSignals()
    signals.received = signal.SIGUSR1
    signals.put_back()  # not on SLURM
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    signals.put_back()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    signals.put_back()
    signals.received = signal.SIGTERM  # cancelled: it stays away
    signals.put_back()
    signals.received, signals.requeue = signal.SIGUSR1, False
    signals.put_back()
    assert asked.read_text().split("\n") == ["requeue 77", "requeue 70_4", ""]


def test_a_run_folder_that_was_moved_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    """And a checkpoint cannot name a file elsewhere, which Lightning would delete as the worst."""
    best, last = ModelCheckpoint(dirpath=tmp_path / "new", monitor="x"), LastCheckpoint(tmp_path / "new")
    trainer = L.Trainer(callbacks=[best, last], logger=False, accelerator="cpu", enable_progress_bar=False)
    score = torch.tensor(0.5)
    state = {
        "dirpath": "/old/checkpoints",
        "best_model_path": "/old/checkpoints/best.ckpt",
        "best_model_score": score,
        "kth_best_model_path": "/old/checkpoints/../../home/thesis.ckpt",
        "kth_value": score,
        "best_k_models": {"/old/checkpoints/best.ckpt": score},
        "last_model_path": "",
    }
    last.on_load_checkpoint(trainer, L.LightningModule(), {"callbacks": {best.state_key: state}})
    best.load_state_dict(state)
    folder = Path(str(best.dirpath))
    assert best.best_model_path == str(folder / "best.ckpt") and best.best_model_score == score
    assert best.kth_best_model_path == str(folder / "thesis.ckpt") and list(best.best_k_models) == [
        best.best_model_path
    ]
    assert best.last_model_path == ""
