"""Several archives: of finer steps, other grids, with weights."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checking import check_encoded

from raincast.archive import Archive, write_part
from raincast.data.channels.declared import Channels
from raincast.data.datamodule import RadarDataModule
from raincast.data.dataset import WindowDataset
from raincast.data.sampler import Place
from raincast.data.source import Extra, Source, open_sources
from raincast.data.windows import BlockSplit
from raincast.schema import RAIN, mock_archive

INPUTS, LEADS = 2, 3


def archive(
    folder: Path,
    num: int = 40,
    *,
    step: float = 5.0,
    methods: str = "time: mean",
    accumulation_minutes: float | None = None,
    **kwargs,
) -> Archive:
    dataset = mock_archive(num, step_minutes=step, **kwargs)
    dataset[RAIN].attrs["cell_methods"] = methods
    if accumulation_minutes is not None:
        dataset.attrs["accumulation_minutes"] = accumulation_minutes
    folder.mkdir(exist_ok=True)
    write_part(dataset, folder / "a.nc")
    return Archive.open(folder)


def at_ten(found: Archive) -> Source:
    return Source.at_step(found, 10.0, input_steps=INPUTS, lead_steps=LEADS)


def whole(source: Source, start: int) -> np.ndarray:
    """(T, H, W) in mm/h: input and target."""
    sample = WindowDataset([source]).sample(Place(start, 0, 0, *source.archive.grid.shape))
    return np.concatenate([sample["input"], sample["target"]])[:, 0]


def test_means_of_a_finer_step_are_averaged(tmp_path):
    found = archive(tmp_path)
    source = at_ten(found)
    rain = found.read(0, 40)
    for start in (0, 1, 7):
        expected = rain[start : start + 10].reshape(5, 2, *rain.shape[1:]).astype(np.float64).mean(1)
        # codes are whole hundredths: the mean is rounded to one
        check_encoded(whole(source, start), np.round(expected, 4))
    # the mean of frames 2 and 3 from the start is over the step that ends with frame 3
    assert source.newest(4) == found.times[7]


def test_of_momentary_rates_the_last_of_a_step_is_taken(tmp_path):
    found = archive(tmp_path, methods="time: point")
    source = at_ten(found)
    np.testing.assert_array_equal(whole(source, 3), found.read(0, 40)[3:12:2])
    assert source.newest(3) == found.times[5]  # input frames 3 and 5


def test_a_mean_needs_half_of_its_pixels_times(tmp_path):
    found = archive(tmp_path, step=2.5, missing=(5, 6, 7))
    source = at_ten(found)
    rain = np.full((40, *found.grid.shape), np.nan)
    rain[np.setdiff1d(np.arange(40), (5, 6, 7))] = found.read(0, 37)
    sample = WindowDataset([source]).sample(Place(0, 0, 0, *found.grid.shape))
    assert sample["input"][1].isnan().all(), "of frames 4 to 7 only one is there"
    assert not sample["filled"].any()
    later = WindowDataset([source]).sample(Place(2, 0, 0, *found.grid.shape))
    # frames 6 to 9, of which 8 and 9 are there
    expected = np.where(np.isfinite(rain[8]), rain[8:10].mean(0), np.nan)
    check_encoded(later["input"][1, 0], np.round(expected, 4))


def test_a_step_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="a step of 4 min, and 10 min, the step of data.archive, is not a multiple"
    ):
        at_ten(archive(tmp_path, step=4.0))
    with pytest.raises(ValueError, match="a step of 15 min"):
        at_ten(archive(tmp_path, step=15.0))


@pytest.fixture
def make(tmp_path):
    archive(tmp_path / "main", 120, step=10.0)
    archive(tmp_path / "other", 240, height=20, width=30, seed=1, start="2025-06-01T00:00")

    def make(weight: float = 1.0, **kwargs) -> RadarDataModule:
        split = BlockSplit(block_minutes=200, fractions=(0.5, 0.25, 0.25))
        more = [{"archive": str(tmp_path / "other"), "weight": weight}]
        sizes = {"input_steps": INPUTS, "lead_steps": LEADS, "crop": 4, "batch_size": 4, "num_workers": 0}
        return RadarDataModule(tmp_path / "main", split=split, **(sizes | {"more": more} | kwargs))

    return make


def test_training_draws_from_all_archives_by_their_weight(make):
    def share(weight: float) -> float:
        data = make(weight, samples_per_epoch=200)
        places = [place for epoch in range(5) for place in _epoch(data, epoch)]
        return sum(place.source for place in places) / len(places)

    low, even, high = (share(weight) for weight in (0.1, 1.0, 10.0))
    assert 0 < low < even < high < 1


def _epoch(data: RadarDataModule, epoch: int) -> list[Place]:
    sampler = data.train_dataloader().sampler
    sampler.set_epoch(epoch)
    return [*sampler]


def test_places_of_each_archive_lie_in_its_own_training_windows_and_grid(make):
    data = make(samples_per_epoch=2000)
    starts = [data.windows.starts["train"], *(w.starts["train"] for w in data.more_windows)]
    for place in _epoch(data, 0):
        assert place.start in starts[place.source]
        height, width = data.sources[place.source].archive.grid.shape
        assert 0 <= place.y <= height - 4 and 0 <= place.x <= width - 4
    assert max(place.x for place in _epoch(data, 0)) > 10 - 4, "the wider grid is used"


def test_batches_mix_archives_and_validation_is_of_the_first(make):
    data = make(samples_per_epoch=64)
    years = {
        int(np.datetime64(int(time), "s").astype("datetime64[Y]").astype(int)) + 1970
        for batch in map(data.dataset.decode, data.train_dataloader())
        for time in batch["time"]
    }
    assert years == {2025, 2026}
    assert {place.source for place in data.eval_places("val")} == {0}


def test_all_of_an_archive_may_train(make, tmp_path):
    def extra(**kwargs) -> RadarDataModule:
        return make(more=[{"archive": str(tmp_path / "other"), **kwargs}])

    # 240 frames of 5 min hold 240 − 9 windows of 10
    assert extra(all=True).more_windows[0].starts["train"].size == 231
    assert 0 < extra().more_windows[0].starts["train"].size < 231
    assert extra(all=True).split_hash != extra().split_hash


def test_an_event_too_short_to_split_trains_whole(make, tmp_path):
    archive(tmp_path / "event", 20, height=20, width=30)
    with pytest.raises(ValueError, match="no window of 10 frames for train"):
        _ = make(more=[{"archive": str(tmp_path / "event")}]).more_windows
    data = make(more=[{"archive": str(tmp_path / "event"), "all": True}])
    assert data.more_windows[0].starts["train"].size == 11


def test_the_hash_changes_with_the_further_archives(make):
    assert make().split_hash != make(more=[]).split_hash == make(more=[]).windows.hash


def test_further_archives_that_do_not_fit_are_refused(make, tmp_path):
    with pytest.raises(ValueError, match=r"weight=0 of .*other must be over 0"):
        make(0)
    archive(tmp_path / "small", 60, height=3, width=3)
    with pytest.raises(ValueError, match=r"small of data.more has a grid of \(3, 3\), smaller than the crops"):
        make(more=[{"archive": str(tmp_path / "small")}])
    with pytest.raises(TypeError, match="wieght"):
        make(more=[{"archive": str(tmp_path / "other"), "wieght": 2}])


def test_archives_of_other_meanings_do_not_train_together(tmp_path, caplog):
    def together(name: str, **first: Any) -> list[Source]:
        main = archive(tmp_path / f"main of {name}", **{"methods": "time: mean", "step": 60.0, **first})
        more = [Extra(str(tmp_path / name))]
        return open_sources(main, more, Channels({}), input_steps=INPUTS, lead_steps=LEADS)

    archive(tmp_path / "rates", methods="time: point")
    with pytest.raises(
        ValueError, match=r"gives means over 60 min, .*rates of data\.more momentary rates\. A network"
    ):
        together("rates")
    archive(tmp_path / "hours every 10 min", step=10.0, accumulation_minutes=60.0)
    with pytest.raises(ValueError, match=r"gives means over 10 min, .*10 min of data\.more means over 60 min"):
        together("hours every 10 min", step=10.0)
    caplog.set_level(logging.WARNING)
    archive(tmp_path / "means")
    assert [source.every for source in together("means")] == [1, 12]  # means of 5 min become those of an hour
    assert not caplog.text
    together("rates", step=5.0)
    assert (
        "gives means over 5 min, " in caplog.text
        and "momentary rates: the network learns from both" in caplog.text
    )


def test_running_means_are_taken_and_not_averaged_again(tmp_path):
    found = archive(tmp_path, accumulation_minutes=60.0)
    np.testing.assert_array_equal(whole(at_ten(found), 3), found.read(0, 40)[3:12:2])
