"""The LightningDataModule of training: the windows of `RadarData`, with loaders of crops that can resume."""

from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from raincast.data.dataset import ResumableLoader, Sample, Stored
from raincast.data.radar import RadarData
from raincast.data.sampler import TrainSampler


class RadarDataModule(RadarData, L.LightningDataModule):
    """`RadarData` for Lightning: it takes the same arguments.

    Training draws rain-weighted crops, the same number on each rank. Validation and test windows are distributed
    over the ranks, each used once whatever their number.
    """

    _train_loader: ResumableLoader | None = None
    _resumed: dict[str, Any] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Find the windows and, for training, the candidates, before any worker starts."""
        _ = self.windows
        if stage in (None, "fit"):
            places = self.candidates.start.size
            self._check_batch_size(self.samples_per_epoch if self.only else min(self.samples_per_epoch, places))

    def _check_batch_size(self, num_samples: int, whose: str = "") -> None:
        if num_samples < self.batch_size:
            raise ValueError(
                f"data.batch_size={self.batch_size} exceeds the {num_samples} training samples of an epoch{whose} "
                f"(data.samples_per_epoch={self.samples_per_epoch}, {self.candidates.start.size} places to draw "
                f"from). Set data.batch_size={max(1, num_samples)} or less."
            )

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def on_after_batch_transfer(self, batch: Stored, dataloader_idx: int) -> Sample:
        """Decode stored codes to mm/h once the batch is on its device."""
        return self.dataset.decode(batch)

    def train_dataloader(self) -> DataLoader[Stored]:
        """Return rain-weighted crops, the same number of full batches per rank; can resume within an epoch."""
        rank, world_size = self._ranks()
        sampler = TrainSampler(
            self.candidates,
            self.samples_per_epoch,
            self.sampling,
            only=self.only,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )
        self._check_batch_size(len(sampler), f" for each of {world_size} processes" if world_size > 1 else "")
        options = self._loader_options("batch_size", self.crop)
        loader = ResumableLoader(
            self.dataset, sampler=sampler, batch_size=self.batch_size, drop_last=True, **options
        )
        loader.num_done = self._batches_done
        if self._resumed:
            loader.load_state_dict(self._resumed)
        self._train_loader = loader
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Return the position within the epoch, for a checkpoint."""
        return self._train_loader.state_dict() if self._train_loader else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the position; Lightning calls this before it requests a loader, and restores loaders later."""
        self._resumed = state_dict

    def _batches_done(self) -> int:
        if self.trainer is None:
            return 0
        # processed, not fetched: an interrupted batch is not done
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return int(progress.processed)

    def val_dataloader(self) -> DataLoader[Stored]:
        """Return the loader of validation windows."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Stored]:
        """Return the loader of test windows."""
        return self.eval_dataloader("test")
