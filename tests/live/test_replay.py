"""Three hours of the tiny archive, replayed with everything that goes wrong: benchmarks/replay.py in small."""

import importlib
from pathlib import Path

import pytest
from running import REPO, compose_config

from raincast import assembly
from raincast.archive import Archive


def test_a_replay_ends_with_every_due_forecast_and_none_wrong(
    tiny_archive: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    replay = importlib.import_module("replay")
    archive = Archive.open(tiny_archive)
    truth = archive.to_dataset(0, 34)
    pipeline = assembly.pipeline(assembly.read_checkpoint(tiny_run / "checkpoints" / "best.ckpt"), device="cpu")
    reader = assembly.make(compose_config("forecast", tmp_path / "config").source)
    # more of everything than in a day: three hours have few frames
    monkeypatch.setattr(replay, "SHARES", dict.fromkeys(replay.SHARES, 0.1))
    monkeypatch.setattr(replay, "POLL_S", 60.0)
    outcome = replay.replay(truth, pipeline, reader, tmp_path / "replay")
    assert not outcome.problems
    assert outcome.num_forecasts >= outcome.num_due >= 3 and min(outcome.fates.values()) >= 1
    assert outcome.skill["comparisons"] > 0


def test_a_replay_notices_what_is_wrong(
    tiny_archive: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    replay = importlib.import_module("replay")
    from raincast.live.intake import Intake
    from raincast.live.recent import RecentFrames

    pipeline = assembly.pipeline(assembly.read_checkpoint(tiny_run / "checkpoints" / "best.ckpt"), device="cpu")
    reader = assembly.make(compose_config("forecast", tmp_path / "config").source)
    monkeypatch.setattr(replay, "SHARES", dict.fromkeys(replay.SHARES, 0.14))
    monkeypatch.setattr(replay, "POLL_S", 60.0)
    # a watcher that takes stale frames and images sent twice for new
    monkeypatch.setattr(Intake, "is_fresh", lambda *_: True)
    monkeypatch.setattr(RecentFrames, "is_frozen", lambda *_: False)
    truth = Archive.open(tiny_archive).to_dataset(0, 20)
    problems = replay.replay(truth, pipeline, reader, tmp_path / "replay").problems
    assert any("was not due and is there" in problem for problem in problems)
    assert any("than the true one" in problem for problem in problems)
