"""Samples: the frames of the archive, turned alike, the same in every worker."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch.utils.data import DataLoader, default_collate

from raincast.archive import Archive, write_part
from raincast.data.dataset import WindowDataset, collate, orient, unturned
from raincast.data.sampler import Place
from raincast.data.source import Source
from raincast.schema import RAIN, mock_archive


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """26 frames; frame 9 is missing, so that the numbers of frames and times part."""
    folder = tmp_path_factory.mktemp("archive")
    dataset = mock_archive(26, missing=(9,))
    for name, frames in (("a", slice(0, 7)), ("b", slice(7, None))):
        write_part(dataset.isel(time=frames, missing_times=slice(0)), folder / f"{name}.nc")
    return folder


@pytest.fixture(scope="module")
def windows(folder) -> WindowDataset:
    return WindowDataset([Source(Archive.open(folder), 3, 4)])


def test_a_sample_is_what_xarray_reads(folder, windows):
    parts = [xr.open_dataset(folder / f"{name}.nc", engine="netcdf4") for name in "ab"]
    frames = xr.concat([part[RAIN] for part in parts], "time").load()
    # slot 13 is frame 12: frame 9 of the series is missing
    sample = windows.sample(Place(start=13, y=2, x=1, height=6, width=8))
    box = frames.isel(y=slice(2, 8), x=slice(1, 9)).values.astype(np.float32)
    np.testing.assert_array_equal(sample["input"], box[12:15, None])
    np.testing.assert_array_equal(sample["target"], box[15:19, None])
    np.testing.assert_array_equal(sample["target_mask"], np.isfinite(box[15:19, None]))
    assert not sample["filled"].any()
    assert sample["input"].dtype == sample["target"].dtype == torch.float32
    assert sample["target_mask"].dtype == torch.bool
    assert (sample["y"], sample["x"]) == (2, 1)
    assert np.datetime64(sample["time"], "s") == frames.time.values[14]  # the newest input


def test_targets_begin_one_step_after_the_newest_input(tmp_path):
    """Each frame says its own number: input 4, 5, 6 and target 7, 8, 9, 10, at their times."""
    dataset = mock_archive(26)
    dataset[RAIN].values[:] = np.arange(26, dtype=np.float32)[:, None, None]
    write_part(dataset, tmp_path / "a.nc")
    sample = WindowDataset([Source(Archive.open(tmp_path), 3, 4)]).sample(Place(4, 0, 0, 2, 2))
    assert sample["input"][:, 0, 0, 0].tolist() == [4, 5, 6]
    assert sample["target"][:, 0, 0, 0].tolist() == [7, 8, 9, 10]
    # frame 6 is 30 minutes after the start of 2026
    assert np.datetime64(sample["time"], "s") == np.datetime64("2026-01-01T00:30")


def test_missing_pixels_are_nan_and_masked_and_zeros_are_neither(windows):
    sample = windows.sample(Place(0, 0, 0, 12, 10))
    assert not sample["target_mask"][..., :2, :2].any() and sample["target_mask"][..., 2:, 2:].all()
    assert sample["input"][..., :2, :2].isnan().all() and sample["target"][..., :2, :2].isnan().all()
    assert (sample["target"] == 0).any()


def test_codes_travel_as_they_are_and_become_the_rates_of_the_archive(windows):
    stored = windows[Place(0, 0, 0, 12, 10)]
    assert stored["frames"].dtype == torch.int16
    rates = windows.sources[0].archive.read(0, 7)
    both = torch.cat([windows.sample(Place(0, 0, 0, 12, 10))[name] for name in ("input", "target")])
    np.testing.assert_array_equal(both[:, 0], rates)  # to the last bit


def test_every_code_becomes_the_float_nearest_its_rate(windows):
    codes = torch.arange(-32768, 32768).to(torch.int16).reshape(1, 8, 64, 128)
    zeros = torch.zeros(1, dtype=torch.int64)
    batch = {
        "frames": codes,
        "filled": torch.zeros(1, 8),
        "source": zeros,
        "gain": torch.ones(1),
        "time": zeros,
        "y": zeros,
        "x": zeros,
    }
    found = windows.decode(batch)
    rates = torch.cat([found["input"], found["target"]], dim=1).ravel().numpy()
    numbers = np.arange(-32768, 32768)
    np.testing.assert_array_equal(rates, np.where(numbers < 0, np.nan, numbers * 0.01).astype(np.float32))


def test_a_gain_multiplies_the_rain_of_its_sample(windows):
    place = Place(0, 1, 1, 8, 8)
    plain, more = windows.sample(place), windows.sample(place._replace(gain=1.5))
    for name in ("input", "target"):
        np.testing.assert_array_equal(more[name], plain[name] * 1.5)
    np.testing.assert_array_equal(more["target_mask"], plain["target_mask"])


def test_missing_frames_repeat_the_one_before_as_input_and_are_missing_as_target(folder, windows):
    """Frame 9 of 26 is missing: once it is the second input, once the first, once a target."""
    rain = Archive.open(folder).read(0, 25)  # slots 0 to 8, then 10 to 25
    place = Place(start=8, y=0, x=0, height=12, width=10)
    sample = windows.sample(place)
    np.testing.assert_array_equal(sample["input"][:, 0], rain[[8, 8, 9]])
    assert sample["filled"].tolist() == [False, True, False, False, False, False, False]
    np.testing.assert_array_equal(sample["target"][:, 0], rain[10:14])
    first = windows.sample(place._replace(start=9))
    assert first["input"][0].isnan().all() and first["filled"].tolist() == [True] + [False] * 6
    target = windows.sample(place._replace(start=5))
    assert target["target"][1].isnan().all() and not target["target_mask"][1].any()
    np.testing.assert_array_equal(target["target"][[0, 2, 3], 0], rain[[8, 9, 10]])
    assert np.datetime64(sample["time"], "s") == np.datetime64("2026-01-01T00:50")  # slot 10


def test_eight_orientations_are_the_symmetries_of_a_square():
    frames = np.random.default_rng(0).random((2, 5, 5), np.float32)
    turned = [orient(frames, k) for k in range(8)]
    assert len({t.tobytes() for t in turned}) == 8
    np.testing.assert_array_equal(turned[0], frames)
    np.testing.assert_array_equal(turned[1], frames[:, :, ::-1])
    table = {t.tobytes() for t in turned}
    for first in turned:
        assert first.flags.c_contiguous
        again = [orient(first, k).tobytes() for k in range(8)]
        assert set(again) == table  # one after the other is one of the eight
        assert frames.tobytes() in again  # and one of them leads back


def test_oblong_crops_keep_their_shape():
    frames = np.random.default_rng(0).random((2, 4, 6), np.float32)
    turned = [orient(frames, k) for k in range(8)]
    assert {t.shape for t in turned} == {(2, 4, 6)}
    assert len({t.tobytes() for t in turned}) == 4
    assert frames.tobytes() in {orient(turned[3], k).tobytes() for k in range(8)}


def test_input_and_target_are_turned_alike(windows):
    plain = windows.sample(Place(0, 1, 1, 8, 8))
    for k in range(8):
        turned = windows.sample(Place(0, 1, 1, 8, 8, k))
        for name in ("input", "target"):
            np.testing.assert_array_equal(turned[name][:, 0], orient(plain[name][:, 0].numpy(), k))
        np.testing.assert_array_equal(turned["target_mask"], turned["target"].isfinite())
        assert (turned["time"], turned["y"], turned["x"]) == (plain["time"], 1, 1)


def test_a_view_of_turned_frames_shows_them_upright():
    for shape in ((2, 5, 5), (2, 4, 6)):
        frames = np.random.default_rng(0).random(shape, np.float32)
        for k in range(8):
            turned = orient(frames, k)
            upright = unturned(turned, k)
            np.testing.assert_array_equal(upright, frames)
            assert np.shares_memory(upright, turned)


def test_the_windows_of_a_batch_are_read_into_it(windows):
    """Frame 9 of 26 is missing: an input of some, a target of others."""
    for height, width in ((6, 6), (5, 7)):
        places = [Place(i, i % 4, i % 3, height, width, i % 8, 1 + i / 10) for i in range(12)]
        rows = windows.__getitems__(places)
        assert all(row["frames"].data_ptr() == own.data_ptr() for row, own in zip(rows, rows.frames, strict=True))
        batch, copied = windows.batch(places), default_collate([windows[place] for place in places])
        assert batch.keys() == copied.keys()
        for name in batch:
            torch.testing.assert_close(batch[name], copied[name], rtol=0, atol=0)
            torch.testing.assert_close(collate(rows)[name], copied[name], rtol=0, atol=0)
        upright = windows.batch([place._replace(orientation=0) for place in places])["frames"].numpy()
        for frames, own, place in zip(batch["frames"].numpy(), upright, places, strict=True):
            np.testing.assert_array_equal(frames, orient(own, place.orientation))


def test_decoding_leaves_what_was_stored_as_it_was(windows):
    for frames in (torch.tensor([[[[-32768, 50]]]], dtype=torch.int16), torch.tensor([[[[torch.nan, 0.5]]]])):
        ones = torch.ones(1, dtype=torch.int64)
        batch = {
            "frames": frames,
            "gain": 2.0 * ones,
            "filled": ones,
            **dict.fromkeys(("time", "y", "x"), ones),
            "source": 0 * ones,
        }
        before = frames.clone()
        assert windows.decode(batch)["input"].ravel()[1] == 1
        torch.testing.assert_close(frames, before, rtol=0, atol=0, equal_nan=True)


def test_workers_make_the_same_samples(windows):
    places = [Place(i, i % 4, i % 3, 6, 6, i % 8) for i in range(16)]

    def batches(num_workers: int, **options: Any) -> list[dict[str, torch.Tensor]]:
        loader = DataLoader(windows, batch_size=4, sampler=places, num_workers=num_workers, **options)
        return [*map(windows.decode, loader)]

    for alone, shared in zip(batches(0), batches(2, collate_fn=collate), strict=True):
        assert alone["input"].shape == (4, 3, 1, 6, 6) and alone["time"].dtype == torch.int64
        for name in alone:
            torch.testing.assert_close(shared[name], alone[name], rtol=0, atol=0, equal_nan=True)
