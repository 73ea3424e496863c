"""What a run logs, records and draws beside its scores, and what it chooses its best checkpoint by."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from running import TINY, compose_config, undrawn

from raincast.commands import references
from raincast.commands.train import TrainResult, train


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watched")


@pytest.fixture(scope="module")
def result(run_dir: Path, tiny_archive: Path) -> TrainResult:
    """Four epochs, watched in every way, the best chosen by skill against persistence."""
    with pytest.MonkeyPatch.context() as patch, undrawn():
        patch.setenv("RAINCAST_CACHE", str(run_dir / "cache"))
        overrides = [
            "trainer.max_epochs=4",
            "callbacks.pictures.every_n_epochs=3",
            "metrics.goal=val/skill_mse_persistence",
        ]
        return train(compose_config("train", run_dir, *TINY, f"data.archive={tiny_archive}", *overrides))


def test_validation_sets_the_network_beside_the_baselines(result: TrainResult, run_dir: Path) -> None:
    with xr.open_dataset(run_dir / "scores.nc") as scores:
        assert list(scores["forecaster"].values) == ["network", "persistence"]
        rmse = scores["rmse"]
    best = float((1 - (rmse.sel(forecaster="network") / rmse.sel(forecaster="persistence")) ** 2).mean())
    assert result.metrics["val/skill_mse_persistence"] == pytest.approx(best, rel=1e-5)
    loaded = torch.load(result.best, weights_only=True)
    kept = [c for name, c in loaded["callbacks"].items() if "val/skill_mse_persistence" in name]
    assert float(kept[0]["best_model_score"]) == pytest.approx(best, rel=1e-5)
    for name in ("train/grad_norm", "train/windows_per_s", "train/memory_gib"):
        assert result.metrics[name] > 0


def test_baselines_are_scored_once_for_all_runs(
    result: TrainResult, run_dir: Path, tiny_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run finds them; another threshold or another split does not."""
    from raincast import assembly

    monkeypatch.setenv("RAINCAST_CACHE", str(run_dir / "cache"))
    calls: list[str] = []
    score = references._score
    monkeypatch.setattr(references, "_score", lambda *a: calls.append("scored") or score(*a))
    for overrides, expected in (
        ([], []),
        (["metrics.thresholds=[1,2]"], ["scored"]),
        (["data.eval_stride=2"], ["scored"]),
    ):
        cfg = compose_config("train", run_dir / "again", *TINY, f"data.archive={tiny_archive}", *overrides)
        data = assembly.datamodule(cfg, tiny_archive)
        kept = references.reference_scores(cfg, data)
        assert calls == expected and kept is not None
        if not overrides:
            with xr.open_dataset(run_dir / "scores.nc") as scores:
                np.testing.assert_array_equal(kept["csi"][0], scores["csi"].sel(forecaster="persistence"))
        calls.clear()


def test_no_baselines_are_no_references(run_dir: Path, tiny_archive: Path) -> None:
    cfg = compose_config("train", run_dir / "none", *TINY, f"data.archive={tiny_archive}", "baselines=[]")
    assert references.reference_scores(cfg, None) is None  # type: ignore[arg-type]  # nothing is looked at
    assert references.as_tensors(None) == {}


def test_run_json_says_what_the_run_was(result: TrainResult, run_dir: Path) -> None:
    record = json.loads((run_dir / "run.json").read_text())
    assert record["status"] == "finished" and record["epochs"] == 4
    assert record["steps"] > 4 and record["windows_seen"] == 4 * record["steps"]  # batches of four
    assert record["gpu_hours"] == 0
    assert record["hours"] > 0 and record["used"]["precision"] == "32-true"
    assert record["config"]["data"]["crop"] == 32 and record["windows"]["val"] > 0
    assert {"raincast", "python", "torch", "lightning"} <= record["versions"].keys()
    assert record["machine"]["cores"] >= 1 and record["commit"]
    assert record["scores"]["val/loss"] == pytest.approx(result.metrics["val/loss"])


def test_a_run_that_breaks_says_so(tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raincast.training.module import NowcastModule

    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(NowcastModule, "training_step", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(compose_config("train", tmp_path, *TINY, f"data.archive={tiny_archive}"))
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "RuntimeError: out of memory"


def test_the_same_windows_are_drawn_as_training_goes_on(result: TrainResult, run_dir: Path) -> None:
    drawn = sorted(path.name for path in (run_dir / "pictures").iterdir())
    assert drawn == [f"window{n}_epoch{epoch:04d}.png" for n in (0, 1) for epoch in (3, 4)]
    for name in drawn:
        assert (run_dir / "pictures" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["metrics.goal=val/csi_3mm"], r"val/csi_3mm is not logged; .*there are val/csi_30mm, .*val/csi_1mm"),
        (["metrics.goal=val/skill_mse_sprog"], r"is not logged; .*baselines=\['persistence'\]"),
        (["metrics.goal=val/mae"], r"val/mae is better at its min: set metrics\.goal_mode=min"),
        (["metrics.goal=val/bias_1mm"], r"best at 1.*take val/bias_error_1mm"),
        (["baselines=[ghost]"], r"ghost unknown; there are persistence"),
    ],
)  # fmt: skip
def test_a_goal_that_chooses_nothing_is_refused(
    overrides: list[str], message: str, tiny_archive: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(compose_config("train", tmp_path, *TINY, f"data.archive={tiny_archive}", *overrides))
