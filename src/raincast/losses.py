"""Training losses: `loss(pred, target, mask)`, tensors (B, T, ·, H, W) in network units.

`pred` is the output of the network's head (`models.heads`): the rain itself, logits of rain classes, or quantiles.
`target` and `mask` have one channel. Every loss is a sum over the pixels of the mask, divided by the number of all
pixels, B·T·H·W, masked ones included. Because this number is constant, the mean over ranks with equal batches is
the value of one process with the whole batch, and the loss does not depend on the size of the image.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from raincast.transforms import THRESHOLDS, UNKNOWN, RateScaling, Transform


class MaskedLoss(nn.Module):
    """The sum of `terms` over the pixels that count, divided by the number of all pixels."""

    num_channels: int
    bounds: Tensor
    weights: Tensor
    is_zero_at_zero = False
    """Whether `terms` are 0 where both arguments are 0, as they are at pixels that do not count."""

    def forward(
        self,
        pred: Float[Tensor, "b t n h w"],
        target: Float[Tensor, "b t 1 h w"],
        mask: Bool[Tensor, "b t 1 h w"],
    ) -> Float[Tensor, ""]:
        """Return the loss. Pixels where `mask` is False, even NaN, change neither value nor gradient."""
        _check_shapes(pred, target, self.num_channels)
        zero, mask = target.new_zeros(()), self.counted(pred, mask)
        pred, target = torch.where(mask, pred.to(target.dtype), zero), torch.where(mask, target, zero)
        terms = self.terms(pred, target)
        return (terms if self.is_zero_at_zero else torch.where(mask, terms, zero)).sum() / target.numel()

    def counted(self, pred: Tensor, mask: Tensor) -> Bool[Tensor, "b t 1 h w"]:
        """Return the pixels that count: those of the mask."""
        return mask

    def terms(self, pred: Tensor, target: Tensor) -> Float[Tensor, "b t m h w"]:
        """Return what each pixel adds to the loss. Both arguments have the target's precision, without NaN."""
        raise NotImplementedError


class BalancedLoss(MaskedLoss):
    """Squared and absolute error, with pixels weighted by their observed rain rate (Shi et al. 2017).

    weight · (mse_weight · (pred − target)² + mae_weight · |pred − target|), for the head that outputs the rain
    itself. HKO-7's figures are sums over the pixels of a frame, H·W times this loss.
    """

    num_channels = 1
    is_zero_at_zero = True

    def __init__(
        self,
        transform: Transform,
        *,
        thresholds: Sequence[float] = (0.5, 2.0, 5.0, 10.0, 30.0),
        weights: Sequence[float] = (1.0, 1.0, 2.0, 5.0, 10.0, 30.0),
        mse_weight: float = 1.0,
        mae_weight: float = 1.0,
    ) -> None:
        """`thresholds` in mm/h cut the targets into bins, each including its lower end; one of `weights` per bin.

        Raises ValueError if the numbers of thresholds and weights do not match.
        """
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

    def terms(self, pred: Tensor, target: Tensor) -> Float[Tensor, "b t m h w"]:
        """Return the weighted errors."""
        error = pred - target
        weight = self.weights.to(target.dtype)[_classes(target, self.bounds)]
        return weight * (self.mse_weight * error.square() + self.mae_weight * error.abs())


class ClassLoss(MaskedLoss):
    """Cross-entropy of rain classes: weight · −ln P(observed class), in nats.

    For the head whose channels are classes. It ignores the order of classes: predicting 10 or 0 instead of 30 mm/h
    costs the same.
    """

    def __init__(
        self, transform: Transform, *, thresholds: Sequence[float], weights: Sequence[float] | None = None
    ) -> None:
        """`thresholds` in mm/h cut the classes, each including its lower end; `weights` per class, default 1."""
        super().__init__()
        self.num_channels = len(thresholds) + 1
        self.register_buffer("bounds", _bounds(transform, thresholds), persistent=False)
        self.register_buffer("weights", _weights(weights, self.num_channels, "classes"), persistent=False)

    def terms(self, pred: Tensor, target: Tensor) -> Float[Tensor, "b t m h w"]:
        """Return the weighted cross-entropy; `pred` are logits."""
        observed = _classes(target, self.bounds)
        return self.weights.to(target.dtype)[observed] * -pred.log_softmax(2).gather(2, observed)


class OrdinalLoss(MaskedLoss):
    """Binary cross-entropy of "at least this threshold", summed over the thresholds, in nats.

    For the head whose channels are classes. Σ_k weight_k · −ln P(R >= t_k), or −ln P(R < t_k) if the observed rate
    is lower. A forecast that is wrong by more classes fails at more thresholds. With one threshold it is the
    cross-entropy of two classes. The probabilities follow from the logits z of the classes, without rounding to 0
    or 1:

        logit P(R >= t_k) = ln Σ_{j ≥ k} exp z_j − ln Σ_{j < k} exp z_j

    With squares instead of logarithms this sum is the ranked probability score (Epstein 1969).
    """

    def __init__(
        self, transform: Transform, *, thresholds: Sequence[float], weights: Sequence[float] | None = None
    ) -> None:
        """`thresholds` in mm/h cut the classes, each including its lower end; `weights` per threshold, or 1."""
        super().__init__()
        self.num_channels = len(thresholds) + 1
        self.register_buffer("bounds", _bounds(transform, thresholds), persistent=False)
        self.register_buffer("weights", _weights(weights, len(thresholds), "thresholds"), persistent=False)

    def terms(self, pred: Tensor, target: Tensor) -> Float[Tensor, "b t m h w"]:
        """Return the weighted sum over the thresholds; `pred` are logits."""
        observed = _classes(target, self.bounds).squeeze(2)
        below = _running_logsumexp(pred.unbind(2))
        above = _running_logsumexp(pred.unbind(2)[::-1])[::-1]
        surprise = torch.zeros_like(below[-1])
        for k, weight in enumerate(self.weights.to(target.dtype), start=1):
            happened = torch.where(observed >= k, above[k], below[k - 1])
            surprise = surprise + weight * (below[-1] - happened)
        return surprise[:, :, None]


class DistributionLoss(MaskedLoss):
    """The loss of `head=distribution`: cross-entropy at each threshold plus the CRPS in mm/h.

    Σ_k w_k · cross-entropy of "at least τ_k" + crps_weight · Σ_k Δ_k · (P(R ≥ τ_k) − [target ≥ τ_k])². The weights
    w_k ∝ τ_k^power have mean 1 and compensate for the rarity of heavy rain. Δ_k is the width in mm/h that τ_k
    represents. Pixels where the last channel is `UNKNOWN` do not count: their rain comes from outside the grid,
    and in crops they would teach the network effects of the edges.
    """

    thresholds: Tensor
    widths: Tensor

    def __init__(self, transform: Transform, *, power: float = 0.5, crps_weight: float = 1.0) -> None:
        """Raise ValueError for a transform other than `RateScaling`, because thresholds are in mm/h."""
        super().__init__()
        if not isinstance(transform, RateScaling):
            raise ValueError(f"DistributionLoss compares mm/h, found {transform}. Use transform=rate.")
        thresholds = torch.tensor(THRESHOLDS)
        weights = thresholds.pow(power)
        edges = [0.0, *(math.sqrt(a * b) for a, b in pairwise(THRESHOLDS)), 1.4 * THRESHOLDS[-1]]
        self.num_channels = len(THRESHOLDS) + 1
        self.crps_weight = crps_weight
        # tolerance, so that a rate equal to the threshold reaches it despite float32 rounding
        self.register_buffer("thresholds", thresholds * (1.0 - 1e-6), persistent=False)
        self.register_buffer("weights", weights / weights.mean(), persistent=False)
        self.register_buffer("widths", torch.tensor(edges).diff(), persistent=False)

    def counted(self, pred: Tensor, mask: Tensor) -> Bool[Tensor, "b t 1 h w"]:
        """Return the pixels of the mask whose rain does not come from where nothing is known."""
        return mask & (pred[:, :, -1:] != UNKNOWN)

    def terms(self, pred: Tensor, target: Tensor) -> Float[Tensor, "b t m h w"]:
        """Return the weighted cross-entropy and CRPS at each threshold; all but the last of `pred` are logits."""
        logits, observed = pred[:, :, :-1], (target >= self.thresholds[:, None, None]).to(target.dtype)
        entropy = F.binary_cross_entropy_with_logits(logits, observed, reduction="none")
        square = (logits.sigmoid() - observed).square()
        weights, widths = self.weights[:, None, None], self.crps_weight * self.widths[:, None, None]
        return weights * entropy + widths * square


class QuantileLoss(MaskedLoss):
    """Pinball loss of quantiles in network units (Koenker & Bassett 1978), averaged over the levels.

    weight_l · max(l · (target − q_l), (l − 1) · (target − q_l)), which is minimal if a share l of the targets is
    below q_l. At level ½ it is half the absolute error.
    """

    levels: Tensor
    is_zero_at_zero = True

    def __init__(
        self, transform: Transform, *, levels: Sequence[float], weights: Sequence[float] | None = None
    ) -> None:
        """`levels` between 0 and 1, increasing, one per channel; `weights` per level, default 1.

        Quantiles are compared in network units, to which `transform` has already converted the target. Raises
        ValueError for invalid levels or weights.
        """
        super().__init__()
        if not levels or any(a >= b for a, b in pairwise((0.0, *levels, 1.0))):
            raise ValueError(f"levels={list(levels)} must be at least one, between 0 and 1, increasing.")
        self.num_channels = len(levels)
        self.register_buffer("levels", torch.tensor(list(levels), dtype=torch.float64), persistent=False)
        self.register_buffer("weights", _weights(weights, len(levels), "levels"), persistent=False)

    def terms(self, pred: Tensor, target: Tensor) -> Float[Tensor, "b t m h w"]:
        """Return the pinball loss of each quantile in `pred`."""
        error = target - pred
        level, weight = (values.to(target.dtype)[:, None, None] for values in (self.levels, self.weights))
        return weight * torch.maximum(level * error, (level - 1) * error) / self.num_channels


def _bounds(transform: Transform, thresholds: Sequence[float]) -> Tensor:
    """Return `thresholds` (mm/h) in network units. Raises ValueError if they are not increasing there."""
    bounds = transform.forward(torch.tensor(list(thresholds), dtype=torch.float64))
    if not bounds.numel() or not bool((bounds.diff() > 1e-5).all()):
        raise ValueError(
            f"thresholds={list(thresholds)} mm/h are {bounds.tolist()} in network units, which must "
            f"increase. Sort them, or drop those outside the range of {transform}."
        )
    # tolerance, so that a rate equal to the threshold reaches it despite float32 rounding; in DbzScaling 1e-6 is a
    # hundred-thousandth of the rate, far below the resolution of any radar
    return (bounds - 1e-6).float()


def _weights(weights: Sequence[float] | None, count: int, what: str) -> Tensor:
    if weights is not None and len(weights) != count:
        raise ValueError(f"There are {count} {what}, found {len(weights)} weights: {list(weights)}.")
    return torch.tensor([1.0] * count if weights is None else list(weights), dtype=torch.float32)


def _classes(target: Tensor, bounds: Tensor) -> Int64[Tensor, "b t 1 h w"]:
    """Return the class of each pixel: the number of `bounds` that it reaches."""
    return torch.bucketize(target, bounds.to(target.dtype), right=True)


def _check_shapes(pred: Tensor, target: Tensor, num_channels: int) -> None:
    B, T, _, H, W = target.shape
    if target.shape[2] != 1 or tuple(pred.shape) != (B, T, num_channels, H, W):
        raise ValueError(
            f"This loss compares predictions (B, T, {num_channels}, H, W) with targets (B, T, 1, H, W), found "
            f"{tuple(pred.shape)} and {tuple(target.shape)}. Use the loss that belongs to the head."
        )


def _running_logsumexp(channels: Sequence[Tensor]) -> list[Tensor]:
    """Return the running ln Σ exp over channels. This loop is several times faster than torch.logcumsumexp."""
    sums = [channels[0]]
    for channel in channels[1:]:
        sums.append(torch.logaddexp(sums[-1], channel))
    return sums
