"""Curricula: growing lead times, and scheduled sampling, which replaces true frames by forecasts over time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raincast.transforms import Transform

Schedule = Callable[[int], float]
"""A function of the optimiser step that returns a probability."""


@dataclass(frozen=True)
class Constant:
    """The same probability at every step."""

    value: float

    def __post_init__(self) -> None:
        """Raise ValueError unless `value` is a probability."""
        _check_probability(value=self.value)

    def __call__(self, step: int) -> float:
        """Return `value`."""
        return self.value


@dataclass(frozen=True)
class Linear:
    """`first` up to step `begin`, then linear in the step to `last` at step `end`."""

    first: float
    last: float
    begin: int
    end: int

    def __post_init__(self) -> None:
        """Raise ValueError unless `first` and `last` are probabilities and `begin` is before `end`."""
        _check_probability(first=self.first, last=self.last)
        _check_order(self.begin, self.end)

    def __call__(self, step: int) -> float:
        """Return the probability at `step`."""
        done = min(1.0, max(0.0, (step - self.begin) / (self.end - self.begin)))
        return self.first + done * (self.last - self.first)


@dataclass(frozen=True)
class Approach:
    """`first` up to step `begin`, then 1 − (1 − first)·exp(−(step − begin)/scale), and 1 from step `end`."""

    first: float
    begin: int
    end: int
    scale: float

    def __post_init__(self) -> None:
        """Raise ValueError unless `first` is a probability, `begin` is before `end` and `scale` is above 0."""
        _check_probability(first=self.first)
        _check_order(self.begin, self.end)
        if not self.scale > 0:
            raise ValueError(f"curriculum: scale={self.scale} must be above 0, in steps.")

    def __call__(self, step: int) -> float:
        """Return the probability at `step`."""
        if step < self.begin:
            return self.first
        return 1.0 if step >= self.end else 1 - (1 - self.first) * math.exp(-(step - self.begin) / self.scale)


def _check_probability(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"curriculum: {name}={value} is a probability, from 0 to 1.")


def _check_order(begin: int, end: int) -> None:
    if not 0 <= begin < end:
        raise ValueError(
            f"curriculum: begin={begin} and end={end} are optimiser steps: begin must come before end."
        )


@dataclass(frozen=True)
class GrowingLead:
    """Growing lead times: `first` steps at first, `by` more every `every_n_epochs`, up to those of the data."""

    first: int
    by: int = 1
    every_n_epochs: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for numbers below 1."""
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"curriculum.lead.{name}={value}: give a whole number of at least 1.")

    def steps(self, epoch: int, lead_steps: int) -> int:
        """Return how many of `lead_steps` are trained on in `epoch`, counted from 0."""
        return min(lead_steps, self.first + self.by * (epoch // self.every_n_epochs))


@dataclass(frozen=True)
class Sampling:
    """Choice between the true frame and the network's own forecast as its next input.

    `context` and `forecast` are the probabilities of the true frame, drawn for each sample and step: `context`
    within the input (after its first frame), `forecast` after it. Scheduled sampling (Bengio et al. 2015), as in
    PredRNN (Wang et al. 2017), decreases `forecast`; reverse scheduled sampling (Wang et al. 2021, arXiv
    2103.09504) increases `context`. At the end of both, the network reads true frames within the input and its own
    forecasts after it, as in validation and in use. `context_loss` also trains the one-step forecasts of the input
    frames, as the papers do.
    """

    context: Schedule
    forecast: Schedule
    context_loss: bool = True

    def draw(self, step: int, batch: int, input_steps: int, lead_steps: int, device: torch.device) -> Tensor:
        """Draw a bool tensor (B, input_steps + lead_steps − 2): True where the network reads the true frame.

        Entry t stands for frame t + 1, since the first frame is always true.
        """
        chances = [self.context(step)] * (input_steps - 1) + [self.forecast(step)] * (lead_steps - 1)
        return torch.rand(batch, len(chances), device=device) < torch.tensor(chances, device=device)

    def answer(
        self, network: Any, transform: Transform, frames: Tensor, batch: Any, step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output for `frames` (network units), the target and its mask."""
        truth, mask = transform.forward(batch["target"]), batch["target_mask"]
        B, T, S = len(frames), frames.shape[1], truth.shape[1]
        output = network.unroll(frames, truth, self.draw(step, B, T, S, frames.device))
        if not self.context_loss:
            return output[:, -S:], truth, mask
        past = batch["input"][:, 1:]
        return (
            output,
            torch.cat([transform.forward(past), truth], dim=1),
            torch.cat([torch.isfinite(past), mask], dim=1),
        )


@dataclass(frozen=True)
class Curriculum:
    """The lead times and true frames of a training step; validation always uses the final setting."""

    lead: GrowingLead | None = None
    sampling: Sampling | None = None

    def check(self, network: nn.Module) -> None:
        """Raise ValueError if `sampling` is set but `network` does not read its own forecasts."""
        if self.sampling is not None and not hasattr(network, "unroll"):
            raise ValueError(
                f"curriculum.sampling chooses between the true frame and the network's own forecast, but "
                f"{type(network).__name__} reads no forecast of its own. Take model=predrnn, or "
                "curriculum.sampling=null."
            )

    def shorten(self, batch: Any, epoch: int) -> Any:
        """Return the batch with only the lead times of `epoch`."""
        if self.lead is None:
            return batch
        steps = self.lead.steps(epoch, batch["target"].shape[1])
        cut = {name: batch[name][:, :steps] for name in ("target", "target_mask", "future") if name in batch}
        return {**batch, **cut}

    def in_force(self, step: int, epoch: int, lead_steps: int) -> dict[str, float]:
        """Return the current settings, for the log."""
        told: dict[str, float] = {}
        if self.lead is not None:
            told["train/lead_steps"] = float(self.lead.steps(epoch, lead_steps))
        if self.sampling is not None:
            told["train/truth_context"] = self.sampling.context(step)
            told["train/truth_forecast"] = self.sampling.forecast(step)
        return told
