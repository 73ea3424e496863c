"""What a run leaves while it trains: run.json, its record, and pictures of fixed validation windows."""

import json
import logging
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

from raincast.data.sampler import Place
from raincast.models.inputs import covariates_of
from raincast.plotting.pictures import forecast_picture
from raincast.plotting.rain_image import credit
from raincast.system.files import write_text

log = logging.getLogger(__name__)


class RunRecord(Callback):
    """Write `facts` and training progress as JSON to `path`: at the start, after each epoch and at the end.

    Added are: status (running, finished, or what stopped it), begin and end (UTC), epochs and steps, the windows
    trained on, hours (of this run and those it continues), GPU hours, and the last logged scores. The file is
    replaced atomically. wandb's summary gets the same numbers at the end.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.facts: Mapping[str, Any] = {}
        self.num_windows = 0
        self.hours = self.gpu_hours = 0.0
        self._num_gpus = 0
        self._began = ""
        self._since = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """The counts from which a resumed run continues."""
        self._count_time()
        return {"num_windows": self.num_windows, "hours": self.hours, "gpu_hours": self.gpu_hours}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts of the resumed run."""
        self.num_windows = int(state_dict["num_windows"])
        self.hours, self.gpu_hours = float(state_dict["hours"]), float(state_dict["gpu_hours"])

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Record the start of training."""
        self._began = _now()
        self._since = time.monotonic()
        self._num_gpus = trainer.world_size if module.device.type == "cuda" else 0
        self._write(trainer, "running")

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Count the windows of all processes; each has the same number."""
        self.num_windows += len(batch["input"]) * trainer.world_size

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Write the record: a killed run leaves that of its last complete epoch."""
        self._write(trainer, "running")

    def on_fit_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Record the regular end."""
        self._write(trainer, "finished")
        for logger in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(logger, WandbLogger):
                numbers = self._counts(trainer)
                logger.experiment.summary.update({f"run/{key}": value for key, value in numbers.items()})

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Record any other end."""
        self._write(trainer, f"{type(exception).__name__}: {exception}".rstrip(": "))

    def _count_time(self) -> None:
        now = time.monotonic()
        hours = (now - self._since) / 3600
        self._since = now
        self.hours += hours
        self.gpu_hours += hours * self._num_gpus

    def _counts(self, trainer: L.Trainer) -> dict[str, Any]:
        self._count_time()
        return {
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "windows_seen": self.num_windows,
            "hours": round(self.hours, 5),
            "gpu_hours": round(self.gpu_hours, 5),
        }

    def _write(self, trainer: L.Trainer, status: str) -> None:
        if not trainer.is_global_zero:
            return
        scores = {key: _plain(value) for key, value in sorted(trainer.callback_metrics.items())}
        record = {
            "status": status,
            "began": self._began,
            "written": _now(),
            **self._counts(trainer),
            "scores": scores,
            **self.facts,
        }
        try:
            write_text(self.path, json.dumps(record, indent=1, default=str) + "\n", sole=True)
        except OSError as error:  # a full disk ends the run at its next checkpoint, not here
            log.warning("%s cannot be written: %s", self.path, error)


def gpus() -> list[str]:
    """Return the names of the GPUs visible to this process."""
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _plain(value: torch.Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None  # JSON has no NaN


class ValidationPictures(Callback):
    """Draw the wettest validation window of each of `num_windows` days into `folder`, observation above forecast.

    Draws after every `every_n_epochs`-th epoch and after the last one that is validated. The PNG files also go to
    wandb, TensorBoard and MLflow. 0 epochs or windows disable it.
    """

    def __init__(self, folder: str | Path, *, every_n_epochs: int = 5, num_windows: int = 2) -> None:
        if every_n_epochs < 0 or num_windows < 0:
            raise ValueError(
                f"callbacks.pictures: every_n_epochs={every_n_epochs} and num_windows={num_windows} must be 0, "
                "for no pictures, or more."
            )
        self.folder = Path(folder)
        self.every_n_epochs = every_n_epochs
        self.num_windows = num_windows
        self._places: list[Place] | None = None

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Forecast on all processes, as some strategies require; the first one draws."""
        if not self._is_due(trainer):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self._places is None:
            self._places = data.wettest(data.eval_places("val"), self.num_windows)
        for number, place in enumerate(self._places):
            sample = data.dataset.sample(place)
            with torch.no_grad():
                covariates = {
                    name: values[None].to(module.device) for name, values in covariates_of(sample).items()
                }
                rain = module(sample["input"][None].to(module.device), **covariates)
            if trainer.is_global_zero:
                self._draw(trainer, number, place, sample, rain[0, :, 0].float().cpu().numpy())

    def _is_due(self, trainer: L.Trainer) -> bool:
        if trainer.sanity_checking or trainer.state.fn != "fit" or not self.every_n_epochs or not self.num_windows:
            return False
        epoch = trainer.current_epoch + 1
        return epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs

    def _draw(self, trainer: L.Trainer, number: int, place: Place, sample: Any, rain: np.ndarray) -> None:
        archive = trainer.datamodule.archive  # type: ignore[attr-defined]
        never = np.isnan(sample["input"].numpy()[:, 0]).all(axis=0)
        epoch = trainer.current_epoch + 1
        path = forecast_picture(
            sample["target"].numpy()[:, 0],
            {"network": np.where(never, np.nan, rain)},
            grid=archive.grid.crop(place.y, place.x, place.height, place.width),
            init_time=np.datetime64(sample["time"], "s"),
            step_minutes=archive.step_minutes,
            path=self.folder / f"window{number}_epoch{epoch:04d}.png",
            title=f"after epoch {epoch}",
            credit=credit(archive.attrs),
        )
        for logger in trainer.loggers:
            _log_picture(logger, f"val/window{number}", path, trainer.global_step)


def _log_picture(logger: Any, name: str, path: Path, step: int) -> None:
    if isinstance(logger, WandbLogger):
        logger.log_image(name, images=[str(path)])
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_artifact(logger.run_id, str(path), "pictures")
    elif isinstance(logger, TensorBoardLogger):
        from PIL import Image

        with Image.open(path) as image:
            logger.experiment.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
