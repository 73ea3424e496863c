"""The rain of an archive's crops: as brute force finds it, kept, and read again only where it changed."""

import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from raincast.archive import Archive, write_part
from raincast.data import rain
from raincast.data.rain import Lattice, rain_table
from raincast.schema import RAIN, mock_archive


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RAINCAST_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """20 frames of 12 × 10 in two files."""
    dataset = mock_archive(20)
    dataset[RAIN].values[3, 5:8] = np.nan
    for name, frames in (("a", slice(0, 9)), ("b", slice(9, None))):
        write_part(dataset.isel(time=frames, missing_times=slice(0)), tmp_path / f"{name}.nc")
    return tmp_path


def table(folder: Path, crop=(5, 4), calls: list | None = None):
    archive = Archive.open(folder)
    progress = None if calls is None else lambda *n: calls.append(n)
    return archive, rain_table(archive, Lattice.of(archive.grid.shape, crop), 2.0, progress=progress)


@pytest.mark.parametrize("crop", [(5, 4), (12, 10), (1, 1), (12, 3)])
def test_each_crop_of_each_frame_against_brute_force(folder, crop):
    archive, found = table(folder, crop)
    lattice = Lattice.of((12, 10), crop)
    rates = archive.read(0, 20).astype(np.float64)
    places = [(y, x) for y in lattice.y for x in lattice.x]
    boxes = [rates[:, y : y + crop[0], x : x + crop[1]].reshape(20, -1) for y, x in places]
    amount = np.stack([np.nan_to_num(1 - np.exp(-box / 2.0)).mean(1) for box in boxes], axis=1)
    observed = np.stack([np.isfinite(box).mean(1) for box in boxes], axis=1)
    np.testing.assert_allclose(found.amount, amount, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.observed, observed, rtol=1e-6)


def test_the_second_time_nothing_is_read(folder, monkeypatch):
    _, first = table(folder)
    monkeypatch.setattr(Archive, "read_stored", None)
    calls: list = []
    _, again = table(folder, calls=calls)
    np.testing.assert_array_equal(again.amount, first.amount)
    np.testing.assert_array_equal(again.observed, first.observed)
    assert not calls


def test_of_an_archive_that_grows_only_the_new_file_is_read(folder):
    table(folder)
    write_part(mock_archive(6, start="2026-01-01T02:00", seed=1), folder / "c.nc")
    calls: list = []
    archive, grown = table(folder, calls=calls)
    assert calls[-1] == (6, 6)
    assert len(grown.amount) == archive.num_times == 26


def test_only_what_is_needed_is_read(folder, monkeypatch):
    """And no frame beside it: who trains never looks at the test split, not even at its wetness."""
    read: list[int] = []
    plain = Archive.read_stored

    def watched(self, first, num, **more):
        read.extend(range(first, first + num))
        return plain(self, first, num, **more)

    monkeypatch.setattr(Archive, "read_stored", watched)
    archive = Archive.open(folder)
    lattice = Lattice.of(archive.grid.shape, (5, 4))
    needed = np.zeros(20, bool)
    needed[[1, 2, 3, 8, 12]] = True
    part = rain_table(archive, lattice, 2.0, needed=needed)
    assert read == [1, 2, 3, 8, 12]
    read.clear()
    whole = rain_table(archive, lattice, 2.0)
    assert read == [n for n in range(20) if not needed[n]]
    np.testing.assert_array_equal(part.amount[needed], whole.amount[needed])
    assert not part.amount[~needed].any()


def test_a_file_that_changed_is_read_again(folder):
    _, before = table(folder)
    path = folder / "b.nc"
    with xr.open_dataset(path) as dataset:
        changed = dataset.load()
    changed[RAIN].values[:, 6:] = 0.0
    write_part(changed, path)
    os.utime(path, ns=(1, 1))  # whatever the clock's resolution
    _, after = table(folder)
    np.testing.assert_array_equal(after.amount[:9], before.amount[:9])
    assert (after.amount[9:] < before.amount[9:]).any()


def test_other_crops_and_scales_are_other_tables(folder):
    archive, first = table(folder)
    other = rain_table(archive, Lattice.of((12, 10), (5, 4)), 0.5)
    assert (other.amount > first.amount).any()
    assert table(folder, (12, 10))[1].amount.shape != first.amount.shape


@pytest.mark.parametrize("spoil", ["torn", "empty", "folder is a file"])
def test_a_spoilt_cache_costs_time_only(folder, cache, monkeypatch, spoil):
    _, first = table(folder)
    (path,) = (cache / "rain").glob("*.npz")
    if spoil == "folder is a file":
        (cache / "file").touch()
        monkeypatch.setenv("RAINCAST_CACHE", str(cache / "file"))
    else:
        path.write_bytes(path.read_bytes()[:40] if spoil == "torn" else b"")
    _, again = table(folder)
    np.testing.assert_array_equal(again.amount, first.amount)


def test_archives_of_floats_are_weighed_alike(folder, tmp_path):
    """As codes are: their amounts come from a table."""
    _, codes = table(folder)
    (tmp_path / "floats").mkdir()
    dataset = xr.concat([xr.open_dataset(folder / f"{n}.nc") for n in "ab"], "time",
                        data_vars="minimal", coords="minimal", compat="override")  # fmt: skip
    dataset[RAIN].encoding, dataset.encoding = {"dtype": "float32"}, {}
    dataset.to_netcdf(tmp_path / "floats" / "a.nc")
    archive, floats = table(tmp_path / "floats")
    assert not archive.coded
    np.testing.assert_allclose(floats.amount, codes.amount, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(floats.observed, codes.observed)


def test_every_code_has_its_amount():
    codes = np.arange(-32768, 32768).astype(np.int16)
    amounts = rain._amounts(1.5)[codes.view(np.uint16)]
    expected = np.where(codes > 0, 1 - np.exp(-codes * 0.01 / 1.5), 0.0)
    np.testing.assert_allclose(amounts, expected, rtol=1e-6, atol=1e-9)
