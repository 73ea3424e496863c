"""Archives as Zarr, and archives rewritten: what ingest promises holds for both, and no code changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr

from raincast import schema
from raincast.archive import Archive, write_part
from raincast.ingest import ingest
from raincast.ingest.readers.archive import BEFORE, ArchiveReader
from raincast.ingest.readers.cf import CF
from raincast.ingest.readers.knmi import KNMI

WriteKNMI = Callable[..., Path]
MIDNIGHT = [f"2020-01-0{1 + (h >= 24)}T{h % 24:02d}:{m:02d}" for h in (23, 24) for m in range(0, 60, 5)]
STORES = ["2020-01-01.zarr", "2020-01-02.zarr"]


@pytest.fixture
def files(write_knmi: WriteKNMI) -> list[Path]:
    """Two hours of KNMI frames across midnight."""
    return [write_knmi(time) for time in MIDNIGHT]


def content(archive: Path) -> dict[str, bytes]:
    """All that was written of the days."""
    parts = [path for path in archive.rglob("*") if path.is_file() and path.parent != archive]
    return {str(path.relative_to(archive)): path.read_bytes() for path in parts}


def frames(archive: Path) -> np.ndarray:
    opened = Archive.open(archive)
    return opened.read(0, opened.num_times)


@pytest.mark.filterwarnings("error")
def test_a_store_a_day_holds_what_the_files_of_a_day_would(files: list[Path], tmp_path: Path) -> None:
    report = ingest(files, tmp_path / "zarr", KNMI(), format="zarr", attrs={"license": "CC-BY-4.0", "title": None})
    assert report.num_written == 24
    names = sorted(path.name for path in (tmp_path / "zarr").iterdir())
    assert names == [".ingest.lock", *STORES, "ingest_report.json"]
    ingest(files, tmp_path / "netcdf", KNMI())
    np.testing.assert_array_equal(frames(tmp_path / "zarr"), frames(tmp_path / "netcdf"))
    archive = Archive.open(tmp_path / "zarr")
    assert archive.identity == Archive.open(tmp_path / "netcdf").identity
    assert (archive.attrs["license"], archive.attrs["source"]) == ("CC-BY-4.0", "KNMI")
    assert archive.rain_attrs["cell_methods"] == "time: mean"
    before = content(tmp_path / "zarr")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "zarr").rglob("*.json")}
    assert ingest(files, tmp_path / "zarr", KNMI(), format="zarr", attrs={"license": "CC-BY-4.0"}).num_written == 0
    assert content(tmp_path / "zarr") == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.parametrize("seed", range(2))
def test_pieces_in_any_order_are_byte_for_byte_one_go(files: list[Path], tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for piece in np.array_split(rng.permutation(len(files)), 3):
        ingest([files[i] for i in piece], tmp_path / "grown", KNMI(), max_rate=3.0, format="zarr")
    ingest(files, tmp_path / "one_go", KNMI(), max_rate=3.0, format="zarr", workers=2)
    whole = content(tmp_path / "one_go")
    assert len(whole) > 2 * 20 and content(tmp_path / "grown") == whole


def test_interrupted_and_what_a_killed_one_left(files: list[Path], tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 18:  # the first day is written, the second half read
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        ingest(files, out, KNMI(), format="zarr", progress=interrupt)
    assert sorted(path.name for path in out.iterdir()) == [".ingest.lock", STORES[0]]
    (out / ".2020-01-02.zarr.4711.partial/rain_rate/c").mkdir(parents=True)
    (out / STORES[0]).rename(out / f".{STORES[0]}.aside")  # killed while one took the other's place
    ingest(files, out, KNMI(), format="zarr")
    assert sorted(path.name for path in out.iterdir()) == [".ingest.lock", *STORES, "ingest_report.json"]
    ingest(files, tmp_path / "one_go", KNMI(), format="zarr")
    assert content(out) == content(tmp_path / "one_go")


def test_an_archive_has_one_format(files: list[Path], tmp_path: Path) -> None:
    ingest(files[:3], tmp_path / "zarr", KNMI(), format="zarr")
    ingest(files[:3], tmp_path / "netcdf", KNMI())
    with pytest.raises(
        ValueError, match="is an archive in zarr. Continue with format=zarr, or choose another folder"
    ):
        ingest(files, tmp_path / "zarr", KNMI())
    with pytest.raises(ValueError, match="is an archive in netcdf"):
        ingest(files, tmp_path / "netcdf", KNMI(), format="zarr")
    with pytest.raises(ValueError, match="format=hdf is none of netcdf, zarr"):
        ingest(files, tmp_path / "hdf", KNMI(), format="hdf")  # type: ignore[arg-type]
    (tmp_path / "other/january.zarr").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"january\.zarr, which is not a day file"):
        ingest(files, tmp_path / "other", KNMI(), format="zarr")


def test_attributes_are_texts_and_numbers_and_kept_to(files: list[Path], tmp_path: Path) -> None:
    for wrong in ({"step_minutes": 5}, {"title": ["a"]}, {"raincast_config": "{}"}):
        with pytest.raises(ValueError, match=rf"attrs\.{next(iter(wrong))}=.* cannot be given"):
            ingest(files, tmp_path / "out", KNMI(), attrs=wrong)
    ingest(files[:20], tmp_path / "out", KNMI(), attrs={"title": "Rain", "source": "us"})
    assert Archive.open(tmp_path / "out").attrs["source"] == "us"  # instead of the files' own
    with pytest.raises(ValueError, match='attrs.title: "Rain" in the archive, "Snow" now'):
        ingest(files, tmp_path / "out", KNMI(), attrs={"title": "Snow", "source": "us"})


def rewrite(source: Path, archive: Path, **settings: Any) -> Archive:
    ingest(source, archive, ArchiveReader(), **settings)
    return Archive.open(archive)


@pytest.mark.filterwarnings("error")
def test_netcdf_to_zarr_and_back_changes_no_code(tmp_path: Path) -> None:
    mock = schema.mock_archive(60, start="2026-01-01T22:00", missing=(5, 30))
    mock[schema.RAIN].values[7, 3] = np.nan
    mock.attrs |= {"zr_a": 256.0, "institution": "KNMI"}
    mock.to_netcdf(tmp_path / "mock.nc", engine="netcdf4")
    ingest(tmp_path / "mock.nc", tmp_path / "first", CF(zr_a=300.0))
    first = Archive.open(tmp_path / "first")
    in_zarr = rewrite(tmp_path / "first", tmp_path / "zarr", format="zarr")
    again = rewrite(tmp_path / "zarr", tmp_path / "again")
    assert len(first.parts) == len(in_zarr.parts) == len(again.parts) == 2
    for archive in (in_zarr, again):
        np.testing.assert_array_equal(archive.read_codes(0, 58), first.read_codes(0, 58))
        np.testing.assert_array_equal(archive.times, first.times)
        np.testing.assert_array_equal(archive.missing_times, first.missing_times)
        np.testing.assert_array_equal(archive.coverage, first.coverage)
        assert archive.grid.same_as(first.grid) and archive.identity == first.identity
        assert archive.rain_attrs["cell_methods"] == first.rain_attrs["cell_methods"] == "time: mean"
        assert archive.attrs["institution"] == "KNMI"
    made_by = again.attrs[BEFORE].splitlines()
    assert "ArchiveReader" in made_by[0] and '"zr_a": 300.0' in made_by[1] and len(made_by) == 2
    # the rates lie bit for bit as they were
    paths = (tmp_path / name / "2026-01-01.nc" for name in ("first", "again"))
    before, after = (xr.load_dataset(path, engine="netcdf4", mask_and_scale=False)[schema.RAIN] for path in paths)
    assert after.equals(before) and after.attrs == before.attrs


@pytest.mark.parametrize("kind", ["zlib", "zarr", "folder"])
def test_plain_archives_become_ours(tmp_path: Path, kind: str) -> None:
    """One-frame zlib chunks of floats in one file; a store; a folder of files of other names."""
    mock = schema.mock_archive(30, start="2026-01-01T23:00", missing=(4,))
    path = tmp_path / f"plain.{'zarr' if kind == 'zarr' else 'nc'}"
    if kind == "zlib":
        mock.to_netcdf(path, engine="netcdf4", encoding={schema.RAIN: {"zlib": True, "chunksizes": (1, 12, 10)}})
    elif kind == "zarr":
        mock.to_zarr(path, encoding={schema.RAIN: {"chunks": (1, 12, 10)}}, consolidated=False)
    else:
        path = tmp_path / "plain"
        for number, piece in enumerate((slice(0, 9), slice(9, 29))):
            write_part(mock.isel(time=piece).drop_vars("missing_times"), path / f"{number}.nc")
    ours = rewrite(path, tmp_path / "ours")
    np.testing.assert_array_equal(ours.read(0, 29), mock[schema.RAIN])
    np.testing.assert_array_equal(ours.missing_times, mock.missing_times)
    assert ours.attrs["title"] == "mock archive" and BEFORE not in ours.attrs
    with netCDF4.Dataset(ours.parts[0].path) as file:
        assert file[schema.RAIN].chunking() == [8, 12, 10]
    assert ArchiveReader().recognises(path if kind != "folder" else path / "0.nc")


def test_what_is_no_archive_is_said(files: list[Path], tmp_path: Path) -> None:
    schema.mock_archive(3).drop_vars("crs").to_netcdf(tmp_path / "nowhere.nc", engine="netcdf4")
    with pytest.raises(
        ValueError, match=r"(?s)nowhere\.nc is not an archive that raincast can read.*grid_mapping"
    ):
        rewrite(tmp_path / "nowhere.nc", tmp_path / "out")
    with pytest.raises(ValueError, match="None of 1 files could be read"):
        rewrite(files[0], tmp_path / "out")


def test_a_store_whose_step_was_another_at_first(tmp_path: Path) -> None:
    mock = schema.mock_archive(20).drop_vars("missing_times")
    minutes = np.r_[np.arange(6) * 15, 90 + 5 * np.arange(14)]
    mock = mock.assign_coords(time=np.datetime64("2020-01-01", "ns") + minutes.astype("timedelta64[m]"))
    mock.attrs = {"consistent_timestep_start": "2020-01-01T01:30"}
    mock.to_zarr(tmp_path / "a.zarr", consolidated=False)
    for name, reader in {"archive": ArchiveReader(), "cf": CF()}.items():
        ingest(tmp_path / "a.zarr", tmp_path / name, reader)
        archive = Archive.open(tmp_path / name)
        assert archive.step_minutes == 5 and "consistent_timestep_start" not in archive.attrs
        np.testing.assert_array_equal(archive.times, mock.time[6:])
        np.testing.assert_array_equal(archive.read(0, 14), mock[schema.RAIN].values[6:])
