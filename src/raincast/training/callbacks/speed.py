"""Speed, waiting for data, memory and gradient norm of training, and a profile of its steps."""

import contextlib
import logging
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from raincast.system.provenance import peak_memory_gib

log = logging.getLogger(__name__)
NUM_OPERATORS = 15
NEXT_BATCH = "enumerate(DataLoader)"
"""The profiler's name for waiting for a batch, without the loader's class."""


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


class Profile(Callback):
    """Profile `steps` training steps after the first `skip`, on the first process.

    Writes into `folder` a trace for Perfetto (trace.json) and two tables (tables.txt), which are also logged: the
    parts of a step, and the operators with the most time of their own. The GPU is synchronised after each part;
    otherwise its work would be attributed to whatever waits for it. Profiled steps are therefore slower than
    others.
    """

    def __init__(self, folder: str | Path, *, skip: int, steps: int) -> None:
        self.folder = Path(folder)
        self.skip = skip
        self.steps = steps
        self._profiler: profile | None = None
        self._parts: dict[str, float] = defaultdict(float)
        self._since = 0.0
        self._done = 0

    def on_train_batch_start(self, *_: Any) -> None:
        """Attribute the time before a batch is on its device."""
        self._add("between steps")

    def on_before_zero_grad(self, *_: Any) -> None:
        """Attribute the forward pass, after which gradients are cleared."""
        self._add("forward and loss")

    def on_after_backward(self, *_: Any) -> None:
        """Attribute the backward pass; gradients are now averaged over the processes."""
        self._add("backward")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """End a step: start the profiler after the skipped steps, and stop it after the last."""
        self._add("clipping and optimiser")
        self._done += 1
        if self._done == self.skip and trainer.is_global_zero:
            self._profiler = profile(activities=_activities(), profile_memory=True)
            self._profiler.start()
            self._since = time.perf_counter()
        elif self._done == self.skip + self.steps:
            self._finish()

    def on_train_end(self, *_: Any) -> None:
        """Finish the profile if there were fewer steps."""
        self._finish()
        if self._done <= self.skip:
            log.warning("Nothing was profiled: of %d steps the first %d are skipped.", self._done, self.skip)

    def on_exception(self, *_: Any) -> None:
        """Write the profile so far."""
        self._finish()

    def _add(self, part: str) -> None:
        if self._profiler is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._parts[part] += now - self._since
        self._since = now

    def _finish(self) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / "trace.json"))
        num_steps = self._done - self.skip
        tables = f"{_parts(dict(self._parts), profiler, num_steps)}\n\n{_operators(profiler, num_steps)}"
        (self.folder / "tables.txt").write_text(tables + "\n", encoding="utf-8")
        log.info(
            "\nMilliseconds per step, of %d:\n%s\n\ntrace       %s", num_steps, tables, self.folder / "trace.json"
        )


def _activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]


def _parts(parts: dict[str, float], profiler: profile, num_steps: int) -> str:
    """Format the parts of a step; waiting for a batch is separated from the other time between steps."""
    averages: Any = profiler.key_averages()
    waiting = sum(event.cpu_time_total for event in averages if event.key.startswith(NEXT_BATCH)) / 1e6
    between = parts.pop("between steps", 0.0)
    parts = {"waiting for the next batch": min(waiting, between)} | parts
    parts["logging, callbacks, to the device"] = max(between - waiting, 0.0)
    whole = sum(parts.values())
    rows = [f"{1e3 * seconds / num_steps:9.2f}  {seconds / whole:4.0%}  {part}" for part, seconds in parts.items()]
    return "\n".join([*rows, f"{1e3 * whole / num_steps:9.2f}        per step"])


def _operators(profiler: profile, num_steps: int) -> str:
    """Format the operators with the most time of their own, without callees; on a GPU by GPU time."""
    averages: Any = profiler.key_averages()
    own = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    found = [event for event in averages if not event.key.startswith("ProfilerStep")]
    found.sort(key=lambda event: -getattr(event, own))
    whole = sum(getattr(event, own) for event in found) or 1.0
    return "\n".join(
        f"{getattr(event, own) / 1e3 / num_steps:9.2f}  {getattr(event, own) / whole:4.0%}  "
        f"{event.count / num_steps:6.0f} ×  {event.key}"
        for event in found[:NUM_OPERATORS]
    )
