"""Randomness of a training step follows from the run's position, not from what ran before."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback


class RandomStreams(Callback):
    """Seeds torch (on all devices), NumPy and Python before each training step from (seed, rank, epoch, batch).

    So a run that goes on in mid-epoch drops out what one never stopped does, whatever validation, loaders
    or loggers drew between, and no state of a generator has to be kept.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Just before anything of the step is drawn."""
        where = (self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)
        for_torch, for_numpy, for_python = np.random.SeedSequence(where).generate_state(3).tolist()
        _seed_torch(for_torch, trainer.strategy.root_device)
        np.random.seed(for_numpy)  # noqa: NPY002 (whoever draws from it)
        random.seed(for_python)


def _seed_torch(seed: int, device: torch.device) -> None:
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    # that seeds all kinds of devices, and writes down the stack for each that is not in use: a millisecond
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
