"""The Forecaster protocol, and a trained network behind it.

mm/h in, mm/h out, whoever is behind it. A Forecaster always answers with finite rates: where it knows
nothing it says 0. Which pixels nobody can say anything about (never observed) is the caller's to mask.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn


class Forecaster(Protocol):
    """Rain of the past → rain of the next steps."""

    name: str

    def forecast(self, rain: npt.NDArray[np.float32], num_steps: int) -> npt.NDArray[np.float32]:
        """(B, T_in, C, H, W) mm/h with NaN for missing → (B, num_steps, 1, H, W) mm/h, finite, ≥ 0."""


class Transform(Protocol):
    """mm/h ↔ the network's scale, on which no rain is 0."""

    def forward(self, rate: Tensor) -> Tensor:
        """mm/h → network scale; NaN stays NaN."""

    def inverse(self, scaled: Tensor) -> Tensor:
        """Network scale → mm/h."""


def to_network_scale(transform: Transform, rain: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
    """mm/h with NaN → network scale, where a missing pixel becomes 0: no rain."""
    return torch.nan_to_num(transform.forward(rain), nan=0.0)


def predict_rates(
    network: nn.Module, transform: Transform, rain: Float[Tensor, "b t c h w"], num_steps: int
) -> Float[Tensor, "b s 1 h w"]:
    """The network's forecast in mm/h, in float32 whatever precision it ran in."""
    scaled: Tensor = network(to_network_scale(transform, rain), num_steps)
    return transform.inverse(scaled.float())


class NetworkForecaster:
    """A trained network as a Forecaster.

    It was trained on `input_steps` frames of `step_minutes`, and refuses another number of frames.
    """

    def __init__(
        self,
        network: nn.Module,
        transform: Transform,
        *,
        name: str,
        input_steps: int,
        lead_steps: int,
        step_minutes: float,
        num_channels: int = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        self.network = network.to(device).eval()
        self.transform = transform
        self.name = name
        self.input_steps = input_steps
        self.lead_steps = lead_steps
        self.step_minutes = step_minutes
        self.num_channels = num_channels
        self.device = torch.device(device)

    @torch.inference_mode()
    def forecast(self, rain: npt.NDArray[np.float32], num_steps: int) -> npt.NDArray[np.float32]:
        """As the protocol says; ValueError for other frames or channels than it was trained on."""
        if rain.ndim != 5 or rain.shape[1:3] != (self.input_steps, self.num_channels):
            raise ValueError(
                f"{self.name} takes (batch, {self.input_steps} frames, {self.num_channels} channels, y, x), "
                f"found {rain.shape}."
            )
        tensor = torch.from_numpy(np.ascontiguousarray(rain, dtype=np.float32)).to(self.device)
        return predict_rates(self.network, self.transform, tensor, num_steps).cpu().numpy()
