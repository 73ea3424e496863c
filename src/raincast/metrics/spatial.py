"""Scores that tolerate displacement: fractions skill score, counts of pooled rain, and SAL.

SAL is structure, amplitude and location of rain areas (Wernli et al. 2008, doi 10.1175/2008MWR2415.1), as pysteps
computes it: objects are found by its cell detection (Feldmann et al. 2021) above a fifteenth of the 95th
percentile of the wet pixels.
"""

import contextlib
import importlib.util
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor
from torch.nn import functional

from raincast.metrics.categorical import check_finite, check_thresholds

_FACTOR, _QUANTILE = 0.067, 0.95
"""The threshold of objects, as in Wernli et al. 2009."""


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

    A box of `n` has n × n pixels, and there is one around every pixel (for even n the pixel is the lower right of
    the middle four). Pixels where `mask` is False are no event on either side. With `boundary="zero"` so are
    pixels outside the grid (as in pysteps); with "inside" only boxes that lie wholly in the grid count (as in the
    package scores). If the box is larger than the grid, both sums are then 0 and the score is undefined. NaN
    inside the mask is an error.
    """
    check_thresholds(thresholds)
    check_finite("pred", pred, mask)
    check_finite("target", target, mask)
    wrong = [box for box in boxes if box < 1]
    if wrong or boundary not in ("zero", "inside"):
        raise ValueError(f"boxes={list(boxes)} must be 1 pixel or more, boundary={boundary!r} 'zero' or 'inside'.")
    B, T = pred.shape[:2]
    shape = (B, len(thresholds), len(boxes), T, 2, 2)
    products = torch.zeros(shape, dtype=torch.float64, device=pred.device)
    for row, step in product(range(B), range(T)):  # frame by frame: caches hold one
        frame = torch.stack([pred[row, step, 0], target[row, step, 0]])
        rain = torch.where(mask[row, step, 0], frame, 0.0)
        highest = float(rain.max())
        for k, threshold in enumerate(thresholds):
            if highest < threshold:  # no event on either side: nothing to add
                break
            corners = _Corners.of(rain >= threshold, boxes, boundary)
            for s, box in enumerate(boxes):
                counts = corners.boxes(box).flatten(1).double()
                products[row, k, s, step] = counts @ counts.T  # Σp², Σpo, Σo²: whole numbers
    squares = products[..., 0, 0] + products[..., 1, 1]
    scale = torch.tensor([float(box**4) for box in boxes], dtype=torch.float64, device=pred.device)[:, None]
    return FractionSums((squares - 2 * products[..., 0, 1]) / scale, squares / scale)


def fss(sums: FractionSums) -> Float[Tensor, "..."]:
    """Fractions skill score, 1 − Σ(p − o)² / Σ(p² + o²) (Roberts and Lean 2008); NaN without events."""
    return 1 - sums.squared_difference / sums.squares.masked_fill(sums.squares == 0, torch.nan)


def box_size(scale_km: float, pixel_km: float) -> int:
    """Convert the side of a box from km to pixels: the nearest whole number, at least 1."""
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
    """Return the highest rates of `size` × `size` pixels, every `stride` pixels (by default `size`), for
    `contingency`.

    The maximum of the rates is taken first, then the threshold, the counts and the ratio. (The first two may be
    exchanged: a maximum reaches a threshold if any of its pixels does.) Only pixels where `mask` is True enter a
    maximum, the same on both sides; a pool without any is masked. Pixels after the last whole pool at the lower
    and right edges are left out.
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


@dataclass(frozen=True)
class _Corners:
    """Events before and above each corner of a pixel; four of them make any box (Faggian et al. 2015)."""

    table: Int32[Tensor, "n u v"]
    """x before y; with a margin, where nothing is added"""
    size: tuple[int, int]
    """of the grid, (x, y)"""
    inside: bool
    """whether only boxes within the grid count"""
    margin: tuple[int, int]
    """(x, y): how much of the table stands before the grid"""

    @classmethod
    def of(cls, events: Bool[Tensor, "n y x"], boxes: Sequence[int], boundary: str) -> "_Corners":
        """Build the sums, with the margin that `boxes` needs."""
        # sums along the last axis are several times faster than along another
        along_x = events.cumsum(-1, dtype=torch.int32)
        total = along_x.mT.contiguous().cumsum(-1, dtype=torch.int32)
        X, Y = total.shape[-2:]
        inside = boundary == "inside"
        widest = 0 if inside else max(boxes)
        before = [min(widest // 2, size) for size in (X, Y)]
        after = [min((widest + 1) // 2, size) for size in (X, Y)]
        margins = (before[1] + 1, after[1], before[0] + 1, after[0])
        table = functional.pad(total, margins)
        x, y = before[0] + X, before[1] + Y  # where the last column and row of the grid stand
        table[:, x + 1 :] = table[:, x : x + 1]
        table[:, :, y + 1 :] = table[:, :, y : y + 1]
        return cls(table, (X, Y), inside, (before[0], before[1]))

    def boxes(self, box: int) -> Int32[Tensor, "n u v"]:
        """Return the number of events in every box with sides of `box` pixels."""
        counts = self.table
        for dim, size, margin in zip((1, 2), self.size, self.margin, strict=True):
            if self.inside:
                low, high, number = 0, min(box, size), max(size + 1 - box, 0)
            else:
                low, high, number = margin - min(box // 2, size), margin + min((box + 1) // 2, size), size
            counts = counts.narrow(dim, high, number) - counts.narrow(dim, low, number)
        return counts


class SalSums(NamedTuple):
    """Sums over frames, each (B, T); they merge by addition."""

    frames: Tensor
    """int64: frames with rain on both sides; the others have no S, A and L"""
    structure: Tensor
    amplitude: Tensor
    location: Tensor
    structure_size: Tensor
    """of |S|: errors to either side do not cancel"""
    amplitude_size: Tensor


def require_sal() -> None:
    """Raise ValueError if scikit-image is missing, which pysteps needs to find objects."""
    if importlib.util.find_spec("skimage") is None:
        raise ValueError('metrics.sal=true needs scikit-image to find rain areas: pip install "raincast[linda]".')


def sal_sums(
    pred: Float[Tensor, "b t 1 h w"], target: Float[Tensor, "b t 1 h w"], mask: Bool[Tensor, "b t 1 h w"]
) -> SalSums:
    """Return the sums for rates in mm/h, computed on the CPU; pixels where `mask` is False count as dry."""
    fields = [torch.where(mask, rain, 0.0)[:, :, 0].double().cpu().numpy() for rain in (pred, target)]
    B, T = fields[0].shape[:2]
    sums = np.zeros((5, B, T))
    frames = np.zeros((B, T), np.int64)
    for row, step in np.ndindex(B, T):
        found = _sal(fields[0][row, step], fields[1][row, step])
        if found is not None:
            structure, amplitude, location = found
            frames[row, step] = 1
            sums[:, row, step] = structure, amplitude, location, abs(structure), abs(amplitude)
    return SalSums(*(torch.from_numpy(values).to(pred.device) for values in (frames, *sums)))


def _sal(pred: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> tuple[float, float, float] | None:
    """Return (S, A, L) of a frame; None if either side has no rain or no object."""
    if any(field.max() <= field.min() for field in (pred, target)):
        return None
    with (
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):  # pysteps greets when it is imported
        warnings.simplefilter("ignore")  # of means over objects that there are none of: they end in NaN
        from pysteps.verification.salscores import sal

        found = tuple(float(part) for part in sal(pred, target, _FACTOR, _QUANTILE))
    return (found[0], found[1], found[2]) if all(map(math.isfinite, found)) else None


def structure(sums: SalSums) -> Tensor:
    """Mean S, −2 to 2: above 0 the areas are too large or too flat."""
    return _mean(sums.structure, sums)


def amplitude(sums: SalSums) -> Tensor:
    """Mean A, −2 to 2: above 0 there is too much rain."""
    return _mean(sums.amplitude, sums)


def location(sums: SalSums) -> Tensor:
    """Mean L, 0 to 2."""
    return _mean(sums.location, sums)


def structure_size(sums: SalSums) -> Tensor:
    """Mean |S|."""
    return _mean(sums.structure_size, sums)


def amplitude_size(sums: SalSums) -> Tensor:
    """Mean |A|."""
    return _mean(sums.amplitude_size, sums)


def _mean(total: Tensor, sums: SalSums) -> Tensor:
    return total / sums.frames  # NaN where there are none
