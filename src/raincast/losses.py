"""Training losses: `loss(pred, target, mask)`, tensors (B, T, ·, H, W) in network units.

`pred` is what the network's head makes of its output (`models.heads`): the rain itself, logits of rain classes,
or quantiles. `target` and `mask` have one channel. Every loss is a sum over the pixels of the mask divided by
B·T·H·W, the count of all pixels, masked ones included. That is a constant: the mean over ranks with equal
batches is the value of one process with the whole batch, and the loss does not depend on the size of the image.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from raincast.transforms import THRESHOLDS, UNKNOWN, RateScaling, Transform


class BalancedLoss(nn.Module):
    """Squared and absolute error, each pixel weighted by how hard it truly rains (Shi et al. 2017).

    weight · (mse_weight · (pred − target)² + mae_weight · |pred − target|), for the head that gives the rain
    itself. HKO-7's figures are sums over the pixels of a frame: H·W times this.
    """

    num_channels = 1
    bounds: Tensor
    weights: Tensor

    def __init__(
        self,
        transform: Transform,
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
        self.register_buffer("bounds", _bounds(transform, thresholds), persistent=False)
        self.register_buffer("weights", torch.tensor(list(weights), dtype=torch.float32), persistent=False)
        self.mse_weight = mse_weight
        self.mae_weight = mae_weight

    def forward(
        self,
        pred: Float[Tensor, "b t n h w"],
        target: Float[Tensor, "b t 1 h w"],
        mask: Bool[Tensor, "b t 1 h w"],
    ) -> Float[Tensor, ""]:
        """The loss; pixels where `mask` is False, NaN included, change neither value nor gradient."""
        _check_shapes(pred, target, self.num_channels)
        zero = target.new_zeros(())
        target = torch.where(mask, target, zero)
        error = torch.where(mask, pred.to(target.dtype), zero) - target
        weight = self.weights.to(target.dtype)[torch.bucketize(target, self.bounds.to(target.dtype), right=True)]
        # error is 0 under the mask, so that the weight there does not matter
        balanced = weight * (self.mse_weight * error.square() + self.mae_weight * error.abs())
        return balanced.sum() / target.numel()


class ClassLoss(nn.Module):
    """Cross-entropy of rain classes: weight · −ln P(the class it rained in), in nats.

    For the head whose channels are classes. It knows no order: 30 mm/h taken for 10 or for 0 costs the same.
    """

    bounds: Tensor
    weights: Tensor

    def __init__(
        self, transform: Transform, *, thresholds: Sequence[float], weights: Sequence[float] | None = None
    ) -> None:
        """`thresholds` in mm/h cut the classes, each closed below; `weights` has one per class, else all 1."""
        super().__init__()
        self.num_channels = len(thresholds) + 1
        self.register_buffer("bounds", _bounds(transform, thresholds), persistent=False)
        self.register_buffer("weights", _weights(weights, self.num_channels, "classes"), persistent=False)

    def forward(
        self,
        pred: Float[Tensor, "b t n h w"],
        target: Float[Tensor, "b t 1 h w"],
        mask: Bool[Tensor, "b t 1 h w"],
    ) -> Float[Tensor, ""]:
        """The loss of the logits `pred`; pixels where `mask` is False change neither value nor gradient."""
        logits, target = _without_masked(pred, target, mask, self.num_channels)
        observed = _classes(target, self.bounds)
        surprise = -logits.log_softmax(2).gather(2, observed)
        weighted = self.weights.to(target.dtype)[observed] * surprise
        return torch.where(mask, weighted, target.new_zeros(())).sum() / target.numel()


class OrdinalLoss(nn.Module):
    """Binary cross-entropy of "at least this threshold", summed over the thresholds, in nats.

    For the head whose channels are classes. Σ_k weight_k · −ln P(R >= t_k), or of P(R < t_k) where it rained less:
    a forecast that is off by more classes fails at more thresholds. With one threshold it is the cross-entropy of
    two classes. The probabilities come from the logits z of the classes, without rounding to 0 or 1, as

        logit P(R >= t_k) = ln Σ_{j ≥ k} exp z_j − ln Σ_{j < k} exp z_j

    The same sum of squares in place of logarithms is the ranked probability score (Epstein 1969).
    """

    bounds: Tensor
    weights: Tensor

    def __init__(
        self, transform: Transform, *, thresholds: Sequence[float], weights: Sequence[float] | None = None
    ) -> None:
        """`thresholds` in mm/h cut the classes, each closed below; `weights` has one per threshold, else all 1."""
        super().__init__()
        self.num_channels = len(thresholds) + 1
        self.register_buffer("bounds", _bounds(transform, thresholds), persistent=False)
        self.register_buffer("weights", _weights(weights, len(thresholds), "thresholds"), persistent=False)

    def forward(
        self,
        pred: Float[Tensor, "b t n h w"],
        target: Float[Tensor, "b t 1 h w"],
        mask: Bool[Tensor, "b t 1 h w"],
    ) -> Float[Tensor, ""]:
        """The loss of the logits `pred`; pixels where `mask` is False change neither value nor gradient."""
        logits, target = _without_masked(pred, target, mask, self.num_channels)
        observed = _classes(target, self.bounds).squeeze(2)
        below = _running_logsumexp(logits.unbind(2))
        above = _running_logsumexp(logits.unbind(2)[::-1])[::-1]
        surprise = torch.zeros_like(below[-1])
        for k, weight in enumerate(self.weights.to(target.dtype), start=1):
            happened = torch.where(observed >= k, above[k], below[k - 1])
            surprise = surprise + weight * (below[-1] - happened)
        return torch.where(mask.squeeze(2), surprise, target.new_zeros(())).sum() / target.numel()


class DistributionLoss(nn.Module):
    """What `head=distribution` is trained by: cross-entropy at each threshold, and the CRPS in mm/h.

    Σ_k w_k · cross-entropy of "at least τ_k" + crps_weight · Σ_k Δ_k · (P(R ≥ τ_k) − [target ≥ τ_k])², with
    w_k ∝ τ_k^power, whose mean is 1: heavy rain is rare, and would weigh little. Δ_k is the width in mm/h that
    τ_k stands for. Pixels where the last channel is `UNKNOWN`, whose rain comes from outside the grid, do not
    count: with crops they would teach what edges do.
    """

    thresholds: Tensor
    weights: Tensor
    widths: Tensor

    def __init__(self, transform: Transform, *, power: float = 0.5, crps_weight: float = 1.0) -> None:
        """ValueError for a transform other than `RateScaling`: thresholds are in mm/h."""
        super().__init__()
        if not isinstance(transform, RateScaling):
            raise ValueError(f"DistributionLoss compares mm/h, found {transform}. Take transform=rate.")
        thresholds = torch.tensor(THRESHOLDS)
        weights = thresholds.pow(power)
        edges = [0.0, *(math.sqrt(a * b) for a, b in pairwise(THRESHOLDS)), 1.4 * THRESHOLDS[-1]]
        self.num_channels = len(THRESHOLDS) + 1
        self.crps_weight = crps_weight
        # a float32 rounding below the threshold is at the threshold
        self.register_buffer("thresholds", thresholds * (1.0 - 1e-6), persistent=False)
        self.register_buffer("weights", weights / weights.mean(), persistent=False)
        self.register_buffer("widths", torch.tensor(edges).diff(), persistent=False)

    def forward(
        self,
        pred: Float[Tensor, "b t n h w"],
        target: Float[Tensor, "b t 1 h w"],
        mask: Bool[Tensor, "b t 1 h w"],
    ) -> Float[Tensor, ""]:
        """The loss; pixels where `mask` is False, NaN included, change neither value nor gradient."""
        _check_shapes(pred, target, self.num_channels)
        counted = mask & (pred[:, :, -1:] != UNKNOWN)
        zero = target.new_zeros(())
        observed = (torch.where(mask, target, zero) >= self.thresholds[:, None, None]).to(target.dtype)
        logits = torch.where(counted, pred[:, :, :-1].to(target.dtype), zero)
        entropy = F.binary_cross_entropy_with_logits(logits, observed, reduction="none")
        square = (logits.sigmoid() - observed).square()
        weights, widths = self.weights[:, None, None], self.crps_weight * self.widths[:, None, None]
        each = torch.where(counted, weights * entropy + widths * square, zero)
        return each.sum() / target.numel()


class QuantileLoss(nn.Module):
    """Pinball loss of quantiles in network units (Koenker & Bassett 1978), the mean over the levels.

    weight_l · max(l · (target − q_l), (l − 1) · (target − q_l)): smallest where a share l of the targets is
    below q_l. At the level ½ it is half the absolute error.
    """

    levels: Tensor
    weights: Tensor

    def __init__(
        self, transform: Transform, *, levels: Sequence[float], weights: Sequence[float] | None = None
    ) -> None:
        """`levels` between 0 and 1, one a channel; `weights` has one per level, else all 1.

        Quantiles are compared in network units, in which `transform` has put the target already.
        """
        super().__init__()
        if not levels or any(a >= b for a, b in pairwise((0.0, *levels, 1.0))):
            raise ValueError(f"levels={list(levels)} must be at least one, between 0 and 1, increasing.")
        self.num_channels = len(levels)
        self.register_buffer("levels", torch.tensor(list(levels), dtype=torch.float64), persistent=False)
        self.register_buffer("weights", _weights(weights, len(levels), "levels"), persistent=False)

    def forward(
        self,
        pred: Float[Tensor, "b t n h w"],
        target: Float[Tensor, "b t 1 h w"],
        mask: Bool[Tensor, "b t 1 h w"],
    ) -> Float[Tensor, ""]:
        """The loss of the quantiles `pred`; pixels where `mask` is False change neither value nor gradient."""
        quantiles, target = _without_masked(pred, target, mask, self.num_channels)
        # both are 0 under the mask: so is the error
        error = target - quantiles
        level, weight = (values.to(target.dtype)[:, None, None] for values in (self.levels, self.weights))
        pinball = weight * torch.maximum(level * error, (level - 1) * error)
        return pinball.sum() / self.num_channels / target.numel()


def _bounds(transform: Transform, thresholds: Sequence[float]) -> Tensor:
    """`thresholds` (mm/h) in network units, to compare targets with; ValueError where they cut no bins."""
    bounds = transform.forward(torch.tensor(list(thresholds), dtype=torch.float64))
    if not bounds.numel() or not bool((bounds.diff() > 1e-5).all()):
        raise ValueError(
            f"thresholds={list(thresholds)} mm/h are {bounds.tolist()} in network units, which must "
            f"increase. Sort them, or drop those outside the range of {transform}."
        )
    # float32 rounding of a rate at the threshold must not put it below. In DbzScaling 1e-6 is a
    # hundred-thousandth of the rate, far below the resolution of any radar.
    return (bounds - 1e-6).float()


def _weights(weights: Sequence[float] | None, count: int, what: str) -> Tensor:
    if weights is not None and len(weights) != count:
        raise ValueError(f"There are {count} {what}, found {len(weights)} weights: {list(weights)}.")
    return torch.tensor([1.0] * count if weights is None else list(weights), dtype=torch.float32)


def _classes(target: Tensor, bounds: Tensor) -> Int64[Tensor, "b t 1 h w"]:
    """How many of `bounds` each pixel reaches: the number of its class."""
    return torch.bucketize(target, bounds.to(target.dtype), right=True)


def _without_masked(pred: Tensor, target: Tensor, mask: Tensor, num_channels: int) -> tuple[Tensor, Tensor]:
    """Both in the target's precision, and 0 outside the mask, whatever stood there."""
    _check_shapes(pred, target, num_channels)
    zero = target.new_zeros(())
    return torch.where(mask, pred.to(target.dtype), zero), torch.where(mask, target, zero)


def _check_shapes(pred: Tensor, target: Tensor, num_channels: int) -> None:
    B, T, _, H, W = target.shape
    if target.shape[2] != 1 or tuple(pred.shape) != (B, T, num_channels, H, W):
        raise ValueError(
            f"This loss compares predictions (B, T, {num_channels}, H, W) with targets (B, T, 1, H, W), found "
            f"{tuple(pred.shape)} and {tuple(target.shape)}. Take the loss that belongs to the head."
        )


def _running_logsumexp(channels: Sequence[Tensor]) -> list[Tensor]:
    """ln Σ exp of the first, of the first two, … One by one is several times faster than torch.logcumsumexp."""
    sums = [channels[0]]
    for channel in channels[1:]:
        sums.append(torch.logaddexp(sums[-1], channel))
    return sums
