"""The distribution head: logits of exceeding each threshold, and the rain rates derived from them."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from raincast.models.heads import check_output, check_thresholds
from raincast.models.members import LEAST_CHANCE, logit_of_highest, logits_of_ranks, order
from raincast.transforms import THRESHOLDS, UNKNOWN, Transform

DECISIONS = ("area", "csi", "mean", "matched")
"""Ways to turn probabilities into rates: see `DistributionHead`."""

LOG_STEPS = tuple(math.log(high / low) for low, high in pairwise(THRESHOLDS))
"""Distances of the thresholds in ln(mm/h)."""

NEVER = -30.0
"""Logit that excludes pixels from areas and cuts where the advected newest frame has no data."""

PIXELS = 16_384
"""Largest number of pixels per field used for areas and cuts; larger fields are subsampled along both axes."""

LEAST_AREA = 0.1
"""Lower bound of the advected frame's area, as a share of the expected area: new rain has no past."""

LEAST_CUT = -4.0
"""Logit of a probability of 2 %, the lowest at which rain is forecast."""

BLOCK = 4_096
"""Number of pixels whose members are computed at once: they fit in a processor's cache."""

NEWTON_STEPS = 8
BISECTIONS = 16
CUTS = tuple(-3.0 + 0.15 * number for number in range(28))
"""Logits at which the expected CSI is compared, for probabilities of 5 to 74 %."""

HIGHEST_RATE = 100.0
"""Highest rate in mm/h that is forecast."""

TAIL_POWER = 4.0
"""Above the last threshold P(R ≥ r) falls as r^−4, and its logit at least as fast.

From 50 to 100 mm/h it fell with powers of 4.4, 4.9, 3.4 and 3.9 in radar images of MeteoSwiss (2015 and 2016), FMI
(2016) and MRMS.
"""


@dataclass(frozen=True)
class DistributionHead:
    """Logits of P(R ≥ τ) at `THRESHOLDS`, non-increasing in τ, and last the advected newest frame in mm/h.

    **Area step.** For each lead time and threshold, one number is added to all logits. It makes the expected area
    the geometric mean of the areas that the network and the advected newest frame expect. It has no weights.

    **Rates** are derived from the probabilities as `rates_by` says:

    - `area`: as many pixels exceed each threshold as are expected to, those of the highest probability, without
      bias;
    - `csi`: the cut that maximises the expected critical success index of the field at hand,
      Σ_{P ≥ p} P / (N_{P ≥ p} + Σ_{P < p} P). It needs no observation and forecasts more area than will be wet;
    - `mean`: the expected rate. It has the smallest squared error but loses heavy rain;
    - `matched`: as many pixels exceed each threshold as do in the newest frame.

    Between thresholds the logarithm of the rate is interpolated, so that fields have no steps.
    """

    rates_by: str = "area"
    area_step: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown `rates_by`."""
        if self.rates_by not in DECISIONS:
            raise ValueError(f"head.rates_by={self.rates_by}: choose one of {', '.join(DECISIONS)}.")

    @property
    def num_channels(self) -> int:
        """One channel per threshold, and one for the advected newest frame."""
        return len(THRESHOLDS) + 1

    @property
    def probabilistic(self) -> bool:
        """True."""
        return True

    def prediction(self, output: Float[Tensor, "b t n h w"]) -> Float[Tensor, "b t n h w"]:
        """Return the output unchanged."""
        check_output(output, self)
        return output

    def stepped(self, output: Float[Tensor, "b t n h w"]) -> "DistributionHead":
        """Apply the area step to `output` in place, and return the head that reads it as it then is.

        Rates, probabilities and members from one output need it once.
        """
        if not self.area_step:
            return self
        output[:, :, :-1] += self._shift(output)[0][..., None, None]
        return replace(self, area_step=False)

    def rates(self, output: Float[Tensor, "b t n h w"], transform: Transform) -> Float[Tensor, "b t 1 h w"]:
        """Return the rain rates in mm/h according to `rates_by`."""
        check_output(output, self)
        shift, thin = self._shift(output)
        if self.rates_by == "mean":
            return expected_rate([level.sigmoid() for level in _levels(output, shift)])[:, :, None]
        if self.rates_by == "csi":
            cuts = best_cuts(thin)
        elif self.rates_by == "matched":
            cuts = area_cuts(thin, _flow_area(_thinned(output[:, :, -1:])))
        else:
            cuts = area_cuts(thin, thin.sigmoid().sum((-2, -1)))
        if torch.compiler.is_compiling() or output.is_meta:  # no size may depend on the data
            return _decided(
                output.movedim(2, 0), *(numbers.movedim(2, 0)[..., None, None] for numbers in (shift, cuts))
            )[:, :, None]
        rates = torch.zeros_like(output[:, :, :1], dtype=torch.float32)
        fields = zip(output.flatten(0, 1).flatten(2), rates.view(-1, rates.shape[-2:].numel()), strict=True)
        for (values, made), shifts, own_cuts in zip(fields, shift.flatten(0, 1), cuts.flatten(0, 1), strict=True):
            wet = (values[0].float() + shifts[0] >= own_cuts[0]).nonzero()[:, 0]  # most pixels are dry
            made[wet] = _decided(values.index_select(1, wet), shifts, own_cuts)
        return rates

    def exceedance(
        self, output: Float[Tensor, "b t n h w"], thresholds: Sequence[float], transform: Transform
    ) -> Float[Tensor, "b t k h w"]:
        """Return P(R ≥ threshold).

        The logit is linear in ln(threshold), constant below the lowest of `THRESHOLDS`, and falls above the last
        as `TAIL_POWER` says.
        """
        check_output(output, self)
        check_thresholds(thresholds)
        levels = list(_levels(output, self._shift(output)[0]))
        return torch.stack([_at(levels, threshold) for threshold in thresholds], dim=2).sigmoid_()

    def members(
        self,
        output: Float[Tensor, "b t n h w"],
        noise: Iterable[Iterable[Float[Tensor, "m h w"]]],
        num_members: int,
    ) -> Float[Tensor, "b t m h w"]:
        """Return members in mm/h: quantiles of the distribution ranked by the noise of each sample and lead time.

        See `models.members`.
        """
        check_output(output, self)
        shift, _ = self._shift(output)
        B, T, _, H, W = output.shape
        made = torch.zeros((B, T, num_members, H, W), device=output.device)
        for sample, fields in enumerate(noise):
            for lead, field in enumerate(fields):
                one = slice(sample, sample + 1), slice(lead, lead + 1)
                levels = torch.stack([level.flatten() for level in _levels(output[one], shift[one])])
                _fill(made[sample, lead].view(num_members, -1), levels, field.flatten(1))
        return made

    def _shift(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the area step (B, T, K) and the logits after it on the subsampled grid (B, T, K, h, w).

        The logits are `NEVER` where the advected newest frame has no data.
        """
        thin, newest = _thinned(output[:, :, :-1]), _thinned(output[:, :, -1:])
        shift = area_shift(thin, newest) if self.area_step else torch.zeros_like(thin[..., 0, 0])
        fallen = _falling(thin + shift[..., None, None])
        return shift, torch.where(newest == UNKNOWN, torch.full_like(fallen, NEVER), fallen)


def _levels(output: Tensor, shift: Tensor) -> Iterator[Tensor]:
    """Return the logits (B, T, H, W) of each threshold after the area step, non-increasing."""
    own = (output[:, :, k].float() + shift[:, :, k, None, None] for k in range(len(THRESHOLDS)))
    return itertools.accumulate(own, torch.minimum)


def _decided(
    output: Float[Tensor, "n ..."], shift: Float[Tensor, "k ..."], cuts: Float[Tensor, "k ..."]
) -> Tensor:
    """Return the rates at pixels with this output, the channels first, that reach the cuts after the area step."""
    # where the rain would come from is unknown, it rains if that is more likely than not
    unknown = output[-1] == UNKNOWN
    levels = itertools.accumulate(
        (own.float() + step for own, step in zip(output[:-1], shift, strict=True)), torch.minimum
    )
    return decided_rate(
        level - torch.where(unknown, cut.clamp_min(0.0), cut) for level, cut in zip(levels, cuts, strict=True)
    )


def _falling(logits: Tensor) -> Tensor:
    """Return logits (B, T, K, h, w), none above that of the threshold before."""
    return torch.stack(list(itertools.accumulate(logits.unbind(2), torch.minimum)), dim=2)


def area_shift(logits: Float[Tensor, "b t k h w"], newest: Float[Tensor, "b t 1 h w"]) -> Float[Tensor, "b t k"]:
    """Return the number to add to a field's logits for the expected area described in `DistributionHead`.

    Only pixels count where the advected newest frame has data.
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
    """Return the logit that `count` pixels of each field reach, at least `LEAST_CUT`."""
    flat = logits.flatten(-2)
    low, high = flat.amin(-1) - 1.0, flat.amax(-1) + 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2.0
        many = (flat >= middle[..., None]).to(flat.dtype).sum(-1) > count
        low, high = torch.where(many, middle, low), torch.where(many, high, middle)
    return ((low + high) / 2.0).clamp_min(LEAST_CUT)


def best_cuts(logits: Float[Tensor, "b t k h w"]) -> Float[Tensor, "b t k"]:
    """Return the logit among `CUTS` that maximises the expected critical success index of each field."""
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


def decided_rate(excess: Iterable[Float[Tensor, "..."]]) -> Float[Tensor, "..."]:
    """Return rates in mm/h from logits minus their cuts, one field per threshold in increasing order.

    The rate is the threshold at which this excess passes 0, and 0 mm/h where the first excess is negative. The
    logarithm of the rate is linear between thresholds, and above the last one with the same slope or that of
    `TAIL_POWER`, whichever rises less.
    """
    above: Tensor | None = None
    for k, level in enumerate(excess):
        if above is None:
            above, rate, wet = level, torch.full_like(level, math.log(THRESHOLDS[0])), level >= 0
            continue
        below = torch.minimum(above, level)
        fall = (above - below).clamp_min_(1e-6)
        rate += (above / fall).clamp_(0.0, 1.0).mul_(LOG_STEPS[k - 1])
        above = below
    assert above is not None
    rate += above.clamp_min(0.0) / _beyond(fall) * LOG_STEPS[-1]
    return torch.where(wet, rate.exp_().clamp_(max=HIGHEST_RATE), torch.zeros_like(rate))


def _fill(members: Float[Tensor, "m n"], levels: Float[Tensor, "k n"], noise: Float[Tensor, "m n"]) -> None:
    """Write the rates in mm/h of members, which are 0, at pixels with these logits, in the order of the noise."""
    M = len(members)
    cuts = logits_of_ranks(M).to(levels.device)[:, None]
    for first in range(0, members.shape[1], BLOCK):
        made, logits, field = (fields[:, first : first + BLOCK] for fields in (members, levels, noise))
        possible = (logits[0] >= math.log(LEAST_CHANCE / M)).nonzero()[:, 0]
        if not possible.numel():
            continue
        few = 2 * possible.numel() < logits.shape[1]
        if few:
            logits, field = logits.index_select(1, possible), field.index_select(1, possible)
        cut = cuts.repeat(1, field.shape[1])
        cut[-1] = logit_of_highest(field)
        rates = quantiles(logits, cut)
        if few:
            made[:, possible] = torch.empty_like(rates).scatter_(0, order(field), rates)
        else:
            made.scatter_(0, order(field), rates)


def quantiles(levels: Float[Tensor, "k n"], cuts: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """Return the rates in mm/h that are exceeded with the logits `cuts`.

    `levels` are the logits of all thresholds, none above the one before. The result equals `decided_rate` of
    `level - cut` for each cut, and is faster for many cuts.
    """
    reached, here = torch.zeros_like(cuts), torch.empty_like(cuts)
    lowest = cuts.min()
    for level in levels:
        if level.max() < lowest:  # nor does a higher one reach any
            break
        reached += torch.ge(level, cuts, out=here)  # into floats: comparisons into bytes take longer
    last = len(levels) - 1
    index = reached.long().sub_(1).clamp_(min=0)
    above = levels.gather(0, index)
    fall = above - levels.gather(0, (index + 1).clamp_(max=last))
    torch.where(index == last, _beyond(levels[-2] - levels[-1]), fall.clamp_min_(1e-6), out=fall)
    known = torch.tensor(THRESHOLDS, dtype=levels.dtype, device=levels.device).log()
    steps = known.diff()
    steps = torch.cat([steps, steps[-1:]])
    step, start = (values.index_select(0, index.flatten()).view_as(cuts) for values in (steps, known))
    rate = above.sub_(cuts).div_(fall).mul_(step).add_(start).exp_().clamp_(max=HIGHEST_RATE)
    return rate.mul_(reached.clamp_(max=1.0))


def expected_rate(chances: Sequence[Float[Tensor, "b t h w"]]) -> Float[Tensor, "b t h w"]:
    """Return ∫ P(R ≥ r) dr in mm/h by the trapezoidal rule.

    Above the last threshold P falls as `TAIL_POWER` says.
    """
    rate = chances[0] * THRESHOLDS[0]
    for (low, high), (first, second) in zip(pairwise(THRESHOLDS), pairwise(chances), strict=True):
        rate = rate + (high - low) / 2.0 * (first + second)
    return rate + chances[-1] * THRESHOLDS[-1] / (TAIL_POWER - 1.0)


def _beyond(fall: Tensor) -> Tensor:
    """Return the fall of a logit beyond the last threshold, per step of the last two, from that between these."""
    return fall.clamp_min(TAIL_POWER * LOG_STEPS[-1])


def _flow_area(newest: Tensor) -> Tensor:
    """Count the pixels of the advected newest frame (B, T, 1, h, w) that reach each threshold: (B, T, K)."""
    thresholds = torch.tensor(THRESHOLDS, dtype=newest.dtype, device=newest.device)[:, None, None]
    return (newest >= thresholds).to(newest.dtype).sum((-2, -1))


def _at(levels: Sequence[Tensor], threshold: float) -> Tensor:
    """Return the logit (B, T, H, W) at a threshold in mm/h."""
    k = sum(known < threshold for known in THRESHOLDS)
    if k == 0:
        return levels[0]
    if k == len(levels):
        fall = _beyond(levels[-2] - levels[-1])
        return levels[-1] - math.log(threshold / THRESHOLDS[-1]) / LOG_STEPS[-1] * fall
    low, high = THRESHOLDS[k - 1 : k + 1]
    return torch.lerp(levels[k - 1], levels[k], math.log(threshold / low) / math.log(high / low))


def _thinned(fields: Tensor) -> Tensor:
    """Subsample rows and columns so that at most about `PIXELS` pixels remain."""
    H, W = fields.shape[-2:]
    every = max(1, math.ceil(math.sqrt(H * W / PIXELS)))
    return fields[..., ::every, ::every].float().contiguous()
