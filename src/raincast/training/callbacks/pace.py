"""Training speed, time spent waiting for data, and memory."""

import contextlib
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from raincast.system.provenance import peak_memory_gib


class Pace(Callback):
    """Log the training speed of each epoch.

    `train/data_wait`: share of the time in which training waited for its next batch. `train/windows_per_s`:
    windows per second of all processes together, validation excluded. `train/memory_gib`: peak memory, on a GPU of
    its tensors, otherwise of the process since its start. `train/gpu_use`: utilisation in per cent, if NVIDIA's
    library reports it.
    """

    def __init__(self) -> None:
        self._waited = self._began = self._ready = self._away = 0.0
        self._num_windows = 0
        self._use: list[int] = []

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start the clock: waiting for the first batch counts, too."""
        self._waited = self._away = 0.0
        self._num_windows = 0
        self._use = []
        self._began = self._ready = time.monotonic()
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def on_train_batch_start(self, *_: Any) -> None:
        """Add the time waited for this batch, which is now on its device."""
        self._waited += time.monotonic() - self._ready

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count the windows and start waiting for the next batch."""
        self._num_windows += len(batch["input"])
        device = trainer.strategy.root_device
        if device.type == "cuda" and _logs(trainer):
            # NVIDIA's library has errors of its own, on part of a card (MIG) for example: no reason to end a run
            with contextlib.suppress(Exception):
                self._use.append(torch.cuda.utilization(device))
        self._ready = time.monotonic()

    def on_validation_end(self, *_: Any) -> None:
        """Exclude validation within an epoch: it is neither waiting nor training."""
        now = time.monotonic()
        self._away += now - self._ready
        self._ready = now

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Log the speed; training ends with the last batch, or with a validation after it."""
        whole = self._ready - self._began - self._away
        if whole <= 0:
            return
        module.log("train/data_wait", self._waited / whole, sync_dist=True)
        speed = torch.tensor(self._num_windows / whole)
        module.log("train/windows_per_s", speed, sync_dist=True, reduce_fx="sum")
        module.log("train/memory_gib", _held_gib(trainer.strategy.root_device), sync_dist=True)
        if self._use:
            module.log("train/gpu_use", sum(self._use) / len(self._use), sync_dist=True)


class GradientNorm(Callback):
    """Log `train/grad_norm`, the norm of all gradients before clipping, as often as the loss."""

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Log the norm; by now gradients are averaged over the processes and free of the loss scale."""
        if not _logs(trainer):
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm: Any = torch.nn.utils.get_total_norm(gradients)
        module.log("train/grad_norm", norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def _logs(trainer: L.Trainer) -> bool:
    """Return True if this step's values are logged."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by its logger connector
    return (trainer.global_step + 1) % max(1, every) == 0


def _held_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_memory_gib()
