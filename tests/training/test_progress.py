"""The bars on a terminal stay whole at 80 columns."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from raincast.system.progress import Bar, fitting
from raincast.training.callbacks.progress import COLUMNS, RunProgress


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
