"""Progress of training on the terminal and in the log."""

import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, ProgressBar
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from raincast.system.progress import fitting

log = logging.getLogger(__name__)


COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(bar_width=8),
    TextColumn("{task.percentage:>3.0f}%"),
    TimeRemainingColumn(),
    TextColumn("left"),
)
BESIDE = 8 + 4 + 7 + 4 + 4
"""Characters next to the description: bar, percentage, time left, its word, spaces."""


class RunProgress(ProgressBar):
    """One bar for the whole run: epoch, loss, goal score, time left. Logs a line after each epoch."""

    def __init__(self, goal: str) -> None:
        super().__init__()
        self.goal = goal
        self._enabled = True
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._loss = float("nan")
        self._began = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Drop the live terminal, which cannot be sent to other processes."""
        return self.__dict__ | {"_bar": None, "_task": None}

    def disable(self) -> None:
        """Hide the bar; called on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start at the step from which the run resumes."""
        self._began = time.monotonic()
        if not self._enabled:
            return
        self._bar = Progress(*COLUMNS, console=Console(stderr=True), transient=True)
        self._bar.start()
        total = trainer.estimated_stepping_batches
        self._task = self._bar.add_task("training", total=total, completed=trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        """Update the bar."""
        if self._bar is None or self._task is None or trainer.global_step % 5:
            return
        self._loss = float(outputs["loss"])
        self._bar.update(self._task, completed=trainer.global_step, description=self._describe(trainer))

    def _describe(self, trainer: L.Trainer) -> str:
        """Return epoch, loss and goal, as far as they fit on the terminal next to the bar."""
        assert self._bar is not None
        begin = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {self._loss:.4f}"
        goal = trainer.callback_metrics.get(self.goal)
        texts = [begin]
        if goal is not None:
            with_goal = f"{begin}  {self.goal.removeprefix('val/')} {float(goal):.3f}"
            best = getattr(trainer.checkpoint_callback, "best_model_score", None)
            texts = (
                [with_goal, begin] if best is None else [f"{with_goal} (best {float(best):.3f})", with_goal, begin]
            )
        return fitting(texts, self._bar.console.width - BESIDE)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Log one line; validation of this epoch is over by now."""
        if not self._enabled:
            return
        metrics = trainer.callback_metrics
        names = dict.fromkeys(("train/loss", "val/loss", self.goal, "train/data_wait", "train/windows_per_s"))
        shown = "  ".join(f"{name} {float(metrics[name]):.4f}" for name in names if name in metrics)
        elapsed = time.monotonic() - self._began
        log.info("epoch %d/%s  %s  %.0f s", trainer.current_epoch + 1, trainer.max_epochs, shown, elapsed)

    def on_train_end(self, *_: Any) -> None:
        """Restore the terminal."""
        self._stop()

    def on_exception(self, *_: Any) -> None:
        """Close the bar when training is interrupted."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class EarlyStop(EarlyStopping):
    """Lightning's early stopping, but a resumed run takes `patience` from its config, not from the checkpoint.

    If the new patience is larger than the count that ended the run, training continues.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count of validations without improvement, and whether it ended the run."""
        patience = self.patience
        super().load_state_dict(state_dict)
        self.patience = patience
        if self.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED and self.wait_count < patience:
            self.stopping_reason, self.stopping_reason_message, self.stopped_epoch = (
                EarlyStoppingReason.NOT_STOPPED,
                None,
                0,
            )


class InterruptNotice(Callback):
    """On Ctrl-C, log which checkpoint is saved and how to continue."""

    def __init__(self, last: Path) -> None:
        self.last = last

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Log for Ctrl-C only; errors have messages of their own."""
        if not isinstance(exception, KeyboardInterrupt) or not trainer.is_global_zero:
            return
        if self.last.exists():
            log.warning(
                "Stopped. To continue from the last checkpoint, add to the same command: checkpoint=%s", self.last
            )
        else:
            log.warning("Stopped in the first epoch: there is no checkpoint yet.")


class LearntByHeart(Callback):
    """End training with an error unless its loss fell to `share` of the first step's loss or below.

    For runs that see one batch again and again. Raises ValueError for a share outside 0 to 1.
    """

    def __init__(self, share: float) -> None:
        if not 0 < share < 1:
            raise ValueError(f"callbacks.by_heart.share={share} is a share of the first loss: above 0, below 1.")
        self.share = share
        self.first = self.last = float("nan")

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        """Remember the first loss and the newest."""
        self.last = float(outputs["loss"]) * trainer.accumulate_grad_batches
        if self.first != self.first:  # NaN: not set yet
            self.first = self.last

    def on_train_end(self, *_: Any) -> None:
        """Raise ValueError if the loss did not fall far enough; log it otherwise."""
        fell = f"The loss of the one batch went from {self.first:.4g} to {self.last:.4g}"
        if not self.last <= self.share * self.first:
            raise ValueError(
                f"{fell}, which is more than {self.share:g} of it: the network does not learn it by heart. "
                "Train longer (trainer.max_epochs) or with another optimizer.lr. If that does not help, look for "
                "a mistake in the network, its head or loss, or in the content of the batch."
            )
        log.info("%s, %.1f %% of it: learnt by heart.", fell, 100 * self.last / self.first)
