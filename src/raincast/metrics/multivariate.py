"""Scores of members as a whole: means over boxes, and how well members agree with each other across boxes.

A catchment receives the rain of many pixels. Members that are reliable at every pixel may still be wrong for the
catchment if they lack the spatial correlation of rain.
"""

from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from raincast.metrics.ensemble import check_members, counted_pixels

LEAST_SHARE = 0.5
"""A box counts if at least half of its pixels do."""

LAGS = (1, 2, 4, 8)
"""Distances in boxes of the pairs of the variogram score; a pair weighs 1 / distance."""


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
