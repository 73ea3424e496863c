"""Scores of ensembles, rain rates in mm/h: (B, T, M, H, W), with M members of one rain field on the axis of
channels.

An ensemble has one channel, so members and channels never share an axis.

Others are scores of members as a whole: means over boxes, and how well members agree with each other across boxes.
A catchment receives the rain of many pixels. Members that are reliable at every pixel may still be wrong for the
catchment if they lack the spatial correlation of rain.
"""

from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from raincast.metrics.categorical import check_finite

LEAST_SHARE = 0.5
"""A box counts if at least half of its pixels do."""

LAGS = (1, 2, 4, 8)
"""Distances in boxes of the pairs of the variogram score; a pair weighs 1 / distance."""


class EnsembleSums(NamedTuple):
    """Sums over the counted pixels, float64 but for the count; they merge by addition. One M throughout."""

    count: Int64[Tensor, "..."]  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    absolute_error: Float[Tensor, "..."]
    """of the members' mean |x − y|, mm/h"""
    difference: Float[Tensor, "..."]
    """of the mean |x − x'| over all M² pairs of members, mm/h"""
    fair_difference: Float[Tensor, "..."]
    """the same over the M(M − 1) pairs of two members; NaN for one member"""
    variance: Float[Tensor, "..."]
    """of the variance (M − 1) times (M + 1) / M, (mm/h)²; NaN for one member"""
    squared_error: Float[Tensor, "..."]
    """of the ensemble mean, (mm/h)²"""


def ensemble_sums(
    ensemble: Float[Tensor, "b t m h w"],
    target: Float[Tensor, "b t 1 h w"],
    mask: Bool[Tensor, "b t 1 h w"],
) -> EnsembleSums:
    """Sums over H, W where `mask` is True, (B, T) each. Elsewhere all may be NaN; inside it that is an error."""
    check_members(ensemble, target, mask)
    B, T, M = ensemble.shape[:3]
    pairs = M * (M - 1) if M > 1 else torch.nan
    rank = torch.arange(1, M + 1, dtype=torch.float64, device=ensemble.device)[:, None]
    sums = torch.zeros(5, B, T, dtype=torch.float64, device=ensemble.device)
    for b, t in product(range(B), range(T)):  # a frame at once: float64 of all would be large
        x, y = counted_pixels(ensemble[b, t], target[b, t], mask[b, t])
        # Σ|x − x'| over all M² pairs = 2·Σᵢ (2i − M − 1)·xᵢ of the sorted members, i = 1 … M: no M² copies
        differences = 2 * ((2 * rank - M - 1) * x.sort(dim=0).values).sum()
        mean = x.mean(0)
        sums[0, b, t] = (x - y).abs().mean(0).sum()
        sums[1, b, t] = differences / M**2
        sums[2, b, t] = differences / pairs
        sums[3, b, t] = (x - mean).square().sum() * (M + 1) / pairs
        sums[4, b, t] = (mean - y).square().sum()
    return EnsembleSums(mask.flatten(2).sum(-1), *sums)


def crps(sums: EnsembleSums) -> Float[Tensor, "..."]:
    """CRPS in mm/h with the members as the distribution, mean |x − y| − ½ mean |x − x'|; NaN without pixels.

    No distribution is fitted to the members. The CRPS of one member is its MAE.
    """
    return (sums.absolute_error - 0.5 * sums.difference) / sums.count


def fair_crps(sums: EnsembleSums) -> Float[Tensor, "..."]:
    """CRPS in mm/h that does not favour large ensembles (Ferro 2014); NaN without pixels and for one member."""
    return (sums.absolute_error - 0.5 * sums.fair_difference) / sums.count


def spread(sums: EnsembleSums) -> Float[Tensor, "..."]:
    """Root mean variance of the members times (M + 1) / M, in mm/h; NaN without pixels and for one member.

    In a reliable ensemble it equals `mean_rmse` (Fortin et al. 2014).
    """
    return (sums.variance / sums.count).sqrt()


def mean_rmse(sums: EnsembleSums) -> Float[Tensor, "..."]:
    """Root mean square error of the ensemble mean in mm/h; NaN without pixels."""
    return (sums.squared_error / sums.count).sqrt()


def spread_error_ratio(sums: EnsembleSums) -> Float[Tensor, "..."]:
    """`spread` divided by `mean_rmse`: 1 is best, below 1 the ensemble is underdispersive; NaN if either is
    undefined or 0."""
    return spread(sums) / mean_rmse(sums).masked_fill(sums.squared_error == 0, torch.nan)


def rank_histogram(
    ensemble: Float[Tensor, "b t m h w"],
    target: Float[Tensor, "b t 1 h w"],
    mask: Bool[Tensor, "b t 1 h w"],
) -> Float[Tensor, "b t r"]:
    """Count the pixels whose observation exceeds 0, 1 … M members, float64 (B, T, M + 1), inside the mask.

    An observation that equals members counts in equal parts for each possible rank (mostly 0 mm/h among zeros).
    The counts merge by addition. Divided by their total they are frequencies, each 1 / (M + 1) for a reliable
    ensemble. NaN inside the mask is an error.
    """
    check_members(ensemble, target, mask)
    B, T, M = ensemble.shape[:3]
    first, rank = torch.arange((M + 1) ** 2)[:, None] // (M + 1), torch.arange(M + 1)
    last = torch.arange((M + 1) ** 2)[:, None] % (M + 1)
    shares = ((first <= rank) & (rank <= last)).double() / (last - first + 1).clamp_min(1)
    shares = shares.to(ensemble.device)
    counts = torch.zeros(B, T, M + 1, dtype=torch.float64, device=ensemble.device)
    for b, t in product(range(B), range(T)):
        x, y = counted_pixels(ensemble[b, t], target[b, t], mask[b, t])
        lowest, highest = (x < y).sum(0), (x <= y).sum(0)
        both = torch.bincount(lowest * (M + 1) + highest, minlength=(M + 1) ** 2)
        counts[b, t] = both.double() @ shares
    return counts


def check_members(ensemble: Tensor, target: Tensor, mask: Tensor) -> None:
    """Raise ValueError for NaN inside the mask."""
    check_finite("ensemble", ensemble, mask.expand_as(ensemble))
    check_finite("target", target, mask)


def counted_pixels(
    members: Float[Tensor, "m h w"], observed: Float[Tensor, "1 h w"], mask: Bool[Tensor, "1 h w"]
) -> tuple[Float[Tensor, "m n"], Float[Tensor, " n"]]:
    """Return members and observation at the N pixels of the mask, float64."""
    return members[:, mask[0]].double(), observed[0][mask[0]].double()


def areal_means(
    ensemble: Float[Tensor, "b t m h w"],
    target: Float[Tensor, "b t 1 h w"],
    mask: Bool[Tensor, "b t 1 h w"],
    *,
    size: int,
) -> tuple[Float[Tensor, "b t m v u"], Float[Tensor, "b t 1 v u"], Bool[Tensor, "b t 1 v u"]]:
    """Return means over boxes of `size` × `size` pixels side by side, float64, and which of them count.

    Means are over the pixels of the mask, the same on both sides. A box counts if at least half of it is in the
    mask.
    Pixels after the last whole box at the lower and right edges are left out. If the box is larger than the field,
    there is none (V or U is 0). NaN inside the mask is an error.
    """
    if size < 1:
        raise ValueError(f"Boxes of {size} pixels: choose 1 or more.")
    check_members(ensemble, target, mask)
    B, T, M, H, W = ensemble.shape
    means = torch.zeros(B, T, M + 1, H // size, W // size, dtype=torch.float64, device=ensemble.device)
    counted = torch.zeros_like(means[:, :, :1], dtype=torch.bool)
    if not means.numel():
        return means[:, :, :M], means[:, :, M:], counted
    for b, t in product(range(B), range(T)):  # a frame at once: float64 of all would be large
        rain = torch.cat([ensemble[b, t], target[b, t]]).double().masked_fill(~mask[b, t], 0.0)
        share = functional.avg_pool2d(mask[b, t].double(), size)
        means[b, t] = functional.avg_pool2d(rain, size) / share.clamp_min(1.0 / size**2)
        counted[b, t] = share >= LEAST_SHARE
    return means[:, :, :M], means[:, :, M:], counted


class MultivariateSums(NamedTuple):
    """Sums over frames; they merge by addition."""

    frames: Int64[Tensor, "..."]
    """with at least one counted box"""
    energy: Float[Tensor, "..."]
    """of the energy score of a frame, mm/h, float64 as all that follow"""
    fair_energy: Float[Tensor, "..."]
    """the same with the pairs of two members; NaN for one member"""
    variogram: Float[Tensor, "..."]
    """of w·(observed − mean of the members)² over pairs of boxes, mm/h"""
    weight: Float[Tensor, "..."]
    """of w over the same pairs"""


def multivariate_sums(
    ensemble: Float[Tensor, "b t m v u"],
    target: Float[Tensor, "b t 1 v u"],
    mask: Bool[Tensor, "b t 1 v u"],
) -> MultivariateSums:
    """Return sums over the N boxes of each frame that count, (B, T) each.

    Energy score (Gneiting et al. 2008): 1/M Σ‖xᵢ − y‖ − 1/(2M²) ΣΣ‖xᵢ − xⱼ‖ of the vectors of N boxes, divided
    by √N so that it is in mm/h and does not grow with the number of boxes. Fair: M(M − 1) in the place of M².

    Variogram score of order ½ (Scheuerer and Hamill 2015): Σ w (√|yₐ − y_b| − 1/M Σᵢ √|xᵢₐ − xᵢ_b|)² over pairs of
    boxes along y and along x that are `LAGS` boxes apart, w = 1 / distance. Other pairs have no weight. Divided by
    Σw it is in mm/h.
    """
    check_members(ensemble, target, mask)
    B, T, M = ensemble.shape[:3]
    pairs = M * (M - 1) if M > 1 else torch.nan
    sums = torch.zeros(4, B, T, dtype=torch.float64, device=ensemble.device)
    for b, t in product(range(B), range(T)):
        x, y = counted_pixels(ensemble[b, t], target[b, t], mask[b, t])
        if not y.numel():
            continue
        scale = y.numel() ** -0.5
        error = (x - y).norm(dim=1).mean() * scale
        within = torch.pdist(x).sum() * scale  # of each pair once
        sums[0, b, t], sums[1, b, t] = error - within / M**2, error - within / pairs
        sums[2:, b, t] = _variogram(ensemble[b, t].double(), target[b, t].double(), mask[b, t])
    return MultivariateSums(mask.flatten(2).any(-1).long(), *sums)


def _variogram(members: Float[Tensor, "m v u"], observed: Float[Tensor, "1 v u"], mask: Tensor) -> Tensor:
    """Return Σ w·(…)² and Σ w of a frame, (2,)."""
    total = torch.zeros(2, dtype=torch.float64, device=members.device)
    for lag, dim in product(LAGS, (1, 2)):
        number = members.shape[dim] - lag
        if number < 1:
            continue

        def apart(fields: Tensor, lag: int = lag, dim: int = dim, number: int = number) -> tuple[Tensor, Tensor]:
            return fields.narrow(dim, 0, number), fields.narrow(dim, lag, number)

        one, other = apart(mask)
        counted = one & other
        roots = [(a - b).abs().sqrt().mean(0, keepdim=True) for a, b in (apart(members), apart(observed))]
        squared = (roots[0] - roots[1]).square()
        total += torch.stack([squared[counted].sum(), counted.sum()]) / lag
    return total


def energy_score(sums: MultivariateSums) -> Float[Tensor, "..."]:
    """Return the mean energy score of a frame in mm/h, per root of the number of boxes; NaN without frames."""
    return sums.energy / sums.frames


def fair_energy_score(sums: MultivariateSums) -> Float[Tensor, "..."]:
    """Return the fair energy score, independent of the ensemble size; NaN without frames and for one member."""
    return sums.fair_energy / sums.frames


def variogram_score(sums: MultivariateSums) -> Float[Tensor, "..."]:
    """Return the variogram score of order ½ in mm/h, mean over weighted pairs of boxes; NaN without pairs."""
    return sums.variogram / sums.weight
