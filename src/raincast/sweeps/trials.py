"""The goals of a sweep, and a trial: a process of its own, and its outcome.

If memory or the device kills the trial, its worker survives. Goals are scores of the validation windows, and the
time of a forecast.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raincast.system.files import write_text

LATENCY = "latency_ms"
"""The one goal that training does not log: the time of one forecast by the network."""
WANTS = ("max", "min")
FILE = "trial.json"
RUNNING, COMPLETE, PRUNED, FAILED = "running", "complete", "pruned", "failed"
OUTPUT = "output.txt"
"""File in the run's folder that holds the output of the process."""
ASKED_TO_LEAVE = 75
"""Exit code of a run that a signal told to leave."""
PATIENCE = 20.0
"""Seconds that a trial gets to end when its worker has to."""


@dataclass(frozen=True)
class Goal:
    """A score of the validation windows, or `LATENCY`, and whether it should be large or small."""

    score: str
    want: str = "max"

    def __post_init__(self) -> None:
        """Raise ValueError for any other direction."""
        if self.want not in WANTS:
            raise ValueError(f"want={self.want} of {self.score}; there are {', '.join(WANTS)}.")

    @property
    def direction(self) -> str:
        """Name of the direction in Optuna."""
        return "maximize" if self.want == "max" else "minimize"

    def value(self, metrics: Mapping[str, float]) -> float:
        """Return its value; raises ValueError if the run has no such score, or it is not finite."""
        if self.score not in metrics:
            raise ValueError(f"sweep.goals: {self.score} is not logged; there are {', '.join(sorted(metrics))}.")
        found = float(metrics[self.score])
        if not math.isfinite(found):
            raise ValueError(f"{self.score} is {found:g}")
        return found


def check_goals(goals: Sequence[Goal], *, prunes: bool) -> None:
    """Raise ValueError if there is no goal, one repeats, or pruning would depend on the latency."""
    names = [goal.score for goal in goals]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"sweep.goals must name at least one score, each once; found {names}.")
    if prunes and names[0] == LATENCY:
        raise ValueError(
            f"Trials are pruned by the first of sweep.goals after each validation, but {LATENCY} is only known "
            "at the end. Put a score first, or set sweep.pruner=null."
        )


def trial_command(overrides: Sequence[str]) -> list[str]:
    """Return the command of a training run with `overrides`.

    A module, so that Lightning can start more processes.
    """
    return [sys.executable, "-m", "raincast.trial", *overrides]


def run_process(command: Sequence[str], run_dir: Path, environment: Mapping[str, str]) -> int:
    """Run `command` to its end and return its exit code; anything that interrupts this process ends it, too."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / OUTPUT).open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=_with_source({**os.environ, **environment}),
        )  # fmt: skip
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise


def _with_source(environment: dict[str, str]) -> dict[str, str]:
    """Add the source folder to PYTHONPATH, so that the process finds a checkout that is not installed."""
    source = str(Path(__file__).parents[2])
    paths = [source, *filter(None, [environment.get("PYTHONPATH")])]
    return environment | {"PYTHONPATH": os.pathsep.join(paths)}


def why_it_died(code: int, run_dir: Path) -> str:
    """Return the reason of a process that ended with `code`: its signal, or the last lines of its output."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", perhaps because memory ran out" if name == "SIGKILL" else "")
    lines = (run_dir / OUTPUT).read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if re.match(r"\S*Error:(\s|$)", line)]
    return (errors or said or [f"exit code {code}"])[-1][:500]


@dataclass
class TrialOutcome:
    """State of a trial, reason of failure, epochs and validations so far, and scores at the best validation."""

    state: str = RUNNING
    reason: str = ""
    epochs: int = 0
    validations: int = 0
    best_epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the outcome into `folder`."""
        write_text(folder / FILE, json.dumps(asdict(self)), sole=True)


def read_outcome(folder: Path) -> TrialOutcome:
    """Read the outcome from `folder`; a run that left none has not reached its first validation."""
    try:
        values: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return TrialOutcome()
    return TrialOutcome(**values)
