"""Pictures of fixed validation windows during training."""

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
