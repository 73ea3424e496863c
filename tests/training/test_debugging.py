"""experiment=overfit, debug=fast and debug=profile: each does what it says, and notices when that fails."""

import json
from pathlib import Path

import pytest
import torch
from running import TINY, compose_config

from raincast.commands import report
from raincast.commands.train import TrainResult, train
from raincast.training.callbacks.progress import LearntByHeart
from raincast.training.module import NowcastModule

WITHOUT = ("experiment=", "logger=", "baselines=", "trainer.max_epochs=")
SMALL = [override for override in TINY if not override.startswith(WITHOUT)]


def run(archive: Path, folder: Path, *overrides: str) -> TrainResult:
    return train(compose_config("train", folder, *SMALL, f"data.archive={archive}", *overrides))


def test_one_batch_is_seen_again_and_again_until_it_is_learnt(
    tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen, step = [], NowcastModule.training_step

    def watched(self: NowcastModule, batch, batch_idx: int):
        seen.append(batch["input"].clone())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(NowcastModule, "training_step", watched)
    monkeypatch.setattr(report, "after_training", lambda *_, **__: None)
    few = ["experiment=overfit", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=2"]
    with caplog.at_level("INFO", logger="raincast"):
        run(tiny_archive, tmp_path / "learnt", *few, "data.samples_per_epoch=40", "callbacks.by_heart.share=0.9")
    assert len(seen) == 20 and all(torch.equal(batch.nan_to_num(), seen[0].nan_to_num()) for batch in seen)
    assert "learnt by heart" in caplog.text
    with pytest.raises(ValueError, match=r"went from [\d.]+ to [\d.]+, which is more than 0\.1 .*optimizer\.lr"):
        run(tiny_archive, tmp_path / "not", *few, "data.samples_per_epoch=8", "optimizer.lr=1e-9")


@pytest.mark.parametrize("share", [0.0, 1.0, 2.0])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"share={share}"):
        LearntByHeart(share)


def test_fast_goes_through_every_stage(tiny_archive: Path, tmp_path: Path) -> None:
    result = run(tiny_archive, tmp_path, "experiment=convlstm", "debug=fast")
    assert torch.load(result.last, weights_only=True)["global_step"] == 6  # two epochs of three batches
    assert result.best.is_file() and result.scores is not None
    for name in ("scores.nc", "forecast.png", "csv/version_0/metrics.csv"):
        assert (tmp_path / name).stat().st_size > 0, name
    assert not (tmp_path / "wandb").exists()


def test_profile_leaves_a_trace_and_says_where_the_time_goes(
    tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(report, "after_training", lambda *_, **__: None)
    short = ["callbacks.profile.skip=1", "callbacks.profile.steps=2"]
    with caplog.at_level("INFO", logger="raincast"):
        run(tiny_archive, tmp_path, "experiment=overfit", "~callbacks.by_heart", "debug=profile", *short)
    names = {
        event.get("name") for event in json.loads((tmp_path / "profile/trace.json").read_text())["traceEvents"]
    }
    assert {"_Sequence", "_SequenceBackward", "aten::convolution_backward", "Optimizer.step#AdamW.step"} <= names
    parts, operators = (tmp_path / "profile" / "tables.txt").read_text().strip().split("\n\n")
    rows = [line.split(maxsplit=2) for line in parts.splitlines()]
    assert [row[2] for row in rows[:-1]] == [
        "waiting for the next batch",
        "forward and loss",
        "backward",
        "clipping and optimiser",
        "logging, callbacks, to the device",
    ]
    whole = float(rows[-1][0])
    assert sum(float(row[0]) for row in rows[:-1]) == pytest.approx(whole, rel=0.02, abs=0.05)
    assert whole > 0 and "_Sequence" in operators and "2 ×" not in rows
    assert "Milliseconds per step, of 2:" in caplog.text
    with caplog.at_level("WARNING", logger="raincast"):
        run(
            tiny_archive,
            tmp_path / "none",
            "experiment=convlstm",
            "debug=profile",
            "trainer.limit_train_batches=2",
        )
    assert "Nothing was profiled" in caplog.text
