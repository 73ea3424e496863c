"""Training losses: `loss(pred, target, mask)` on (B, T, C, H, W), in network units."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


@runtime_checkable  # so that checked annotations (jaxtyping, beartype) accept it
class RateTransform(Protocol):
    """What maps mm/h to network units, such as `transforms.DbzScaling`."""

    def forward(self, rate: Tensor) -> Tensor:
        """Rain rate in mm/h → network units."""


class BalancedLoss(nn.Module):
    """Squared and absolute error, each pixel weighted by how hard it truly rains (Shi et al. 2017).

    weight · (mse_weight · (pred − target)² + mae_weight · |pred − target|), summed over the pixels of the
    mask and divided by B·T·C·H·W, the count of all pixels, masked ones included. That is a constant: the
    mean over ranks with equal batches is the value of one process with the whole batch, and the loss does
    not depend on the size of the image. HKO-7's figures are sums over the pixels of a frame: H·W times
    this.
    """

    bounds: Tensor
    weights: Tensor

    def __init__(
        self,
        transform: RateTransform,
        *,
        thresholds: Sequence[float] = (0.5, 2.0, 5.0, 10.0, 30.0),
        weights: Sequence[float] = (1.0, 1.0, 2.0, 5.0, 10.0, 30.0),
        mse_weight: float = 1.0,
        mae_weight: float = 1.0,
    ) -> None:
        """`thresholds` in mm/h cut the targets into bins, each closed below; `weights` has one per bin."""
        super().__init__()
        if len(weights) != len(thresholds) + 1:
            raise ValueError(
                f"{len(thresholds)} thresholds cut {len(thresholds) + 1} bins, found {len(weights)} weights: "
                f"thresholds={list(thresholds)}, weights={list(weights)}."
            )
        bounds = transform.forward(torch.tensor(list(thresholds), dtype=torch.float64))
        if not bool((bounds.diff() > 1e-5).all()):
            raise ValueError(
                f"thresholds={list(thresholds)} mm/h are {bounds.tolist()} in network units, which must "
                f"increase. Sort them, or drop those outside the range of {transform}."
            )
        # float32 rounding of a rate at the threshold must not put it below. In DbzScaling 1e-6 is a
        # hundred-thousandth of the rate, far below the resolution of any radar.
        self.register_buffer("bounds", (bounds - 1e-6).float(), persistent=False)
        self.register_buffer("weights", torch.tensor(list(weights), dtype=torch.float32), persistent=False)
        self.mse_weight = mse_weight
        self.mae_weight = mae_weight

    def forward(
        self,
        pred: Float[Tensor, "b t c h w"],
        target: Float[Tensor, "b t c h w"],
        mask: Bool[Tensor, "b t c h w"],
    ) -> Float[Tensor, ""]:
        """The loss; pixels where `mask` is False, NaN included, change neither value nor gradient."""
        zero = target.new_zeros(())
        target = torch.where(mask, target, zero)
        error = torch.where(mask, pred.to(target.dtype), zero) - target
        weight = self.weights.to(target.dtype)[torch.bucketize(target, self.bounds.to(target.dtype), right=True)]
        # error is 0 under the mask, so that the weight there does not matter
        balanced = weight * (self.mse_weight * error.square() + self.mae_weight * error.abs())
        return balanced.sum() / target.numel()
