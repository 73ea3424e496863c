"""Weights averaged over the last steps of training."""

from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class AveragedWeights(WeightAveraging):
    """An exponential moving average of the weights: validated, put into checkpoints, and the network in the end.

    After step n (from 1) the average keeps min(decay, (1 + n) / (10 + n)) of itself: the weights of the beginning
    are forgotten whatever the length of the run. Checkpoints hold the average as `state_dict`, and beside it the
    weights that training goes on with.
    """

    def __init__(self, decay: float) -> None:
        """ValueError unless 0 < decay < 1."""
        if not 0 < decay < 1:
            raise ValueError(
                f"ema={decay} is the share that the average keeps in a step: over 0, below 1 (0.999)."
            )
        super().__init__(use_buffers=True, multi_avg_fn=self._average)
        self.decay = decay

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The average goes where the weights are: Lightning makes it before it moves them to a GPU.

        It would stay in main memory, and every step would copy all weights there. The count of steps does stay: to
        ask a GPU for it would wait for it.
        """
        assert self._average_model is not None
        self._average_model.module.to(module.device)

    def _average(self, averages: Sequence[Tensor], weights: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        assert self._average_model is not None
        n = int(self._average_model.n_averaged)
        kept = min(self.decay, (1 + n) / (10 + n))
        if averages[0].is_floating_point():  # they come in lists of one dtype
            torch._foreach_lerp_(list(averages), list(weights), 1.0 - kept)
        else:  # a count, as batch norms keep one
            torch._foreach_copy_(list(averages), list(weights))
