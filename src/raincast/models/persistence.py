"""How long the rain at hand has persisted: a correction of probabilities by the past frames, without weights."""

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from raincast.transforms import THRESHOLDS

PRIOR_PIXELS = 5.0
"""The forecast counts as much as so many observed pixels."""

FEWEST_PIXELS = 3
"""Fewer pixels of the newest frame say nothing about their persistence."""

LOWEST, HIGHEST = 1e-6, 0.999
"""Bounds of the observed frequencies."""


def observed_persistence(
    logits: Float[Tensor, "b leads k h w"], past: Float[Tensor, "b t h w"], seen: Float[Tensor, "b t h w"]
) -> Float[Tensor, "b leads k h w"]:
    """Return logits that agree with what the past frames show.

    `logits` of P(R ≥ τ) at `THRESHOLDS` after 1, 2, … steps and `past` rates (mm/h) lie in coordinates that move
    with the rain; `seen` is 1 where they were observed. Pixels whose newest frame reaches a threshold, and those
    where it does not, are treated apart. Their mean probability of reaching it j steps later is compared with a
    frequency: how many pixels of that kind j steps before the newest frame reach it in the newest. Beyond the
    oldest frame the frequency's logit is linear in the logarithm of the lead time, and the comparison counts less.
    All logits of one kind move by the difference.
    """
    newest, known = past[:, -1], seen[:, -1] > 0.5
    before, both = past[:, :-1].flip(1), (seen[:, :-1].flip(1) > 0.5) & known[:, None]
    lags, steps = before.shape[1], logits.shape[1]
    logarithm = torch.arange(1, steps + 1, device=logits.device, dtype=logits.dtype).log()
    weight = torch.exp(-0.5 * (logarithm - math.log(lags)).clamp_min(0.0))
    at = torch.arange(lags, device=logits.device).clamp_max(steps - 1)
    levels = []
    for own, threshold in zip(logits.unbind(2), THRESHOLDS, strict=True):
        wet, was_wet = newest >= threshold, before >= threshold
        chance, moved = own.sigmoid(), own
        for now, then, sign in ((wet & known, was_wet & both, -1.0), (~wet & known, ~was_wet & both, 1.0)):
            count = now.sum((-2, -1))
            mean = (chance * now[:, None]).sum((-2, -1)) / count.clamp_min(1)[:, None]
            # the observed frequency at each lag, (B, lags)
            hits = (then & wet[:, None]).sum((-2, -1))
            observed = (hits + PRIOR_PIXELS * mean[:, at]) / (then.sum((-2, -1)) + PRIOR_PIXELS)
            observed = observed.clamp(LOWEST, HIGHEST).logit()
            slope = sign * (sign * (observed[:, -1] - observed[:, 0])).clamp_min(0.0) / math.log(max(lags, 2))
            expected = observed[:, :1] + slope[:, None] * logarithm
            shift = weight * (expected - mean.clamp(LOWEST, HIGHEST).logit())
            shift = shift * (count >= FEWEST_PIXELS)[:, None]
            moved = moved + shift[..., None, None] * now[:, None]
        levels.append(moved)
    # a higher threshold is not reached more often
    return torch.stack(list(itertools.accumulate(reversed(levels), torch.maximum))[::-1], dim=2)
