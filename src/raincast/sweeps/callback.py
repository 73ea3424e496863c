"""The callback of a training run that is a trial: it reports to the study and prunes."""

import json
import logging
import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import optuna
import torch
from lightning.pytorch.callbacks import Callback

from raincast.models.inputs import covariates_of
from raincast.sweeps.study import LINK, open_storage
from raincast.sweeps.trials import COMPLETE, FAILED, LATENCY, PRUNED, RUNNING, Goal, TrialOutcome

log = logging.getLogger(__name__)


class TrialCallback(Callback):
    """Write the outcome into `run_dir` after each validation, report the first goal, and prune with `pruner`.

    The best epoch is the one that the checkpoint callback keeps: by `monitor`, which is better when large (`mode`
    max) or small (min). A NaN or infinite loss ends the trial as failed; so does the death of its worker.
    """

    def __init__(
        self,
        run_dir: str,
        monitor: str,
        mode: str,
        goals: Sequence[Goal],
        pruner: optuna.pruners.BasePruner | None = None,
    ) -> None:
        self.run_dir, self.monitor, self.mode = Path(run_dir), monitor, mode
        self.goals, self.pruner = list(goals), pruner
        self.outcome = TrialOutcome()
        self.parent = 0
        self._trial: optuna.trial.Trial | None = None

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Connect the first process to the study."""
        if not trainer.is_global_zero or self._trial is not None:
            return
        link = json.loads(os.environ[LINK])
        self.parent = int(link["parent"])
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.load_study(
            study_name=link["study"], storage=open_storage(link["storage"]), pruner=self.pruner
        )
        self._trial = optuna.trial.Trial(study, link["trial_id"])
        self.outcome.write(self.run_dir)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Exit if the worker was killed: its successor runs the same trial."""
        if trainer.is_global_zero and os.getppid() != self.parent:
            raise SystemExit("The worker of this trial has died.")

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Check during validation too, which can take long."""
        self.on_train_batch_start(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Report one point of the curve; all processes learn whether to continue."""
        if trainer.sanity_checking:
            return
        stop = trainer.is_global_zero and self._after_validation(trainer)
        if trainer.strategy.broadcast(stop):
            trainer.should_stop = True

    def _after_validation(self, trainer: L.Trainer) -> bool:
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        found = self.outcome
        found.epochs = trainer.current_epoch + 1
        found.validations += 1
        if not found.metrics or self._is_better(metrics.get(self.monitor, math.nan)):
            found.metrics, found.best_epoch = metrics, found.epochs
        if not math.isfinite(metrics["val/loss"]):
            found.state = FAILED
            found.reason = f"val/loss is {metrics['val/loss']:g} after epoch {found.epochs}"
        elif self.should_prune(metrics, found.validations - 1):
            found.state = PRUNED
            log.info("Pruned after epoch %d: other trials were better by then.", found.epochs)
        found.write(self.run_dir)
        return found.state != RUNNING

    def _is_better(self, value: float) -> bool:
        best = self.outcome.metrics.get(self.monitor, math.nan)
        if math.isnan(value) or math.isnan(best):
            return math.isnan(best) and not math.isnan(value)
        return value > best if self.mode == "max" else value < best

    def should_prune(self, metrics: dict[str, float], step: int) -> bool:
        """Report the first goal at validation `step`, counted from 0 as pruners do; return True to prune.

        If the storage is unreachable, nothing is pruned.
        """
        goal = self.goals[0]
        if self._trial is None or goal.score == LATENCY:
            return False
        for other in self.goals:
            if other.score != LATENCY and other.score not in metrics:
                other.value(metrics)  # its error lists the scores that exist
        if not math.isfinite(metrics[goal.score]):
            return False
        try:
            self._trial.report(goal.value(metrics), step=step)
            return self.pruner is not None and self._trial.should_prune()
        except optuna.exceptions.UpdateFinishedTrialError:
            raise SystemExit("The study has given up this trial, as its worker seemed dead.") from None
        except Exception as error:
            log.warning("The study is unreachable; the trial continues: %s", error)
            return False

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Record the end of the trial, unless it has already ended."""
        if not trainer.is_global_zero or self.outcome.state != RUNNING:
            return
        if any(goal.score == LATENCY for goal in self.goals):
            self.outcome.metrics[LATENCY] = latency_ms(trainer, module)
        self.outcome.state = COMPLETE
        self.outcome.write(self.run_dir)


@torch.no_grad()
def latency_ms(trainer: L.Trainer, module: L.LightningModule, repeats: int = 5) -> float:
    """Return the median time of one forecast of a validation window in ms, on the trainer's device.

    A first forecast is not counted.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    sample = next(iter(data.eval_batches("val")))
    rain = sample["input"][:1].to(module.device)
    covariates = {name: values[:1].to(module.device) for name, values in covariates_of(sample).items()}
    was_training = module.training
    module.eval()
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        module(rain, **covariates)
        if rain.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    module.train(was_training)
    return 1e3 * statistics.median(times[1:])
