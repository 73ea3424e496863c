"""The head of a distribution: logits of exceeding thresholds, and the rates that are decided from them."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from raincast.models.heads import check_output, check_thresholds
from raincast.models.members import logits_of_ranks, ranks
from raincast.transforms import THRESHOLDS, UNKNOWN, Transform

DECISIONS = ("area", "csi", "mean", "matched")
"""Ways to turn probabilities into rates: see `DistributionHead`."""

NEVER = -30.0
"""A logit of no chance: areas and cuts leave out pixels that the newest frame says nothing of."""

PIXELS = 16_384
"""Pixels of a field that areas and cuts are computed from, at most: every n-th along both axes."""

LEAST_AREA = 0.1
"""The flow's area counts as at least this share of the expected one: rain that is new has no past."""

LEAST_CUT = -4.0
"""The logit of a probability of 2 %: with less nobody is told that it will rain."""

NEWTON_STEPS = 8
BISECTIONS = 16
CUTS = tuple(-3.0 + 0.15 * number for number in range(28))
"""Logits at which the expected CSI is compared: probabilities of 5 to 74 %."""

HIGHEST_RATE = 100.0
"""mm/h: the highest rate that is stated. Above the last threshold nothing but its probability is known."""


@dataclass(frozen=True)
class DistributionHead:
    """Logits of P(R ≥ τ) at `THRESHOLDS`, falling with τ, and a last channel: the newest frame moved, in mm/h.

    **Area step.** For each lead time and threshold one number is added to all logits, so that the expected area is
    the geometric mean of what the network and what the moved newest frame expect. It has no weights.

    **Rates** are decided from the probabilities, by `rates`:

    - `area`: as many pixels exceed each threshold as are expected to, those of the highest probability: no bias;
    - `csi`: the cut that maximises the expected critical success index of this very field,
      Σ_{P ≥ p} P / (N_{P ≥ p} + Σ_{P < p} P). No observation is needed. It forecasts more area than will be wet;
    - `mean`: the expected rate, best by squared error; it loses heavy rain;
    - `matched`: as many pixels exceed each threshold as do in the newest frame.

    Between thresholds the logarithm of the rate is interpolated, so that fields have no steps.
    """

    rates_by: str = "area"
    area_step: bool = True

    def __post_init__(self) -> None:
        """Refuse decisions that do not exist."""
        if self.rates_by not in DECISIONS:
            raise ValueError(f"head.rates_by={self.rates_by}: choose one of {', '.join(DECISIONS)}.")

    @property
    def num_channels(self) -> int:
        """One a threshold, and the moved newest frame."""
        return len(THRESHOLDS) + 1

    @property
    def probabilistic(self) -> bool:
        """True."""
        return True

    def prediction(self, output: Float[Tensor, "b t n h w"]) -> Float[Tensor, "b t n h w"]:
        """The output as it is."""
        check_output(output, self)
        return output

    def rates(self, output: Float[Tensor, "b t n h w"], transform: Transform) -> Float[Tensor, "b t 1 h w"]:
        """mm/h by the decision `rates_by`."""
        check_output(output, self)
        shift, thin = self._shift(output)
        levels = _levels(output, shift)
        if self.rates_by == "mean":
            return expected_rate([level.sigmoid() for level in levels])[:, :, None]
        if self.rates_by == "csi":
            cuts = best_cuts(thin)
        elif self.rates_by == "matched":
            cuts = area_cuts(thin, _flow_area(_thinned(output[:, :, -1:])))
        else:
            cuts = area_cuts(thin, thin.sigmoid().sum((-2, -1)))
        # where the rain comes from is not known: it rains if that is more likely than not
        unknown = output[:, :, -1] == UNKNOWN
        cut_maps = (torch.where(unknown, cut.clamp_min(0.0), cut) for cut in cuts[..., None, None].unbind(2))
        return decided_rate(level - cut for level, cut in zip(levels, cut_maps, strict=True))[:, :, None]

    def exceedance(
        self, output: Float[Tensor, "b t n h w"], thresholds: Sequence[float], transform: Transform
    ) -> Float[Tensor, "b t k h w"]:
        """P(R ≥ threshold), the logit linear in ln(threshold); below the lowest it is that of the lowest."""
        check_output(output, self)
        check_thresholds(thresholds)
        levels = list(_levels(output, self._shift(output)[0]))
        return torch.stack([_at(levels, threshold) for threshold in thresholds], dim=2).sigmoid_()

    def members(
        self, output: Float[Tensor, "b t n h w"], noise: Iterable[Float[Tensor, "t m h w"]], num_members: int
    ) -> Float[Tensor, "b t m h w"]:
        """mm/h: quantiles of the distribution, in the order of the noise of each sample (`models.members`)."""
        check_output(output, self)
        shift, _ = self._shift(output)
        B, T, _, H, W = output.shape
        cuts = logits_of_ranks(num_members).to(output.device)
        made = torch.zeros((B, T, num_members, H, W), device=output.device)
        for sample, fields in enumerate(noise):
            for lead in range(T):
                one = slice(sample, sample + 1), slice(lead, lead + 1)
                levels = [level[0, 0] for level in _levels(output[one], shift[one])]
                wet = levels[0] >= cuts[-1]  # elsewhere no member has rain
                cut = cuts[ranks(fields[lead][:, wet]).long()]
                made[sample, lead][:, wet] = decided_rate(level[wet] - cut for level in levels)
        return made

    def _shift(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """The area step (B, T, K), and the logits after it at every n-th pixel (B, T, K, h, w).

        Where the moved newest frame says nothing these are `NEVER`.
        """
        thin, newest = _thinned(output[:, :, :-1]), _thinned(output[:, :, -1:])
        shift = area_shift(thin, newest) if self.area_step else torch.zeros_like(thin[..., 0, 0])
        fallen = _falling(thin + shift[..., None, None])
        return shift, torch.where(newest == UNKNOWN, torch.full_like(fallen, NEVER), fallen)


def _levels(output: Tensor, shift: Tensor) -> Iterator[Tensor]:
    """The logit of each threshold after the area step, (B, T, H, W), none above the one before."""
    level: Tensor | None = None
    for k in range(len(THRESHOLDS)):
        own = output[:, :, k].float() + shift[:, :, k, None, None]
        level = own if level is None else torch.minimum(level, own)
        yield level


def _falling(logits: Tensor) -> Tensor:
    """Logits (B, T, K, h, w), none above that of the threshold before."""
    return torch.stack(list(itertools.accumulate(logits.unbind(2), torch.minimum)), dim=2)


def area_shift(logits: Float[Tensor, "b t k h w"], newest: Float[Tensor, "b t 1 h w"]) -> Float[Tensor, "b t k"]:
    """What is added to all logits of a field so that its expected area is as in `DistributionHead`.

    Only pixels count that the newest frame says something of.
    """
    known = (newest != UNKNOWN).to(logits.dtype)
    own = (logits.sigmoid() * known).sum((-2, -1))
    flow = torch.maximum(_flow_area(newest), LEAST_AREA * own)
    target = (own * flow).sqrt()
    shift = torch.zeros_like(own)
    for _ in range(NEWTON_STEPS):
        chance = (logits + shift[..., None, None]).sigmoid() * known
        area, slope = chance.sum((-2, -1)), (chance * (1.0 - chance)).sum((-2, -1))
        step = (target - area) / slope.clamp_min(1e-6)
        shift = shift + step.clamp(-1.0, 1.0)
    return torch.where(own > 1e-3, shift, torch.zeros_like(shift))


def area_cuts(logits: Float[Tensor, "b t k h w"], count: Float[Tensor, "b t k"]) -> Float[Tensor, "b t k"]:
    """The logit that `count` pixels of each field reach, at least `LEAST_CUT`."""
    flat = logits.flatten(-2)
    low, high = flat.amin(-1) - 1.0, flat.amax(-1) + 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2.0
        many = (flat >= middle[..., None]).to(flat.dtype).sum(-1) > count
        low, high = torch.where(many, middle, low), torch.where(many, high, middle)
    return ((low + high) / 2.0).clamp_min(LEAST_CUT)


def best_cuts(logits: Float[Tensor, "b t k h w"]) -> Float[Tensor, "b t k"]:
    """The logit among `CUTS` that maximises the expected critical success index of each field."""
    flat = logits.flatten(-2)
    chance = flat.sigmoid()
    total = chance.sum(-1)
    expected = []
    for cut in CUTS:
        reached = (flat >= cut).to(flat.dtype)
        hits = (chance * reached).sum(-1)
        expected.append(hits / (reached.sum(-1) + total - hits).clamp_min(1e-9))
    values = torch.tensor(CUTS, dtype=logits.dtype, device=logits.device)
    return values[torch.stack(expected).argmax(0)]


def decided_rate(excess: Iterable[Float[Tensor, "b t h w"]]) -> Float[Tensor, "b t h w"]:
    """mm/h from logits less their cuts: the threshold at which this passes 0, and 0 where the first does not.

    The logarithm of the rate is linear between thresholds, and goes on as steeply above the last one.
    """
    steps = [math.log(high / low) for low, high in pairwise(THRESHOLDS)]
    above: Tensor | None = None
    for k, level in enumerate(excess):
        if above is None:
            above, rate, wet = level, torch.full_like(level, math.log(THRESHOLDS[0])), level >= 0
            continue
        below = torch.minimum(above, level)
        fall = (above - below).clamp_min_(1e-6)
        rate += (above / fall).clamp_(0.0, 1.0).mul_(steps[k - 1])
        above = below
    assert above is not None
    rate += above.clamp_min(0.0) / fall.clamp_min(0.1) * steps[-1]
    return torch.where(wet, rate.exp_().clamp_(max=HIGHEST_RATE), torch.zeros_like(rate))


def expected_rate(chances: Sequence[Float[Tensor, "b t h w"]]) -> Float[Tensor, "b t h w"]:
    """∫ P(R ≥ r) dr in mm/h, by trapezoids between thresholds; the tail falls off as the cube of the rate."""
    rate = chances[0] * THRESHOLDS[0]
    for (low, high), (first, second) in zip(pairwise(THRESHOLDS), pairwise(chances), strict=True):
        rate = rate + (high - low) / 2.0 * (first + second)
    return rate + chances[-1] * THRESHOLDS[-1] / 2.0


def _flow_area(newest: Tensor) -> Tensor:
    """Pixels of the moved newest frame (B, T, 1, h, w) that reach each threshold: (B, T, K)."""
    return torch.cat([(newest >= threshold).to(newest.dtype).sum((-2, -1)) for threshold in THRESHOLDS], dim=2)


def _at(levels: Sequence[Tensor], threshold: float) -> Tensor:
    """The logit at any threshold in mm/h, (B, T, H, W)."""
    k = sum(known < threshold for known in THRESHOLDS)
    if k == 0:
        return levels[0]
    k = min(k, len(levels) - 1)
    low, high = THRESHOLDS[k - 1 : k + 1]
    return torch.lerp(levels[k - 1], levels[k], math.log(threshold / low) / math.log(high / low))


def _thinned(fields: Tensor) -> Tensor:
    """Every n-th row and column, so that `PIXELS` are left at most."""
    H, W = fields.shape[-2:]
    every = max(1, math.ceil(math.sqrt(H * W / PIXELS)))
    return fields[..., ::every, ::every].float().contiguous()
