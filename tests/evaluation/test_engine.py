"""Killed or not, in whatever pieces and by however many processes: the same scores, and no window twice."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from filelock import FileLock
from running import REPO, compose_config

from raincast import assembly
from raincast.archive import Archive, write_part
from raincast.baselines import Persistence
from raincast.commands import scoring
from raincast.data.dataset import WindowDataset
from raincast.data.sampler import Place
from raincast.data.source import Source
from raincast.evaluation import Metrics, Scoring, engine, evaluate, to_dataset
from raincast.schema import mock_archive

METRICS = Metrics(
    (0.5, 2.0), pools=(2,), scales=(1, 4), spectrum=True, accumulations=(10,), onset=True, event_hours=1
)
PLACES = [Place(start, 0, 0, 12, 10) for start in range(20)]


class Counting(Persistence):
    """Persistence that notes each window it is asked for, and dies when it is told to."""

    def __init__(self, asked: list[int], dies_after: int | None = None, name: str = "persistence") -> None:
        self.asked, self.dies_after, self.name = asked, dies_after, name

    def predict(self, query):
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            raise RuntimeError("out of memory")
        self.asked += [1] * len(query.rain)
        return super().predict(query)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("archive")
    write_part(mock_archive(26, start="2026-01-01T23:00"), folder / "a.nc")
    return SimpleNamespace(dataset=WindowDataset([Source(Archive.open(folder), 2, 3)]), lead_steps=3)


def work(data, folder: Path, makers, batch_size: int = 3) -> engine.ScoringWork:
    folders = {name: folder / name for name in makers}
    return engine.ScoringWork(str(folder), lambda: data, makers, folders, Scoring(METRICS, 5.0, 1.0), batch_size)


def dataset(sums) -> xr.Dataset:
    return to_dataset(sums, Scoring(METRICS, 5.0, 1.0), lead_steps=3, shape=(12, 10))


@pytest.mark.parametrize("keep_seconds", [-1.0, 1e9])  # a file a batch, and one a task
def test_killed_and_resumed_scores_each_window_once_and_as_if_never_killed(
    data, tmp_path, monkeypatch, keep_seconds
):
    monkeypatch.setattr(engine, "KEEP_SECONDS", keep_seconds)
    asked: list[int] = []
    whole = engine.run(work(data, tmp_path / "whole", {"persistence": Persistence}), PLACES, workers=1)
    monkeypatch.setattr(engine, "MOST_WINDOWS", 6)
    killed = work(data, tmp_path / "cut", {"persistence": partial(Counting, asked, 13)})
    with pytest.raises(
        ValueError, match=r"persistence failed at windows \d+ to \d+: out of memory.*same command resumes"
    ):
        engine.run(killed, PLACES, workers=1)
    done = len(asked)
    assert 12 <= done < 20
    seen = []
    resumed = work(data, tmp_path / "cut", {"persistence": partial(Counting, asked)})
    again = engine.run(resumed, PLACES, workers=1, progress=lambda n, of: seen.append((n, of)))
    lost = len(asked) - 20  # what the error took with it: part of a task where nothing is kept within one
    assert 0 <= lost < 6 if keep_seconds > 0 else lost == 0
    assert seen[-1] == (20, 20)
    xr.testing.assert_identical(dataset(again), dataset(whole))
    engine.run(resumed, PLACES, workers=1)
    assert len(asked) == 20 + lost, "all is there"
    engine.clear(resumed)
    assert not (tmp_path / "cut").exists()


def test_any_batch_and_any_pieces_give_the_same_bits(data, tmp_path, monkeypatch):
    results = []
    for size, most in ((1, 1), (3, 6), (20, 64)):
        monkeypatch.setattr(engine, "MOST_WINDOWS", most)
        makers = {"persistence": Persistence, "other": partial(Counting, [], name="other")}
        results.append(dataset(engine.run(work(data, tmp_path / str(size), makers, size), PLACES, workers=1)))
    batches = [data.dataset.decode(b) for b in _loader(data, 7)]
    forecasters = [Persistence(), Counting([], name="other")]
    results.append(evaluate(forecasters, batches, METRICS, lead_steps=3, step_minutes=5.0, pixel_km=1.0))
    for other in results[1:]:
        xr.testing.assert_identical(other, results[0])
    assert results[0].sizes["event"] == 2 and results[0].attrs["num_windows"] == 20


def _loader(data, batch_size: int):
    from torch.utils.data import DataLoader

    return DataLoader(data.dataset, sampler=PLACES, batch_size=batch_size)


def test_what_fails_in_one_forecaster_keeps_the_others(data, tmp_path):
    asked: list[int] = []
    makers = {"good": partial(Counting, asked, name="good"), "bad": partial(Counting, [], 0, name="bad")}
    with pytest.raises(ValueError, match="bad failed at windows"):
        engine.run(work(data, tmp_path, makers), PLACES, workers=1)
    before = len(asked)
    assert before > 0
    makers = {"good": partial(Counting, asked, name="good"), "bad": partial(Counting, [], name="bad")}
    engine.run(work(data, tmp_path, makers), PLACES, workers=1)
    assert len(asked) == 20


@pytest.mark.parametrize("content", ["", "half"])
def test_sums_that_a_power_cut_left_are_scored_again(data, tmp_path, caplog, content):
    """An empty file ended every later evaluation with an EOFError that named nothing."""
    asked: list[int] = []
    made = work(data, tmp_path, {"good": partial(Counting, asked, name="good")})
    engine.run(made, PLACES, workers=1)
    whole, (first, *_) = engine._gather(made.folders["good"]), engine.kept(made.folders["good"]).values()
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2] if content else b"")
    before = len(asked)
    sums = engine.run(made, PLACES, workers=1)["good"]
    assert len(asked) > before and "is damaged" in caplog.text
    for event, named in whole.arrays().items():
        np.testing.assert_array_equal(sums.arrays()[event], named)


def test_two_at_once_are_refused(data, tmp_path):
    made = work(data, tmp_path, {"persistence": Persistence})
    with (
        FileLock(tmp_path / "persistence.lock"),
        pytest.raises(ValueError, match="Another evaluation is scoring persistence"),
    ):
        engine.run(made, PLACES, workers=1)
    with pytest.raises(ValueError, match="workers=0 must be"):
        engine.run(made, PLACES, workers=0)


def test_a_script_with_workers_lets_them_import_it():
    """Spawned processes import the main module: unguarded, each would start the command anew."""
    for script in ("evaluate", "ingest"):
        assert 'if __name__ == "__main__":' in (REPO / f"{script}.py").read_text()


def test_runs_of_batches_that_are_left():
    assert [*engine._runs([0, 1, 2, 3, 7, 8, 10], 3)] == [(0, 3), (3, 4), (7, 9), (10, 11)]
    assert [*engine._runs([], 3)] == []


def test_two_processes_equal_one_and_leave_nothing_behind(tiny_run: Path, tmp_path: Path) -> None:
    """As the command scores, with a network."""
    results = []
    for workers in (1, 2):
        own = [f"workers={workers}", f"unfinished={tmp_path}/{workers}", "baselines=[persistence]", "device=cpu"]
        path = f"{tiny_run}/checkpoints/best.ckpt"
        cfg = compose_config("evaluate", tmp_path / "run", f"checkpoint={path}", *own)
        checkpoint = assembly.read_checkpoint(path)
        settings = checkpoint.config["data"] | {"eval_stride": 4, "eval_batch_size": 2}
        data = assembly.data_of(settings, settings["archive"])
        own_work = scoring.work_of(cfg, settings, checkpoint, data, assembly.metrics(cfg, data))
        cost = engine.Cost()
        scores = scoring.score(cfg, own_work, data, cost=cost)
        assert len([*(tmp_path / str(workers)).glob("*/*.npz")]) >= 2
        engine.clear(own_work)
        assert not (tmp_path / str(workers)).exists()
        results.append(scores)
        told = cost.attrs()
        assert cost.windows == dict.fromkeys(own_work.makers, scores.attrs["num_windows"])
        assert all(seconds > 0 for seconds in cost.cpu_seconds.values()) and told["wall_seconds"] > 0
        assert told["num_processes"] == (1 if workers == 1 else 3)  # the main process is one of them
        assert told["peak_memory_gib"] > 0.1 * told["num_processes"]  # torch alone takes more
    xr.testing.assert_identical(*results)
    assert results[0].attrs["num_windows"] >= 4 and np.isfinite(results[0]["csi_mean"]).any()
