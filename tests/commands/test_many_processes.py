"""Training on two processes: the weights and scores of one, started in any way, ended by any of them."""

import csv
import os
from pathlib import Path

import pytest
import torch
import yaml
from running import REPO, TINY, compose_config, run_forked

from raincast import assembly, cli
from raincast.commands.train import train
from raincast.system.lock import is_first_process

pytestmark = pytest.mark.usefixtures("undrawn")
COMMON = [
    *TINY,
    "data.eval_stride=1",  # 25 windows of validation: one of two processes gets one more
    "metrics.thresholds=[0.01,0.1,1]",  # so that a short run has scores
    "metrics.goal=val/csi_0.01mm",
]
"""Two epochs of six steps of four crops."""


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def logged(run_dir: Path, column: str) -> list[float]:
    with (run_dir / "csv" / "version_0" / "metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def used(run_dir: Path) -> dict[str, object]:
    return yaml.safe_load((run_dir / "csv" / "version_0" / "hparams.yaml").read_text())["used"]


def test_two_processes_train_and_score_as_one(tiny_archive: Path, tmp_path: Path) -> None:
    """Two processes of two crops see the same four crops a step as one process of four.

    In float64: what differs is the order in which gradients are added, 1e-16 a step.
    """
    exact = [*COMMON, f"data.archive={tiny_archive}", "trainer.precision=64-true"]
    train(compose_config("train", tmp_path / "one", *exact))
    start = [*exact, f"hydra.run.dir={tmp_path}/two", "data.batch_size=2", "trainer=ddp", "trainer.devices=2"]
    two = run_forked(tmp_path, "train", *start, "trainer.accelerator=cpu", "trainer.max_epochs=2", drawn=False)
    assert two.returncode == 0, two.stderr[-3000:]
    assert {"processes": 2, "strategy": "DDPStrategy"}.items() <= used(tmp_path / "two").items()
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-10, msg=key)
    one, both = tmp_path / "one", tmp_path / "two"
    assert len(logged(one, "train/loss")) == 12
    assert logged(both, "train/loss") == pytest.approx(logged(one, "train/loss"), rel=1e-6)
    scores = [f"val/{score}_{t}mm" for score in ("csi", "bias") for t in ("0.01", "0.1", "1")]
    for column in ("val/loss", "val/mae", "val/rmse", *scores):
        assert logged(both, column) == logged(one, column) and len(logged(one, column)) == 2, column
    assert max(logged(one, "val/csi_0.01mm")) > 0, "a network that forecasts no rain shows nothing"
    assert len(logged(both, "lr-AdamW")) == len(logged(one, "lr-AdamW"))
    assert two.stderr.count("Archive ") == two.stderr.count("checkpoint  ") == 1, "one process speaks for both"


def test_torchrun_and_shared_weights(tiny_archive: Path, tmp_path: Path) -> None:
    """trainer=fsdp, in float32 because Lightning shares out no float64; both processes find one run folder."""
    common = [*COMMON, f"data.archive={tiny_archive}", "trainer.max_epochs=1", "data.eval_stride=4"]
    train(compose_config("train", tmp_path / "one", *common))
    shared = ["data.batch_size=2", "trainer=fsdp", "trainer.accelerator=cpu"]
    # processes that are forked from torchrun's own have imported all
    torchrun = ["--standalone", "--nproc-per-node=2", "--run-path", "--start-method=fork", str(REPO / "train.py")]
    two = run_forked(tmp_path, "torchrun", *torchrun, *common, *shared, drawn=False)
    assert two.returncode == 0, two.stderr[-3000:]
    (run_dir,) = (tmp_path / "outputs" / "train").glob("*/*")
    assert sorted(p.name for p in run_dir.glob("*.log")) == ["train.log"]
    assert {"processes": 2, "strategy": "Sharded"}.items() <= used(run_dir).items()
    found = weights(run_dir)
    for key, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4, msg=key)
    for column in ("train/loss", "val/loss", "val/mae", "val/csi_0.01mm"):
        assert logged(run_dir, column) == pytest.approx(logged(tmp_path / "one", column), rel=1e-2), column
    assembly.forecaster_of(assembly.read_checkpoint(run_dir / "checkpoints" / "best.ckpt"), device="cpu")


def test_a_process_that_fails_ends_the_others_with_its_reason(
    tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPO / "tests"), os.environ.get("PYTHONPATH", "")]))
    start = [*COMMON, f"data.archive={tiny_archive}", f"hydra.run.dir={tmp_path}/run", "trainer=ddp"]
    fail = ["+callbacks.fail._target_=failing.Failing", "trainer.devices=2", "trainer.accelerator=cpu"]
    failed = run_forked(tmp_path, "train", *start, *fail, timeout=280)  # a hang would be killed here
    assert failed.returncode != 0
    assert "RuntimeError: the reason" in failed.stderr


SLURM = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "overrides", "expected"),
    [
        ({}, [], []),
        ({"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}, [], []),
        (
            SLURM | {"SLURM_PROCID": "0"},
            [],
            [
                "hydra.run.dir=${paths.output_dir}/train/slurm-4711",
                "hydra.sweep.dir=${paths.output_dir}/sweep/slurm-4711",
            ],
        ),
        (
            SLURM | {"SLURM_PROCID": "3", "SLURM_STEP_ID": "1"},
            [],
            [
                "hydra.run.dir=${paths.output_dir}/train/slurm-4711-1",
                "hydra.sweep.dir=${paths.output_dir}/sweep/slurm-4711-1",
                "hydra.output_subdir=null",
                "hydra.job.name=train_process_3",
            ],
        ),
        (SLURM | {"SLURM_PROCID": "0"}, ["hydra.run.dir=here"], []),
    ],
)
def test_processes_that_do_not_know_each_other_share_a_folder(
    environment: dict[str, str], overrides: list[str], expected: list[str]
) -> None:
    assert cli._shared_run_dir(overrides, environment) == expected


def test_a_torchrun_without_a_store_is_asked_for_a_folder() -> None:
    environment = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0"}
    with pytest.raises(SystemExit, match=r"hydra\.run\.dir=…"):
        cli._shared_run_dir([], environment)
    assert cli._shared_run_dir(["hydra.run.dir=here"], environment) == []


def test_a_process_knows_its_rank_though_it_was_forked_after_all_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning keeps the rank of when it was imported: the second process wrote a log of its own."""
    assert is_first_process()
    monkeypatch.setenv("RANK", "1")
    assert not is_first_process()
    monkeypatch.setenv("RANK", "0")
    assert is_first_process()
