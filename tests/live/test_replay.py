"""Three hours of the tiny archive, replayed with everything that goes wrong: benchmarks/replay.py in small."""

import errno
import importlib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import REPO, compose_config

from raincast import assembly
from raincast.archive import Archive
from raincast.live import Site, watcher
from raincast.plotting import rain_image


def test_a_replay_ends_with_every_due_forecast_and_none_wrong(
    tiny_archive: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    replay = importlib.import_module("replay")
    archive = Archive.open(tiny_archive)
    truth = archive.to_dataset(0, 34)
    pipeline = assembly.pipeline(assembly.read_checkpoint(tiny_run / "checkpoints" / "best.ckpt"), device="cpu")
    reader = assembly.make(compose_config("forecast", tmp_path / "config").source)
    # an hour of trouble: what a test cannot have is a disk of its own
    full: list[bool] = []
    disk = types.SimpleNamespace(fill=lambda: full.append(True), free=full.clear)
    write, update = watcher.write_outputs, Site.update

    def if_not_full(call: Any) -> Any:
        def called(*arguments: Any, **keywords: Any) -> Any:
            if full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*arguments, **keywords)

        return called

    monkeypatch.setattr(watcher, "write_outputs", if_not_full(write))
    monkeypatch.setattr(Site, "update", if_not_full(update))

    def troubles(start: float, end: float, *, with_full_disk: bool) -> list[Any]:
        assert with_full_disk
        kinds = (replay.FULL, replay.GONE, replay.AHEAD, replay.BEHIND)
        return [
            replay.Trouble(kind, start + at * 60, start + at * 60 + 480)
            for kind, at in zip(kinds, (40, 62, 100, 140), strict=True)
        ]

    monkeypatch.setattr(replay, "troubles_of", troubles)
    # more of everything than in a day: three hours have few frames
    monkeypatch.setattr(replay, "SHARES", dict.fromkeys(replay.SHARES, 0.1))
    monkeypatch.setattr(replay, "POLL_S", 60.0)
    monkeypatch.setattr(replay, "MAX_DELAY_S", 1800.0)
    outcome = replay.replay(truth, pipeline, reader, tmp_path / "replay", disk=disk)
    assert not outcome.problems
    assert outcome.num_forecasts >= outcome.num_due >= 3 and min(outcome.fates.values()) >= 1
    assert outcome.skill["comparisons"] > 0 and outcome.counts["failed"] >= 1
    assert outcome.pages >= 3 and outcome.page_bytes < 5e6 and outcome.page_s
    assert set(outcome.health) == {"none", replay.FULL, replay.GONE, replay.AHEAD, replay.BEHIND}
    assert set(outcome.health[replay.AHEAD]) == {"503 stale"} and "200 ok" in outcome.health["none"]
    assert "503 ahead of the clock" in outcome.health[replay.BEHIND]


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
    monkeypatch.setattr(replay, "MAX_DELAY_S", 1800.0)
    # a watcher that takes stale frames and images sent twice for new
    monkeypatch.setattr(Intake, "is_fresh", lambda *_: True)
    monkeypatch.setattr(RecentFrames, "is_frozen", lambda *_: False)
    # and a page without rain
    monkeypatch.setattr(rain_image, "rain_classes", lambda rain: np.zeros(rain.shape, np.uint8))
    truth = Archive.open(tiny_archive).to_dataset(0, 20)
    problems = replay.replay(truth, pipeline, reader, tmp_path / "replay").problems
    assert any("was not due and is there" in problem for problem in problems)
    assert any("than the true one" in problem for problem in problems)
    assert any("is another map" in problem for problem in problems)
