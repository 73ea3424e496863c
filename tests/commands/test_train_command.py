"""`train.py` as a user runs it: what it leaves, how it goes on."""

import csv
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from checking import rates_of
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from running import TINY, compose_config, run_forked, undrawn

from raincast import assembly
from raincast.commands.evaluate import run as evaluate
from raincast.commands.train import TrainResult, train
from raincast.training.callbacks.progress import EarlyStop
from raincast.training.module import NowcastModule

pytestmark = pytest.mark.usefixtures("undrawn")  # the picture of `tiny_run` is looked at


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def times_of(result: TrainResult) -> dict[str, float]:
    """What no two runs share."""
    return {name: result.metrics[name] for name in ("train/data_wait", "train/windows_per_s", "train/memory_gib")}


def last_row(metrics: Path, column: str) -> float:
    with metrics.open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)][-1]


def test_a_run_leaves_checkpoints_scores_a_picture_and_csv(tiny_run: Path) -> None:
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "scores.nc", "csv/version_0/metrics.csv"):
        assert (tiny_run / name).stat().st_size > 0, name
    assert (tiny_run / "forecast.png").read_bytes().startswith(b"\x89PNG")
    with xr.open_dataset(tiny_run / "scores.nc") as scores:
        assert list(scores["forecaster"].values) == ["network", "persistence"]
        assert scores["lead_time"].values.tolist() == [5.0, 10.0, 15.0]


def test_a_checkpoint_is_plain_data_and_enough_to_forecast(tiny_run: Path) -> None:
    checkpoint = assembly.read_checkpoint(tiny_run / "checkpoints" / "last.ckpt")
    assert checkpoint.info["step_minutes"] == 5.0
    assert (checkpoint.info["input_steps"], checkpoint.info["lead_steps"]) == (3, 3)
    forecaster = assembly.forecaster_of(checkpoint, device="cpu")
    rain = np.full((1, 3, 1, 17, 9), 2.0, np.float32)
    assert rates_of(forecaster, rain, 5).shape == (1, 5, 1, 17, 9)


def test_evaluate_gives_the_last_validation(tiny_run: Path, tmp_path: Path) -> None:
    config = compose_config(
        "evaluate",
        tmp_path,
        f"checkpoint={tiny_run}/checkpoints/last.ckpt",
        "split=val",
        "baselines=[persistence]",
    )
    scores = evaluate(config).sel(forecaster="network")
    metrics = tiny_run / "csv" / "version_0" / "metrics.csv"
    assert float(scores["csi"].sel(threshold=0.5).mean()) > 0, "a network that forecasts no rain shows nothing"
    for threshold in (0.5, 1.0, 5.0):
        csi = float(scores["csi"].sel(threshold=threshold).mean("lead_time"))
        assert last_row(metrics, f"val/csi_{threshold:g}mm") == pytest.approx(csi, rel=1e-6, nan_ok=True)
    assert last_row(metrics, "val/mae") == pytest.approx(float(scores["mae"].mean()), rel=1e-6)
    assert last_row(metrics, "val/rmse") == pytest.approx(float(scores["rmse"].mean()), rel=1e-6)


def test_resumed_equals_uninterrupted(tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [*TINY, f"data.archive={tiny_archive}", "trainer.max_epochs=3", "data.eval_stride=4"]
    whole = train(compose_config("train", tmp_path / "whole", *overrides))

    def stop(module: NowcastModule) -> None:
        if module.current_epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(NowcastModule, "on_train_epoch_start", stop)
        with pytest.raises(SystemExit) as stopped:
            train(compose_config("train", tmp_path / "cut", *overrides))
    assert stopped.value.code == 130
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] == 1
    resumed = train(compose_config("train", tmp_path / "resumed", *overrides, f"checkpoint={last}"))

    assert resumed.last == last, "a resumed run goes on in its own folder"
    expected, found = weights(whole.last), weights(resumed.last)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert 0 < whole.metrics["train/data_wait"] < 1 and whole.metrics["train/windows_per_s"] > 0
    assert whole.metrics == pytest.approx(resumed.metrics | times_of(whole), nan_ok=True)


def learning_rates(run_dir: Path) -> list[float]:
    """The logged rate of each optimiser step."""
    with (run_dir / "csv" / "version_0" / "metrics.csv").open() as file:
        return [float(row["lr-AdamW"]) for row in csv.DictReader(file) if row["lr-AdamW"]]


def schedule(lr: float, total: int) -> list[float]:
    """Of optimizer=adamw: warm-up over 5 % of the steps, then a cosine to 1 % of the peak."""
    warmup = max(1, round(0.05 * total))
    rise = [lr * (step + 1) / (warmup + 1) for step in range(warmup)]
    share = [(1 + math.cos(math.pi * step / (total - warmup))) / 2 for step in range(total - warmup)]
    return [*rise, *(lr * (0.01 + 0.99 * one) for one in share)]


@pytest.fixture(scope="module")
def two_epochs(tiny_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs, of six steps each."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    with undrawn():
        train(compose_config("train", folder, *TINY, f"data.archive={tiny_archive}", "data.eval_stride=20"))
    assert learning_rates(folder) == pytest.approx(schedule(1e-2, 12))
    return folder


@pytest.mark.parametrize(
    ("changed", "lr", "total"),
    [
        (["trainer.max_epochs=4", "optimizer.lr=1e-5"], 1e-5, 24),  # and not up to its peak again
        (["trainer.max_epochs=4", "trainer.max_steps=16"], 1e-2, 16),
        (["trainer.max_epochs=4", "data.batch_size=8"], 1e-2, 12 + 2 * 3),  # the steps done stay what they were
    ],
)
def test_a_run_that_goes_on_takes_its_settings_from_the_command(
    changed: list[str], lr: float, total: int, two_epochs: Path, tiny_archive: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(two_epochs, folder)
    same = [*TINY, f"data.archive={tiny_archive}", "resume=auto", "data.eval_stride=20"]
    result = train(compose_config("train", folder, *same, *changed, "optimizer.weight_decay=0.5"))
    assert learning_rates(folder)[12:] == pytest.approx(schedule(lr, total)[12:])
    (group,) = torch.load(result.last, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert (group["weight_decay"], group["initial_lr"]) == (0.5, lr)


def test_a_run_cannot_end_before_where_it_is(tiny_run: Path, tiny_archive: Path, tmp_path: Path) -> None:
    last = tiny_run / "checkpoints" / "last.ckpt"
    same = [*TINY, f"data.archive={tiny_archive}", "data.eval_stride=2", f"checkpoint={last}"]
    with pytest.raises(
        ValueError, match=r"trainer\.max_epochs=20: the run of .*last\.ckpt has already reached 30"
    ):
        train(compose_config("train", tmp_path, *same, "trainer.max_epochs=20"))
    with pytest.raises(ValueError, match=r"trainer\.max_steps=7: .* has already reached 180"):
        train(compose_config("train", tmp_path, *same, "trainer.max_epochs=30", "trainer.max_steps=7"))


def test_more_patience_lets_a_stopped_run_go_on() -> None:
    def waiting(patience: int) -> EarlyStop:
        return EarlyStop(monitor="val/csi_1mm", mode="max", patience=patience)

    stopped = waiting(2)
    stopped.wait_count, stopped.stopping_reason = 2, EarlyStoppingReason.PATIENCE_EXHAUSTED
    same, more = waiting(2), waiting(5)
    for callback in (same, more):
        callback.load_state_dict(stopped.state_dict())
    assert (same.patience, same.stopping_reason) == (2, EarlyStoppingReason.PATIENCE_EXHAUSTED)
    assert (more.patience, more.wait_count, more.stopping_reason) == (5, 2, EarlyStoppingReason.NOT_STOPPED)


def test_resumed_in_mid_epoch_equals_uninterrupted(
    tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sample of the epoch is trained on once, in the order of a run that was not stopped.

    Whether the samples come from other processes or not.
    """
    overrides = [
        *TINY,
        f"data.archive={tiny_archive}",
        "data.eval_stride=4",
        "callbacks.last.every_n_train_steps=1",
    ]
    seen: list[tuple[int, int, list[int]]] = []
    step = NowcastModule.training_step

    def stop(self: NowcastModule, batch, batch_idx: int):
        if stop.at == (self.current_epoch, batch_idx):
            raise KeyboardInterrupt
        seen.append((self.current_epoch, batch_idx, batch["time"].tolist()))
        return step(self, batch, batch_idx)

    stop.at = None
    monkeypatch.setattr(NowcastModule, "training_step", stop)
    whole = train(compose_config("train", tmp_path / "whole", *overrides))
    expected_batches = [*seen]
    assert len(expected_batches) > 6, "two epochs of more than three batches"
    for num_workers in (0, 2):
        seen[:], stop.at = [], (1, 2)
        folder = tmp_path / f"{num_workers}"
        cut = [*overrides, f"data.num_workers={num_workers}"]
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(compose_config("train", folder / "cut", *cut))
        stop.at = None
        last = folder / "cut" / "checkpoints" / "last.ckpt"
        resumed = train(compose_config("train", folder / "resumed", *cut, f"checkpoint={last}"))
        assert seen == expected_batches
        expected, found = weights(whole.last), weights(resumed.last)
        assert all(torch.equal(expected[key], found[key]) for key in expected)
        assert whole.metrics == pytest.approx(resumed.metrics | times_of(whole), nan_ok=True)


def test_resuming_as_another_run_is_refused(tiny_run: Path, tiny_archive: Path, tmp_path: Path) -> None:
    last = tiny_run / "checkpoints" / "last.ckpt"
    overrides = [*TINY, f"data.archive={tiny_archive}", f"checkpoint={last}"]
    with pytest.raises(ValueError, match=r"data\.lead_steps: 3 there, 2 here"):
        train(compose_config("train", tmp_path / "leads", *overrides, "data.lead_steps=2"))
    with pytest.raises(ValueError, match="the windows of train, val and test"):
        train(compose_config("train", tmp_path / "split", *overrides, "data.split.seed=5"))


def test_a_sweep_runs_every_trial_and_logs_offline_to_wandb(tiny_archive: Path, tmp_path: Path) -> None:
    overrides = [o for o in TINY if o != "logger=csv"]
    overrides += ["data.samples_per_epoch=8", "data.eval_stride=20"]
    sweep = run_forked(
        tmp_path, "train", "-m", *overrides, f"data.archive={tiny_archive}", "trainer.max_epochs=1",
        "optimizer.lr=1e-3,3e-4", f"hydra.sweep.dir={tmp_path}/sweep",
    )  # fmt: skip
    assert sweep.returncode == 0, sweep.stderr[-3000:]
    assert "anonymous setting" not in sweep.stderr, "a warning that nobody can act on"
    for number, lr in enumerate((1e-3, 3e-4)):
        trial = tmp_path / "sweep" / str(number)
        assert assembly.read_checkpoint(trial / "checkpoints" / "best.ckpt").config["optimizer"]["lr"] == lr
        runs = list((trial / "wandb").glob("offline-run-*/run-*.wandb"))
        assert len(runs) == 1 and runs[0].stat().st_size > 0
        assert list((trial / "wandb").glob("offline-run-*/files/media/images/val/*.png"))
        assert list((trial / "wandb").glob("offline-run-*/files/media/table/val/*.json"))
        assert (trial / "csv" / "version_0" / "metrics.csv").is_file()


def test_the_result_names_what_was_kept(tiny_archive: Path, tmp_path: Path) -> None:
    result = train(
        compose_config("train", tmp_path, *TINY, f"data.archive={tiny_archive}", "trainer.max_epochs=1")
    )
    assert isinstance(result, TrainResult)
    assert result.best.is_file() and result.last.is_file()
    assert result.scores is not None and result.scores.attrs["split"] == "val"
