"""How long the rain at hand has persisted: a correction of probabilities by the past frames, without weights."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from raincast.transforms import THRESHOLDS

PRIOR_PIXELS = 5.0
"""The forecast counts as much as so many observed pixels."""

PRIOR_OF_A_RATE = 20.0
"""The same for pixels of one rate, which are few and close to each other."""

FEWEST_PIXELS = 3
"""Fewer pixels of the newest frame say nothing about their persistence."""

LOWEST, HIGHEST = 1e-6, 0.999
"""Bounds of the observed frequencies."""

HEAVY = 2.0
"""Threshold in mm/h from which the present rate says how long rain lasts."""

CLASSES = tuple(sorted([*THRESHOLDS, *(math.sqrt(low * high) for low, high in pairwise(THRESHOLDS))]))
"""Rates (mm/h) that divide pixels into classes: the thresholds, and one rate between each two."""


def observed_persistence(
    logits: Float[Tensor, "b leads k h w"], past: Float[Tensor, "b t h w"], seen: Float[Tensor, "b t h w"]
) -> Float[Tensor, "b leads k h w"]:
    """Return logits that agree with what the past frames show.

    `logits` of P(R ≥ τ) at `THRESHOLDS` after 1, 2, … steps and `past` rates (mm/h) lie in coordinates that move
    with the rain; `seen` is 1 where they were observed. Pixels whose newest frame reaches a threshold, and those
    where it does not, are treated apart. Their mean probability of reaching it j steps later is compared with a
    frequency: how many pixels of that kind j steps before the newest frame reach it in the newest. Beyond the
    oldest frame the frequency's logit is linear in the logarithm of the lead time, and the comparison counts less.
    All logits of one kind move by the difference. Before, smaller kinds are compared: see `observed_changes`.
    """
    return torch.stack(list(corrected([own.clone() for own in logits.unbind(1)], past, seen)), dim=1)


def corrected(leads: Sequence[Tensor], past: Tensor, seen: Tensor) -> Sequence[Tensor]:
    """Return what `observed_persistence` does, from and as one tensor (B, K, H, W) for each lead time.

    Unless gradients are recorded or the network is traced, the result overwrites `leads`.
    """
    in_place = _in_place()
    leads = observed_changes(leads, past, seen)
    levels = [[level if in_place else level.clone() for level in own.unbind(1)] for own in leads]
    # masks are numbers: their products and sums are faster than logic and sums of bytes
    both = (seen > 0.5).to(leads[0].dtype)
    both = both * both[:, -1:]
    rain = torch.where(both > 0, past, -torch.ones_like(past))
    newest, known, before, both = rain[:, -1], both[:, -1], rain[:, :-1].flip(1), both[:, :-1].flip(1)
    for k in reversed(range(len(THRESHOLDS))):
        wet = (newest >= THRESHOLDS[k]).to(known.dtype)
        kinds = (wet, known - wet)
        was_wet = (before >= THRESHOLDS[k]).to(known.dtype)
        were = was_wet.sum((-2, -1))
        hits = was_wet.mul_(wet[:, None]).sum((-2, -1))
        hits_of_dry = (both * wet[:, None]).sum((-2, -1)) - hits
        counted = ((hits, were), (hits_of_dry, both.sum((-2, -1)) - were))
        means: tuple[list[Tensor], list[Tensor]] = ([], [])
        for own in levels:
            chance = own[k].sigmoid()
            for kind, sums in zip(kinds, means, strict=True):
                sums.append((chance * kind).sum((-2, -1)))
        shifts = [
            _shift(torch.stack(sums, dim=1), kind.sum((-2, -1)), *numbers, sign)
            for sums, kind, numbers, sign in zip(means, kinds, counted, (-1.0, 1.0), strict=True)
        ]
        for lead, own in enumerate(levels):
            for kind, shift in zip(kinds, shifts, strict=True):
                own[k].addcmul_(kind, shift[:, lead, None, None])
            if k + 1 < len(own):  # a higher threshold is not reached more often
                own[k] = torch.maximum(own[k], own[k + 1], out=own[k] if in_place else None)
    return leads if in_place else [torch.stack(own, dim=1) for own in levels]


def _shift(sums: Tensor, count: Tensor, hits: Tensor, total: Tensor, sign: float) -> Tensor:
    """Return the number (B, L) to add to the logits of `count` pixels whose probabilities add up to `sums`.

    `hits` of the `total` pixels of this kind before reached the threshold in the newest frame, (B, lags). Their
    share rises (`sign` 1) or falls (−1) with the lead time.
    """
    lags, L = hits.shape[1], sums.shape[1]
    logarithm = torch.arange(1, L + 1, device=sums.device, dtype=sums.dtype).log()
    weight = torch.exp(-0.5 * (logarithm - math.log(lags)).clamp_min(0.0))
    at = torch.arange(lags, device=sums.device).clamp_max(L - 1)
    mean = sums / count.clamp_min(1.0)[:, None]
    observed = (hits + PRIOR_PIXELS * mean[:, at]) / (total + PRIOR_PIXELS)
    observed = observed.clamp(LOWEST, HIGHEST).logit()
    slope = sign * (sign * (observed[:, -1:] - observed[:, :1])).clamp_min(0.0) / math.log(max(lags, 2))
    shift = weight * (observed[:, :1] + slope * logarithm - mean.clamp(LOWEST, HIGHEST).logit())
    return shift * (count >= FEWEST_PIXELS)[:, None]


def observed_changes(
    leads: Sequence[Float[Tensor, "b k h w"]], past: Float[Tensor, "b t h w"], seen: Float[Tensor, "b t h w"]
) -> Sequence[Float[Tensor, "b k h w"]]:
    """Return logits after 1, 2, … steps that agree with how rain of each rate has changed in as many steps.

    Pixels are divided by the rate of the newest frame (`CLASSES`). The mean probability of each class at each
    threshold is compared with how many pixels of that class so many steps before reach it in the newest frame.
    All logits of a class move by the difference; those of thresholds below `HEAVY` by the difference over the
    number of steps, for the present rate soon says little about light rain. Beyond the oldest frame those of the
    higher thresholds move towards a frequency whose logit is linear in the logarithm of the lead time, the less
    the farther ahead. Unless gradients are recorded or the network is traced, the result overwrites `leads`.
    """
    edges = torch.tensor(CLASSES, dtype=past.dtype, device=past.device)
    num, reach = len(CLASSES) + 1, past.shape[1] - 1
    classes = torch.bucketize(past.contiguous(), edges, right=True)
    now, known = classes[:, -1:], (seen[:, -1:] > 0.5).to(past.dtype)
    count = _sums(known, now, num)
    at = [CLASSES.index(threshold) + 1 for threshold in THRESHOLDS]
    light = sum(threshold < HEAVY for threshold in THRESHOLDS)
    made = []
    observed: list[Tensor] = []  # logits of frequencies by number of steps
    enough = (count >= FEWEST_PIXELS).to(past.dtype)
    certain = torch.ones_like(count)
    for steps, logits in enumerate(leads, start=1):
        first = light if steps > reach else 0  # of the thresholds
        own = logits[:, first:]
        place = now.expand(own.shape)
        mean = _sums(own.sigmoid() * known, place, num) / count.clamp_min(1.0)
        expected = mean.clamp(LOWEST, HIGHEST).logit()
        if steps <= reach:
            before = slice(-1 - steps, -steps)
            both = known * (seen[:, before] > 0.5)
            changes = _sums(both, classes[:, before] * num + now, num * num).view(-1, num, num)
            reached = changes.flip(2).cumsum(2).flip(2)[:, :, at].transpose(1, 2)  # pixels that become so wet
            total = changes.sum(2)[:, None]
            certain = torch.minimum(certain, total / (total + PRIOR_OF_A_RATE))
            observed.append(
                ((reached + PRIOR_OF_A_RATE * mean) / (total + PRIOR_OF_A_RATE)).clamp(LOWEST, HIGHEST).logit()
            )
            shift = observed[-1] - expected
            shift = torch.cat([shift[:, :light] / steps, shift[:, light:]], dim=1) * enough
        else:
            near, far = observed[0][:, first:], observed[-1][:, first:]
            trend = (far - near) / math.log(max(reach, 2)) * math.log(steps / reach)
            shift = (far + trend - expected) * (reach / steps) ** 3 * certain * enough
        shift = shift[:, :, None].expand(-1, -1, own.shape[2], -1).gather(3, place)
        if _in_place():
            made.append(logits)
            own.addcmul_(shift, known)
        else:
            made.append(torch.cat([logits[:, :first], torch.addcmul(own, shift, known)], dim=1))
    return made


def _in_place() -> bool:
    # a tracer writes out all views of a tensor again after each change of one, and for one batch size only
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def _sums(values: Float[Tensor, "b k h w"], place: Int[Tensor, "b k h w"], num: int) -> Float[Tensor, "b k num"]:
    """Return the sum of the values at each place; rows first, for sums of many small numbers lose digits."""
    rows = torch.zeros((*values.shape[:3], num), dtype=values.dtype, device=values.device)
    return rows.scatter_add(3, place, values).sum(2)
