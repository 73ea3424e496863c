"""Random numbers of a training step that depend only on the run's position, not on what ran before."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback


class RandomStreams(Callback):
    """Seed torch (on all devices), NumPy and Python before each training step from (seed, rank, epoch, batch).

    A run resumed in mid-epoch therefore draws the same dropout masks as an uninterrupted one, whatever validation,
    loaders or loggers drew in between, and no generator's state has to be saved.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the generators just before the step draws anything."""
        where = (self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)
        for_torch, for_numpy, for_python = np.random.SeedSequence(where).generate_state(3).tolist()
        _seed_torch(for_torch, trainer.strategy.root_device)
        np.random.seed(for_numpy)  # noqa: NPY002 (for code that draws from it)
        random.seed(for_python)


def _seed_torch(seed: int, device: torch.device) -> None:
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    # manual_seed seeds all types of devices and records the stack for each unused one, which takes a millisecond
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
