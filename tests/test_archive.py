"""Archives on disk: codes, parts, foreign files, other processes."""

import dataclasses
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from raincast import schema
from raincast.archive import (
    CODE_MM_H,
    MAX_RATE,
    Archive,
    PartWriter,
    ZarrPartWriter,
    archive_files,
    nearest_codes,
    write_part,
)
from raincast.archive.rates import THRESHOLDS
from raincast.schema import mock_archive, mock_grid

RAIN = schema.RAIN


def with_rain(rain: np.ndarray, **kwargs) -> xr.Dataset:
    """An archive of these frames."""
    dataset = mock_archive(*rain.shape, **kwargs)
    dataset[RAIN].values[:] = rain
    return dataset


def write_parts(dataset: xr.Dataset, folder: Path, *cuts: int) -> Path:
    """`dataset` in parts that begin at frames 0 and `cuts`, the names not in the order of time."""
    for number, frames in enumerate(np.split(np.arange(dataset.time.size), cuts)):
        write_part(dataset.isel(time=frames, missing_times=slice(0)), folder / f"{9 - number}.nc")
    return folder


def test_what_is_written_is_read(tmp_path):
    dataset = mock_archive(missing=(3, 4))
    write_part(dataset, tmp_path / "a.nc")
    for path in (tmp_path, tmp_path / "a.nc"):
        archive = Archive.open(path)
        rain = archive.read(0, 22)
        assert rain.dtype == np.float32
        np.testing.assert_array_equal(rain, dataset[RAIN].values)
        np.testing.assert_array_equal(archive.times, dataset.time)
        np.testing.assert_array_equal(archive.missing_times, dataset.missing_times)
        assert (archive.num_times, archive.step_minutes, archive.grid.shape) == (22, 5.0, (12, 10))
        assert archive.grid.same_as(schema.mock_grid())
        assert archive.attrs["title"] == "mock archive"


def test_xarray_joins_days_by_their_coordinates(tmp_path):
    """As `xr.open_mfdataset("archive/*.nc")` does: no coordinate but time may differ from day to day."""
    dataset = mock_archive(24, missing=(3, 4))
    folder = write_parts(dataset, tmp_path, 6, 12)
    days = [xr.open_dataset(file, engine="netcdf4") for file in sorted(folder.glob("*.nc"))]
    joined = xr.combine_by_coords(days)
    np.testing.assert_array_equal(joined.time, dataset.time)
    np.testing.assert_allclose(joined[RAIN], dataset[RAIN], rtol=1e-6)


def test_part_of_an_archive_is_an_archive_again(tmp_path):
    dataset = mock_archive()
    archive = Archive.open(write_parts(dataset, tmp_path, 5, 11))
    piece = archive.to_dataset(3, 10)
    schema.check_archive(piece)
    np.testing.assert_array_equal(piece[RAIN], dataset[RAIN][3:13])
    np.testing.assert_array_equal(piece.time, dataset.time[3:13])
    assert piece[RAIN].attrs["cell_methods"] == "time: mean"
    write_part(piece, tmp_path / "again" / "a.nc")
    np.testing.assert_array_equal(Archive.open(tmp_path / "again").read(0, 10), dataset[RAIN][3:13])


def test_a_rate_at_a_threshold_stays_at_it(tmp_path):
    """float32 rates must equal float32 thresholds, or `>=` counts the boundary class differently."""
    thresholds = [0.1, 0.3, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100]
    steps_of_knmi = [round(0.12 * k, 2) for k in range(60)]  # 0.01 mm in 5 minutes
    rates = np.array([*thresholds, *steps_of_knmi, MAX_RATE]).astype(np.float32)
    write_part(with_rain(np.broadcast_to(rates, (2, 3, rates.size))), tmp_path / "a.nc")
    np.testing.assert_array_equal(Archive.open(tmp_path).read(1, 1)[0, 2], rates)


def test_every_code_is_the_nearest_float32(tmp_path):
    codes = np.arange(32700)
    rates = np.array([float(f"{code // 100}.{code % 100:02d}") for code in codes], np.float32).reshape(1, 300, 109)
    write_part(with_rain(rates), tmp_path / "a.nc")
    np.testing.assert_array_equal(Archive.open(tmp_path).read(0, 1), rates)
    assert CODE_MM_H == 0.01


def test_missing_and_zero_are_not_mixed_up(tmp_path):
    rain = np.zeros((2, 2, 4), np.float32)
    rain[:, :, 0] = np.nan
    rain[:, :, 1] = 0.01  # the smallest rate a code holds
    rain[:, :, 2] = 0.004  # below it: measured, and nothing
    write_part(with_rain(rain), tmp_path / "a.nc")
    read = Archive.open(tmp_path).read(0, 2)
    assert np.isnan(read[..., 0]).all()
    np.testing.assert_array_equal(read[..., 1:], np.broadcast_to(np.float32([0.01, 0, 0]), (2, 2, 3)))
    assert not np.signbit(read[..., 1:]).any()


def test_rates_that_the_code_cannot_hold_are_refused(tmp_path):
    for rate, message in ((328.0, "328 mm/h is over 327"), (np.inf, "inf mm/h is over"), (-0.5, "is negative")):
        with pytest.raises(ValueError, match=message):
            write_part(with_rain(np.full((1, 2, 2), rate)), tmp_path / "a.nc")
    assert not list(tmp_path.iterdir())
    write_part(with_rain(np.full((1, 2, 2), np.nan)), tmp_path / "a.nc")
    assert np.isnan(Archive.open(tmp_path).read(0, 1)).all()


def test_a_part_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(self, *_):
        raise OSError("disk full")

    write_part(mock_archive(), tmp_path / "a.nc")
    before = (tmp_path / "a.nc").read_bytes()
    for step in ("_flush", "_write_times", "_write_coverage"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
            patch.setattr(PartWriter, step, fail)
            write_part(mock_archive(seed=1), tmp_path / "a.nc")
        assert (tmp_path / "a.nc").read_bytes() == before
        assert list(tmp_path.iterdir()) == archive_files(tmp_path) == [tmp_path / "a.nc"]


def writer(path, dataset) -> PartWriter:
    attrs = {"title": "mock archive"}
    return PartWriter(path, schema.mock_grid(*dataset[RAIN].shape[1:]), step_minutes=5.0, attrs=attrs)


def write_frames(path, dataset, frames, old=None) -> bytes:
    """A part of `frames` of `dataset`; those numbered in `old` come out of another part."""
    with writer(path, dataset) as part:
        for frame in frames:
            if old is not None and dataset.time[frame].values in old.times:
                at = int(np.searchsorted(old.times, dataset.time[frame].values))
                part.copy(old, at, at + 1)
            else:
                part.add(dataset.time[frame].values, dataset[RAIN][frame].values)
    return path.read_bytes()


@settings(max_examples=10, deadline=None)
@given(st.sets(st.integers(0, 29), min_size=1))
def test_a_part_that_grew_is_byte_for_byte_one_written_in_one_go(tmp_path_factory, first):
    """Old frames are copied in runs of any length, at any place of a chunk, on two rows of chunks."""
    folder = tmp_path_factory.mktemp("grown")
    dataset = mock_archive(30, 150, 9)
    whole = write_frames(folder / "whole.nc", dataset, range(30))
    write_frames(folder / "a.nc", dataset, sorted(first))
    old = Archive.open(folder / "a.nc")
    with writer(folder / "a.nc", dataset) as part:
        taken = 0
        for frame in sorted(set(range(30)) - first):
            stop = int(np.searchsorted(old.times, dataset.time[frame].values))
            part.copy(old, taken, stop)
            taken = stop
            part.add(dataset.time[frame].values, dataset[RAIN][frame].values)
        part.copy(old, taken, old.num_times)
    assert (folder / "a.nc").read_bytes() == whole


def test_a_part_of_another_encoding_is_copied_by_its_values(tmp_path):
    dataset = mock_archive(5)
    dataset.to_netcdf(tmp_path / "float.nc", engine="netcdf4")
    old = Archive.open(tmp_path / "float.nc")
    assert write_frames(tmp_path / "a.nc", dataset, range(5), old) == write_frames(
        tmp_path / "b.nc", dataset, range(5)
    )


def test_large_images_wait_on_disk_and_the_number_of_frames_takes_no_memory(tmp_path, monkeypatch):
    dataset = mock_archive(19, 300, 280)
    in_memory = write_frames(tmp_path / "a.nc", dataset, range(19))
    monkeypatch.setattr("raincast.archive.part.BLOCK_IN_MEMORY", 0)
    assert write_frames(tmp_path / "a.nc", dataset, range(19)) == in_memory
    assert list(tmp_path.iterdir()) == [tmp_path / "a.nc"]
    rain, peaks = dataset[RAIN][0].values, []
    times = np.datetime64("2026-01-01", "ns") + np.timedelta64(5, "m") * np.arange(80)
    for num in (8, 80):
        tracemalloc.start()
        with writer(tmp_path / "b.nc", dataset) as part:
            for time in times[:num]:
                part.add(time, rain)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 50_000
    # a frame's codes and mask, 128 rows of a block, the float64 of a band: not a block of frames
    assert peaks[1] < rain.size * 3 + 8 * 128 * 280 * 2 + 3 * rain.size * 8 + 100_000


def test_of_two_writers_of_one_part_the_later_wins_and_the_other_says_so(tmp_path, monkeypatch):
    dataset, path = mock_archive(4), tmp_path / "a.nc"
    with pytest.raises(OSError), writer(path, dataset) as slow:
        slow.add(dataset.time[0].values, dataset[RAIN][0].values)
        monkeypatch.setattr("os.getpid", lambda: -1)  # another process
        quick = write_frames(path, dataset, range(4))
    assert path.read_bytes() == quick
    assert list(tmp_path.iterdir()) == [path]


def test_coverage_is_where_any_frame_observed(tmp_path):
    rain = np.zeros((3, 2, 4), np.float32)
    rain[:, 0], rain[:2, 1, :2], rain[1:, 1, 2] = np.nan, np.nan, np.nan
    for number, day in enumerate(("2026-01-01", "2026-01-02")):
        write_part(with_rain(rain[2 * number : 2 * number + 2], start=day), tmp_path / f"{day}.nc")
    np.testing.assert_array_equal(
        Archive.open(tmp_path).coverage,
        [[False] * 4, [True] * 4],  # the second day sees what the first did not
    )
    FOREIGN.to_netcdf(tmp_path / "foreign.nc", engine="netcdf4")
    assert Archive.open(tmp_path / "foreign.nc").coverage is None


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> tuple[Archive, np.ndarray]:
    """20 frames in parts of 1, 6, 1 and 12, and the frames."""
    dataset = mock_archive(20)
    folder = write_parts(dataset, tmp_path_factory.mktemp("parts"), 1, 7, 8)
    return Archive.open(folder), dataset[RAIN].values


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_windows_over_the_borders_of_parts(parts, data):
    archive, rain = parts
    first = data.draw(st.integers(0, 19))
    num = data.draw(st.integers(1, 20 - first))
    y, x = (slice(*sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in (12, 10))
    np.testing.assert_array_equal(archive.read(first, num, y=y, x=x), rain[first : first + num, y, x])


@pytest.mark.parametrize(("first", "num"), [(-1, 2), (19, 2), (20, 1), (0, 21)])
def test_frames_outside_are_refused(parts, first, num):
    with pytest.raises(IndexError, match=f"Frames {first} to {first + num} are not all in 0 to 20"):
        parts[0].read(first, num)


FOREIGN = mock_archive(10)


def foreign(**attrs) -> xr.Dataset:
    """The archive as another service might write it: no step, other names, its own attributes."""
    dataset = FOREIGN.drop_vars("missing_times").rename(rain_rate="prate", crs="projection")
    del dataset.attrs[schema.STEP_MINUTES]
    dataset["prate"].attrs = {"standard_name": "precipitation_flux", "grid_mapping": "projection"} | attrs
    return dataset


def test_foreign_netcdf_in_float_si_units(tmp_path):
    dataset = foreign(units="kg m-2 s-1")
    dataset["prate"] = dataset["prate"] / 3600  # 1 mm/h = 1 kg/m² in 3600 s
    dataset["prate"].attrs = foreign(units="kg m-2 s-1")["prate"].attrs
    encoding = {"prate": {"_FillValue": np.float32(-999.0), "zlib": True}}
    dataset.to_netcdf(tmp_path / "a.nc", engine="netcdf4", encoding=encoding)
    archive = Archive.open(tmp_path / "a.nc")
    assert (archive.variable, archive.step_minutes) == ("prate", 5.0)
    read, expected = archive.read(0, 10), FOREIGN[RAIN].values
    np.testing.assert_allclose(read, expected, rtol=2e-7)
    np.testing.assert_array_equal(read == 0, expected == 0)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8", "int32"])
def test_foreign_netcdf_in_packed_integers(tmp_path, dtype):
    """Codes of 0.1 from an offset; at the thresholds the rates are exact all the same."""
    info = np.iinfo(dtype)
    codes = np.random.default_rng(0).integers(0, 250, (10, 12, 10))
    codes[0, 0, :6] = [0, 5, 10, 20, 50, 100]
    offset = 3276.8 if dtype == "int16" else 0.0
    low = -32768 if dtype == "int16" else 0
    raw = (codes + low).astype(dtype)
    fill = info.max if dtype != "int16" else 32767
    raw[:, 5] = fill
    dataset = foreign(units="mm/h", scale_factor=0.1, add_offset=offset, _FillValue=info.dtype.type(fill))
    dataset["prate"] = (("time", "y", "x"), raw, dataset["prate"].attrs)
    dataset.to_netcdf(tmp_path / "a.nc", engine="netcdf4")
    read = Archive.open(tmp_path / "a.nc").read(0, 10)
    assert np.isnan(read[:, 5]).all() and np.isfinite(np.delete(read, 5, axis=1)).all()
    np.testing.assert_array_equal(read[0, 0, 1:6], np.float32([0.5, 1, 2, 5, 10]))
    with xr.open_dataset(tmp_path / "a.nc", engine="netcdf4") as opened:
        np.testing.assert_allclose(read, opened["prate"], rtol=1e-5, atol=1e-3)


@pytest.mark.filterwarnings("ignore:variable 'prate' has multiple fill values")
def test_all_the_missing_values_that_a_file_states(tmp_path):
    raw = np.array([[[0, 1], [254, 255]]], np.uint8)
    dataset = foreign(units="mm/h", scale_factor=0.5, _FillValue=np.uint8(255), missing_value=np.uint8(254))
    dataset = dataset.isel(time=[0], y=[0, 1], x=[0, 1]).assign_attrs(step_minutes=5.0)
    dataset["prate"] = (("time", "y", "x"), raw, dataset["prate"].attrs)
    dataset.to_netcdf(tmp_path / "a.nc", engine="netcdf4")
    np.testing.assert_array_equal(Archive.open(tmp_path / "a.nc").read(0, 1)[0], [[0, 0.5], [np.nan, np.nan]])


@pytest.mark.filterwarnings("ignore:Failed to open Zarr store with consolidated")
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_zarr(tmp_path, zarr_format, packed):
    encoding = {RAIN: {"dtype": "int16", "scale_factor": 0.01, "_FillValue": -32768} if packed else {}}
    FOREIGN.to_zarr(tmp_path / "a.zarr", zarr_format=zarr_format, encoding=encoding, consolidated=False)
    for path in (tmp_path / "a.zarr", tmp_path):
        archive = Archive.open(path)
        np.testing.assert_array_equal(archive.read(2, 5, y=slice(3, 9)), FOREIGN[RAIN].values[2:7, 3:9])
        np.testing.assert_array_equal(archive.times, FOREIGN.time)


class Reads(Dataset):
    """Frame i of an archive."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive

    def __len__(self) -> int:
        return self.archive.num_times

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.archive.read(index, 1))


def test_pickles_without_open_files(parts):
    archive, rain = parts
    archive.read(0, 20)
    assert archive._open
    pickled = pickle.dumps(archive)
    assert len(pickled) < rain.nbytes / 4  # nor with what was unpacked
    copy = pickle.loads(pickled)
    assert copy._open == {} and copy.identity == archive.identity
    np.testing.assert_array_equal(copy.read(0, 20), rain)


def test_what_is_kept_unpacked_of_a_year_of_days_has_a_limit(tmp_path):
    """By default HDF5 keeps 64 MiB of each file: of a year of days, gigabytes."""
    from raincast.archive.chunks import MOST_OPEN
    from raincast.archive.open_part import UNPACKED_BYTES, RawVariable

    dataset = mock_archive(20, 70, 90)
    write_part(dataset, tmp_path / "a.nc")
    for num_parts, most in ((1, 2**26), (1000, UNPACKED_BYTES // MOST_OPEN)):
        variable = RawVariable.of(tmp_path / "a.nc", schema.RAIN, num_parts)
        assert variable.read(slice(3, 18), slice(2, 69), slice(60, 90)).shape == (15, 67, 30)
        file = variable.files.acquire()
        assert file.variables[schema.RAIN].get_var_chunk_cache()[0] == most
        variable.files.close()


def test_what_is_kept_unpacked_is_half_a_gib_at_most(parts):
    archive, rain = parts
    assert archive.unpacked_bytes == rain.size * 2
    days = {
        number: dataclasses.replace(
            archive, parts=archive.parts[:1] * number, times=np.empty(number * 288), grid=mock_grid(700, 700)
        )
        for number in (1, 4, 365)
    }
    assert [days[number].unpacked_bytes for number in days] == [2**26, 2**28, 2**29]
    # of other encodings each open file keeps HDF5's own 64 MiB
    assert dataclasses.replace(days[365], coded=False).unpacked_bytes == 128 * 2**26


class NumOpen(Reads):
    """How many files an archive holds open once frame i is read."""

    def __getitem__(self, index: int) -> torch.Tensor:
        self.archive.read(index, 1)
        return torch.tensor(len(self.archive._open))


def test_a_forked_worker_opens_its_own_files(parts):
    """A handle that crosses a fork may read well for long, and garbage once."""
    archive, _ = parts
    archive.read(0, 20)
    here = len(archive._open)
    loader = DataLoader(NumOpen(archive), batch_size=None, num_workers=1, multiprocessing_context="fork")
    assert next(iter(loader)) == here + 1  # frame 0 lies in one file
    assert len(archive._open) == here


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_what_the_main_process_has_open(parts, start):
    archive, rain = parts
    archive.read(0, 20)  # the handles that must not cross
    num_workers = 2 if start == "fork" else 1  # a spawned worker imports everything anew
    loader = DataLoader(Reads(archive), batch_size=5, num_workers=num_workers, multiprocessing_context=start)
    np.testing.assert_array_equal(torch.cat([*loader]).numpy()[:, 0], rain)
    np.testing.assert_array_equal(archive.read(0, 20), rain)


def two_parts(folder: Path, second: xr.Dataset) -> Path:
    write_part(mock_archive(6), folder / "a.nc")
    write_part(second, folder / "b.nc")
    return folder


LATER = "2026-01-01T00:30"
UNFIT = {
    "overlap in time": mock_archive(6, start="2026-01-01T00:25"),
    r"mixes grids: a.nc is \(12, 10\), b.nc is \(12, 11\)": mock_archive(6, 12, 11, start=LATER),
    "or their coordinates differ": mock_archive(6, start=LATER).assign_coords(x=schema.mock_grid().x + 5000),
    "mixes steps: 5.0 min in a.nc, 10.0 min in b.nc": mock_archive(6, start=LATER, step_minutes=10),
    "b.nc is off the step of 5.0 min": mock_archive(6, start="2026-01-01T00:33"),
}


@pytest.mark.parametrize("message", UNFIT)
def test_parts_that_do_not_fit_are_refused(tmp_path, message):
    with pytest.raises(ValueError, match=message):
        Archive.open(two_parts(tmp_path, UNFIT[message]))


def test_parts_of_different_variables_are_refused(tmp_path):
    write_part(mock_archive(6), tmp_path / "a.nc")
    other = mock_archive(6, start=LATER).rename(rain_rate="rr").drop_vars("missing_times")
    other.to_netcdf(tmp_path / "b.nc", engine="netcdf4")
    with pytest.raises(ValueError, match="mixes variables: rain_rate in a.nc, rr in b.nc"):
        Archive.open(tmp_path)


def test_identity_names_the_frames_and_the_grid(tmp_path):
    def identity(name: str, *datasets: xr.Dataset) -> str:
        for number, dataset in enumerate(datasets):
            write_part(dataset, tmp_path / name / f"{number}.nc")
        return Archive.open(tmp_path / name).identity

    first, second = mock_archive(6), mock_archive(6, start=LATER)
    plain = identity("plain", first)
    assert identity("same", first) == plain
    assert identity("two", first, second) == identity("one", mock_archive(12))  # the files do not matter
    others = [
        identity("grown", first, second),
        identity("gap", mock_archive(7, missing=(3,))),
        identity("moved", first.assign_coords(x=first.x + 1000)),
        identity("step", mock_archive(6, step_minutes=10)),
    ]
    assert len({plain, *others}) == 5


def test_what_is_not_there_or_no_archive_is_said(tmp_path):
    (tmp_path / "radar").mkdir()
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist. Beside it: radar.*python ingest.py"):
        Archive.open(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="radar holds no .nc or .zarr file"):
        Archive.open(tmp_path / "radar")
    with pytest.raises(FileNotFoundError, match=r"a.zarr does not exist"):
        Archive.open(tmp_path / "a.zarr")
    (tmp_path / "text.nc").write_text("no netCDF")
    with pytest.raises(
        ValueError, match=r"text.nc cannot be opened as netcdf4: .*remove it and ingest its frames"
    ):
        Archive.open(tmp_path / "text.nc")
    FOREIGN.drop_vars("time").to_netcdf(tmp_path / "timeless.nc", engine="netcdf4")
    with pytest.raises(ValueError, match=r"timeless.nc is not an archive .*\n.*no coordinate 'time'"):
        Archive.open(tmp_path / "timeless.nc")


NEAR = np.array([-0.0049, -0.001, -1e-7, 0, 1e-7, 0.001, 0.0049])


@pytest.mark.parametrize("threshold", [0.1, 0.5, 1, 2, 5, 10, 30])
def test_no_rate_crosses_a_threshold_by_being_encoded(tmp_path, threshold):
    """Neither with ≥, as scores count, nor with >, as wet pixels are counted; in netCDF and in Zarr."""
    rain = (threshold * np.ones((1, 3, NEAR.size)) + NEAR).astype(np.float32)
    rain[0, 1] = np.nextafter(np.float32(threshold), np.float32([0] * 3 + [threshold] + [99] * 3))
    rain[0, 2] = np.float32(threshold)
    for writer, name in ((PartWriter, "a.nc"), (ZarrPartWriter, "a.zarr")):
        grid = mock_grid(*rain.shape[1:])
        with writer(tmp_path / name, grid, step_minutes=5) as part:
            part.add(np.datetime64("2026-01-01", "ns"), rain[0])
        found = Archive.open(tmp_path / name).read(0, 1)
        for compare in (np.greater_equal, np.greater):
            np.testing.assert_array_equal(
                compare(found, np.float32(threshold)), compare(rain, np.float32(threshold))
            )
        assert np.abs(found - rain).max() <= 0.0101  # and at most half a code where no threshold is near
        again = nearest_codes(found)
        np.testing.assert_array_equal(again, nearest_codes(rain))


def test_far_from_thresholds_the_error_is_half_a_code():
    rates = np.random.default_rng(0).uniform(0, 300, 10_000)
    near = np.abs(rates[:, None] - THRESHOLDS).min(axis=1) < 0.0051
    error = np.abs(nearest_codes(rates) * CODE_MM_H - rates)
    assert error[~near].max() <= 0.005 + 1e-9
    assert nearest_codes(np.array([np.nan, 0.0])).tolist() == [-32768, 0]


@pytest.mark.parametrize("writer", [PartWriter, ZarrPartWriter])
@pytest.mark.parametrize(("methods", "attrs", "minutes"), [
    ("time: mean", {}, 5), ("time: mean", {schema.ACCUMULATION_MINUTES: 15.0}, 15), ("time: point", {}, None),
])  # fmt: skip
def test_means_have_time_bounds_and_momentary_rates_have_none(tmp_path, writer, methods, attrs, minutes):
    mock = schema.mock_archive(4, 6, 5, missing=(2,))
    path = tmp_path / ("a.nc" if writer is PartWriter else "a.zarr")
    with writer(path, schema.grid_of(mock), step_minutes=5.0, cell_methods=methods, attrs=attrs) as part:
        for time, frame in zip(mock["time"].values, mock["rain_rate"].values, strict=True):
            part.add(time, frame)
    with xr.open_dataset(path, engine="zarr" if writer is ZarrPartWriter else "netcdf4") as read:
        assert read["crs"].attrs["long_name"]
        if minutes is None:
            assert "bounds" not in read["time"].attrs and "time_bounds" not in read.variables
        else:
            start, end = read[read["time"].attrs["bounds"]].values.T
            np.testing.assert_array_equal(end, mock["time"])
            np.testing.assert_array_equal(end - start, np.timedelta64(minutes, "m"))
    archive = Archive.open(path)
    np.testing.assert_array_equal(archive.times, mock["time"])
    assert archive.meaning.minutes == minutes
