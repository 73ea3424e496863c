"""Heads: the meaning of the channels of a network's output.

A head has no weights. It defines how many channels the network outputs, what the loss compares with the target,
and how the channels become mm/h and probabilities:

    network ──▶ output (B, T, num_channels, H, W) ─┬─▶ head.prediction ──▶ loss(prediction, target, mask)
                                                   ├─▶ head.rates ───────▶ mm/h
                                                   └─▶ head.exceedance ──▶ P(rate >= threshold)

Bounds and thresholds are in mm/h and compared with `>=` everywhere. The rate of a probabilistic head is one number
for a whole distribution: the mean of classes, the median of quantiles. Both are smoother than any single outcome;
the likelihood of heavy rain is in the probabilities.
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
        """Number of output channels of the network."""

    @property
    def probabilistic(self) -> bool:
        """True if the output is probabilistic, so that `exceedance` has values between 0 and 1."""

    def prediction(self, output: Float[Tensor, "b t n h w"]) -> Float[Tensor, "b t n h w"]:
        """The prediction that the head's loss compares with the target."""

    def rates(self, output: Float[Tensor, "b t n h w"], transform: Transform) -> Float[Tensor, "b t 1 h w"]:
        """Return rain rates in mm/h, at least 0."""

    def exceedance(
        self, output: Float[Tensor, "b t n h w"], thresholds: Sequence[float], transform: Transform
    ) -> Float[Tensor, "b t k h w"]:
        """Return the probability, 0 to 1, of reaching each of `thresholds` (mm/h, above 0, increasing).

        It never increases with the threshold. Raises ValueError for other thresholds.
        """


@dataclass(frozen=True)
class RateHead:
    """One channel: the rain rate on the transform's scale."""

    @property
    def num_channels(self) -> int:
        """1."""
        return 1

    @property
    def probabilistic(self) -> bool:
        """False: there is only a rate."""
        return False

    def prediction(self, output: Float[Tensor, "b t n h w"]) -> Float[Tensor, "b t 1 h w"]:
        """Return the output unchanged, in network units."""
        check_output(output, self)
        return output

    def rates(self, output: Float[Tensor, "b t n h w"], transform: Transform) -> Float[Tensor, "b t 1 h w"]:
        """Return rain rates in mm/h: the transform's inverse."""
        check_output(output, self)
        return transform.inverse(output)

    def exceedance(
        self, output: Float[Tensor, "b t n h w"], thresholds: Sequence[float], transform: Transform
    ) -> Float[Tensor, "b t k h w"]:
        """Return 1 where the rate reaches the threshold, else 0."""
        check_thresholds(thresholds)
        rates = self.rates(output, transform)
        return torch.cat([(rates >= threshold).to(rates.dtype) for threshold in thresholds], dim=2)


@dataclass(frozen=True)
class ClassHead:
    """Rain classes: a logit for each of n classes bounded by n − 1 thresholds, lower bounds included.

    Softmax turns the logits into probabilities. The same n channels serve both losses of classes: the
    cross-entropy of the softmax, which ignores the order of classes, and the ordinal loss, which compares the
    probability of reaching each threshold. Those probabilities are sums of the same class probabilities, so they
    cannot cross. n − 1 channels would be enough, since a constant added to all n changes nothing; with n, each
    channel is one class.

    The distribution of rates within a class is assumed to be:

    - the first class, below the lowest threshold, is dry;
    - between two thresholds a and b the logarithm of the rate is uniform: P(R >= r) = ln(b/r) / ln(b/a), mean
      (b − a) / ln(b/a);
    - above the highest threshold a it is a power law: P(R >= r) = (r/a)^−α with the mean a·α / (α − 1).

    `class_rates` are the mean rates of the classes in mm/h, one per class. By default they are the means above
    with α = 3: 0 for the first class, 1.5·a for the last. The last one given sets α.
    """

    thresholds: Sequence[float]
    class_rates: Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for classes that are empty or out of order, and for rates outside their class."""
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
        """One channel per class."""
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
        """Return the output unchanged: logits."""
        check_output(output, self)
        return output

    def rates(self, output: Float[Tensor, "b t n h w"], transform: Transform) -> Float[Tensor, "b t 1 h w"]:
        """Return the mean rate in mm/h: the sum of each class's rate times its probability."""
        check_output(output, self)
        return _weighted_sum(output.softmax(2), self._rates)

    def exceedance(
        self, output: Float[Tensor, "b t n h w"], thresholds: Sequence[float], transform: Transform
    ) -> Float[Tensor, "b t k h w"]:
        """Return sums of class probabilities, with fractions of a class for thresholds between its bounds.

        Below the lowest bound the result is the probability of the lowest bound, since lower rates count as dry.
        """
        check_output(output, self)
        check_thresholds(thresholds)
        probability = output.softmax(2)
        # one threshold after the other: summing in the same order keeps the order of the thresholds
        reached = [_weighted_sum(probability, self._shares(threshold)) for threshold in thresholds]
        return torch.cat(reached, dim=2).clamp(max=1.0)

    def _default_rates(self) -> list[float]:
        inner = [(b - a) / math.log(b / a) for a, b in pairwise(self.thresholds)]
        return [0.0, *inner, 1.5 * self.thresholds[-1]]

    def _shares(self, threshold: float) -> list[float]:
        """Return the share of each class whose rates reach `threshold`."""
        inner = [math.log(b / threshold) / math.log(b / a) for a, b in pairwise(self.thresholds)]
        last = self.thresholds[-1]
        alpha = self._rates[-1] / (self._rates[-1] - last)
        tail = (max(threshold, last) / last) ** -alpha
        return [0.0, *(min(max(share, 0.0), 1.0) for share in inner), tail]


@dataclass(frozen=True)
class QuantileHead:
    """Quantiles of the rain rate at `levels`, on the transform's scale.

    The channel of the level nearest to ½ is that quantile itself. Every other channel is, through a softplus, the
    distance to its neighbour towards ½, so that quantiles cannot cross.

    Between levels the quantile function is linear on the transform's scale. Below the lowest and above the highest
    level it continues with the slope of the outermost segment. Values below 0 are dry, as everywhere.

    The rate is the quantile at `rate_level`, by default the median, which minimises the absolute error. A higher
    level forecasts more rain. The mean would depend on the few highest levels, which are learnt least well and
    which the inverse transform stretches most.
    """

    levels: Sequence[float]
    rate_level: float = 0.5

    def __post_init__(self) -> None:
        """Raise ValueError unless levels are increasing probabilities and `rate_level` lies within them."""
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
        """One channel per level."""
        return len(self.levels)

    @property
    def probabilistic(self) -> bool:
        """True."""
        return True

    def prediction(self, output: Float[Tensor, "b t n h w"]) -> Float[Tensor, "b t n h w"]:
        """Return the quantiles in network units, none below the one before it."""
        check_output(output, self)
        middle = min(range(self.num_channels), key=lambda index: abs(self.levels[index] - 0.5))
        distance = F.softplus(output, beta=_SHARPNESS)
        anchor = output[:, :, middle : middle + 1]
        below = anchor - distance[:, :, :middle].flip(2).cumsum(2).flip(2)
        above = anchor + distance[:, :, middle + 1 :].cumsum(2)
        return torch.cat([below, anchor, above], dim=2)

    def rates(self, output: Float[Tensor, "b t n h w"], transform: Transform) -> Float[Tensor, "b t 1 h w"]:
        """Return the rate in mm/h at `rate_level`, interpolated linearly on the transform's scale."""
        quantiles = self.prediction(output)
        upper = max(1, sum(level < self.rate_level for level in self.levels))
        below, above = self.levels[upper - 1 : upper + 1]
        share = (self.rate_level - below) / (above - below)
        lower, higher = quantiles[:, :, upper - 1 : upper], quantiles[:, :, upper : upper + 1]
        return transform.inverse(torch.lerp(lower, higher, share))

    def exceedance(
        self, output: Float[Tensor, "b t n h w"], thresholds: Sequence[float], transform: Transform
    ) -> Float[Tensor, "b t k h w"]:
        """Return the probability that the quantile function reaches each threshold.

        Raises ValueError for thresholds outside the transform's range, too.
        """
        check_thresholds(thresholds)
        levels, knots = self._knots(output)
        lower, upper = knots[:, :, :-1], knots[:, :, 1:]
        widths = [b - a for a, b in pairwise(levels)]
        reached = []
        for bound in _scaled(thresholds, transform):
            share = ((upper - bound) / (upper - lower)).clamp(0.0, 1.0)
            # a segment without extent lies wholly on one side
            share = torch.where(upper > lower, share, (upper >= bound).to(share.dtype))
            reached.append(_weighted_sum(share, widths))
        return torch.cat(reached, dim=2).clamp(max=1.0)

    def _knots(self, output: Tensor) -> tuple[tuple[float, ...], Tensor]:
        """Return levels from 0 to 1 and the quantiles there, in network units."""
        quantiles = self.prediction(output)
        first, second, *_ = self.levels
        *_, before, last = self.levels
        lowest, highest = quantiles[:, :, :1], quantiles[:, :, -1:]
        down = (quantiles[:, :, 1:2] - lowest) * (first / (second - first))
        up = (highest - quantiles[:, :, -2:-1]) * ((1.0 - last) / (last - before))
        return (0.0, *self.levels, 1.0), torch.cat([lowest - down, quantiles, highest + up], dim=2)


_SHARPNESS = 20.0
"""Sharpness of the softplus between quantiles: an output of 0 sets them ln(2)/20 = 0.035 apart on a 0 to 1 scale.

With a sharpness of 1 it would be 0.69, most of the scale. Dry pixels, where all quantiles are 0, could not be
reached.
"""


def _weighted_sum(values: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted sum over the channels, which stay as one."""
    factors = torch.tensor(weights, dtype=values.dtype, device=values.device)
    return (values * factors[:, None, None]).sum(2, keepdim=True)


def _scaled(thresholds: Sequence[float], transform: Transform) -> list[float]:
    """Return `thresholds` in network units; raises ValueError for thresholds beyond the ends of the scale."""
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
    """Raise ValueError unless there is at least one threshold and all are above 0 (mm/h) and increasing."""
    if not thresholds or not all(a < b < math.inf for a, b in pairwise((0.0, *thresholds))):
        raise ValueError(f"thresholds={list(thresholds)} must be at least one, in mm/h, above 0 and increasing.")


def check_output(output: Tensor, head: Any) -> None:
    """Raise ValueError unless the output has the channels that the head reads."""
    if output.ndim != 5 or output.shape[2] != head.num_channels:
        raise ValueError(
            f"{head} reads outputs of shape (B, T, {head.num_channels}, H, W), found {tuple(output.shape)}. "
            f"Build the network with out_channels={head.num_channels}."
        )
