"""Frame by frame on a CPU, whose caches hold one; all at once on a GPU, which would wait for its next order."""

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
    """What `rows` sums over C, H, W of each frame where `mask` is True; NaN there is an error.

    On a CPU a frame's sums do not depend on the frames around it, to the last bit.
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
    """The pixels where either side is `>= rate`, in mm/h, for sums to which others add nothing.

    Of a frame on a CPU, where others cost time: networks say a little rain in most places. Elsewhere all of them.
    """
    if pred.device.type != "cpu" or len(pred) > 1:
        return pred, target
    # numpy finds them in a third of the time
    wet = torch.from_numpy(np.flatnonzero(np.maximum(pred[0].numpy(), target[0].numpy()) >= rate))
    return pred.index_select(1, wet), target.index_select(1, wet)


def _check(counted: Sequence[Tensor], pred: Tensor, target: Tensor, mask: Tensor) -> None:
    """Refuse NaN where it would be scored: a sum is spoilt by one, and cheaper than a search."""
    if not bool((counted[0].sum() + counted[1].sum()).isnan()):
        return
    for name, field in (("pred", pred), ("target", target)):
        missing = int((field.isnan() & mask).sum())
        if missing:  # and no infinities of both signs
            raise ValueError(
                f"{name} has NaN in {missing} of {int(mask.sum())} pixels inside the mask. "
                "A forecast must be finite wherever it is scored; mask what was not observed."
            )
