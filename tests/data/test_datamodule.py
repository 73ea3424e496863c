"""The datamodule: crops, splits and loaders of one archive."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from raincast.archive import write_part
from raincast.data.datamodule import RadarDataModule
from raincast.data.sampler import Place, Sampling, TrainSampler
from raincast.data.windows import SPLITS, BlockSplit, DateSplit
from raincast.schema import mock_archive

NUM_FRAMES = 5  # 2 → 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """120 frames of 12 × 10, two of them missing."""
    folder = tmp_path_factory.mktemp("archive")
    write_part(mock_archive(120, missing=(17, 71)), folder / "a.nc")
    return folder


@pytest.fixture
def make(folder):
    def make(**kwargs) -> RadarDataModule:
        split = BlockSplit(block_minutes=100, fractions=(0.5, 0.25, 0.25), embargo_minutes=10)
        return RadarDataModule(
            folder,
            **{
                "split": split,
                "input_steps": 2,
                "lead_steps": 3,
                "crop": 4,
                "samples_per_epoch": 32,
                "batch_size": 4,
                "num_workers": 0,
            }
            | kwargs,
        )

    return make


def times_of_slots(slots: np.ndarray) -> np.ndarray:
    """Seconds since 1970; the archive begins on 1 January 2026, with a step of 5 minutes."""
    return np.datetime64("2026-01-01", "s").astype(np.int64) + 300 * slots


def loaded_times(loader) -> list[int]:
    return [int(t) for batch in loader for t in batch["time"]]


def test_a_crop_larger_than_the_grid_is_cut_and_none_is_the_whole_grid(make):
    assert make(crop=11, eval_crop=99).crop == (11, 10)
    assert make(crop=11, eval_crop=99).eval_crop == (12, 10)
    assert make(crop=None).crop == make().eval_crop == (12, 10)
    for crop, shape in ((4, (4, 4)), (11, (11, 10)), (None, (12, 10))):
        data = make(crop=crop, batch_size=2)
        batch = data.dataset.decode(next(iter(data.train_dataloader())))
        assert batch["input"].shape == (2, 2, 1, *shape)
        assert batch["target"].shape == batch["target_mask"].shape == (2, 3, 1, *shape)


def test_shared_memory_that_is_too_small_for_the_loading_processes_is_named_before_they_start(make, monkeypatch):
    """A process that writes beyond it dies by SIGBUS, without a word."""
    data = make(batch_size=2, crop=None, num_workers=3)
    a_batch = 2 * data.dataset.num_steps * 12 * 10 * 2
    monkeypatch.setattr("raincast.data.radar.shared_memory_bytes", lambda: 7 * a_batch - 1)
    with pytest.raises(
        ValueError, match=r"3 loading processes .*/dev/shm.*--shm-size.*data\.batch_size=2.*num_workers=0"
    ):
        data.train_dataloader()
    with pytest.raises(ValueError, match=r"data\.eval_batch_size"):
        make(eval_batch_size=99, num_workers=3).val_dataloader()
    make(batch_size=2, crop=None).train_dataloader()  # none of it is needed without processes
    monkeypatch.setattr("raincast.data.radar.shared_memory_bytes", lambda: 7 * a_batch)
    data.train_dataloader()


def test_evaluation_takes_each_window_whole_once_and_in_order(make):
    data = make(eval_batch_size=3)
    newest = times_of_slots(data.windows.starts["val"] + 1)
    assert loaded_times(data.val_dataloader()) == newest.tolist()
    shapes = {batch["target"].shape[-2:] for batch in data.eval_batches("val")}
    assert shapes == {(12, 10)}


def test_evaluation_in_crops_tiles_the_grid(make):
    data = make(eval_crop=4, eval_stride=3)
    places = data.eval_places("test")
    starts = data.windows.starts["test"][::3].tolist()
    assert places == [Place(s, y, x, 4, 4) for s in starts for y in (0, 4, 8) for x in (0, 4)]


@pytest.mark.parametrize("stage", [None, "validate"])
def test_validation_is_the_same_in_every_epoch_and_for_every_seed(make, stage):
    def first(data) -> list[dict[str, torch.Tensor]]:
        data.setup(stage)
        return [*data.eval_batches("val")]

    data = make(seed=1)
    for one, other in zip(
        first(data), first(make(seed=2, sampling=Sampling(augment=False), samples_per_epoch=8)), strict=True
    ):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True)
    assert loaded_times(data.val_dataloader()) == loaded_times(data.val_dataloader())


def test_training_validation_and_test_share_no_frame(make):
    """Else the best checkpoint is chosen on what it was trained on, or on the test set."""
    data = make(samples_per_epoch=10_000, batch_size=1)
    seen = {}
    for split, loader in (
        ("train", data.train_dataloader()),
        ("val", data.val_dataloader()),
        ("test", data.test_dataloader()),
    ):
        newest = np.array(loaded_times(loader)).astype("datetime64[s]")
        step = np.timedelta64(300, "s")
        seen[split] = {t for k in range(-1, 4) for t in (newest + k * step)}
        assert newest.size
    assert set(seen) == set(SPLITS)
    assert not seen["train"] & seen["val"] and not seen["val"] & seen["test"] and not seen["train"] & seen["test"]


def test_dates_may_leave_testing_to_another_archive(make):
    data = make()
    first, last = (str(time) for time in data.archive.times[[0, -1]])
    middle = str(data.archive.times[data.archive.num_times // 2])
    split = {"train": [[first, middle]], "val": [[middle, last]], "embargo_minutes": 0}
    windows = make(split=DateSplit(**split, test=[])).windows
    assert windows.starts["train"].size and windows.starts["val"].size and not windows.starts["test"].size
    assert windows.describe().endswith("0 windows")
    with pytest.raises(ValueError, match="leaves no window of .* for test"):
        _ = make(split=DateSplit(**split, test=[["1999-01-01", "1999-01-02"]])).windows


def test_training_draws_from_training_windows_and_differs_by_epoch(make):
    data = make()
    loader = data.train_dataloader()
    assert len(loader) == 8
    newest = times_of_slots(data.windows.starts["train"] + 1)
    first = loaded_times(loader)
    assert len(first) == 32 and set(first) <= set(newest.tolist())
    assert loaded_times(make().train_dataloader()) == first
    loader.sampler.set_epoch(1)
    assert loaded_times(loader) != first


def test_training_samples_are_the_same_with_workers(make):
    alone, shared = ([*make(num_workers=n).train_dataloader()] for n in (0, 2))
    for a, b in zip(alone, shared, strict=True):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, equal_nan=True)


class Watch(L.LightningModule):
    """Learns nothing and keeps the times of each epoch's samples."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list[tuple[int, ...]]] = {}

    def training_step(self, batch, batch_idx):
        rows = zip(*(batch[name].tolist() for name in ("time", "y", "x")), strict=True)
        self.seen.setdefault(self.current_epoch, []).extend(rows)
        return self.weight.square()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_trainer_gives_each_epoch_its_own_draw(make, tmp_path, num_workers):
    data, watch = make(num_workers=num_workers), Watch()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(watch, data)
    sampler = TrainSampler(data.candidates, 32, Sampling(), seed=0)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        newest = times_of_slots(np.array([p.start + 1 for p in sampler]))
        expected = [(int(t), p.y, p.x) for t, p in zip(newest, sampler, strict=True)]
        assert watch.seen[epoch] == expected, epoch


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({name: 0}, f"data.{name}=0: give a whole number from 1 up")
        for name in (
            "input_steps",
            "lead_steps",
            "eval_stride",
            "samples_per_epoch",
            "batch_size",
            "eval_batch_size",
        )
    ]
    + [
        ({"max_missing": 5}, "data.max_missing=5 must be from 0 to below the 5 frames"),
        ({"max_missing": -1}, "data.max_missing=-1 must be"),
        ({"crop": 0}, "A crop of 0 pixels: give 1 or more, or null"),
        ({"eval_crop": -4}, "A crop of -4 pixels"),
    ],
)
def test_numbers_that_cannot_be_are_refused(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_a_gap_budget_makes_more_windows(make):
    """Each of the two missing frames spoils 5 windows; as the newest input, in one of them, it still does."""
    strict, lenient = (sum(own.size for own in make(max_missing=n).windows.starts.values()) for n in (0, 1))
    assert strict < lenient <= strict + 8


def test_more_in_a_batch_than_in_an_epoch_is_refused(make):
    with pytest.raises(ValueError, match="data.batch_size=33 .*exceeds the 32 training samples"):
        make(batch_size=33).train_dataloader()


def test_an_archive_that_is_not_there_is_said_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="python ingest.py"):
        RadarDataModule(tmp_path / "nowhere", split=BlockSplit())


@pytest.mark.parametrize(
    ("cores", "gpu", "expected"), [(1, False, 0), (2, False, 0), (2, True, 1), (4, False, 3), (64, True, 4)]
)
def test_loading_processes_take_no_core_from_the_network(make, monkeypatch, cores, gpu, expected):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert make(num_workers=None).num_workers == expected
    assert make(num_workers=3).num_workers == 3
