"""How long the rain at hand has persisted: corrections of probabilities by the past frames, without weights."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from raincast.transforms import THRESHOLDS

PRIOR_PIXELS = 5.0
"""The forecast counts as much as so many observed pixels when all pixels of the grid are compared."""

PRIOR_OF_A_WINDOW = 100.0
"""The same for pixels of a window, which resemble each other."""

PRIOR_OF_A_RATE = 20.0
"""The same for pixels of one rate, which are few and close to each other."""

WINDOWS_KM = 32.0, 24.0
"""Standard deviations of the windows within which rain is assumed to persist alike.

The second shows what the first has blurred.
"""

BLOCK = 8
"""Side in pixels of the blocks in which pixels are counted; between their centres, shifts are interpolated."""

FEWEST_PIXELS = 3
"""Fewer pixels of the newest frame say nothing about their persistence."""

LOWEST, HIGHEST = 1e-6, 0.999
"""Bounds of the observed frequencies."""

HEAVY = 2.0
"""Threshold in mm/h from which the present rate says how long rain lasts."""

LASTING = 0.5
"""Correlation with the newest frame from which the rain of a band of wavelengths counts as lasting."""

WIDTH = 0.2
"""Standard deviation of the smoothing, as a share of what the shortest lasting wavelength exceeds 2 pixels."""

WIDEST = 8.0
"""Upper bound of this standard deviation in pixels."""

POOL = 2
"""Side in pixels of the blocks of which probabilities are smoothed."""

CLASSES = tuple(sorted([*THRESHOLDS, *(math.sqrt(low * high) for low, high in pairwise(THRESHOLDS))]))
"""Rates (mm/h) that divide pixels into classes: the thresholds, and one rate between each two."""


def observed_persistence(
    logits: Float[Tensor, "b leads k h w"],
    past: Float[Tensor, "b t h w"],
    seen: Float[Tensor, "b t h w"],
    pixel_km: Float[Tensor, " b"],
) -> Float[Tensor, "b leads k h w"]:
    """Return logits that agree with what the past frames show.

    `logits` of P(R ≥ τ) at `THRESHOLDS` after 1, 2, … steps and `past` rates (mm/h) lie in coordinates that move
    with the rain; `seen` is 1 where they were observed. Pixels whose newest frame reaches a threshold, and those
    where it does not, are treated apart. Around each pixel (`WINDOWS_KM`), their mean probability of reaching it j
    steps later is compared with a frequency: how many pixels of that kind reach it j steps later in the past
    frames. Beyond these the frequency's logit is linear in the logarithm of the lead time, and the comparison
    counts less. The logits of one kind move by the difference. Before, smaller kinds are compared: see
    `observed_changes`.
    """
    return torch.stack(list(corrected([own.clone() for own in logits.unbind(1)], past, seen, pixel_km)), dim=1)


def corrected(leads: Sequence[Tensor], past: Tensor, seen: Tensor, pixel_km: Tensor) -> Sequence[Tensor]:
    """Return what `observed_persistence` does, from and as one tensor (B, K, H, W) for each lead time.

    Unless gradients are recorded or the network is traced, the result overwrites `leads`.
    """
    in_place, light = _in_place(), sum(threshold < HEAVY for threshold in THRESHOLDS)
    leads = observed_changes(leads, past, seen)
    if in_place:  # one lead time and threshold after the other, to save memory
        parts = [own[:, None] for own in leads]
        groups = [slice(k, k + 1) for k in range(len(THRESHOLDS))]
    else:  # many at once: a tracer writes out each turn of a loop
        parts, groups = [torch.stack(list(leads), dim=1)], [slice(0, light), slice(light, len(THRESHOLDS))]
    blocks = _Blocks(past, pixel_km)
    thresholds = torch.tensor(THRESHOLDS, dtype=past.dtype, device=past.device)[:, None, None]
    # masks are numbers: their products and sums are faster than logic and sums of bytes
    observed = (seen > 0.5).to(past.dtype)
    observed = (observed * observed[:, -1:])[:, :, None]
    pairs = blocks.successions(observed, observed)
    made: list[list[Tensor]] = [[] for _ in parts]  # from the highest threshold to the lowest
    for group in reversed(groups):
        wet = (past[:, :, None] >= thresholds[group]).to(past.dtype) * observed
        were, hits = blocks.successions(wet, observed), blocks.successions(wet, wet)
        counted = ((hits, were), (blocks.successions(observed, wet) - hits, pairs - were))
        kinds = (wet[:, -1:], observed[:, -1:] - wet[:, -1:])
        sums: tuple[list[Tensor], list[Tensor]] = ([], [])
        for part in parts:
            chance = part[:, :, group].sigmoid()
            for kind, of_kind in zip(kinds, sums, strict=True):
                of_kind.append(blocks.sums(chance * kind))
        levels = [part[:, :, group] for part in parts]
        for kind, chances, (hit, total), sign in zip(kinds, sums, counted, (-1.0, 1.0), strict=True):
            if in_place and not kind.is_meta and not kind.any():
                continue
            numbers = _Counted(torch.cat(chances, dim=1), blocks.sums(kind), hit, total)
            shifts = blocks.shift(numbers, sign, few=group.start >= light).chunk(len(parts), dim=1)
            levels = [
                torch.addcmul(level, kind, blocks.at_pixels(shift), out=level if in_place else None)
                for level, shift in zip(levels, shifts, strict=True)
            ]
        for level, own in zip(levels, made, strict=True):
            for one in reversed(level.unbind(2)):  # a higher threshold is not reached more often
                own.append(torch.maximum(one, own[-1], out=one if in_place else None) if own else one)
    return leads if in_place else torch.stack(made[0][::-1], dim=2).unbind(1)


class _Blocks:
    """Numbers of pixels in each block, and how forecast and observed frequencies differ around it.

    Sums over a window are products with matrices: the rounding of Fourier transforms (`optical_flow.smooth`) would
    show in small numbers.
    """

    def __init__(self, past: Float[Tensor, "b t h w"], pixel_km: Float[Tensor, " b"]) -> None:
        self.size = past.shape[-2:]
        self.windows = [
            [_gaussian(-(-side // BLOCK), km / pixel_km / BLOCK)[:, None] for side in self.size]
            for km in WINDOWS_KM
        ]

    def sums(self, maps: Float[Tensor, "b n k h w"]) -> Float[Tensor, "b n k y x"]:
        """Return the sum over each block; those at the edges may hold fewer pixels."""
        H, W = self.size
        flat = maps.flatten(1, 2)
        if H % BLOCK or W % BLOCK:
            flat = F.pad(flat, (0, -W % BLOCK, 0, -H % BLOCK))
        means = F.avg_pool2d(flat, BLOCK)
        return means.reshape(*maps.shape[:3], *means.shape[2:]) * float(BLOCK**2)

    def successions(
        self, before: Float[Tensor, "b t k h w"], after: Float[Tensor, "b t k h w"]
    ) -> Float[Tensor, "b lags k y x"]:
        """Return how many pixels were in `before` and 1, 2, … frames later in `after`."""
        lags = range(1, before.shape[1])
        return torch.cat([self.sums((before[:, :-lag] * after[:, lag:]).sum(1, True)) for lag in lags], dim=1)

    def at_pixels(self, blocks: Float[Tensor, "b l k y x"]) -> Float[Tensor, "b l k h w"]:
        """Interpolate between the centres of blocks."""
        H, W = self.size
        pixels = F.interpolate(
            blocks.flatten(1, 2), scale_factor=float(BLOCK), mode="bilinear", align_corners=False
        )
        return pixels.reshape(*blocks.shape[:3], *pixels.shape[2:])[..., :H, :W]

    def shift(self, of: "_Counted", sign: float, *, few: bool) -> Float[Tensor, "b l k y x"]:
        """Return the number to add to the logits of pixels of one kind in each block.

        Their share that reaches the threshold rises (`sign` 1) or falls (−1) with the lead time. If such pixels
        are `few`, what is not known around a block is taken from all blocks. What one window leaves of the
        difference, the next one compares.
        """
        shift = known = torch.zeros_like(of.chances)
        if few:
            whole = _Counted(*(number.sum((-2, -1), keepdim=True) for number in of))
            difference, weight = _difference(whole.mean(), whole, PRIOR_PIXELS, sign)
            shift = known = (weight * difference).expand_as(shift)
        for rows, columns in self.windows:
            near = _Counted(*(rows @ number @ columns for number in of))
            mean = (near.mean().logit() + known).sigmoid().clamp(LOWEST, HIGHEST)
            difference, weight = _difference(mean, near, PRIOR_OF_A_WINDOW, sign)
            shift, known = shift + weight * difference, known + difference
        return shift


class _Counted(NamedTuple):
    """Numbers of pixels of one kind in blocks (B, …, K, y, x).

    The forecast probabilities of its `pixels` (B, 1, K, y, x) add up to `chances` (B, L, K, y, x). `hits` of the
    `total` pixels in past frames (B, lags, K, y, x) reached the threshold 1, 2, … steps later.
    """

    chances: Tensor
    pixels: Tensor
    hits: Tensor
    total: Tensor

    def mean(self) -> Tensor:
        return (self.chances / self.pixels.clamp_min(1.0)).clamp(LOWEST, HIGHEST)


def _difference(mean: Tensor, of: _Counted, prior: float, sign: float) -> tuple[Tensor, Tensor]:
    """Return how far the logits of observed and `mean` forecast frequencies differ, and how much that counts.

    Both are (B, L, K, y, x). `mean` counts as much as `prior` observed pixels.
    """
    lags, L = of.hits.shape[1], mean.shape[1]
    logarithm = torch.arange(1, L + 1, device=mean.device, dtype=mean.dtype).log()[:, None, None, None]
    beyond = (logarithm - math.log(lags)).clamp_min(0.0)
    at = torch.arange(lags, device=mean.device).clamp_max(L - 1)
    observed = ((of.hits + prior * mean[:, at]) / (of.total + prior)).clamp(LOWEST, HIGHEST).logit()
    slope = sign * (sign * (observed[:, -1:] - observed[:, :1])).clamp_min(0.0) / math.log(max(lags, 2))
    fewest = of.total.amin(1, keepdim=True)
    certain = torch.where(beyond > 0, fewest / (fewest + prior), torch.ones_like(fewest))
    weight = certain * torch.exp(-0.5 * beyond) * (of.pixels >= FEWEST_PIXELS)
    return observed[:, :1] + slope * logarithm - mean.logit(), weight


def smoothing_width(correlation: Float[Tensor, "b leads bands"]) -> Float[Tensor, "b leads"]:
    """Return the standard deviation in pixels with which to smooth the probabilities of each lead time.

    `correlation` of S-PROG's bands, octaves from 2 pixels up, tells the shortest wavelength that lasts so long.
    Where rain of shorter ones will be is not known.
    """
    lasting, wavelength = torch.zeros_like(correlation[..., 0]), torch.full_like(correlation[..., 0], 2.0)
    for band in correlation.unbind(-1):  # a longer band that holds next to nothing does not count
        lasting = torch.maximum(lasting, band)
        wavelength = wavelength * (1.0 - lasting / LASTING).clamp_min(0.0).exp2()
    return (WIDTH * (wavelength - 2.0)).clamp_max(WIDEST)


def smoothed(
    chance: Float[Tensor, "b k h w"], seen: Float[Tensor, "b 1 h w"], width: Float[Tensor, " b"]
) -> Float[Tensor, "b k h w"]:
    """Return probabilities smoothed by a Gaussian of standard deviation `width` in pixels, over `seen` pixels.

    Others remain as they are. Means of blocks are smoothed and interpolated, which by itself is a smoothing of one
    pixel; a smaller width mixes these and the given probabilities. Unless gradients are recorded or the network is
    traced, the result overwrites `chance`.
    """
    H, W = chance.shape[-2:]
    pooled = F.avg_pool2d(F.pad(torch.cat([chance * seen, seen], dim=1), (0, -W % POOL, 0, -H % POOL)), POOL)
    blocks = (width.square() - 1.0).clamp_min(1e-4).sqrt() / POOL
    rows, columns = (_gaussian(side, blocks) for side in pooled.shape[-2:])
    sums = rows @ pooled @ columns
    means = sums[:, :-1] / sums[:, -1:].clamp_min(1e-6)
    means = F.interpolate(means, scale_factor=float(POOL), mode="bilinear", align_corners=False)[..., :H, :W]
    share = seen * width.square().clamp_max(1.0)[:, None, None, None]
    return torch.lerp(chance, means, share, out=chance if _in_place() else None)


def _gaussian(side: int, deviation: Float[Tensor, " b"]) -> Float[Tensor, "b 1 n n"]:
    """Return the weight of each block for each other one along a side; `deviation` is in blocks."""
    at = torch.arange(side, device=deviation.device, dtype=deviation.dtype)
    return torch.exp(-0.5 * ((at[:, None] - at) / deviation[:, None, None, None]).square())


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
