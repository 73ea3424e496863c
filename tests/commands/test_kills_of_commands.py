"""Ingest, hindcast, evaluation and watcher, killed at random moments and run again: the result of one go.

RAINCAST_KILLS=20 kills each as many times (training: test_kills.py).
"""

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from killing import kill_command, run
from running import TINY
from watching import frames_of, write_frame

KILLS = int(os.environ.get("RAINCAST_KILLS", "0"))
MOST_OF_A_RUN = 6
"""Kills of one run; then it may end."""
NUM_FRAMES = 16


@pytest.fixture(scope="module")
def files(tiny_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    frames = frames_of(tiny_archive, NUM_FRAMES)
    for number in range(NUM_FRAMES):
        write_frame(folder, frames, number)
    return folder


@pytest.fixture(scope="module")
def trained(tiny_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a network that was trained for a moment."""
    folder = tmp_path_factory.mktemp("trained")
    assert run(folder, [*TINY, f"data.archive={tiny_archive}", "trainer.max_epochs=1"]) == 0
    return folder


def ingest(folder: Path, files: Path, trained: Path) -> tuple[str, list[str]]:
    return "ingest", [f"files={files}", f"archive={folder}/out", "workers=1"]


def hindcast(folder: Path, files: Path, trained: Path) -> tuple[str, list[str]]:
    given = ["init_time=/", f"input={files}", f"folder={folder}/out", "workers=1", "animation=false"]
    return "forecast", [*given, f"checkpoint={trained}/checkpoints/best.ckpt", "device=cpu"]


def evaluate(folder: Path, files: Path, trained: Path) -> tuple[str, list[str]]:
    given = ["baselines=[persistence,extrapolation]", "workers=1", "device=cpu", f"unfinished={folder}/sums"]
    return "evaluate", [*given, f"checkpoint={trained}/checkpoints/best.ckpt"]


def watch(folder: Path, files: Path, trained: Path) -> tuple[str, list[str]]:
    live = ["live.once=true", "live.max_age_minutes=null", "live.keep_hours=null", f"live.output={folder}/out"]
    given = [f"watch={files}", f"site={folder}/site", "coastlines=false", "animation=false", "live.settle_s=0"]
    return "forecast", [*given, *live, f"checkpoint={trained}/checkpoints/best.ckpt", "device=cpu"]


COMMANDS: dict[str, Callable[[Path, Path, Path], tuple[str, list[str]]]] = {
    "ingest": ingest,
    "hindcast": hindcast,
    "evaluation": evaluate,
    "watcher": watch,
}
MEASURED = {"wall_seconds", "cpu_seconds_per_window"}


def results(folder: Path) -> dict[str, Any]:
    """All that a command left, but for when and in how long."""
    assert not [path for path in folder.rglob("*.partial") if "log" not in path.parts]
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.nc")):
        if path.name.startswith("references_") or path.parent.name == "sums":
            continue
        with xr.open_dataset(path, engine="netcdf4", decode_timedelta=True) as file:
            found[path.name] = file.load().drop_vars(MEASURED, errors="ignore").drop_attrs()
    status = folder / "out" / "status.json"
    if status.exists():
        said = json.loads(status.read_text(encoding="utf-8"))
        found["status"] = {key: said[key] for key in ("counts", "skill", "newest_frame")}
        found["page"] = json.loads((folder / "site" / "forecast.json").read_text(encoding="utf-8"))["init_time"]
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, xr.Dataset):
            xr.testing.assert_identical(value, other[name])
        else:
            assert value == other[name], name


@pytest.mark.timeout(3600)
@pytest.mark.skipif(KILLS == 0, reason="RAINCAST_KILLS=20 kills each command as many times, at random moments")
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_random_moments_it_ends_as_in_one_go(
    name: str, files: Path, trained: Path, tmp_path: Path
) -> None:
    rng = random.Random(int(os.environ.get("RAINCAST_SEED", "0")))
    command, overrides = COMMANDS[name](tmp_path / "whole", files, trained)
    began = time.monotonic()
    assert kill_command(tmp_path / "whole", command, overrides) == 0
    seconds = time.monotonic() - began
    whole = results(tmp_path / "whole")
    assert len(whole) >= 1
    kills, runs = 0, 0
    while kills < KILLS:
        runs += 1
        folder = tmp_path / f"killed{runs}"
        command, overrides = COMMANDS[name](folder, files, trained)
        of_this = 0
        while True:
            after = rng.uniform(0.3, 1.0) * seconds if of_this < MOST_OF_A_RUN and kills < KILLS else None
            code = kill_command(folder, command, overrides, kill_after=after)
            if code == 0:
                break
            assert code == -9
            kills, of_this = kills + 1, of_this + 1
        assert_same(whole, results(folder))
    print(f"{name}: {kills} kills of {runs} runs, {seconds:.1f} s each: all end as in one go")  # noqa: T201
