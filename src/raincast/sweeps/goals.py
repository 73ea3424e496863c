"""What a sweep looks for: scores to raise, errors or milliseconds to lower, a bias to bring near 1."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LATENCY = "latency_ms"
"""The one goal that training does not log: how long the network takes for one forecast."""
WANTS = ("max", "min", "one")
SMALLEST_BIAS = 1e-3


@dataclass(frozen=True)
class Goal:
    """A score of the validation windows, or `LATENCY`, and whether it should be large, small or near one.

    A bias b is told to Optuna as |ln b|: half and twice the rain are equally wrong. A bias below 0.001 (no rain
    forecast at all) counts as 0.001.
    """

    score: str
    want: str = "max"

    def __post_init__(self) -> None:
        """Refuse another word."""
        if self.want not in WANTS:
            raise ValueError(f"sweep.goals: want={self.want} of {self.score}; there are {', '.join(WANTS)}.")

    @property
    def direction(self) -> str:
        """Optuna's word."""
        return "maximize" if self.want == "max" else "minimize"

    @property
    def label(self) -> str:
        """For a table or an axis."""
        return f"|ln {self.score}|" if self.want == "one" else self.score

    def value(self, metrics: Mapping[str, float]) -> float:
        """What Optuna is told; ValueError where the run has no such score, or it is not a number."""
        if self.score not in metrics:
            raise ValueError(f"sweep.goals: {self.score} is not logged; there are {', '.join(sorted(metrics))}.")
        found = float(metrics[self.score])
        if not math.isfinite(found):
            raise ValueError(f"{self.score} is {found:g}")
        return abs(math.log(max(found, SMALLEST_BIAS))) if self.want == "one" else found

    def better(self, one: float, other: float) -> bool:
        """Whether the value `one` is better than `other`."""
        return one > other if self.want == "max" else one < other


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
