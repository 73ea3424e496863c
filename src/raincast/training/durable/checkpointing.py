"""The state of a run after its newest step, saved twice so that a killed run can resume.

Signals that end a run.
"""

import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.trainer.states import TrainerFn

from raincast.system.files import flush

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Save after every epoch, every `every_n_train_steps` optimiser steps and every `every_minutes`, if given.

    The file is `dirpath`/`filename`.ckpt, the one before it previous.ckpt. A state is saved only where a run can
    resume from it exactly: with no gradients partly accumulated, and not between the last step of an epoch and its
    validation. One of `signals` saves at the end of the current step and ends the process with exit code 75.
    During validation it ends the process at once, and the run resumes from the last saved state.
    """

    def __init__(
        self,
        dirpath: str | Path,
        filename: str = "last",
        *,
        every_n_train_steps: int | None = None,
        every_minutes: float | None = None,
        signals: Sequence[str] = ("SIGTERM", "SIGUSR1"),
        requeue: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("every_n_train_steps", every_n_train_steps), ("every_minutes", every_minutes)):
            if value is not None and not value > 0:
                raise ValueError(f"callbacks.last.{name}={value}: give a number above 0, or null to disable it.")
        self.path = Path(dirpath) / f"{filename}.ckpt"
        self.every_n_train_steps = every_n_train_steps
        self.every_minutes = every_minutes
        self.signals = StopSignals(signals, requeue=requeue)
        self._step = 0
        self._saved_at = 0.0
        self._leaving = False

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Point the best checkpoints to the folder in which the run is now, wherever it was saved.

        Lightning would forget the best score of a run folder that was moved, and delete the file that a checkpoint
        names as its worst.
        """
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint.get("callbacks", {}).get(getattr(callback, "state_key", None), {})
            if isinstance(callback, ModelCheckpoint) and "best_model_path" in state:
                folder = Path(str(callback.dirpath))
                state["dirpath"] = str(callback.dirpath)
                for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[key] = _inside(folder, state.get(key, ""))
                models = state.get("best_k_models", {})
                state["best_k_models"] = {_inside(folder, path): score for path, score in models.items()}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clock; a run that had stopped early stays stopped."""
        self._step = trainer.global_step
        self._saved_at = time.monotonic()
        self.signals.install(trainer)
        stops = [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]  # type: ignore[attr-defined]
        if any(stop.stopping_reason != EarlyStoppingReason.NOT_STOPPED for stop in stops):
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is due or a signal came."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if batch_idx + 1 >= trainer.num_training_batches or self._step == trainer.max_steps:
            return  # validation follows, and then the end of the epoch
        stop, due = self._agreed(trainer, self.signals.received is not None), self._agreed(trainer, self._is_due())
        if stop or due:
            self._save(trainer)
        self._leaving = stop

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Leave if the previous step was the last: by now it is logged, too."""
        if self._leaving:
            self._leave(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Leave at once on a signal; several processes have unequal windows and leave at the end of the epoch."""
        if self.signals.received is not None and trainer.world_size == 1 and _fits(trainer):
            self._leave(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save: validation, early stopping and the choice of the best are over by now."""
        self._leaving = self._agreed(trainer, self.signals.received is not None)
        self._save(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Leave between epochs if a signal came."""
        if self._leaving:
            self._leave(trainer)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Leave before the best checkpoint is scored if a signal came."""
        if self._leaving:
            self._leave(trainer)

    def _is_due(self) -> bool:
        if self.every_n_train_steps and self._step % self.every_n_train_steps == 0:
            return True
        return bool(self.every_minutes) and time.monotonic() - self._saved_at >= 60 * (self.every_minutes or 0)

    def _agreed(self, trainer: L.Trainer, wanted: bool) -> bool:
        """Return True if any process wants it."""
        if trainer.world_size == 1:
            return wanted
        return bool(trainer.strategy.reduce_boolean_decision(wanted, all=False))

    def _save(self, trainer: L.Trainer) -> None:
        if self._agreed(trainer, not _is_finite(trainer.lightning_module)):
            kept = f"{self.path} is from before that." if self.path.exists() else "Nothing was saved yet."
            raise FloatingPointError(f"The network's weights are no longer finite. {kept} Lower optimizer.lr.")
        new = self.path.with_name(f".{self.path.name}.new")
        trainer.save_checkpoint(new)
        if trainer.is_global_zero:
            if self.path.exists():
                self.path.replace(self.path.with_name("previous.ckpt"))
            new.replace(self.path)
            flush(self.path.parent)
        trainer.strategy.barrier("LastCheckpoint")
        self._saved_at = time.monotonic()

    def _leave(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero:
            raise Stopped(0)  # the first process sets the exit code
        name = self.signals.received.name if self.signals.received else "a signal to another process"
        if self.path.exists():
            log.warning(
                "Stopped by %s. State saved. Continue with the same command and resume=auto, or checkpoint=%s",
                name,
                self.path,
            )
        else:
            log.warning("Stopped by %s before anything was saved: the same command starts from scratch.", name)
        self.signals.put_back()
        raise Stopped(EXIT_CODE)


def _inside(folder: Path, path: str) -> str:
    """Return the path of the file of this name in `folder`; an empty path stays empty."""
    return str(folder / Path(path).name) if path else path


def _fits(trainer: L.Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def _is_finite(module: L.LightningModule) -> bool:
    """Return True if all weights that this process holds are finite."""
    own = (getattr(weight, "to_local", lambda weight=weight: weight)() for weight in module.parameters())
    return all(bool(torch.isfinite(weight).all()) for weight in own)


EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: the state is saved, and the command is to be started again."""


class Stopped(SystemExit):
    """Ends a run whose state is on disk."""


class StopSignals:
    """Record that one of the signals `names` came; the reaction waits for the end of a step.

    On SLURM, SIGUSR1 (`#SBATCH --signal=SIGUSR1@120`) also requeues the job, if `requeue` is set.
    """

    def __init__(self, names: Sequence[str] = ("SIGTERM", "SIGUSR1"), *, requeue: bool = True) -> None:
        unknown = [name for name in names if name not in signal.Signals.__members__]
        if unknown:
            raise ValueError(f"Unknown signal {', '.join(unknown)}: use SIGTERM, SIGUSR1, SIGUSR2, SIGHUP.")
        self.signals = [signal.Signals[name] for name in names]
        self.requeue = requeue
        self.received: signal.Signals | None = None

    def install(self, trainer: L.Trainer) -> None:
        """Replace Lightning's handlers, which save in mid-step; Lightning restores the handlers before its own."""
        self.received = signal.SIGTERM if trainer.received_sigterm else None
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers

        def note(number: int, _: Any) -> None:
            first, self.received = self.received is None, signal.Signals(number)
            launcher: Any = trainer.strategy.launcher
            if first and hasattr(launcher, "kill"):
                launcher.kill(number)  # the processes of the other ranks on this machine

        for number in self.signals:
            signal.signal(number, note)

    def put_back(self) -> None:
        """Ask SLURM to requeue this job if SLURM asked it to stop."""
        if self.received is not signal.SIGUSR1 or not self.requeue or "SLURM_JOB_ID" not in os.environ:
            return
        job = os.environ["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in os.environ:
            job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        command = shutil.which("scontrol")
        if command is None:
            log.warning("scontrol was not found, so job %s is not requeued.", job)
            return
        asked = subprocess.run([command, "requeue", job], capture_output=True, text=True, check=False)
        if asked.returncode:
            log.warning("scontrol requeue %s failed: %s", job, asked.stderr.strip())
        else:
            log.info("Job %s is requeued.", job)
