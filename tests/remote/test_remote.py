"""Archives and radar files on servers: the same values, by their parts, whatever the server does."""

import importlib
import logging
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from remote.serving import Server, serving

import raincast
from raincast import schema
from raincast.archive import Archive, ZarrPartWriter, write_part
from raincast.archive.find import find_files
from raincast.data.rain import part_key
from raincast.ingest.pipeline import ingest
from raincast.ingest.readers.cf import CF
from raincast.system import remote
from raincast.system.faults import MachineError
from raincast.system.remote import RemoteFile, as_path

FRAMES = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days as netCDF in `nc`, as Zarr in `zarr`, and as a file for each frame of the first in `radar`."""
    made = tmp_path_factory.mktemp("served")
    for day in range(2):
        mock = schema.mock_archive(FRAMES, 80, 70, start=f"2026-01-0{day + 1}", seed=day)
        write_part(mock, made / "nc" / f"2026-01-0{day + 1}.nc")
        with ZarrPartWriter(
            made / "zarr" / f"2026-01-0{day + 1}.zarr", schema.grid_of(mock), step_minutes=5.0
        ) as part:
            for time, frame in zip(mock["time"].values, mock["rain_rate"].values, strict=True):
                part.add(time, frame)
    (made / "radar").mkdir()
    for number in range(6):
        one = schema.mock_archive(FRAMES, 80, 70, start="2026-01-01").isel(time=[number], missing_times=slice(0))
        one.to_netcdf(made / "radar" / f"{number}.nc", engine="netcdf4")
    return made


@pytest.fixture(autouse=True)
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAINCAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAIT_S", 0.01)
    monkeypatch.setattr(remote, "ANSWER_S", 0.5)
    monkeypatch.setattr(remote, "_known", {})


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as served:
        yield served


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_an_archive_is_read_by_its_parts_and_each_part_once(
    kind: str, folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("h5netcdf")
    monkeypatch.setattr(remote, "BLOCK", 2**12)
    here, there = Archive.open(folder / kind), Archive.open(f"{server.url}/{kind}")
    np.testing.assert_array_equal(there.times, here.times)
    assert there.coded == here.coded and there.meaning == here.meaning and str(there.path) in repr(there)
    assert part_key(there.parts[0].path) == part_key(Archive.open(f"{server.url}/{kind}").parts[0].path)
    server.asked.clear()
    np.testing.assert_array_equal(there.read(2, 3, y=slice(0, 9)), here.read(2, 3, y=slice(0, 9)))
    if kind == "nc":
        size = (folder / "nc" / "2026-01-01.nc").stat().st_size
        assert 0 < server.num_bytes("2026-01-01.nc") < size / 2 and not server.num_bytes("2026-01-02.nc")
    else:
        frames = [path for _, path, _ in server.asked if "/rain_rate/c/" in path]
        assert sorted(frames) == [f"/zarr/2026-01-01.zarr/rain_rate/c/{n}/0/0" for n in (2, 3, 4)]
    np.testing.assert_array_equal(there.read(20, 10), here.read(20, 10))
    np.testing.assert_array_equal(there.coverage, here.coverage)
    server.asked.clear()
    again = Archive.open(f"{server.url}/{kind}")
    np.testing.assert_array_equal(again.read(20, 10), here.read(20, 10))
    assert not [
        path for method, path, _ in server.asked if method == "GET" and "2026-01-0" in path and "c/" in path
    ]
    assert not server.num_bytes("2026-01-01.nc")
    lazy = raincast.open_archive(f"{server.url}/{kind}")
    np.testing.assert_array_equal(lazy["rain_rate"][5].values, here.read(5, 1)[0])


@pytest.mark.parametrize("kind", ["nc", "zarr"])
@pytest.mark.parametrize("fault", ["break", "slow", "500"])
def test_a_server_that_fails_is_asked_again_and_then_named(
    kind: str, fault: str, folder: Path, server: Server
) -> None:
    pytest.importorskip("h5netcdf")
    end = "2026-01-01.nc" if kind == "nc" else "rain_rate/c/3/0/0"
    server.faults[end] = [fault, fault, None]
    there = Archive.open(f"{server.url}/{kind}")
    np.testing.assert_array_equal(there.read(3, 2), Archive.open(folder / kind).read(3, 2))
    end = "2026-01-02.nc" if kind == "nc" else "rain_rate/c/7/0/0"
    server.faults[end] = [fault]
    with pytest.raises((ValueError, MachineError), match=rf"{server.url}.*cannot be fetched, 4 times tried"):
        _anew(f"{server.url}/{kind}").read(7, 30)


def _anew(url: str) -> Archive:
    """Opened by a process that keeps nothing of it."""
    import shutil

    shutil.rmtree(os.environ["RAINCAST_CACHE"], ignore_errors=True)
    return Archive.open(url)


@pytest.mark.parametrize("fault", ["short", "long"])
def test_a_server_that_lies_about_the_length_is_found_out(fault: str, folder: Path, server: Server) -> None:
    path = as_path(f"{server.url}/radar/2.nc")
    content = (folder / "radar" / "2.nc").read_bytes()
    server.ranges = False  # whole files alone are sent, which is no fault
    file = RemoteFile(str(path))
    file.seek(100)
    assert file.read(50) == content[100:150]
    assert path.local().read_bytes() == content and path.local().name == "2.nc"
    for end in ("3.nc", "3.nc?HEAD"):
        server.faults = {end: [fault]}
        remote._known.clear()
        with pytest.raises((OSError, ValueError), match=r"3\.nc"):
            as_path(f"{server.url}/radar/3.nc").local()
        assert not list(Path(os.environ["RAINCAST_CACHE"]).rglob("3.nc"))


def test_radar_files_are_ingested_as_from_a_folder(
    folder: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults = {"1.nc": ["break", None], "4.nc": ["long"]}
    report = ingest(f"{server.url}/radar/*.nc", tmp_path / "there", CF(), workers=1)
    (bad,) = report.bad_files
    assert bad == f"{server.url}/radar/4.nc" and bad in report.bad_files[bad]
    others = [folder / "radar" / f"{number}.nc" for number in (0, 1, 2, 3, 5)]
    ingest(others, tmp_path / "here", CF(), workers=1)
    assert (tmp_path / "there" / "2026-01-01.nc").read_bytes() == (
        tmp_path / "here" / "2026-01-01.nc"
    ).read_bytes()
    server.faults = {"0.nc": ["500"]}
    monkeypatch.setenv("RAINCAST_CACHE", str(tmp_path / "empty"))
    with pytest.raises(MachineError, match=r"0\.nc cannot be fetched, 4 times tried"):
        ingest(f"{server.url}/radar/*.nc", tmp_path / "none", CF(step_minutes=5), workers=1)
    server.faults = {}
    frames = raincast.open_radar(f"{server.url}/radar/*.nc", source="cf")
    assert frames.sizes["time"] == 6
    with pytest.raises(ValueError, match="an archive is written to a folder of this machine"):
        ingest(folder / "radar", f"{server.url}/archive", CF())


def test_files_are_found_where_the_server_lists_them(folder: Path, server: Server) -> None:
    url = f"{server.url}/radar"
    assert [path.name for path in find_files(url)] == [f"{number}.nc" for number in range(6)]
    assert [str(path) for path in find_files([f"{url}/[12].nc", f"{url}/5.nc"])] == [
        f"{url}/{n}.nc" for n in (1, 2, 5)
    ]
    for nothing in (f"{url}/none.nc", f"{url}/*.h5", f"{server.url}/nowhere"):
        with pytest.raises(FileNotFoundError, match="No file matches files=http.*the server lists no files"):
            find_files(nothing)
    with pytest.raises(FileNotFoundError, match=r"nowhere: there is no such file, or the server lists no \.nc"):
        Archive.open(f"{server.url}/nowhere")


def test_a_file_that_was_replaced_is_read_by_its_times(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("h5netcdf")
    mock = schema.mock_archive(FRAMES, 80, 70)
    served = tmp_path / "served"
    write_part(mock.isel(time=slice(4, None), missing_times=slice(0)), served / "a.nc")
    with serving(served) as server:
        archive = Archive.open(f"{server.url}/a.nc")
        before = archive.read(0, 5)
        write_part(mock, served / "a.nc")
        remote._known.clear()  # a minute later
        with caplog.at_level(logging.WARNING):
            np.testing.assert_array_equal(archive.read(0, 5), before)
        assert "was rewritten while it was open" in caplog.text


def test_any_protocol_of_fsspec_serves(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    import fsspec

    fsspec.filesystem("memory").put(str(folder / "nc"), "/bucket/nc", recursive=True)
    fsspec.filesystem("memory").put(str(folder / "zarr"), "/bucket/zarr", recursive=True)
    for kind in ("nc", "zarr"):
        there = Archive.open(f"memory://bucket/{kind}")
        np.testing.assert_array_equal(there.read(20, 8), Archive.open(folder / kind).read(20, 8))


def test_an_object_store_serves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5netcdf")
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    store = moto.ThreadedMotoServer(port=0)
    store.start()
    try:
        endpoint = "http://127.0.0.1:{1}".format(*store.get_host_and_port())
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        client = boto3.client("s3", region_name="us-east-1", endpoint_url=endpoint)
        client.create_bucket(Bucket="radar")
        for path in folder.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "radar", str(path.relative_to(folder)))
        for kind in ("nc", "zarr"):
            there = Archive.open(f"s3://radar/{kind}")
            np.testing.assert_array_equal(there.read(20, 8), Archive.open(folder / kind).read(20, 8))
        assert [path.name for path in find_files("s3://radar/radar/[12].nc")] == ["1.nc", "2.nc"]
        assert raincast.open_radar("s3://radar/radar/*.nc", source="cf").sizes["time"] == 6
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            Archive.open("s3://radar/nothing")
    finally:
        store.stop()


def test_an_archive_of_the_catalogue_opens_by_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    with pytest.raises(ValueError, match="needs the package mlcast-datasets: pip install mlcast-datasets"):
        Archive.open("mlcast://radklim_hourly")
    fsspec.filesystem("memory").put(str(folder / "zarr" / "2026-01-01.zarr"), "/catalogued/a.zarr", recursive=True)
    listed = tmp_path / "mlcast_datasets" / "catalog" / "precipitation"
    listed.mkdir(parents=True)
    (tmp_path / "mlcast_datasets" / "__init__.py").write_text("raise ImportError('intake')")
    (listed.parent / "catalog.yml").write_text("sources: {precipitation: {driver: catalog, args: {path: x}}}")
    (listed / "catalog.yml").write_text(
        "sources: {radklim_hourly: {driver: zarr, args: {urlpath: 'memory://catalogued/a.zarr/', consolidated: true, "
        "storage_options: {}}}}"
    )
    monkeypatch.syspath_prepend(tmp_path)
    there = Archive.open("mlcast://radklim_hourly")
    np.testing.assert_array_equal(there.read(0, 3), Archive.open(folder / "zarr").read(0, 3))
    assert str(pickle.loads(pickle.dumps(there)).path) == "mlcast://radklim_hourly.zarr"
    with pytest.raises(ValueError, match="mlcast://nothing is not in the catalogue; there are radklim_hourly"):
        Archive.open("mlcast://nothing")


def _read(path: str) -> np.ndarray:
    return Archive.open(path).read(0, 2)


def test_other_processes_read_for_themselves(folder: Path, server: Server) -> None:
    pytest.importorskip("h5netcdf")
    archive = Archive.open(f"{server.url}/nc")
    expected = archive.read(0, 2)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(archive)).read(0, 2), expected)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply_async(_read, (f"{server.url}/nc",)).get(60), expected)


def test_what_was_unused_for_longest_leaves_the_cache(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [as_path(f"{server.url}/radar/{number}.nc") for number in range(4)]
    size = paths[0].local().stat().st_size
    monkeypatch.setenv("RAINCAST_REMOTE_CACHE_GIB", str(2.5 * size / 2**30))
    for number, path in enumerate(paths):
        os.utime(path.local(), (number, number))
    assert sum(file.is_file() for file in (tmp_path / "cache" / "remote").rglob("*")) <= 3
    assert paths[0].local().stat().st_size == size  # fetched again


def without(*names: str) -> Callable[[str], object]:
    real = importlib.import_module

    def found(name: str, package: str | None = None) -> object:
        if name in names:
            raise ImportError(name)
        return real(name, package)

    return found


def test_a_package_that_is_missing_is_named_with_the_extra(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib, "import_module", without("h5netcdf", "s3fs", "gcsfs"))
    extra = r'needs the package {}: pip install -e "\.\[remote\]"'
    with pytest.raises(ValueError, match=extra.format("h5netcdf")):
        Archive.open(f"{server.url}/nc")
    importlib.import_module("fsspec")
    for url, package in (("s3://a/b.nc", "s3fs"), ("gs://a/b.nc", "gcsfs")):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url[:2], raising=False)
        with pytest.raises(ValueError, match=extra.format(package)):
            Archive.open(url)
    with pytest.raises(ValueError, match="nosuch:// is no protocol"):
        Archive.open("nosuch://a/b.nc")


def test_an_address_is_a_path() -> None:
    path = as_path("https://host:8080/a/2026.zarr/")
    assert str(path) == "https://host:8080/a/2026.zarr" and path.name == "2026.zarr" and path.suffix == ".zarr"
    assert str(path.parent / "b.nc") == "https://host:8080/a/b.nc" and as_path(str(path)) == path
    assert str(as_path("memory:///a/b.nc")) == "memory://a/b.nc"
    assert as_path("data/knmi") == Path("data/knmi") and as_path("file:///a/b.nc") == Path("/a/b.nc")
    with pytest.raises(TypeError, match="is no local file"):
        os.fspath(path)
    with pytest.raises(ValueError, match="can only be read"):
        path.open("wb")
