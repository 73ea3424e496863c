"""The goals of a sweep: scores of the validation windows, and the time of a forecast."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LATENCY = "latency_ms"
"""The one goal that training does not log: the time of one forecast by the network."""
WANTS = ("max", "min")


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
