"""The goals of a sweep: scores of the validation windows, and the time of a forecast."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LATENCY = "latency_ms"
"""The one goal that training does not log: how long the network takes for one forecast."""
WANTS = ("max", "min")


@dataclass(frozen=True)
class Goal:
    """A score of the validation windows, or `LATENCY`, and whether it should be large or small."""

    score: str
    want: str = "max"

    def __post_init__(self) -> None:
        """Refuse another word."""
        if self.want not in WANTS:
            raise ValueError(f"want={self.want} of {self.score}; there are {', '.join(WANTS)}.")

    @property
    def direction(self) -> str:
        """Optuna's word."""
        return "maximize" if self.want == "max" else "minimize"

    def value(self, metrics: Mapping[str, float]) -> float:
        """Its value; ValueError where the run has no such score, or it is not a number."""
        if self.score not in metrics:
            raise ValueError(f"sweep.goals: {self.score} is not logged; there are {', '.join(sorted(metrics))}.")
        found = float(metrics[self.score])
        if not math.isfinite(found):
            raise ValueError(f"{self.score} is {found:g}")
        return found


def check_goals(goals: Sequence[Goal], *, prunes: bool) -> None:
    """ValueError where there is no goal, one twice, or pruning would have to look at the latency."""
    names = [goal.score for goal in goals]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"sweep.goals has to name one score or more, each once; it names {names}.")
    if prunes and names[0] == LATENCY:
        raise ValueError(
            f"Trials are pruned by the first of sweep.goals after each validation, and {LATENCY} is known at the "
            "end only. Put a score first, or say sweep.pruner=null."
        )
