"""Errors in mm/h: sums per event and lead time, and the means made of them."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


class ErrorSums(NamedTuple):
    """Sums over the counted pixels; they merge by addition. Errors are forecast minus observation."""

    count: Int64[Tensor, "..."]  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    error: Float[Tensor, "..."]
    """mm/h, float64 as the next two"""
    absolute_error: Float[Tensor, "..."]
    squared_error: Float[Tensor, "..."]
    """(mm/h)²"""


def error_sums(
    pred: Float[Tensor, "b t c h w"],
    target: Float[Tensor, "b t c h w"],
    mask: Bool[Tensor, "b t c h w"],
) -> ErrorSums:
    """Sums over C, H, W where `mask` is True, (B, T) each. Elsewhere pred and target may be NaN."""
    error = (pred - target).masked_fill(~mask, 0.0).flatten(2)
    total = error.sum(-1, dtype=torch.float64)
    if bool(total.isnan().any()):
        raise ValueError(
            f"pred or target has NaN inside the mask (pred: {_masked_nans(pred, mask)} pixels, "
            f"target: {_masked_nans(target, mask)} pixels). Fill the forecast; mask what was not observed."
        )
    return ErrorSums(
        count=mask.flatten(2).sum(-1),
        error=total,
        absolute_error=error.abs().sum(-1, dtype=torch.float64),
        squared_error=error.double().square().sum(-1),
    )


def mean_error(sums: ErrorSums) -> Float[Tensor, "..."]:
    """Mean of forecast minus observation in mm/h; NaN without pixels."""
    return sums.error / sums.count


def mae(sums: ErrorSums) -> Float[Tensor, "..."]:
    """Mean absolute error in mm/h; NaN without pixels."""
    return sums.absolute_error / sums.count


def rmse(sums: ErrorSums) -> Float[Tensor, "..."]:
    """Root mean square error in mm/h; NaN without pixels."""
    return (sums.squared_error / sums.count).sqrt()


def _masked_nans(values: Tensor, mask: Tensor) -> int:
    return int((values.isnan() & mask).sum())
