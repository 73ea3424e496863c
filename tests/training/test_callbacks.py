"""A loss or gradient of NaN ends the run and names the windows; pace; progress bars stay whole at 80 columns."""

import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from running import TINY, compose_config

from raincast.commands.train import train
from raincast.system.progress import Bar, fitting
from raincast.training.callbacks.finite import FiniteGuard, NotFinite, culprits
from raincast.training.callbacks.progress import COLUMNS, RunProgress
from raincast.training.callbacks.speed import Pace
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


def test_a_card_that_does_not_say_how_busy_it_is_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        """Of NVIDIA's library: no other error's child."""

    asked = []

    def not_supported(device: torch.device) -> int:
        asked.append(device)
        raise NVMLError("Not Supported")

    logged: dict[str, float] = {}
    module = L.LightningModule()
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    monkeypatch.setattr(torch.cuda, "utilization", not_supported)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**30)
    device = torch.device("cuda", 0)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=device), global_step=0, log_every_n_steps=1)
    pace = Pace()
    pace.on_train_epoch_start(trainer)
    pace.on_train_batch_start()
    pace.on_train_batch_end(trainer, module, None, {"input": torch.zeros(2)})
    pace.on_train_epoch_end(trainer, module)
    assert asked == [device]
    assert logged["train/memory_gib"] == 1.0 and "train/gpu_use" not in logged


def drawn(progress: Progress) -> list[str]:
    """The lines that a terminal of 80 columns shows."""
    console = Console(width=80, file=io.StringIO())
    with console.capture() as text:
        console.print(progress.get_renderable())
    return text.get().splitlines()


@pytest.mark.parametrize(
    ("goal", "shown"),
    [
        ("val/csi_1mm", "epoch 12/50  loss 0.0560  csi_1mm 0.312 (best 0.320)"),
        ("val/skill_csi_1mm_extrapolation", "epoch 12/50  loss 0.0560 "),
    ],
)
def test_the_bar_of_a_training_run_has_room_for_all_of_it(goal: str, shown: str) -> None:
    run = RunProgress(goal)
    run._bar = Progress(*COLUMNS, console=Console(width=80, file=io.StringIO()))
    run._loss = 0.056
    keeper = SimpleNamespace(best_model_score=0.32)
    trainer: Any = SimpleNamespace(
        current_epoch=11, max_epochs=50, callback_metrics={goal: 0.312}, checkpoint_callback=keeper
    )
    task = run._bar.add_task("training", total=10_000, completed=2_350)
    run._bar.update(task, description=run._describe(trainer))
    (line,) = drawn(run._bar)
    assert line.startswith(shown) and line.rstrip().endswith("left") and "24%" in line and "…" not in line


def test_a_long_label_leaves_room_for_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    bar = Bar("scoring network, persistence, extrapolation, sprog, steps, anvil")
    bar.update(700, 12_000)
    assert bar._progress is not None
    bar._progress.stop()
    (line,) = drawn(bar._progress)
    assert line.startswith("scoring network, ") and "700/12000" in line and line.rstrip().endswith(":--")


def test_the_first_text_that_fits() -> None:
    assert fitting(["long text", "short"], 6) == "short"
    assert fitting(["long text", "short"], 20) == "long text"
    assert fitting(["long text", "short"], 4) == "sho…"
