"""Heads: what the channels of a network's output mean.

A head has no weights. It says how many channels the network gives out, what the loss compares with the target,
and how the channels become mm/h and probabilities:

    network ──▶ output (B, T, num_channels, H, W) ─┬─▶ head.prediction ──▶ loss(prediction, target, mask)
                                                   ├─▶ head.rates ───────▶ mm/h
                                                   └─▶ head.exceedance ──▶ P(rate >= threshold)

Bounds and thresholds are in mm/h, and compare with `>=` everywhere. The rates of a probabilistic head are one
number for a whole distribution: the mean of classes, the median of quantiles. Both are smoother than any course
of events; how likely heavy rain is stands in the probabilities.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from raincast.transforms import Transform


class Head(Protocol):
    """The meaning of an output (B, T, num_channels, H, W)."""

    @property
    def num_channels(self) -> int:
        """The number of the network's output channels."""

    @property
    def probabilistic(self) -> bool:
        """True if the output is probabilistic, so that `exceedance` has values between 0 and 1."""

    def prediction(self, output: Float[Tensor, "b t n h w"]) -> Float[Tensor, "b t n h w"]:
        """The prediction that the head's loss compares with the target."""

    def rates(self, output: Float[Tensor, "b t n h w"], transform: Transform) -> Float[Tensor, "b t 1 h w"]:
        """mm/h, 0 or more."""

    def exceedance(
        self, output: Float[Tensor, "b t n h w"], thresholds: Sequence[float], transform: Transform
    ) -> Float[Tensor, "b t k h w"]:
        """The probability of at least each of `thresholds` (mm/h, above 0, increasing), 0 to 1.

        It never rises with the threshold. ValueError for other thresholds.
        """


@dataclass(frozen=True)
class RateHead:
    """One channel: the rain rate itself, on the transform's scale."""

    @property
    def num_channels(self) -> int:
        """1."""
        return 1

    @property
    def probabilistic(self) -> bool:
        """False: the rate is all there is."""
        return False

    def prediction(self, output: Float[Tensor, "b t n h w"]) -> Float[Tensor, "b t 1 h w"]:
        """The output as it is: network units."""
        check_output(output, self)
        return output

    def rates(self, output: Float[Tensor, "b t n h w"], transform: Transform) -> Float[Tensor, "b t 1 h w"]:
        """mm/h by the transform's inverse."""
        check_output(output, self)
        return transform.inverse(output)

    def exceedance(
        self, output: Float[Tensor, "b t n h w"], thresholds: Sequence[float], transform: Transform
    ) -> Float[Tensor, "b t k h w"]:
        """1 where the rate reaches the threshold, else 0."""
        check_thresholds(thresholds)
        rates = self.rates(output, transform)
        return torch.cat([(rates >= threshold).to(rates.dtype) for threshold in thresholds], dim=2)


@dataclass(frozen=True)
class ClassHead:
    """Rain classes: a logit for each of the n classes that n − 1 thresholds cut, each class closed below.

    Softmax makes them probabilities. The same n channels serve both losses of classes: the cross-entropy of the
    softmax, which knows no order, and the ordinal one, which asks of each threshold whether it is reached. The
    probabilities of that are sums of the same class probabilities, so they cannot cross. n − 1 channels would
    do as well, since a constant added to all n changes nothing; n say which channel is which class.

    Within a class the rates are taken to be spread so:

    - the first class, below the lowest threshold, is dry;
    - between two thresholds a and b the logarithm of the rate is uniform: P(R >= r) = ln(b/r) / ln(b/a), mean
      (b − a) / ln(b/a);
    - above the highest threshold a they fall off as a power: P(R >= r) = (r/a)^−α with the mean a·α / (α − 1).

    `class_rates` are the rates in mm/h that stand for the classes in the mean, one a class. By default they are
    the means above, with α = 3: 0 for the first class, 1.5·a for the last. The last one given sets α.
    """

    thresholds: Sequence[float]
    class_rates: Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Refuse classes that are empty or out of order, and rates outside their class."""
        check_thresholds(self.thresholds)
        object.__setattr__(self, "thresholds", tuple(map(float, self.thresholds)))
        if self.class_rates is None:
            object.__setattr__(self, "class_rates", self._default_rates())
        object.__setattr__(self, "class_rates", tuple(map(float, self._rates)))
        lower, upper = (-math.inf, *self.thresholds), (*self.thresholds, math.inf)
        inside = len(self._rates) == self.num_channels and all(
            a <= rate < b for a, rate, b in zip(lower, self._rates, upper, strict=True)
        )
        # the mean of the last class lies above its bound, or the class would have no width
        if not inside or self._rates[0] < 0 or self._rates[-1] <= self.thresholds[-1]:
            raise ValueError(
                f"class_rates={list(self._rates)} mm/h must be {self.num_channels}, each within its class: "
                f"thresholds={list(self.thresholds)}. Leave them out, or give one a class, the first 0 or more."
            )

    @property
    def num_channels(self) -> int:
        """One a class."""
        return len(self.thresholds) + 1

    @property
    def probabilistic(self) -> bool:
        """True."""
        return True

    @property
    def _rates(self) -> Sequence[float]:
        assert self.class_rates is not None  # filled in when it was made
        return self.class_rates

    def prediction(self, output: Float[Tensor, "b t n h w"]) -> Float[Tensor, "b t n h w"]:
        """The output as it is: logits."""
        check_output(output, self)
        return output

    def rates(self, output: Float[Tensor, "b t n h w"], transform: Transform) -> Float[Tensor, "b t 1 h w"]:
        """The mean rate in mm/h: each class's rate times its probability."""
        check_output(output, self)
        return _weighted_sum(output.softmax(2), self._rates)

    def exceedance(
        self, output: Float[Tensor, "b t n h w"], thresholds: Sequence[float], transform: Transform
    ) -> Float[Tensor, "b t k h w"]:
        """Sums of class probabilities at the classes' bounds, shares of a class between them.

        Below the lowest bound it is the probability of the lowest bound, since what is less counts as dry.
        """
        check_output(output, self)
        check_thresholds(thresholds)
        probability = output.softmax(2)
        # one threshold after the other: sums in the same order keep the order of the thresholds
        reached = [_weighted_sum(probability, self._shares(threshold)) for threshold in thresholds]
        return torch.cat(reached, dim=2).clamp(max=1.0)

    def _default_rates(self) -> list[float]:
        inner = [(b - a) / math.log(b / a) for a, b in pairwise(self.thresholds)]
        return [0.0, *inner, 1.5 * self.thresholds[-1]]

    def _shares(self, threshold: float) -> list[float]:
        """Of each class, the share whose rates reach `threshold`."""
        inner = [math.log(b / threshold) / math.log(b / a) for a, b in pairwise(self.thresholds)]
        last = self.thresholds[-1]
        alpha = self._rates[-1] / (self._rates[-1] - last)
        tail = (max(threshold, last) / last) ** -alpha
        return [0.0, *(min(max(share, 0.0), 1.0) for share in inner), tail]


@dataclass(frozen=True)
class QuantileHead:
    """Quantiles of the rain rate at `levels`, on the transform's scale.

    The channel of the level nearest to ½ is that quantile itself; each other channel is, through a softplus,
    the distance from its neighbour on that side. So quantiles cannot cross.

    Between the levels the quantile function is linear on the transform's scale. Below the lowest and above the
    highest level it goes on as steeply as in the outermost piece. What it has below 0 is dry, as everywhere.

    The rates are the quantile at `rate_level`, by default the median, which an absolute error is smallest for. A
    higher level forecasts more rain. The mean would hang on the few levels at the top, which training knows least
    and mm/h stretch most.
    """

    levels: Sequence[float]
    rate_level: float = 0.5

    def __post_init__(self) -> None:
        """Refuse levels that are no increasing probabilities, and a `rate_level` outside them."""
        levels = tuple(map(float, self.levels))
        if len(levels) < 2 or any(a >= b for a, b in pairwise((0.0, *levels, 1.0))):
            raise ValueError(
                f"levels={list(levels)} must be at least two, between 0 and 1 and increasing: [0.1, 0.5, 0.9]."
            )
        if not levels[0] <= self.rate_level <= levels[-1]:
            raise ValueError(
                f"rate_level={self.rate_level} lies outside levels={list(levels)}. Choose one from {levels[0]} to "
                f"{levels[-1]}."
            )
        object.__setattr__(self, "levels", levels)

    @property
    def num_channels(self) -> int:
        """One a level."""
        return len(self.levels)

    @property
    def probabilistic(self) -> bool:
        """True."""
        return True

    def prediction(self, output: Float[Tensor, "b t n h w"]) -> Float[Tensor, "b t n h w"]:
        """The quantiles in network units, none below the one before it."""
        check_output(output, self)
        middle = min(range(self.num_channels), key=lambda index: abs(self.levels[index] - 0.5))
        distance = F.softplus(output, beta=_SHARPNESS)
        anchor = output[:, :, middle : middle + 1]
        below = anchor - distance[:, :, :middle].flip(2).cumsum(2).flip(2)
        above = anchor + distance[:, :, middle + 1 :].cumsum(2)
        return torch.cat([below, anchor, above], dim=2)

    def rates(self, output: Float[Tensor, "b t n h w"], transform: Transform) -> Float[Tensor, "b t 1 h w"]:
        """mm/h at `rate_level`, linear between the levels around it on the transform's scale."""
        quantiles = self.prediction(output)
        upper = max(1, sum(level < self.rate_level for level in self.levels))
        below, above = self.levels[upper - 1 : upper + 1]
        share = (self.rate_level - below) / (above - below)
        lower, higher = quantiles[:, :, upper - 1 : upper], quantiles[:, :, upper : upper + 1]
        return transform.inverse(torch.lerp(lower, higher, share))

    def exceedance(
        self, output: Float[Tensor, "b t n h w"], thresholds: Sequence[float], transform: Transform
    ) -> Float[Tensor, "b t k h w"]:
        """The share of the levels whose quantile reaches the threshold.

        ValueError for thresholds outside the transform's range, too.
        """
        check_thresholds(thresholds)
        levels, knots = self._knots(output)
        lower, upper = knots[:, :, :-1], knots[:, :, 1:]
        widths = [b - a for a, b in pairwise(levels)]
        reached = []
        for bound in _scaled(thresholds, transform):
            share = ((upper - bound) / (upper - lower)).clamp(0.0, 1.0)
            # a piece without extent lies wholly on one side
            share = torch.where(upper > lower, share, (upper >= bound).to(share.dtype))
            reached.append(_weighted_sum(share, widths))
        return torch.cat(reached, dim=2).clamp(max=1.0)

    def _knots(self, output: Tensor) -> tuple[tuple[float, ...], Tensor]:
        """Levels from 0 to 1 and the quantiles there, in network units."""
        quantiles = self.prediction(output)
        first, second, *_ = self.levels
        *_, before, last = self.levels
        lowest, highest = quantiles[:, :, :1], quantiles[:, :, -1:]
        down = (quantiles[:, :, 1:2] - lowest) * (first / (second - first))
        up = (highest - quantiles[:, :, -2:-1]) * ((1.0 - last) / (last - before))
        return (0.0, *self.levels, 1.0), torch.cat([lowest - down, quantiles, highest + up], dim=2)


_SHARPNESS = 20.0
"""Of the softplus between quantiles: an output of 0 sets them ln(2)/20 = 0.035 apart on a scale of 0 to 1.

With 1 it would be 0.69, most of the scale, and dry pixels, where all quantiles are 0, would be out of reach.
"""


def _weighted_sum(values: Tensor, weights: Sequence[float]) -> Tensor:
    """Σ over the channels, which stay as one."""
    factors = torch.tensor(weights, dtype=values.dtype, device=values.device)
    return (values * factors[:, None, None]).sum(2, keepdim=True)


def _scaled(thresholds: Sequence[float], transform: Transform) -> list[float]:
    """`thresholds` in network units; ValueError where they lie beyond the ends of the scale."""
    rates = torch.tensor(list(thresholds), dtype=torch.float64)
    scaled = transform.forward(rates)
    outside = rates[(transform.inverse(scaled) - rates).abs() > 1e-6 * rates]
    if outside.numel():
        raise ValueError(
            f"thresholds={outside.tolist()} mm/h lie outside the range of {transform}: the network cannot tell "
            "them from its end. Leave them out."
        )
    return [float(bound) for bound in scaled]


def check_thresholds(thresholds: Sequence[float]) -> None:
    """ValueError unless there are thresholds, in mm/h, above 0 and increasing."""
    if not thresholds or not all(a < b < math.inf for a, b in pairwise((0.0, *thresholds))):
        raise ValueError(f"thresholds={list(thresholds)} must be at least one, in mm/h, above 0 and increasing.")


def check_output(output: Tensor, head: Any) -> None:
    """ValueError unless the output has the channels that the head reads."""
    if output.ndim != 5 or output.shape[2] != head.num_channels:
        raise ValueError(
            f"{head} reads outputs of shape (B, T, {head.num_channels}, H, W), found {tuple(output.shape)}. "
            f"Build the network with out_channels={head.num_channels}."
        )
