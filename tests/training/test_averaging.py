"""Averaged weights, where they lie; what they are is tested with whole runs in `test_execution`."""

from typing import Any

import lightning as L
import torch

from raincast.training.execution import AveragedWeights


class Linear(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)


def kept(callback: AveragedWeights, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """What a checkpoint holds of the average."""
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    callback.on_save_checkpoint(trainer, module, checkpoint)
    return checkpoint


def test_the_average_goes_where_the_weights_are():
    """Lightning makes the average in `setup`, then moves the weights; here to the meta device instead of a GPU."""
    callback, module, trainer = AveragedWeights(0.9), Linear(), L.Trainer(accelerator="cpu", logger=False)
    callback.setup(trainer, module, "fit")
    module.to("meta")
    callback.on_fit_start(trainer, module)
    checkpoint = kept(callback, trainer, module)
    assert {value.device.type for value in checkpoint["state_dict"].values()} == {"meta"}
    assert checkpoint["averaging_state"]["n_averaged"].device.type == "cpu", "asking a GPU for it would wait"
