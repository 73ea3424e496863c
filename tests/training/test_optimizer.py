"""Warm-up and cosine, at the values that the docstring states; averaged weights, where they lie."""

import math
from typing import Any

import lightning as L
import pytest
import torch
from torch.nn import Parameter

from raincast.training.execution import AveragedWeights
from raincast.training.module import adamw_warmup_cosine

LR, FINAL = 1e-3, 0.01


def made(total: int, **kwargs):
    given = {"lr": LR, "weight_decay": 0.1, "betas": [0.9, 0.99], "warmup_fraction": 0.1, "final_fraction": FINAL}
    return adamw_warmup_cosine([Parameter(torch.ones(2))], total, **(given | kwargs))


def rates(total: int, **kwargs) -> list[float]:
    """The rate of each step, and that after the last."""
    optimizer, scheduler = made(total, **kwargs)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*found, optimizer.param_groups[0]["lr"]]


def test_rate_rises_linearly_then_falls_by_a_cosine():
    found = rates(200)
    warmup = 20  # 0.1 · 200
    # step 0 is one step of the rise, not nothing: lr / 21
    for step in range(warmup + 1):
        assert found[step] == pytest.approx(LR * (step + 1) / (warmup + 1))
    assert found[warmup] == pytest.approx(LR)
    for step in range(warmup, 201):
        share = (1 + math.cos(math.pi * (step - warmup) / (200 - warmup))) / 2
        assert found[step] == pytest.approx(LR * (FINAL + (1 - FINAL) * share))
    assert found[-1] == pytest.approx(LR * FINAL)
    assert max(found) == found[warmup]


@pytest.mark.parametrize("total", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.5, 1.0])
def test_short_runs_have_a_rate_too(total, warmup_fraction):
    assert all(0 < rate <= LR * (1 + 1e-9) for rate in rates(total, warmup_fraction=warmup_fraction))


def test_a_resumed_schedule_goes_on_where_it_was():
    whole = rates(40)
    optimizer, scheduler = made(40)
    for _ in range(9):
        optimizer.step()
        scheduler.step()
    states = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = made(40)
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    for expected in whole[9:]:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        optimizer.step()
        scheduler.step()


def test_every_argument_arrives():
    group = made(10)[0].param_groups[0]
    assert (group["weight_decay"], group["betas"], group["initial_lr"]) == (0.1, (0.9, 0.99), LR)


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
