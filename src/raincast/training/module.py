"""The LightningModule: training, validation and checkpoints of a network; its optimiser."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torchmetrics import MeanMetric

from raincast.data.dataset import Sample
from raincast.models.heads import Head
from raincast.models.inputs import RAIN_ALONE, Inputs, covariates_of, predict_output, predict_rates, run_network
from raincast.training.curriculum import Curriculum
from raincast.training.skill import RainScores, Scores, validation_scores
from raincast.transforms import Transform

CHECKPOINT_KEY = "raincast"
"""The key under which a checkpoint stores the plain data that describe it."""

OptimizerFactory = Callable[[Iterable[Parameter], int], tuple[Optimizer, LRScheduler]]


class NowcastModule(L.LightningModule):
    """Train `network` in network units and score its forecasts in mm/h.

    `head` defines the meaning of the network's channels: `loss` compares its prediction, and validation scores its
    rates. `inputs` lists the input channels; `curriculum` sets lead times and true frames during training.
    `optimizer` takes (parameters, number of steps of the run). `metadata` is plain data (text, numbers, lists and
    dicts of them) that is stored in every checkpoint under "raincast". Validation logs the CSI of each threshold,
    averaged over lead times, from counts pooled over all windows and ranks. Raises ValueError if the loss belongs
    to another head (it compares `loss.num_channels`, 1 by default).
    """

    def __init__(
        self,
        network: nn.Module,
        head: Head,
        transform: Transform,
        loss: nn.Module,
        optimizer: OptimizerFactory,
        *,
        thresholds: Sequence[float],
        lead_steps: int,
        step_minutes: float,
        metadata: dict[str, Any],
        references: Mapping[str, Scores] | None = None,
        inputs: Inputs = RAIN_ALONE,
        curriculum: Curriculum | None = None,
    ) -> None:
        super().__init__()
        _check_loss(loss, head)
        self.curriculum = curriculum or Curriculum()
        self.curriculum.check(network)
        self.network = network
        self.head = head
        self.transform = transform
        self.inputs = inputs
        self.loss = loss
        self.optimizer_factory = optimizer
        self.lead_steps = lead_steps
        self.step_minutes = step_minutes
        self.references = references or {}
        self.metadata = metadata
        self.val_scores = RainScores(thresholds, lead_steps)
        # Lightning's own mean rounds the count of a rank's windows; a NaN loss stays NaN ("disable" would ignore
        # the weights)
        self.val_loss = MeanMetric(nan_strategy=math.nan).set_dtype(torch.float64)

    def forward(
        self,
        rain: Tensor,
        past: Tensor | None = None,
        future: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Forecast (B, lead_steps, 1, H, W) in mm/h from rain (B, T_in, C, H, W) in mm/h with NaN for missing.

        `past`, `future` and `scale` are as in a `Sample`.
        """
        named = {"past": past, "future": future, "scale": scale}
        covariates = {name: given for name, given in named.items() if given is not None}
        return predict_rates(
            self.network,
            self.head,
            self.transform,
            rain,
            self.lead_steps,
            inputs=self.inputs,
            covariates=covariates,
        )

    def loss_of(self, batch: Sample) -> Tensor:
        """Return the loss of a training step, in network units."""
        batch = self.curriculum.shorten(batch, self.current_epoch)
        if self.curriculum.sampling is not None:
            frames = self.inputs.frames(self.transform, batch["input"], covariates_of(batch))
            output, target, mask = self.curriculum.sampling.answer(
                self.network, self.transform, frames, batch, self.global_step
            )
        else:
            target, mask = self.transform.forward(batch["target"]), batch["target_mask"]
            output = run_network(
                self.network,
                self.transform,
                batch["input"],
                target.shape[1],
                inputs=self.inputs,
                covariates=covariates_of(batch),
            )
        loss: Tensor = self.loss(self.head.prediction(output), target, mask)
        return loss

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """Return and log the loss of a batch."""
        loss = self.loss_of(batch)
        # the mean over all processes: their batches have the same size
        self.log("train/loss", loss, prog_bar=True, on_step=True, batch_size=len(batch["input"]), sync_dist=True)
        self.log_dict(self.curriculum.in_force(self.global_step, self.current_epoch, self.lead_steps))
        return loss

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Add the batch to the loss and the sums of scores."""
        output = predict_output(
            self.network,
            self.transform,
            batch["input"],
            self.lead_steps,
            inputs=self.inputs,
            covariates=covariates_of(batch),
        )
        target, mask = batch["target"], batch["target_mask"]
        loss = self.loss(self.head.prediction(output), self.transform.forward(target), mask)
        self.val_loss.update(loss, len(target))
        self.val_scores.update(self.head.rates(output, self.transform), target, mask)

    def on_validation_epoch_end(self) -> None:
        """Log scores computed from the pooled sums, the same on every rank."""
        scores = self.val_scores.compute()
        self.log("val/loss", self.val_loss.compute().float())
        self.val_scores.reset()
        self.val_loss.reset()
        self.log_dict(
            validation_scores(
                scores,
                self.references,
                thresholds=self.val_scores.thresholds,
                step_minutes=self.step_minutes,
            )
        )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimiser and its schedule, which advances after every batch."""
        total = int(self.trainer.estimated_stepping_batches)
        optimizer, scheduler = self.optimizer_factory(self.network.parameters(), total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """After a resume, apply this run's optimiser settings and schedule instead of the checkpoint's.

        The schedule is rebuilt for the steps done and those that remain, and advanced to the current step. With
        unchanged settings the result is bit for bit the saved state.
        """
        step = self.trainer.global_step
        if not step:
            return
        fresh, schedule = self.optimizer_factory(self.network.parameters(), step + self._remaining_steps())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before")
            for _ in range(step):
                schedule.step()
        for group, settings in zip(self.trainer.optimizers[0].param_groups, fresh.param_groups, strict=True):
            group.update({key: value for key, value in settings.items() if key != "params"})
        self.trainer.lr_scheduler_configs[0].scheduler.load_state_dict(schedule.state_dict())

    def _remaining_steps(self) -> int:
        """Return the optimiser steps from here to the end of the run; 0 if the run is over."""
        trainer, loop = self.trainer, self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current  # the types of Lightning's trackers name no counts
        batches: Any = loop.epoch_loop.batch_progress.current
        limits = [float(trainer.max_steps - trainer.global_step)] if trainer.max_steps != -1 else []
        if trainer.max_epochs is not None and trainer.max_epochs != -1:
            per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            # batches of an epoch that was interrupted
            done = batches.processed if epochs.started > epochs.processed else 0
            left = per_epoch * (trainer.max_epochs - epochs.processed) - done // trainer.accumulate_grad_batches
            limits.append(left)
        return max(0, int(min(limits)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the metadata of the run, as plain data."""
        checkpoint[CHECKPOINT_KEY] = self.metadata


def _check_loss(loss: nn.Module, head: Head) -> None:
    compared = getattr(loss, "num_channels", 1)
    if compared != head.num_channels:
        raise ValueError(
            f"{type(loss).__name__} compares {compared} channels, but {head} gives {head.num_channels}. "
            "Choose the head with head=… and leave loss=… out: each head sets its own loss."
        )


def adamw_warmup_cosine(
    params: Iterable[Parameter],
    total_steps: int,
    *,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    betas: Sequence[float] = (0.9, 0.99),
    warmup_fraction: float = 0.05,
    final_fraction: float = 0.01,
) -> tuple[Optimizer, LRScheduler]:
    """Build AdamW whose learning rate rises linearly to `lr`, then falls by a cosine to `final_fraction` of it.

    `warmup_fraction` is the share of `total_steps` (optimiser steps of the whole run) during which it rises.
    """
    optimizer = AdamW(params, lr=lr, weight_decay=weight_decay, betas=(betas[0], betas[1]))
    warmup = max(1, round(warmup_fraction * total_steps))
    rise = LinearLR(optimizer, start_factor=1.0 / (warmup + 1), total_iters=warmup)
    fall = CosineAnnealingLR(optimizer, T_max=max(1, total_steps - warmup), eta_min=lr * final_fraction)
    return optimizer, SequentialLR(optimizer, [rise, fall], milestones=[warmup])
