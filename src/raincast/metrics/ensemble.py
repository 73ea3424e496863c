"""Scores of ensembles, rain rates in mm/h: (B, T, M, H, W), with M members of one rain field on the axis of
channels.

An ensemble has one channel, so members and channels never share an axis.
"""

from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from raincast.metrics.categorical import check_finite


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
