"""Many processes, killed ones, and two at once: the archive is the same, byte for byte."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from filelock import FileLock

from raincast import schema
from raincast.archive import Archive
from raincast.ingest import ingest
from raincast.ingest.day import DayResult, DayTask, write_day
from raincast.ingest.readers import ALL
from raincast.ingest.readers.cf import CF
from raincast.system.pool import Pool, Tick, worker_number

DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")


@dataclass(frozen=True)
class Moody(CF):
    """CF that fails for files named bad, dies of those named deadly, and waits $SLOW seconds before each."""

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        time.sleep(float(os.environ.get("SLOW", "0")))
        if "bad" in path.name:
            raise KeyError("a library's own idea of an error")
        if "deadly" in path.name:
            os._exit(9)
        return super().read(path, frames, step_minutes=step_minutes)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three days of ten frames, a file each."""
    folder = tmp_path_factory.mktemp("radar")
    paths = []
    for day in DAYS:
        mock = schema.mock_archive(10, start=f"{day}T12:00", seed=int(day[-1]))
        for frame in range(10):
            paths.append(folder / f"{day}_{frame}.nc")
            mock.isel(time=[frame]).drop_vars(schema.MISSING_TIMES).to_netcdf(paths[-1], engine="netcdf4")
    return paths


@pytest.fixture(scope="module")
def one_go(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("archives") / "one_go"
    ingest(files, out, Moody())
    return days(out)


def days(archive: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in archive.glob("*.nc")}


def test_two_processes_make_the_same_bytes_and_one_that_dies_takes_its_day_only(
    files: list[Path], one_go: dict[str, bytes], tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    deadly, bad = tmp_path / "deadly.nc", tmp_path / "bad.nc"
    for path, at in ((deadly, "2026-01-02T12:50"), (bad, "2026-01-03T12:50")):
        mock = schema.mock_archive(1, start=at).drop_vars(schema.MISSING_TIMES)
        mock.to_netcdf(path, engine="netcdf4")
    mixed = [bad, *files[::-1], deadly]
    report = ingest(mixed, tmp_path / "out", Moody(), workers=2, progress=lambda *n: seen.append(n))
    assert seen == sorted(seen) and 21 <= seen[-1][0] <= 32  # what the dead process had done may count
    assert list(report.bad_files) == [str(bad)] and "own idea" in report.bad_files[str(bad)]
    assert list(report.failed_days) == ["2026-01-02"] and "died" in report.failed_days["2026-01-02"]
    assert days(tmp_path / "out") == {name: data for name, data in one_go.items() if name != "2026-01-02.nc"}
    assert report.num_written == 20 and "1 days failed" in str(report)
    assert '"2026-01-02"' in report.path.read_text()
    ingest(files, tmp_path / "out", Moody())
    assert days(tmp_path / "out") == one_go


def test_a_day_that_fails_leaves_the_others(
    files: list[Path], one_go: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raincast.archive import PartWriter

    finish = PartWriter._finish

    def full(self: PartWriter) -> None:
        if "01-02" in self.path.name:
            raise OSError("No space left on device")
        finish(self)

    monkeypatch.setattr(PartWriter, "_finish", full)
    report = ingest(files, tmp_path / "out", Moody())
    assert report.failed_days == {"2026-01-02": "OSError: No space left on device"} and report.problems == 1
    assert days(tmp_path / "out") == {name: data for name, data in one_go.items() if name != "2026-01-02.nc"}


def test_a_day_that_is_asked_for_again_counts_once(
    files: list[Path], one_go: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process wrote it, and died before it could say so."""

    def twice(task: DayTask, tick: Tick) -> DayResult:
        write_day(task, lambda more: None)
        return write_day(task, tick)

    monkeypatch.setattr("raincast.ingest.pipeline.write_day", twice)
    seen: list[tuple[int, int]] = []
    report = ingest(files[:10], tmp_path / "out", Moody(), progress=lambda *n: seen.append(n))
    assert (report.num_written, report.missing_times) == (10, ())
    assert seen[-1] == (10, 10)
    assert days(tmp_path / "out") == {"2026-01-01.nc": one_go["2026-01-01.nc"]}


def killed(files: list[Path], out: Path, *, workers: int, after: int) -> int:
    """The exit code of a slow ingest in a process of its own that kills itself after so many frames.

    A kill from here would come late on a busy machine, when a day is whole.
    """
    command = [sys.executable, __file__, str(files[0].parent), str(out), str(workers), str(after)]
    return subprocess.run(command, env=os.environ | {"SLOW": "0.1"}, check=False).returncode


@pytest.mark.parametrize(("workers", "frames"), [(1, (3, 14)), (2, (9,))])
def test_killed_and_run_again_equals_one_go(
    files: list[Path], one_go: dict[str, bytes], tmp_path: Path, workers: int, frames: tuple[int, ...]
) -> None:
    out = tmp_path / "out"
    for enough in frames:
        # the main process alone: its workers see to themselves
        assert killed(files, out, workers=workers, after=enough) == -signal.SIGKILL
        assert list(out.glob(".*.partial")), "killed in between"
        for name, data in days(out).items():
            assert data == one_go[name]
    report = ingest(files, out, Moody())
    assert days(out) == one_go and report.num_written + report.num_present == 30
    assert not list(out.glob(".*.partial"))
    time.sleep(0.2)  # a worker that lived on would write
    assert days(out) == one_go


def test_a_second_writer_is_refused(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".ingest.lock"), pytest.raises(ValueError, match="Another ingest is writing .*out"):
        ingest(files, out, Moody())
    ingest(files[:3], out, Moody())
    assert Archive.open(out).num_times == 3


def test_what_a_killed_ingest_left_is_removed(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".2026-01-09.nc.4711.partial").write_bytes(b"half a day")
    ingest(files[:3], out, Moody())
    assert sorted(path.name for path in out.iterdir()) == [".ingest.lock", "2026-01-01.nc", "ingest_report.json"]


def test_workers_must_be_a_number() -> None:
    for workers in (0, -2, 1.5):
        with pytest.raises(ValueError, match=f"workers={workers} must be a whole number from 1, or null"):
            ingest("nowhere", "nowhere", CF(), workers=workers)  # type: ignore[arg-type]
    assert Pool(None)._num_processes(large=False) == 1


def test_one_damaged_frame_does_not_take_those_beside_it_along(tmp_path: Path) -> None:
    """Ten frames in a file, a chunk each; one chunk is spoilt."""
    mock = schema.mock_archive(10, 40, 40)
    encoding = {schema.RAIN: {"zlib": True, "chunksizes": (1, 40, 40), "fletcher32": True}}
    mock.to_netcdf(tmp_path / "a.nc", engine="netcdf4", encoding=encoding)
    import h5py

    with h5py.File(tmp_path / "a.nc") as file:
        chunk = file[schema.RAIN].id.get_chunk_info(4)
    content = bytearray((tmp_path / "a.nc").read_bytes())
    content[chunk.byte_offset + 20] ^= 0xFF
    (tmp_path / "a.nc").write_bytes(content)
    report = ingest(tmp_path / "a.nc", tmp_path / "out", CF())
    assert list(report.bad_files) == [str(tmp_path / "a.nc")]
    assert report.missing_times == ("2026-01-01T00:20:00",) and report.num_written == 9
    archive = Archive.open(tmp_path / "out")
    np.testing.assert_array_equal(archive.read(0, 9), np.delete(mock[schema.RAIN].values, 4, axis=0))


def die_once(task: tuple[int, str], tick: Tick) -> tuple[int, int]:
    """Task 2 kills its process, the first time; which process did a task, and its number."""
    number, folder = task
    time.sleep(0.05)
    if number == 2 and not (Path(folder) / "died").exists():
        (Path(folder) / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    tick(1)
    return worker_number(), number


def test_what_was_at_work_beside_a_process_that_is_killed_is_done_again_and_the_rest_in_parallel(
    tmp_path: Path,
) -> None:
    seen: list[int] = []
    with Pool(2) as pool:
        tasks = [(number, str(tmp_path)) for number in range(10)]
        outcomes = dict(pool.run(die_once, tasks, large=True, progress=seen.append))
        # how many tasks each did is a question of which started first
        assert pool._executor is not None and len(pool._executor._processes) == 2
    assert sorted(outcomes) == list(range(10))
    processes, numbers = zip(*(outcomes[number] for number in range(10)), strict=True)  # type: ignore[misc]
    assert numbers == tuple(range(10)) and set(processes[5:]) <= {0, 1}
    assert seen == sorted(seen) and worker_number() == 0


def main() -> None:
    """`python test_workers.py FOLDER ARCHIVE WORKERS FRAMES`: an ingest that is killed after so many frames."""
    from test_workers import Moody as Reader  # by the name that it has in the tests

    folder, out, workers, enough = sys.argv[1:]

    def kill(done: int, total: int) -> None:
        if done >= int(enough):
            os.kill(os.getpid(), signal.SIGKILL)

    ingest(sorted(Path(folder).glob("*.nc")), out, Reader(), workers=int(workers), progress=kill)


if __name__ == "__main__":
    main()
