"""Files → archive: what is written, resumed, refused and reported."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

import raincast
from raincast import schema
from raincast.archive import Archive
from raincast.ingest import ingest
from raincast.ingest.quality import Quality
from raincast.ingest.readers.cf import CF
from raincast.ingest.readers.knmi import KNMI

WriteKNMI = Callable[..., Path]
MIDNIGHT = [f"2020-01-0{1 + (h >= 24)}T{h % 24:02d}:{m:02d}" for h in (23, 24) for m in range(0, 60, 5)]


@pytest.fixture
def files(write_knmi: WriteKNMI) -> list[Path]:
    """Two hours of KNMI frames across midnight."""
    return [write_knmi(time) for time in MIDNIGHT]


def content(archive: Path) -> dict[str, bytes | tuple[int, int]]:
    """The day files by name, with what tells whether they were written again."""
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in archive.glob("*.nc")}


def frames(archive: Path) -> np.ndarray:
    opened = Archive.open(archive)
    return opened.read(0, opened.num_times)


def test_what_is_read_back_equals_what_the_reader_read(files: list[Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = ingest(files[::-1], tmp_path / "out", KNMI(), progress=lambda *n: seen.append(n))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        ".ingest.lock",
        "2020-01-01.nc",
        "2020-01-02.nc",
        "ingest_report.json",
    ]
    archive = Archive.open(tmp_path / "out")
    np.testing.assert_array_equal(archive.times, np.array(MIDNIGHT, "datetime64[ns]"))
    expected = np.concatenate([KNMI().read(path)[schema.RAIN].values for path in files])
    np.testing.assert_array_equal(archive.read(0, 24), expected)
    assert archive.rain_attrs["cell_methods"] == "time: mean"
    attrs = archive.attrs
    assert attrs["raincast_version"] == raincast.__version__
    assert attrs["history"].startswith(f"raincast {raincast.__version__} ingest: ")
    assert json.loads(attrs["raincast_config"])["source"]["_target_"] == "raincast.ingest.readers.knmi.KNMI"
    assert attrs["source"] == "KNMI"
    assert (report.num_written, report.num_present, report.missing_times) == (24, 0, ())
    assert seen[-1] == (24, 24)


def test_second_run_writes_nothing(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ingest(files, out, KNMI())
    before, note = content(out), (out / "ingest_report.json").read_bytes()
    report = ingest(str(tmp_path / "*.h5"), out, KNMI())
    assert (report.num_written, report.num_present) == (0, 24)
    assert content(out) == before
    assert (out / "ingest_report.json").read_bytes() == note


def test_interrupted_and_grown_equal_one_go(files: list[Path], tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 18:  # the first day is written, the second half read
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        ingest(files, out, KNMI(), progress=interrupt)
    assert list(content(out)) == ["2020-01-01.nc"]
    first_day = content(out)
    ingest(files, out, KNMI())
    assert content(out)["2020-01-01.nc"] == first_day["2020-01-01.nc"]
    ingest(files, tmp_path / "one_go", KNMI())
    np.testing.assert_array_equal(frames(out), frames(tmp_path / "one_go"))


@pytest.mark.parametrize("seed", range(3))
def test_pieces_in_any_order_are_byte_for_byte_one_go(files: list[Path], tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for piece in np.array_split(rng.permutation(len(files)), rng.integers(2, 6)):
        ingest([files[i] for i in piece], tmp_path / "grown", KNMI(), max_rate=3.0)
    ingest(files, tmp_path / "one_go", KNMI(), max_rate=3.0)
    for name in ("2020-01-01.nc", "2020-01-02.nc"):
        assert (tmp_path / "grown" / name).read_bytes() == (tmp_path / "one_go" / name).read_bytes()
        with xr.open_dataset(tmp_path / "grown" / name, engine="netcdf4") as day:
            assert day.attrs["capped_pixels"] > 0


def test_first_duplicate_wins_and_the_other_is_named(
    files: list[Path], write_knmi: WriteKNMI, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = write_knmi(MIDNIGHT[3], np.full((6, 5), 9), name="again.h5")
    report = ingest([*files, other], tmp_path / "out", KNMI())
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(text.startswith("1 frames have the time of another") and "again.h5" in text for text in warned)
    assert len(report.duplicates) == 1 and "again.h5" in report.duplicates[0]
    np.testing.assert_array_equal(frames(tmp_path / "out")[3], KNMI().read(files[3])[schema.RAIN].values[0])
    ingest([other, *files], tmp_path / "first", KNMI())
    assert (frames(tmp_path / "first")[3] == np.float32(1.08)).all()


def test_a_duplicate_stands_in_for_a_bad_first(files: list[Path], write_knmi: WriteKNMI, tmp_path: Path) -> None:
    spare = write_knmi(MIDNIGHT[3], np.full((6, 5), 9), name="spare.h5")
    with h5py.File(files[3], "a") as file:
        del file["image1/image_data"]  # the head is still good
    report = ingest([*files, spare], tmp_path / "out", KNMI())
    assert (report.num_written, report.missing_times) == (24, ())
    assert (frames(tmp_path / "out")[3] == np.float32(1.08)).all()


def test_off_step_frames_are_left_out(files: list[Path], write_knmi: WriteKNMI, tmp_path: Path) -> None:
    odd = write_knmi("2020-01-01T23:17")
    report = ingest([*files, odd], tmp_path / "out", KNMI(), max_off_step=0.05)
    assert len(report.off_step) == 1 and str(odd) in report.off_step[0]
    assert report.num_written == 24


def test_bad_files_are_reported(files: list[Path], tmp_path: Path) -> None:
    files[5].write_bytes(files[5].read_bytes()[:700])
    files[23].write_bytes(b"")
    report = ingest(files, tmp_path / "out", KNMI())
    assert set(report.bad_files) == {str(files[5]), str(files[23])}
    assert report.missing_times == (f"{MIDNIGHT[5]}:00",)
    assert json.loads(report.path.read_text())["bad_files"] == dict(report.bad_files)


def test_all_bad_leaves_no_archive(files: list[Path], write_knmi: WriteKNMI, tmp_path: Path) -> None:
    for path in files:
        path.write_bytes(b"no radar")
    with pytest.raises(ValueError, match=r"None of 24 files could be read: .*KNMI HDF5"):
        ingest(files, tmp_path / "out", KNMI())
    empty = [write_knmi(time, np.full((6, 5), 65535)) for time in MIDNIGHT[:3]]
    with pytest.raises(ValueError, match="3 frames with every pixel missing"):
        ingest(empty, tmp_path / "out", KNMI())
    assert not (tmp_path / "out").exists()


def test_all_missing_frame_is_a_missing_time(files: list[Path], write_knmi: WriteKNMI, tmp_path: Path) -> None:
    for i in (0, 4):
        write_knmi(MIDNIGHT[i], np.full((6, 5), 65535))
    report = ingest(files, tmp_path / "out", KNMI())
    assert report.num_written == 22
    assert report.empty_times == report.missing_times == (f"{MIDNIGHT[0]}:00", f"{MIDNIGHT[4]}:00")
    before = content(tmp_path / "out")
    ingest(files, tmp_path / "out", KNMI())
    assert content(tmp_path / "out") == before


def test_another_grid_or_step_leaves_the_archive_untouched(
    files: list[Path], write_knmi: WriteKNMI, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ingest(files, out, KNMI())
    before = content(out)
    later = "2020-01-05T00:00"
    with pytest.raises(ValueError, match=r"another grid \(6 × 5 pixels"):
        ingest([write_knmi(later, column_offset=7)], out, KNMI())
    with pytest.raises(ValueError, match="depths over 60 min .*means over 5 min. They cannot be mixed"):
        ingest([write_knmi(later, minutes=60)], out, KNMI())
    others = ["2020-01-05T00:00", "2020-01-05T00:10", "2020-01-05T00:20"]
    with pytest.raises(ValueError, match="two grids"):
        ingest([*files, *(write_knmi(t, np.zeros((3, 3))) for t in others)], tmp_path / "new", KNMI())
    with pytest.raises(ValueError, match="depths over 5 min .*depths over 10 min .*They cannot be mixed"):
        ingest([*files, *(write_knmi(t, minutes=10) for t in others)], tmp_path / "new", KNMI())
    assert content(out) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_one_file_on_another_grid_or_step_is_left_out_and_named(
    files: list[Path], write_knmi: WriteKNMI, tmp_path: Path, workers: int
) -> None:
    """Its header is damaged: the archive is what it would be without it, and the report says why."""
    ingest(files, tmp_path / "without", KNMI())
    odd = write_knmi("2019-12-31T00:00", np.zeros((3, 3)))  # the earliest, and the first by name
    slow = write_knmi("2020-01-05T00:00", minutes=10)
    report = ingest([odd, *files, slow], tmp_path / "with", KNMI(), workers=workers)
    assert set(report.bad_files) == {str(odd), str(slow)}
    assert "3 × 3 pixels" in report.bad_files[str(odd)] and "another grid" in report.bad_files[str(odd)]
    assert "holds depths over 10 min" in report.bad_files[str(slow)]
    parts = [
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.nc")} for name in ("with", "without")
    ]
    assert parts[0] == parts[1] and len(parts[0]) == 2
    # of two files nobody knows which is right
    with pytest.raises(ValueError, match="two grids"):
        ingest([odd, files[0]], tmp_path / "two", KNMI())


def test_step_from_the_gaps_across_files(tmp_path: Path) -> None:
    mock = schema.mock_archive(num_times=6, missing=(2,))
    del mock.attrs[schema.STEP_MINUTES]
    paths = [tmp_path / f"{i}.nc" for i in range(5)]
    for i, path in enumerate(paths):
        mock.isel(time=[i]).drop_vars(schema.MISSING_TIMES).to_netcdf(path, engine="netcdf4")
    report = ingest(paths, tmp_path / "out", CF())
    archive = Archive.open(tmp_path / "out")
    assert archive.step_minutes == 5.0
    assert len(report.missing_times) == len(archive.missing_times) == 1
    with pytest.raises(ValueError, match=r"source\.step_minutes"):
        ingest(paths[:1], tmp_path / "one", CF())
    # every tenth minute of a five-minute archive: gaps, or another step? The user says.
    with pytest.raises(ValueError, match=r"10 min are the spacing.*step with source\.step_minutes=…"):
        ingest([tmp_path / f"{i}.nc" for i in (1, 2, 4)], tmp_path / "out", CF())


def test_many_days_in_one_file_come_back_equal(tmp_path: Path) -> None:
    mock = schema.mock_archive(num_times=60, start="2020-01-01T22:30", missing=(30, 31))
    mock.to_netcdf(tmp_path / "a.nc", engine="netcdf4")
    ingest(tmp_path / "a.nc", tmp_path / "out", CF())
    archive = Archive.open(tmp_path / "out")
    assert len(archive.parts) == 2
    np.testing.assert_array_equal(archive.times, mock.time)
    np.testing.assert_array_equal(frames(tmp_path / "out"), mock[schema.RAIN])


def test_zarr_by_pattern(tmp_path: Path) -> None:
    mock = schema.mock_archive()
    mock.to_zarr(tmp_path / "in/a.zarr", consolidated=False)
    for pattern in ("in/*.zarr", "in/**/*", "in/a.zarr"):
        ingest(tmp_path / pattern, tmp_path / "out", CF())
        np.testing.assert_array_equal(frames(tmp_path / "out"), mock[schema.RAIN])


def test_no_files_says_what_is_there(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=rf"files=.*\*\.hdf.*{tmp_path} holds RAD_202001012300\.h5.*16 more"
    ):
        ingest(tmp_path / "*.hdf", tmp_path / "out", KNMI())
    with pytest.raises(FileNotFoundError, match="holds RAD"):
        ingest([tmp_path / "nowhere/deep/*.h5"], tmp_path / "out", KNMI())


def test_archive_must_be_a_folder_of_days(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a folder"):
        ingest(files, tmp_path / "a.zarr", KNMI())
    out = tmp_path / "out"
    out.mkdir()
    (out / "january.nc").write_text("")
    with pytest.raises(ValueError, match=r"january\.nc, which is not a day file"):
        ingest(files, out, KNMI())


def test_quality() -> None:
    rain = np.array([np.nan, -3, -np.inf, np.inf, 0, 0.004, 0.05, 0.12, 299.996, 2734], np.float32)
    clean, num_capped = Quality(max_rate=300, min_rate=0.06).clean(rain)
    expected = np.array([np.nan, np.nan, np.nan, np.nan, 0, 0, 0, 0.12, 299.996, 300], np.float32)
    np.testing.assert_array_equal(clean, expected)
    assert num_capped == 1
    np.testing.assert_array_equal(Quality().clean(clean)[0], clean)
    for limits in ({"max_rate": 328.0}, {"max_rate": 0.0}, {"min_rate": -1.0}, {"min_rate": 300.0}):
        with pytest.raises(ValueError, match="_rate="):
            Quality(**limits)


@pytest.mark.radar
def test_real_knmi(radar_dir: Path, tmp_path: Path) -> None:
    report = ingest(radar_dir / "knmi/20100826/*_20100826000?.h5", tmp_path / "out", KNMI())
    archive = Archive.open(tmp_path / "out")
    assert (report.num_written, archive.grid.shape) == (2, (765, 700))
    raw = KNMI().read(next(radar_dir.glob("knmi/20100826/*0005.h5")))
    np.testing.assert_array_equal(archive.read(1, 1), np.round(raw[schema.RAIN], 2))


def test_zlib_writes_days_that_every_program_reads(files: list[Path], tmp_path: Path) -> None:
    """rasterio's wheel and plain h5py have no zstd filter. Days of both encodings are one archive."""
    import rasterio

    ingest(files[:12], tmp_path / "out", KNMI())
    ingest(files, tmp_path / "out", KNMI(), encoding="zlib")
    first, second = sorted((tmp_path / "out").glob("*.nc"))
    with h5py.File(first) as zstd, h5py.File(second) as zlib:
        assert zstd[schema.RAIN].id.get_create_plist().get_filter(0)[0] == 32015
        assert zlib[schema.RAIN].compression == "gzip" and zlib[schema.RAIN][:].shape[0] == 12
    with rasterio.open(f"netcdf:{second}:{schema.RAIN}") as read:
        assert read.read(1).any()
    expected = np.concatenate([KNMI().read(path)[schema.RAIN].values for path in files])
    np.testing.assert_array_equal(frames(tmp_path / "out"), expected)
    for settings in ({"encoding": "lzma"}, {"encoding": "zlib", "format": "zarr"}):
        with pytest.raises(ValueError, match=r"zstd or zlib pack netCDF, zstd alone Zarr"):
            ingest(files, tmp_path / "other", KNMI(), **settings)
