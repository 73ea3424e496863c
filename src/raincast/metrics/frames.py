"""Sums over frames: one at a time on a CPU, whose caches hold one frame; all at once on a GPU."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
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
    if not bool((counted[0].sum() + counted[1].sum()).isnan()):
        return
    for name, field in (("pred", pred), ("target", target)):
        missing = int((field.isnan() & mask).sum())
        if missing:  # and no infinities of both signs
            raise ValueError(
                f"{name} has NaN in {missing} of {int(mask.sum())} pixels inside the mask. "
                "A forecast must be finite wherever it is scored; mask what was not observed."
            )
