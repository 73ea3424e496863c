"""The windows of archives as samples: split, places, loaders of validation and test."""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import lt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from raincast.archive import Archive
from raincast.data.channels import Channel
from raincast.data.channels.declared import Channels
from raincast.data.dataset import Sample, Stored, WindowDataset, collate
from raincast.data.sampler import Candidates, EvalSampler, Place, Sampling, find_candidates, tile_positions
from raincast.data.source import Extra, open_sources
from raincast.data.windows import SPLITS, DateSplit, Split, SplitWindows, TrainAll

BATCHES_AHEAD = 2
"""torch's prefetch_factor: batches that each loading process prepares in advance."""


class RadarData:
    """Windows of an archive for training, validation and test, and of further ones (`more`) for training.

    Training draws rain-weighted crops. Validation and test use every `eval_stride`-th window of their split, whole
    or in adjacent crops of `eval_crop`, each once and in order. `raincast.data.datamodule.RadarDataModule` is the
    same for Lightning: it has loaders for training and distributes windows over processes. Without it nothing of
    Lightning is imported, which takes seconds. Raises ValueError for invalid arguments.
    """

    def __init__(
        self,
        archive: str | Path,
        *,
        split: Split,
        more: Sequence[Mapping[str, Any]] = (),
        channels: Mapping[str, Channel] | None = None,
        input_steps: int = 6,
        lead_steps: int = 12,
        max_missing: int = 0,
        crop: int | None = 128,
        eval_crop: int | None = None,
        eval_stride: int = 1,
        samples_per_epoch: int = 2000,
        only: int | None = None,
        batch_size: int = 8,
        eval_batch_size: int = 4,
        sampling: Sampling | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()  # Lightning's, in a RadarDataModule
        for name, value in {
            "input_steps": input_steps,
            "lead_steps": lead_steps,
            "eval_stride": eval_stride,
            "samples_per_epoch": samples_per_epoch,
            "only": 1 if only is None else only,
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
        }.items():
            if value < 1:
                raise ValueError(f"data.{name}={value}: give a whole number from 1 up.")
        if not 0 <= max_missing < input_steps + lead_steps:
            raise ValueError(
                f"data.max_missing={max_missing} must be from 0 to below the {input_steps + lead_steps} frames of "
                "a window."
            )
        self.archive = Archive.open(archive)
        self.more = [Extra(**extra) for extra in more]
        self.channels = Channels(channels or {})
        self.sources = open_sources(
            self.archive, self.more, self.channels, input_steps=input_steps, lead_steps=lead_steps
        )
        self.split = split
        self.input_steps = input_steps
        self.lead_steps = lead_steps
        self.max_missing = max_missing
        self.crop = self._fit_crop(crop)
        self._check_more()
        self.eval_crop = self._fit_crop(eval_crop)
        self.eval_stride = eval_stride
        self.samples_per_epoch = samples_per_epoch
        self.only = only
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.sampling = sampling or Sampling()
        self.num_workers = _spare_cores() if num_workers is None else num_workers
        self.seed = seed
        self.progress: Callable[[int, int], None] | None = None
        untested = isinstance(split, DateSplit) and not split.test  # there may be another archive to test on
        self.needed: Sequence[str] = SPLITS[:2] if untested else SPLITS
        """Splits of `archive` that must have windows; to score on an archive of test days only test is needed."""
        self.common_times: frozenset[np.datetime64] | None = None

    def _check_more(self) -> None:
        small = [s.archive for s in self.sources if any(map(lt, s.archive.grid.shape, self.crop))]
        if small:
            raise ValueError(
                f"{small[0].path} of data.more has a grid of {small[0].grid.shape}, smaller than the crops of "
                f"{self.crop}: lower data.crop."
            )

    def _fit_crop(self, crop: int | None) -> tuple[int, int]:
        height, width = self.archive.grid.shape
        if crop is None:
            return height, width
        if crop < 1:
            raise ValueError(f"A crop of {crop} pixels: give 1 or more, or null for whole frames.")
        return min(crop, height), min(crop, width)

    @cached_property
    def windows(self) -> SplitWindows:
        """Return the windows of each split of `archive`."""
        return self.sources[0].split(self.split, self.max_missing, needed=self.needed)

    @cached_property
    def more_windows(self) -> list[SplitWindows]:
        """Return the windows of the further archives by the same split; training uses only those of train."""
        return [
            source.split(TrainAll() if extra.all else self.split, self.max_missing, needed=("train",))
            for source, extra in zip(self.sources[1:], self.more, strict=True)
        ]

    @property
    def split_hash(self) -> str:
        """Return a hash that changes with any window of any archive."""
        if not self.more:
            return self.windows.hash
        hashes = [windows.hash for windows in (self.windows, *self.more_windows)]
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:16]

    @cached_property
    def candidates(self) -> Candidates:
        """Return the places that training may draw; archives that are not cached yet are read once."""
        found = [
            find_candidates(
                source.archive,
                windows.starts["train"],
                source.num_slots,
                self.crop,
                self.sampling,
                progress=self.progress,
            )
            for source, windows in zip(self.sources, (self.windows, *self.more_windows), strict=True)
        ]
        return Candidates.join(found, [1.0, *(extra.weight for extra in self.more)])

    @cached_property
    def dataset(self) -> WindowDataset:
        """Return the dataset of samples, indexed by place."""
        return WindowDataset(self.sources)

    def newest(self, start: int) -> np.datetime64:
        """Return the time of the newest input frame of the window that begins in slot `start`, in ns."""
        newest: np.datetime64 = self.sources[0].newest(int(start)).astype("datetime64[ns]")
        return newest

    def eval_places(self, split: str) -> list[Place]:
        """Return the places of a split; with `common_times` only windows whose newest input time is among them."""
        height, width = self.archive.grid.shape
        crop_y, crop_x = self.eval_crop
        return [
            Place(int(start), y, x, crop_y, crop_x)
            for start in self.windows.starts[split][:: self.eval_stride]
            if self.common_times is None or self.newest(start) in self.common_times
            for y in tile_positions(height, crop_y)
            for x in tile_positions(width, crop_x)
        ]

    def wettest(self, places: Sequence[Place], num: int = 1, *, at_most: int = 100) -> list[Place]:
        """Return the `num` places with the most target rain, wettest first, from different UTC days if possible.

        About `at_most` places, spread over all, are examined.
        """
        looked_at = places[:: max(1, len(places) // at_most)]
        rain = {}
        for place in looked_at:
            sample = self.dataset.sample(place)
            rain[place] = float(np.nan_to_num(sample["target"].numpy()).mean()), sample["time"] // 86400
        wettest = sorted(rain, key=lambda place: -rain[place][0])
        firsts = {rain[place][1]: place for place in reversed(wettest)}
        by_day = [place for place in wettest if firsts[rain[place][1]] == place]
        return [*by_day, *(place for place in wettest if place not in by_day)][:num]

    def _ranks(self) -> tuple[int, int]:
        """Return the number of this process and of all that share the windows of a split."""
        return 0, 1

    def eval_batches(self, split: str) -> Iterator[Sample]:
        """Yield the batches of a split in mm/h, for use without a Trainer."""
        return map(self.dataset.decode, self.eval_dataloader(split))

    def eval_dataloader(self, split: str) -> DataLoader[Stored]:
        """Return every place of `split` once, distributed over the ranks."""
        rank, world_size = self._ranks()
        places = self.eval_places(split)
        if len(places) < world_size:
            raise ValueError(
                f"{world_size} processes share {len(places)} {split} windows: each needs one. Lower "
                f"trainer.devices or data.eval_stride={self.eval_stride}."
            )
        sampler = EvalSampler(places, rank=rank, world_size=world_size)
        options = self._loader_options("eval_batch_size", self.eval_crop)
        return DataLoader(self.dataset, sampler=sampler, batch_size=self.eval_batch_size, **options)

    def _check_shared_memory(self, size: str, crop: tuple[int, int]) -> None:
        """Raise ValueError if prefetched batches do not fit in /dev/shm, where a process would die of SIGBUS."""
        batch_size = getattr(self, size)
        a_batch = batch_size * self.dataset.num_steps * math.prod(crop) * (2 if self.dataset.coded else 4)
        needed, free = (BATCHES_AHEAD * self.num_workers + 1) * a_batch, shared_memory_bytes()
        if needed > free:
            raise ValueError(
                f"{self.num_workers} loading processes keep {needed / 1e6:.0f} MB of batches in the shared memory "
                f"/dev/shm, and {free / 1e6:.0f} MB are free there. Enlarge it (docker run --shm-size=2g), "
                f"lower data.{size}={batch_size}, or set data.num_workers=0, which "
                "needs none."
            )

    def _loader_options(self, size: str, crop: tuple[int, int]) -> dict[str, Any]:
        """Return the options of all loaders; `size` is the key of the batch size, `crop` the size of a sample."""
        if self.num_workers:
            self._check_shared_memory(size, crop)
        return {
            "collate_fn": collate,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # each iteration of a loader draws a seed for its workers; keep that out of the training's generator
            "generator": torch.Generator().manual_seed(self.seed),
        }


def shared_memory_bytes() -> float:
    """Return the free bytes of shared memory, through which processes exchange batches; inf if unlimited."""
    try:
        found = os.statvfs("/dev/shm")
    except (AttributeError, OSError):  # other systems have no such limit
        return math.inf
    return float(found.f_bavail * found.f_frsize)


def _spare_cores() -> int:
    """Return the number of loading processes that leaves a core for the network."""
    cores = os.cpu_count() or 1
    # on two cores without a GPU a loading process slows training down: see benchmarks/README.md
    return 0 if cores <= 2 and not torch.cuda.is_available() else min(4, cores - 1)
