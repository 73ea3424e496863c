"""On a dask cluster: the same bytes as on this machine, whatever dies, and nobody who writes after the end."""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from running import run_forked

from raincast import schema
from raincast.ingest import ingest
from raincast.ingest.readers import ALL, Head
from raincast.ingest.readers.cf import CF
from raincast.system import dask_pool
from raincast.system.dask_pool import Cluster, _Call, _Permit, _versions
from raincast.system.pool import Tick

distributed = pytest.importorskip(
    "distributed", reason="dask.distributed is not installed: pip install -e '.[cluster]'"
)

DAYS = ("2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04")
FRAMES = 10  # a day


@dataclass(frozen=True)
class Fragile(CF):
    """CF that fails for files named bad, dies of those named deadly, and is slow beside a file `slow`."""

    def scan(self, path: Path) -> Head:
        if "deadly_head" in path.name:
            os._exit(9)
        return super().scan(path)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        if (path.parent / "slow").exists():
            time.sleep(0.3)
        if "bad" in path.name:
            raise KeyError("a library's own idea of an error")
        if "deadly" in path.name:
            os._exit(9)
        return super().read(path, frames, step_minutes=step_minutes)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers, a process each; a task is given to another worker once if the first dies of it."""
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
        ) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module")
def address(cluster: Any) -> str:
    return str(cluster.scheduler_address)


def write(path: Path, start: str, num_times: int = 1, seed: int = 0) -> Path:
    mock = schema.mock_archive(num_times, start=start, seed=seed).drop_vars(schema.MISSING_TIMES)
    mock.to_netcdf(path, engine="netcdf4")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four days, five files of two frames each."""
    folder = tmp_path_factory.mktemp("radar")
    return [
        write(folder / f"{day}_{hour}.nc", f"{day}T{hour}:50", 2, seed=hour)
        for day in DAYS
        for hour in range(10, 10 + FRAMES // 2)
    ]


@pytest.fixture(scope="module")
def local(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("archives") / "local"
    ingest(files, out, Fragile(step_minutes=5))
    return days(out)


def days(archive: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in archive.glob("*.nc")}


def hidden(archive: Path) -> list[str]:
    return [path.name for path in archive.glob(".*") if path.name != ".ingest.lock"]


def test_the_bytes_are_those_of_this_machine(
    files: list[Path], local: dict[str, bytes], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    scanned: list[tuple[int, int]] = []
    monkeypatch.chdir(tmp_path)  # the workers are elsewhere
    arguments: dict[str, Any] = {"scheduler": address, "workers": None}
    report = ingest(
        [os.path.relpath(path) for path in files],
        "out",
        Fragile(step_minutes=5),
        progress=lambda *n: seen.append(n),
        scan_progress=lambda *n: scanned.append(n),
        **arguments,
    )
    assert len(local) == len(DAYS) and days(tmp_path / "out") == local
    assert report.num_written == len(DAYS) * FRAMES and not report.problems
    assert seen == [(number * FRAMES, len(DAYS) * FRAMES) for number in range(1, len(DAYS) + 1)]
    assert scanned[-1] == (len(files), len(files))
    assert hidden(tmp_path / "out") == []
    again = ingest(files, "out", Fragile(step_minutes=5), **arguments)
    assert (again.num_written, again.num_present) == (0, len(DAYS) * FRAMES)
    assert days(tmp_path / "out") == local


def test_as_a_command_with_stores(files: list[Path], address: str, tmp_path: Path) -> None:
    keys = [f"files={files[0].parent}/*.nc", "source=cf", "source.step_minutes=5", "format=zarr"]
    for archive, more in (("local", []), ("cluster", [f"scheduler={address}"])):
        done = run_forked(tmp_path, "ingest", *keys, f"archive={archive}", *more)
        assert done.returncode == 0, done.stderr
    assert "On 2 workers of the dask cluster" in done.stdout + done.stderr
    one, other = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("local", "cluster")
    )
    one.pop(Path("ingest_report.json")), other.pop(Path("ingest_report.json"))
    assert len(one) > len(DAYS) * FRAMES and one == other


def test_a_bad_file_and_a_day_that_its_workers_die_of_leave_the_others(
    files: list[Path], local: dict[str, bytes], address: str, tmp_path: Path
) -> None:
    deadly = write(tmp_path / "deadly.nc", f"{DAYS[1]}T12:00")
    bad = write(tmp_path / "bad.nc", f"{DAYS[2]}T12:00")
    unseen = tmp_path / "no_rain.nc"
    unseen.write_bytes(b"")
    report = ingest(
        [bad, unseen, *files, deadly], tmp_path / "out", Fragile(step_minutes=5), scheduler=address, workers=None
    )
    assert set(report.bad_files) == {str(bad), str(unseen)} and "own idea" in report.bad_files[str(bad)]
    assert list(report.failed_days) == [DAYS[1]]
    assert "its worker died 2 times" in report.failed_days[DAYS[1]]  # once given to another
    assert days(tmp_path / "out") == {name: data for name, data in local.items() if DAYS[1] not in name}
    assert hidden(tmp_path / "out") == []
    ingest(files, tmp_path / "out", Fragile(step_minutes=5), scheduler=address)
    assert days(tmp_path / "out") == local


def test_a_worker_that_dies_by_chance_costs_nothing(
    files: list[Path], local: dict[str, bytes], cluster: Any, address: str, tmp_path: Path
) -> None:
    victims = [nanny.pid for nanny in cluster.workers.values()][:1]

    def kill(done: int, total: int) -> None:
        while victims:  # the first day is written, others are on their way
            os.kill(victims.pop(), 9)

    report = ingest(
        files, tmp_path / "out", Fragile(step_minutes=5), scheduler=address, workers=None, progress=kill
    )
    assert not victims and not report.problems and days(tmp_path / "out") == local
    assert report.num_written == len(DAYS) * FRAMES


def test_who_is_stopped_leaves_no_writer_behind(
    files: list[Path], local: dict[str, bytes], address: str, tmp_path: Path
) -> None:
    out, slow = tmp_path / "out", files[0].parent / "slow"

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    slow.touch()
    try:
        with pytest.raises(KeyboardInterrupt):
            ingest(files, out, Fragile(step_minutes=5), scheduler=address, workers=None, progress=interrupt)
        before = days(out)
        assert 1 <= len(before) < len(DAYS) and hidden(out) == []
        time.sleep(1.5)  # five files a day, 0.3 s each: a day that went on would be there now
        assert days(out) == before and hidden(out) == []
    finally:
        slow.unlink()
    assert before.items() <= local.items()
    ingest(files, out, Fragile(step_minutes=5), scheduler=address, workers=None)
    assert days(out) == local


def nap(task: tuple[int, Path, int], tick: Tick) -> tuple[float, float, int]:
    """From when to when a process slept, until so many have begun: a busy machine starts the second late."""
    number, folder, at_once = task
    start = time.time()
    (folder / f"{os.getpid()}").touch()
    while len(list(folder.iterdir())) < at_once and time.time() < start + 60:
        time.sleep(0.01)
    time.sleep(0.2)
    tick(number)
    return start, time.time(), os.getpid()


@pytest.mark.parametrize(("workers", "at_once"), [(None, 2), (1, 1)])
def test_no_more_tasks_than_workers_at_once(
    address: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, workers: int | None, at_once: int
) -> None:
    told: list[int] = []
    began = tmp_path_factory.mktemp("began")
    with Cluster(address, tmp_path, workers) as cluster:
        tasks = [(number, began, at_once) for number in range(1, 7)]
        outcomes = dict(cluster.run(nap, tasks, large=False, progress=told.append))
    assert sorted(outcomes) == list(range(6)) and told[-1] == 21 and told == sorted(told)
    spans = [span for span in outcomes.values() if not isinstance(span, Exception)]
    assert len(spans) == 6
    # counted when a task begins: during a long task several short ones may run, one after the other
    assert max(sum(begun <= start < end for begun, end, _ in spans) for start, _, _ in spans) == at_once
    assert list(tmp_path.iterdir()) == []


def test_a_worker_stops_when_nobody_waits_any_more(tmp_path: Path) -> None:
    permit = _Permit(tmp_path / ".cluster.1.partial", _versions())
    with pytest.raises(RuntimeError, match=r"does not see .*a shared file system"):
        _Call(nap, (3, tmp_path, 0), permit)()
    permit.path.touch()
    assert _Call(nap, (3, tmp_path, 0), permit)()[1] == 3

    def next_ingest(task: int, tick: Tick) -> None:
        tick(task)
        permit.path.unlink()  # as it does once it has the lock
        tick(task)
        raise AssertionError("went on")

    with pytest.raises(RuntimeError, match="nobody waits"):
        _Call(next_ingest, 3, permit)()


def test_other_versions_are_refused(
    files: list[Path], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here newer than in the workers, to which no patch comes."""
    monkeypatch.setattr("raincast.system.dask_pool._versions", lambda: _versions() | {"raincast": "9.9"})
    with pytest.raises(ValueError, match=r"2 of 2 workers .*cannot ingest:\n.*raincast .* \(9\.9 here\)"):
        ingest(files, tmp_path / "out", Fragile(step_minutes=5), scheduler=address)
    assert not (tmp_path / "out").exists()


def test_no_scheduler_no_workers_no_dask(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert 2 < dask_pool.CONNECT_SECONDS <= 6  # here less
    with monkeypatch.context() as patch:
        patch.setattr(dask_pool, "CONNECT_SECONDS", 1.0)
        started = time.monotonic()
        for nowhere in ("tcp://127.0.0.1:9", "nowhere"):
            with pytest.raises(ValueError, match=f"No dask scheduler answers at scheduler={nowhere}"):
                ingest(files, out, Fragile(), scheduler=nowhere)
        assert time.monotonic() - started < 7 and not out.exists()
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty,
        pytest.raises(ValueError, match="has no workers. Start some: dask worker"),
    ):
        ingest(files, out, Fragile(), scheduler=empty.scheduler_address)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[cluster\]'"):
        ingest(files, out, Fragile(), scheduler="tcp://127.0.0.1:9")
    assert not out.exists()
