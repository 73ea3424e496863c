"""Errors in mm/h: sums per event and lead time, and means computed from them."""

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from raincast.metrics.categorical import over_frames
from raincast.transforms import ZR, DbzScaling

HKO7_THRESHOLDS = (0.5, 2.0, 5.0, 10.0, 30.0)
"""mm/h (Shi et al. 2017)"""
HKO7_WEIGHTS = (1.0, 1.0, 2.0, 5.0, 10.0, 30.0)
"""of the bins they cut, each closed below"""
HKO7_PIXEL = DbzScaling(a=58.53, b=1.56, min_dbz=-10.0, max_dbz=60.0)
"""mm/h to HKO-7's pixel, 0 to 1"""


class ErrorSums(NamedTuple):
    """Sums over the counted pixels; they merge by addition. Errors are forecast minus observation."""

    count: Int64[Tensor, "..."]  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    error: Float[Tensor, "..."]
    """mm/h, float64 as the next two"""
    absolute_error: Float[Tensor, "..."]
    squared_error: Float[Tensor, "..."]
    """(mm/h)², as all that follow but the two sums of rates"""
    pred: Float[Tensor, "..."]
    target: Float[Tensor, "..."]
    """mm/h"""
    pred_squared: Float[Tensor, "..."]
    target_squared: Float[Tensor, "..."]
    product: Float[Tensor, "..."]


def error_sums(
    pred: Float[Tensor, "b t c h w"],
    target: Float[Tensor, "b t c h w"],
    mask: Bool[Tensor, "b t c h w"],
) -> ErrorSums:
    """Sums over C, H, W where `mask` is True, (B, T) each. Elsewhere pred and target may be NaN."""
    return ErrorSums(*over_frames(error_rows, pred, target, mask))


def error_rows(pred: Float[Tensor, "n p"], target: Float[Tensor, "n p"], count: Int64[Tensor, " n"]) -> ErrorSums:
    """As `frames.Rows`: (N,) each."""
    observed = target.double()
    error = pred.double().sub_(observed)  # exact: a forecast that is right has none at all
    total, observed_total = error.sum(-1), observed.sum(-1)
    squared, product, observed_squared = dot(error, error), dot(error, observed), dot(observed, observed)
    absolute = error.abs_().sum(-1)  # last, and in place: another field would be another read of memory
    return ErrorSums(
        count=count,
        error=total,
        absolute_error=absolute,
        squared_error=squared,
        # p = e + t, so that no third field is read
        pred=total + observed_total,
        target=observed_total,
        pred_squared=(squared + 2 * product + observed_squared).clamp_min(0.0),
        target_squared=observed_squared,
        product=product + observed_squared,
    )


def dot(a: Float[Tensor, "*n p"], b: Float[Tensor, "*n p"]) -> Float[Tensor, "*n"]:
    """Σab over the last axis, without holding the products."""
    return (a.unsqueeze(-2) @ b.unsqueeze(-1))[..., 0, 0]


def mean_error(sums: ErrorSums) -> Float[Tensor, "..."]:
    """Mean of forecast minus observation in mm/h; NaN without pixels."""
    return sums.error / sums.count


def mae(sums: ErrorSums) -> Float[Tensor, "..."]:
    """Mean absolute error in mm/h; NaN without pixels."""
    return sums.absolute_error / sums.count


def rmse(sums: ErrorSums) -> Float[Tensor, "..."]:
    """Root mean square error in mm/h; NaN without pixels."""
    return (sums.squared_error / sums.count).sqrt()


def correlation(sums: ErrorSums) -> Float[Tensor, "..."]:
    """Pearson's correlation, about the means over all counted pixels; NaN where either side is constant."""
    n = sums.count.double()
    covariance = n * sums.product - sums.pred * sums.target
    variances = [_variance(n, sums.pred, sums.pred_squared), _variance(n, sums.target, sums.target_squared)]
    return covariance / (variances[0].sqrt() * variances[1].sqrt())


def uncentred_correlation(sums: ErrorSums) -> Float[Tensor, "..."]:
    """Σpt / √(Σp²·Σt²), the correlation of Shi et al. (2015); NaN where either side has no rain."""
    norms = [s.masked_fill(s == 0, torch.nan).sqrt() for s in (sums.pred_squared, sums.target_squared)]
    return sums.product / (norms[0] * norms[1])


def _variance(n: Tensor, total: Tensor, squared: Tensor) -> Tensor:
    """n² times the variance; NaN if it is only the rounding error of its two terms."""
    variance = n * squared - total.square()
    return variance.masked_fill(variance <= 1e-12 * n * squared, torch.nan)


class BalancedSums(NamedTuple):
    """Weighted errors of HKO-7's pixel (0 to 1, `HKO7_PIXEL`), float64; they merge by addition."""

    pixels: Int64[Tensor, "..."]
    """counted ones, whatever their weight"""
    frames: Int64[Tensor, "..."]
    """with at least one counted pixel"""
    squared: Float[Tensor, "..."]
    absolute: Float[Tensor, "..."]


def balanced_rows(
    pred: Float[Tensor, "n p"],
    target: Float[Tensor, "n p"],
    count: Int64[Tensor, " n"],
    *,
    thresholds: Sequence[float] = HKO7_THRESHOLDS,
    weights: Sequence[float] = HKO7_WEIGHTS,
    pixel: DbzScaling = HKO7_PIXEL,
) -> BalancedSums:
    """As `frames.Rows`: (N,) each. Pixels below `least_rate` on both sides may be left out."""
    weight, reached = torch.full_like(target, weights[0]), torch.empty_like(target)
    for threshold, (lighter, heavier) in zip(thresholds, pairwise(weights), strict=True):
        if heavier != lighter:
            weight.add_(torch.ge(target, threshold, out=reached), alpha=heavier - lighter)
    weight = weight.double()
    error = (pixel.forward(pred) - pixel.forward(target)).double()
    return BalancedSums(
        pixels=count,
        frames=(count > 0).long(),
        squared=dot(weight * error, error),
        absolute=dot(weight, error.abs()),
    )


@functools.cache
def least_rate(pixel: DbzScaling = HKO7_PIXEL) -> float:
    """Rate in mm/h below which the pixel value is 0, reduced by 0.1 % for the rounding of float32."""
    return 0.999 * float(ZR(pixel.a, pixel.b).to_rate(torch.tensor(pixel.min_dbz, dtype=torch.float64)))


def balanced_mse(sums: BalancedSums) -> Float[Tensor, "..."]:
    """Mean weighted squared error per pixel, independent of the size of the image; NaN without pixels."""
    return sums.squared / sums.pixels


def balanced_mae(sums: BalancedSums) -> Float[Tensor, "..."]:
    """Mean weighted absolute error per pixel, independent of the size of the image; NaN without pixels."""
    return sums.absolute / sums.pixels


def hko7_b_mse(sums: BalancedSums) -> Float[Tensor, "..."]:
    """HKO-7's B-MSE, the sum over a frame, comparable only on its 480 × 480 pixels; NaN without frames."""
    return sums.squared / sums.frames


def hko7_b_mae(sums: BalancedSums) -> Float[Tensor, "..."]:
    """HKO-7's B-MAE, the sum over a frame, comparable only on its 480 × 480 pixels; NaN without frames."""
    return sums.absolute / sums.frames
