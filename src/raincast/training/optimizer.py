"""Optimiser and learning-rate schedule."""

from collections.abc import Iterable, Sequence

from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR


def adamw_warmup_cosine(
    params: Iterable[Parameter],
    total_steps: int,
    *,
    lr: float,
    weight_decay: float,
    betas: Sequence[float],
    warmup_fraction: float,
    final_fraction: float,
) -> tuple[Optimizer, LRScheduler]:
    """AdamW whose rate rises linearly to `lr`, then falls by a cosine to `final_fraction` of it.

    `warmup_fraction` is the share of `total_steps` (optimiser steps of the whole run) that rises.
    """
    optimizer = AdamW(params, lr=lr, weight_decay=weight_decay, betas=(betas[0], betas[1]))
    warmup = max(1, round(warmup_fraction * total_steps))
    rise = LinearLR(optimizer, start_factor=1.0 / (warmup + 1), total_iters=warmup)
    fall = CosineAnnealingLR(optimizer, T_max=max(1, total_steps - warmup), eta_min=lr * final_fraction)
    return optimizer, SequentialLR(optimizer, [rise, fall], milestones=[warmup])
