"""Categorical scores of rain at or above thresholds: counts per event and lead time, and their ratios.

Sums over frames are taken one frame at a time on a CPU, whose caches hold one frame, and at once on a GPU.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

Rows = Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]
"""(N, P) forecasts, (N, P) observations in mm/h, (N,) numbers of counted pixels → sums, (N, …) each.

Pixels that do not count are 0 on both sides, and any that are 0 on both sides may have been left out."""


@torch.no_grad()
def over_frames(
    rows: Rows,
    pred: Float[Tensor, "b t c h w"],
    target: Float[Tensor, "b t c h w"],
    mask: Bool[Tensor, "b t c h w"],
) -> list[Shaped[Tensor, "b t *sums"]]:
    """Return the sums that `rows` computes over C, H, W of each frame inside `mask`; NaN there is an error.

    On a CPU the sums of a frame are bit-identical whatever the other frames are.
    """
    B, T = pred.shape[:2]
    flat = [field.flatten(2).flatten(0, 1) for field in (pred, target, mask)]
    if pred.is_cuda:
        filled = [field.masked_fill(~flat[2], 0.0) for field in flat[:2]]
        _check(filled, pred, target, mask)
        parts = list(rows(filled[0], filled[1], flat[2].sum(-1)))
    else:
        each = []
        for number in range(B * T):
            counted = [field[number] for field in flat]
            filled = [torch.where(counted[2], field, 0.0) for field in counted[:2]]
            _check(filled, pred, target, mask)
            each.append(rows(filled[0][None], filled[1][None], counted[2].sum(-1)[None]))
        parts = [torch.cat(part) for part in zip(*each, strict=True)]
    return [part.view(B, T, *part.shape[1:]) for part in parts]


def reaching(
    pred: Float[Tensor, "n p"], target: Float[Tensor, "n p"], rate: float
) -> tuple[Float[Tensor, "n q"], Float[Tensor, "n q"]]:
    """Select the pixels where either side is `>= rate` in mm/h, for sums to which other pixels add nothing.

    It selects only for one frame on a CPU, where it saves time: networks give a little rain at most pixels.
    Otherwise it returns all.
    """
    if pred.device.type != "cpu" or len(pred) > 1:
        return pred, target
    # numpy finds them in a third of the time
    wet = torch.from_numpy(np.flatnonzero(np.maximum(pred[0].numpy(), target[0].numpy()) >= rate))
    return pred.index_select(1, wet), target.index_select(1, wet)


def _check(counted: Sequence[Tensor], pred: Tensor, target: Tensor, mask: Tensor) -> None:
    """Raise ValueError for NaN inside the mask. A sum finds it, and is cheaper than a search."""
    if bool((counted[0].sum() + counted[1].sum()).isnan()):  # also the sum of infinities of both signs
        check_finite("pred", pred, mask)
        check_finite("target", target, mask)


class Contingency(NamedTuple):
    """Pixel counts of the 2×2 table, any common shape; they merge by addition."""

    hits: Int64[Tensor, "..."]
    misses: Int64[Tensor, "..."]
    false_alarms: Int64[Tensor, "..."]
    correct_negatives: Int64[Tensor, "..."]


def contingency(
    pred: Float[Tensor, "b t c h w"],
    target: Float[Tensor, "b t c h w"],
    mask: Bool[Tensor, "b t c h w"],
    thresholds: Sequence[float],
) -> Contingency:
    """Counts over C, H, W, each (B, K thresholds, T), of pred and target `>=` threshold, all in mm/h.

    Pixels where `mask` is False are left out and may be NaN; NaN elsewhere is an error.
    """
    check_thresholds(thresholds)
    parts = over_frames(
        lambda p, t, n: (joint_rows(*reaching(p, t, thresholds[0]), thresholds), n), pred, target, mask
    )
    return from_joint(*parts)


def joint_rows(
    pred: Float[Tensor, "n p"], target: Float[Tensor, "n p"], thresholds: Sequence[float]
) -> Int64[Tensor, "n i j"]:
    """Count the pixels whose forecast reaches i thresholds and whose observation reaches j, as `frames.Rows`.

    Pixels below the first threshold on both sides may have been left out.
    """
    return _joint_histogram(_bins(pred, thresholds), _bins(target, thresholds), len(thresholds) + 1)


def from_joint(joint: Int64[Tensor, "b t i j"], count: Int64[Tensor, "b t"]) -> Contingency:
    """Convert the result of `joint_rows` for `count` pixels to counts (B, K thresholds, T)."""
    # reached[..., i, j]: pixels whose forecast reaches at least i thresholds and whose observation at least j
    reached = joint.flip(-2, -1).cumsum(-2).cumsum(-1).flip(-2, -1)
    hits = reached.diagonal(dim1=-2, dim2=-1)[..., 1:]
    forecast, observed = reached[..., 1:, 0], reached[..., 0, 1:]
    table = hits, observed - hits, forecast - hits, count[..., None] - forecast - observed + hits
    return Contingency(*(part.transpose(1, 2).contiguous() for part in table))


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Raise ValueError unless the thresholds are above 0 and increasing."""
    if not thresholds or thresholds[0] <= 0 or any(a >= b for a, b in pairwise(thresholds)):
        raise ValueError(f"thresholds={list(thresholds)} must be at least one, above 0, increasing, in mm/h.")


def check_finite(name: str, values: Tensor, mask: Tensor) -> None:
    """Raise ValueError for NaN inside the mask."""
    missing = int((values.isnan() & mask).sum())
    if missing:
        raise ValueError(
            f"{name} has NaN in {missing} of {int(mask.sum())} pixels inside the mask. "
            "A forecast must be finite wherever it is scored; mask what was not observed."
        )


def _bins(values: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Return how many thresholds each pixel reaches, as a float: comparisons to bytes and bucketize are slower."""
    bins, reached = torch.zeros_like(values), torch.empty_like(values)
    for threshold in thresholds:
        bins += torch.ge(values, threshold, out=reached)
    return bins


def _joint_histogram(pred: Tensor, target: Tensor, num_bins: int) -> Tensor:
    """Pixels per pair of bins, (N, num_bins, num_bins), in one pass over the data."""
    N, cells = pred.shape[0], num_bins**2
    cell = pred.mul_(num_bins).add_(target).int()
    if N > 1:
        cell = cell + cells * torch.arange(N, device=cell.device).view(N, 1)
    return torch.bincount(cell.flatten(), minlength=N * cells).view(N, num_bins, num_bins)


def csi(counts: Contingency) -> Float[Tensor, "..."]:
    """Critical success index, hits / (hits + misses + false alarms); NaN without events."""
    return _ratio(counts.hits, counts.hits + counts.misses + counts.false_alarms)


def pod(counts: Contingency) -> Float[Tensor, "..."]:
    """Probability of detection, hits / (hits + misses); NaN without observed events."""
    return _ratio(counts.hits, counts.hits + counts.misses)


def far(counts: Contingency) -> Float[Tensor, "..."]:
    """False alarm ratio, false alarms / (hits + false alarms); NaN without forecast events."""
    return _ratio(counts.false_alarms, counts.hits + counts.false_alarms)


def frequency_bias(counts: Contingency) -> Float[Tensor, "..."]:
    """Forecast events / observed events; NaN without observed events."""
    return _ratio(counts.hits + counts.false_alarms, counts.hits + counts.misses)


def hss(counts: Contingency) -> Float[Tensor, "..."]:
    """Heidke skill score, 2(ad − bc) / ((a+c)(c+d) + (a+b)(b+d)), with a hits, b false alarms, c misses,
    d correct negatives; NaN where all pixels are events on both sides, or none are.
    """
    a, c, b, d = (count.double() for count in counts)  # products of counts overflow int64
    return _ratio(2 * (a * d - b * c), (a + c) * (c + d) + (a + b) * (b + d))


def ets(counts: Contingency) -> Float[Tensor, "..."]:
    """Equitable threat score (Gilbert 1884), CSI without the hits expected by chance.

    (a − r) / (a + b + c − r) with r = (a+b)(a+c) / n and letters as in `hss`; NaN where all pixels are events on
    both sides, or none are.
    """
    a, c, b, d = (count.double() for count in counts)  # products of counts overflow int64
    # a − r = (ad − bc) / n: the difference of products keeps 0 exact where forecast and rain are independent
    skill = a * d - b * c
    return _ratio(skill, skill + (b + c) * (a + b + c + d))


def f1(counts: Contingency) -> Float[Tensor, "..."]:
    """F1 (Dice), 2·hits / (2·hits + misses + false alarms); NaN without events."""
    return _ratio(2 * counts.hits, 2 * counts.hits + counts.misses + counts.false_alarms)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    ratio = numerator.double() / denominator.double()
    return ratio.masked_fill(denominator == 0, torch.nan)
