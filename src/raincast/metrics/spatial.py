"""Scores that forgive a shift: fractions skill score, and rain pooled before it is counted."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor
from torch.nn import functional

from raincast.metrics.categorical import check_finite, check_thresholds
from raincast.metrics.continuous import dot


class FractionSums(NamedTuple):
    """Sums over boxes, of events as fractions of a box, float64; they merge by addition."""

    squared_difference: Float[Tensor, "..."]
    squares: Float[Tensor, "..."]
    """of forecast and observation together: the difference there would be without any overlap"""


def fraction_sums(
    pred: Float[Tensor, "b t 1 h w"],
    target: Float[Tensor, "b t 1 h w"],
    mask: Bool[Tensor, "b t 1 h w"],
    thresholds: Sequence[float],
    boxes: Sequence[int],
    *,
    boundary: str = "zero",
) -> FractionSums:
    """Sums over H, W, each (B, K thresholds, S boxes, T), of pred and target `>=` threshold, all in mm/h.

    A box of `n` has n × n pixels, and one stands around every pixel (at the lower right of its middle four,
    where n is even). Pixels where `mask` is False are no event on either side, so that what forecast or archive
    say there adds nothing. With `boundary="zero"` what lies outside the grid is the same (as in pysteps); with
    "inside" only boxes that lie wholly in the grid count (as in the package scores). A box larger than the grid
    has then no place: both sums are 0, the score undefined. NaN inside the mask is an error.
    """
    check_thresholds(thresholds)
    check_finite("pred", pred, mask)
    check_finite("target", target, mask)
    wrong = [box for box in boxes if box < 1]
    if wrong or boundary not in ("zero", "inside"):
        raise ValueError(f"boxes={list(boxes)} must be 1 pixel or more, boundary={boundary!r} 'zero' or 'inside'.")
    B, T = pred.shape[:2]
    shape = (B, len(thresholds), len(boxes), T)
    sums = FractionSums(*(torch.zeros(shape, dtype=torch.float64, device=pred.device) for _ in range(2)))
    for k, threshold in enumerate(thresholds):  # one after the other: K · S copies of the fields are never held
        forecast, observed = (_integral((rain >= threshold) & mask) for rain in (pred, target))
        for s, box in enumerate(boxes):
            p, o = (_box_counts(field, box, boundary).flatten(2).double() for field in (forecast, observed))
            difference = p - o
            sums.squared_difference[:, k, s] = dot(difference, difference) / box**4  # whole numbers until here
            sums.squares[:, k, s] = (dot(p, p) + dot(o, o)) / box**4
    return sums


def fss(sums: FractionSums) -> Float[Tensor, "..."]:
    """Fractions skill score, 1 − Σ(p − o)² / Σ(p² + o²) (Roberts and Lean 2008); NaN without events."""
    return 1 - sums.squared_difference / sums.squares.masked_fill(sums.squares == 0, torch.nan)


def box_size(scale_km: float, pixel_km: float) -> int:
    """The box of so many km, in pixels: the nearest number, and 1 at least."""
    if scale_km <= 0 or pixel_km <= 0:
        raise ValueError(f"A scale of {scale_km:g} km on pixels of {pixel_km:g} km: both must be above 0.")
    return max(1, round(scale_km / pixel_km))


def max_pool(
    pred: Float[Tensor, "b t c h w"],
    target: Float[Tensor, "b t c h w"],
    mask: Bool[Tensor, "b t c h w"],
    *,
    size: int,
    stride: int | None = None,
) -> tuple[Float[Tensor, "b t c v u"], Float[Tensor, "b t c v u"], Bool[Tensor, "b t c v u"]]:
    """The highest rates of `size` × `size` pixels, every `stride` (by default `size`), for `contingency` to count.

    The order: first the maximum of the rates, then the threshold, then counts over everything, then the ratio.
    (The first two may change places: a maximum reaches a threshold where any of its pixels does.) Only pixels
    where `mask` is True enter a maximum, the same on both sides; a pool without any is masked. What is left at
    the lower and right edge after the last whole pool does not count.
    """
    H, W = pred.shape[-2:]
    stride = size if stride is None else stride
    if not 1 <= size <= min(H, W) or stride < 1:
        most = min(H, W)
        raise ValueError(f"Pools of {size} pixels, stride {stride}, in fields of {H} × {W}: choose 1 to {most}.")
    check_finite("pred", pred, mask)
    check_finite("target", target, mask)
    pooled = [_pool(rain.masked_fill(~mask, -torch.inf), size, stride) for rain in (pred, target)]
    observed = _pool(mask.to(pred.dtype), size, stride) > 0
    forecast, truth = (rain.masked_fill(~observed, torch.nan) for rain in pooled)
    return forecast, truth, observed


def _pool(rain: Tensor, size: int, stride: int) -> Tensor:
    B, T = rain.shape[:2]
    pooled = functional.max_pool2d(rain.flatten(0, 1), size, stride)
    return pooled.view(B, T, *pooled.shape[1:])


def _integral(events: Bool[Tensor, "b t 1 h w"]) -> Int32[Tensor, "b t v u"]:
    """Events above and left of each pixel corner; four of them make any box (Faggian et al. 2015)."""
    total = events[:, :, 0].cumsum(-1, dtype=torch.int32).cumsum(-2, dtype=torch.int32)
    return functional.pad(total, (1, 0, 1, 0))


def _box_counts(
    integral: Int32[Tensor, "b t v u"], box: int, boundary: str
) -> Int32[Tensor, "b t y x"]:  # as many as there are boxes
    """Events in every box."""
    if boundary == "inside":
        if box >= min(integral.shape[-2:]):
            return integral[..., :0, :0]
        rows = integral[..., box:, :] - integral[..., :-box, :]
        return rows[..., box:] - rows[..., :-box]
    for dim in (-2, -1):
        size = integral.shape[dim] - 1
        before, after = min(box // 2, size), min(box - box // 2, size)
        first, last = integral.narrow(dim, 0, 1), integral.narrow(dim, size, 1)
        low = [_repeat(first, before, dim), integral.narrow(dim, 0, size - before)]
        high = [integral.narrow(dim, after, size + 1 - after), _repeat(last, after - 1, dim)]
        integral = torch.cat(high, dim) - torch.cat(low, dim)
    return integral


def _repeat(line: Tensor, times: int, dim: int) -> Tensor:
    """A row or column as often as boxes reach over the edge of the grid."""
    shape = list(line.shape)
    shape[dim] = times
    return line.expand(shape)
