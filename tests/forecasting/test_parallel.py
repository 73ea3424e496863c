"""Ranges over processes: the same files, whatever dies or fails, and nothing half-written.

What becomes of tasks whose process dies is a test of `ingest.workers`.
"""

import functools
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from filelock import FileLock
from forecasting.standing import moving, pipeline

from raincast.archive import Archive, write_part
from raincast.forecasting import (
    ForecastPipeline,
    HindcastWork,
    Outputs,
    Series,
    devices_of,
    forecast_all,
    forecast_path,
    parallel,
)
from raincast.forecasting.parallel import _remove_half_written
from raincast.forecasting.series import ArchiveSeries
from raincast.schema import RAIN, grid_of, mock_archive, rain_dataset

TIMES = np.datetime64("2026-01-01T00:00", "ns") + np.arange(16) * np.timedelta64(5, "m")
DUE = TIMES[3:]
BAD = TIMES[9]


class Moody:
    """Moving rain; what touches the frame `BAD` is an error."""

    step_minutes = 5.0
    kept_bytes = 0
    times = TIMES

    def __init__(self) -> None:
        self.frames = moving(TIMES.size)

    def read(self, wanted: np.ndarray) -> xr.Dataset:
        if BAD in wanted:
            raise KeyError("a library's own idea of an error")
        rain = self.frames[RAIN].values[np.searchsorted(TIMES, wanted)]
        return rain_dataset(rain, wanted, grid_of(self.frames), step_minutes=5.0, cell_methods="time: point")


class Whole(Moody):
    def read(self, wanted: np.ndarray) -> xr.Dataset:
        return super().read(wanted[wanted != BAD])


def make(device: str, gib: float | None) -> ForecastPipeline:
    return pipeline(reach=False)


def work(folder: Path, series: type[Series] = Moody, **more: object) -> HindcastWork:
    return HindcastWork(make, series, folder, Outputs(), "the test", **more)  # type: ignore[arg-type]


def run(given: HindcastWork, *, workers: int | None = 1, due: np.ndarray = DUE, seen: list | None = None):
    told = (lambda *n: seen.append(n)) if seen is not None else None
    return forecast_all(given, due, make("cpu", None), given.series(), workers=workers, progress=told)


def files(folder: Path) -> dict[str, tuple]:
    found = {}
    for path in sorted(folder.glob("*.nc")):
        with xr.open_dataset(path, decode_timedelta=True) as file:
            attrs = {key: value for key, value in file.attrs.items() if key != "history"}
            found[path.name] = tuple(v.values.tobytes() for v in file.variables.values()), attrs
    return found


def test_two_processes_make_what_one_makes_though_frames_are_bad(tmp_path: Path) -> None:
    alone = run(work(tmp_path / "one"))
    assert set(alone.failed) == set(TIMES[9:13]) and len(alone.methods) == len(DUE) - 4
    seen: list[tuple[int, int]] = []
    outcome = run(work(tmp_path / "two"), workers=2, seen=seen)
    assert outcome.methods == alone.methods
    assert {time: str(error) for time, error in outcome.failed.items()} == {
        time: f"KeyError: {error}" for time, error in alone.failed.items()
    }
    assert seen == sorted(seen) and seen[-1] == (len(DUE), len(DUE))
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert not list((tmp_path / "two").glob(".*.partial"))


def test_sigterm_leaves_whole_files_and_the_same_call_makes_the_rest(tmp_path: Path) -> None:
    from raincast.commands.forecast import _ended_by_sigterm

    class Ending(Whole):
        reads = 0

        def read(self, wanted: np.ndarray) -> xr.Dataset:
            self.reads += 1
            if self.reads == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().read(wanted)

    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".forecast_20260101T0100.nc.999999999.partial").write_bytes(b"half a forecast")
    mine = folder / f".forecast_20260101T0200.nc.{os.getppid()}.partial"
    mine.write_bytes(b"of a process that is at work")
    with pytest.raises(SystemExit) as left, _ended_by_sigterm():
        run(work(folder, Ending))
    assert left.value.code == 143 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert len(files(folder)) == 3 and list(folder.glob(".*.partial")) == [mine]
    outcome = run(work(folder, Whole))
    assert (outcome.num_kept, len(outcome.methods)) == (3, len(DUE) - 3)
    run(work(tmp_path / "one", Whole))
    assert files(folder) == files(tmp_path / "one")


def test_what_is_wrong_with_all_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError, match="own idea"):
        run(work(tmp_path / "a"), due=TIMES[9:13])  # four that all need the bad frame
    from raincast.forecasting import hindcast

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hindcast, "write_outputs", full)
    with pytest.raises(OSError, match="No space left"):
        run(work(tmp_path / "b"))
    assert not files(tmp_path / "b")


def test_no_frame_is_no_failure(tmp_path: Path) -> None:
    due = TIMES[-1] + np.arange(5) * np.timedelta64(5, "m")
    outcome = run(work(tmp_path), due=due)
    assert not outcome.failed and len(outcome.methods) == 4
    assert list(outcome.without) == [due[-1]] and "has none of the 4 frames" in outcome.without[due[-1]]
    # the newest frame stays away, so the rain moves on by itself; of one frame there is no motion
    assert list(outcome.methods.values()) == ["network", "extrapolation", "extrapolation", "persistence"]


def test_one_range_a_folder(tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / parallel.LOCK),
        pytest.raises(ValueError, match="Another command forecasts a range into"),
    ):
        run(work(tmp_path))
    with pytest.raises(ValueError, match="workers=0 must be a whole number from 1"):
        run(work(tmp_path), workers=0)


def test_processes_share_the_memory_and_no_tile_is_smaller_than_of_one(caplog: pytest.LogCaptureFixture) -> None:
    made = make("cpu", None)
    shape = (1000, 1000)
    each = made.memory.in_one_pass(made.footprint, shape, made.lead_steps, 0)
    # 4096 bytes a pixel and a half, twelve input maps and eighteen of the answer and the file, half a GiB for Python
    assert each == pytest.approx((1e6 * (1.5 * 4096 + 4 * (12 + 18))) / 2**30 + 0.5)
    count = functools.partial(parallel._num_processes, pipeline=made, shape=shape)
    assert count(work(Path(), gib=each * 3 + 0.51), workers=8) == 3
    assert count(work(Path(), gib=each * 3 + 0.51), workers=2) == 2
    assert count(work(Path(), gib=0.1), workers=8) == 1
    assert count(work(Path(), gib=0.1, devices=("cuda:0", "cuda:1")), workers=None) == 2


def test_what_an_archive_keeps_unpacked_counts_for_every_process(tmp_path: Path) -> None:
    write_part(mock_archive(12, 64, 64), tmp_path / "a.nc")
    write_part(mock_archive(12, 64, 64, start="2026-01-02T00:00"), tmp_path / "b.nc")
    series = ArchiveSeries(Archive.open(tmp_path))
    assert series.kept_bytes == 2 * 12 * 64 * 64 * 2  # all of it in codes, as it is small
    made = make("cpu", None)
    without = made.memory.in_one_pass(made.footprint, (64, 64), made.lead_steps, 0)
    made.frames(series, "latest", source="a mock archive")
    kept = made.memory.in_one_pass(made.footprint, (64, 64), made.lead_steps, 0) - without
    assert kept * 2**30 == pytest.approx(series.kept_bytes)
    # and tiles are chosen within what is left
    made.memory.gib = without + kept / 2
    with pytest.raises(ValueError, match="tile by tile"):
        made.memory.tiling(made.footprint, (64, 64), made.lead_steps, 0)
    made.memory.kept_bytes = 0
    assert made.memory.tiling(made.footprint, (64, 64), made.lead_steps, 0) is None


def test_every_gpu_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert (devices_of("cpu"), devices_of("cuda:1")) == (("cpu",), ("cuda:1",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_of("auto") == devices_of("cuda") == ("cuda:0", "cuda:1")


def test_the_paths_are_those_of_single_forecasts(tmp_path: Path) -> None:
    run(work(tmp_path, Whole), due=DUE[:1])
    assert forecast_path(tmp_path, DUE[0]).is_file()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    """The name of a partial file holds process and thread; the number of a thread is no process."""
    killed, alive = (tmp_path / f".forecast_a.nc.{process}.140737353963392.partial" for process in (4194303, 1))
    for path in (killed, alive):
        path.touch()
    _remove_half_written(tmp_path)
    assert not killed.exists() and alive.exists()


def test_forecasts_of_other_settings_are_not_taken_for_these(tmp_path: Path) -> None:
    def go(text: str) -> int:
        made = make("cpu", None)
        made.attrs["forecast_config"] = text
        return forecast_all(work(tmp_path, Whole), DUE[:1], made, Whole(), workers=1).num_kept

    before = "exceedance: null\nproducts:\n  onset: null\nworkers: 1\n"
    assert go(before) == 0
    assert go(before.replace("workers: 1", "workers: 2") + "a_newer_key: 1\n") == 1
    with pytest.raises(ValueError, match=r"exceedance was null, is \[2\]; products\.onset was null, is 1\. Give"):
        go("exceedance: [2]\nproducts:\n  onset: 1\nworkers: 1\n")
