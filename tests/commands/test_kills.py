"""A run that is killed and started again with the same command ends as one that never was, bit for bit."""

import csv
import os
import random
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import kill_in_step, kill_in_write, run
from running import TINY

MEASURED = ("train/data_wait", "train/windows_per_s", "train/memory_gib")
KILLS = int(os.environ.get("RAINCAST_KILLS", "0"))
RUN = [
    *TINY,
    "callbacks=early_stopping",
    "callbacks.early_stopping.patience=2",
    "callbacks.last.every_n_train_steps=3",
    # what is random in the network: its old state, kept here and there
    "+model.cell={_target_:raincast.models.layers.convlstm.ConvLSTM,_partial_:true,zoneout:0.2}",
    "data.eval_stride=8",
    "metrics.thresholds=[0.1,1]",  # a rate that the tiny network soon forecasts, so that the best changes
    "metrics.goal=val/csi_0.1mm",
    "ema=0.9",
    "resume=auto",
]


def state(run_dir: Path) -> Any:
    """All that the last checkpoint holds, but for the folder."""
    raw = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    raw["raincast"].pop("config")
    for name, callback in raw["callbacks"].items():
        if name.startswith("ModelCheckpoint"):
            callback.pop("current_score")  # of the validation before, which Lightning does not restore, nor need
        for key in ("hours", "gpu_hours"):
            callback.pop(key, None)
    return _without(raw, run_dir)


def _without(node: Any, run_dir: Path) -> Any:
    if isinstance(node, dict):
        return {_without(key, run_dir): _without(value, run_dir) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without(value, run_dir) for value in node]
    if isinstance(node, str):
        return node.replace(str(run_dir), "")
    return node


def assert_same(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{number}]")
    elif isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=where)
    else:
        assert a == b or (a != a and b != b), where


def rows(run_dir: Path) -> list[dict[str, str]]:
    """Of metrics.csv, but for what no two runs share."""
    with (run_dir / "csv" / "version_0" / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in MEASURED} for row in csv.DictReader(file)]


def test_stopped_killed_within_a_step_and_within_a_write(tiny_archive: Path, tmp_path: Path) -> None:
    overrides = [*RUN, f"data.archive={tiny_archive}", "trainer.max_epochs=3"]
    assert run(tmp_path / "whole", overrides) == 0
    killed = tmp_path / "killed"
    assert run(killed, overrides, prepare=partial(kill_in_step, 2, signal.SIGTERM)) == 75
    assert torch.load(killed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert run(killed, overrides, prepare=partial(kill_in_step, 6)) == -9
    assert run(killed, overrides, prepare=partial(kill_in_write, 4)) == -9
    assert list((killed / "checkpoints").glob(".*")), "what a kill leaves half-written"
    assert run(killed, overrides) == 0
    assert_same(state(tmp_path / "whole"), state(killed))
    assert rows(tmp_path / "whole") == rows(killed)


CURRICULUM = ["curriculum=growing_lead", "curriculum.lead.first=1", "curriculum.lead.every_n_epochs=3"]
EARLY = 0.15
"""Share of kills at any moment of the first seconds; the others come after some more checkpoints."""


@pytest.mark.timeout(3600)
@pytest.mark.skipif(KILLS == 0, reason="RAINCAST_KILLS=20 kills as many times, at random moments")
def test_killed_at_random_moments(tiny_archive: Path, tmp_path: Path) -> None:
    """Runs with and without a curriculum by turns, both with averaged weights and early stopping."""
    rng = random.Random(int(os.environ.get("RAINCAST_SEED", "0")))
    longer = ["trainer.max_epochs=12", "callbacks.early_stopping.patience=5"]
    common = [*RUN, f"data.archive={tiny_archive}", *longer]
    kinds = {"plain": common, "curriculum": [*common, *CURRICULUM]}
    for kind, overrides in kinds.items():
        assert run(tmp_path / kind, overrides) == 0
    steps: list[int] = []
    runs = 0
    while len(steps) < KILLS:
        kind = list(kinds)[runs % 2]
        runs += 1
        killed = tmp_path / f"killed{runs}"
        last = killed / "checkpoints" / "last.ckpt"
        while (code := _killed_somewhere(killed, kinds[kind], last, rng)) != 0:
            assert code == -9
            steps.append(torch.load(last, weights_only=True)["global_step"] if last.exists() else 0)
        assert_same(state(tmp_path / kind), state(killed))
        assert rows(tmp_path / kind) == rows(killed)
    print(f"{len(steps)} kills of {runs} runs, after the steps {steps}: all end as one never killed")  # noqa: T201


def _killed_somewhere(run_dir: Path, overrides: list[str], last: Path, rng: random.Random) -> int | None:
    """By what the run has done and not by the clock alone, so that a slow machine kills as often."""
    if rng.random() < EARLY:
        return run(run_dir, overrides, kill_after=rng.uniform(0, 3))
    # three checkpoints an epoch
    return run(run_dir, overrides, kill_after=rng.uniform(0, 0.3), writes=(last, rng.randint(1, 12)))
