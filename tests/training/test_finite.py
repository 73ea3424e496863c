"""A loss or gradient of NaN: the run ends, the windows are named, and what was kept is from before."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from running import TINY, compose_config

from raincast.commands.train import train
from raincast.training.callbacks.finite import FiniteGuard, NotFinite, culprits
from raincast.training.module import NowcastModule

DAY = 1_754_006_400  # 2025-08-01 00:00 UTC


def batch(*values: float) -> dict[str, torch.Tensor]:
    n = len(values)
    return {
        "input": torch.tensor(values),
        "time": torch.arange(n) * 300 + DAY,
        "y": torch.arange(n) * 10,
        "x": torch.arange(n) * 20,
        "source": torch.tensor([0, 1] * n)[:n],
    }


def test_the_windows_whose_loss_or_gradient_is_not_finite_are_named() -> None:
    weight = torch.nn.Parameter(torch.tensor(2.0))
    archives = ["data/a", "data/b"]

    def loss_of(given: Any) -> torch.Tensor:
        return (weight * given["input"]).mean()

    def root(given: Any) -> torch.Tensor:  # 0 at 0, where its gradient is 0 · ∞
        return (weight * given["input"]).sqrt().mean()

    assert list(culprits(batch(1.0, 2.0), loss_of, [weight], archives)) == []
    assert list(culprits(batch(1.0, math.nan, 3.0), loss_of, [weight], archives)) == [
        "2025-08-01 00:05 UTC, y=10, x=20 of data/b"
    ]
    assert list(culprits(batch(4.0, 9.0, 0.0), root, [weight], archives)) == [
        "2025-08-01 00:10 UTC, y=20, x=40 of data/a"
    ]


def test_never_looking_is_refused() -> None:
    with pytest.raises(ValueError, match=r"callbacks\.finite\.every_n_steps=0: give 1 or more"):
        FiniteGuard(0)


def test_gradients_are_looked_at_before_the_step() -> None:
    class Root(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(2.0))

        def loss_of(self, given: Any) -> torch.Tensor:
            return (self.weight * given["input"]).sqrt().mean()

    sources = [SimpleNamespace(archive=SimpleNamespace(path=path)) for path in ("data/a", "data/b")]
    trainer: Any = SimpleNamespace(
        global_step=7,
        current_epoch=1,
        precision_plugin=SimpleNamespace(),
        datamodule=SimpleNamespace(sources=sources),
    )
    module: Any = Root()
    guard = FiniteGuard()

    def step(*values: float) -> None:
        module.zero_grad()
        given = batch(*values)
        guard.on_train_batch_start(trainer, module, given)
        loss = module.loss_of(given)
        guard.on_before_backward(trainer, module, loss)
        loss.backward()
        guard.on_before_optimizer_step(trainer, module)

    step(1.0, 4.0)
    with pytest.raises(
        NotFinite,
        match=r"The loss is finite, but its gradient is not.*these cause it on their own: .* of data/b\.",
    ):
        step(1.0, 0.0, 4.0)
    with pytest.raises(
        NotFinite, match=r"Of the 2 windows of the step, each causes it on its own.*Lower optimizer\.lr"
    ):
        step(0.0, 0.0)
    trainer.precision_plugin.scaler = object()
    step(0.0, 1.0)  # the scaler leaves such a step out


def test_a_run_ends_with_the_window_and_the_checkpoint_before(
    tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One window of the second epoch is bad; it was not drawn in the first."""
    loss_of = NowcastModule.loss_of
    bad: dict[str, int] = {}

    def spoilt(self: NowcastModule, given: Any) -> torch.Tensor:
        loss = loss_of(self, given)
        if not bad and self.global_step == 10:
            bad.update({key: int(given[key][2]) for key in ("time", "y", "x")})
        if bad and any(all(int(given[key][n]) == bad[key] for key in bad) for n in range(len(given["y"]))):
            nothing = next(self.parameters()).sum() * 0
            return loss + nothing * torch.nan
        return loss

    monkeypatch.setattr(NowcastModule, "loss_of", spoilt)
    with pytest.raises(NotFinite, match="The loss is nan") as raised:
        train(compose_config("train", tmp_path, *TINY, f"data.archive={tiny_archive}"))
    message = str(raised.value)
    assert "in epoch 2 after step 10. Of the 4 windows of the step, these cause it on their own: " in message
    assert f"y={bad['y']}, x={bad['x']} of {tiny_archive}." in message and message.count("UTC") == 1
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 6  # of the first epoch
    assert all(weight.isfinite().all() for weight in kept["state_dict"].values())
