"""A guard that ends the run at a loss or gradient that is not finite, and names the windows that caused it."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

Loss = Callable[[Any], Tensor]
"""A function of a batch that returns its loss."""
MAX_LISTED = 8
"""Largest number of windows in the message."""


class NotFinite(FloatingPointError):
    """Training cannot continue; the saved state is from before."""


class FiniteGuard(Callback):
    """Check each loss, and the gradients before each step of the optimiser, so that no weight is changed.

    If one is NaN or infinite, the windows of the batch are tried one by one. Those that give such a loss or
    gradient alone are named: time of the newest input frame, first pixel and archive. On a GPU each check waits
    for the device. `every_n_steps` above 1 checks less often; states saved before are sound in either case. With a
    scaled loss (16-mixed) gradients are left to the scaler, which skips such steps.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        if every_n_steps < 1:
            raise ValueError(f"callbacks.finite.every_n_steps={every_n_steps}: give 1 or more.")
        self.every_n_steps = every_n_steps
        self._batch: Any = None
        self._batches: list[Any] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, *_: Any) -> None:
        """Remember the windows of this step."""
        self._batch = batch
        self._batches.append(batch)

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        """Check the loss of the batch."""
        if self._is_due(trainer) and not bool(torch.isfinite(loss)):
            self._stop(trainer, module, f"The loss is {float(loss.detach()):g}", [self._batch])

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Check the gradients of all batches since the last step."""
        batches, self._batches = self._batches, []
        if not self._is_due(trainer) or getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
        if not _all_finite(gradients):
            self._stop(trainer, module, "The loss is finite, but its gradient is not", batches)

    def _is_due(self, trainer: L.Trainer) -> bool:
        return (trainer.global_step + 1) % self.every_n_steps == 0

    def _stop(self, trainer: L.Trainer, module: Any, what: str, batches: Sequence[Any]) -> None:
        archives = [str(source.archive.path) for source in trainer.datamodule.sources]  # type: ignore[attr-defined]
        parameters = [weight for weight in module.parameters() if weight.requires_grad]
        if any(hasattr(weight, "to_local") for weight in parameters):
            # one process alone cannot compute with sharded weights
            loss_of, parameters = (lambda batch: torch.tensor(torch.nan)), []
        else:
            loss_of = module.loss_of
        named = [text for batch in batches for text in culprits(batch, loss_of, parameters, archives)]
        tried = sum(len(batch["input"]) for batch in batches)
        listed = "; ".join(named[:MAX_LISTED]) + ("; …" if len(named) > MAX_LISTED else "")
        if 0 < len(named) < tried:
            cause = f"Of the {tried} windows of the step, these cause it on their own: {listed}."
            remedy = "Check these frames; exclude them with data.split, or ingest them again."
        else:  # not the data, if the step had several windows
            cause = f"Of the {tried} windows of the step, {'each' if named else 'none'} causes it on its own"
            cause += f": {listed}." if named else "."
            remedy = "Lower optimizer.lr or trainer.gradient_clip_val, or take trainer.precision=32-true."
        raise NotFinite(
            f"{what}, in epoch {trainer.current_epoch + 1} after step {trainer.global_step}. {cause} {remedy} "
            "The last checkpoint is from before that. Continue from it with resume=auto or checkpoint=…."
        )


def culprits(batch: Any, loss_of: Loss, parameters: Sequence[Tensor], archives: Sequence[str]) -> Iterator[str]:
    """Yield the windows of `batch` whose loss or gradient, taken alone, is not finite, as text."""
    for number in range(len(batch["input"])):
        alone = {key: value[number : number + 1] for key, value in batch.items()}
        with torch.enable_grad():
            loss = loss_of(alone)
        if torch.isfinite(loss):
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            if _all_finite([gradient for gradient in gradients if gradient is not None]):
                continue
        time = datetime.fromtimestamp(int(alone["time"]), UTC)
        y, x, archive = int(alone["y"]), int(alone["x"]), archives[int(alone["source"])]
        yield f"{time:%Y-%m-%d %H:%M} UTC, y={y}, x={x} of {archive}"


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    local: list[Tensor] = [getattr(tensor, "to_local", lambda tensor=tensor: tensor)() for tensor in tensors]
    # the norm takes one pass, several times faster; values are checked one by one only if it is not finite or
    # overflows
    if not local or bool(torch.nn.utils.get_total_norm(local).isfinite()):
        return True
    return all(bool(torch.isfinite(tensor).all()) for tensor in local)
