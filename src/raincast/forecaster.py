"""The Forecaster protocol, and a trained network behind it.

mm/h in, mm/h out, whoever is behind it. A Forecaster always answers with finite rates: where it knows
nothing it says 0. Which pixels nobody can say anything about (never observed) is the caller's to mask.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from raincast.metrics.calibration import Calibration
from raincast.models.heads import Head
from raincast.transforms import Transform


class Forecaster(Protocol):
    """Rain of the past → rain of the next steps."""

    name: str

    def forecast(self, rain: npt.NDArray[np.float32], num_steps: int) -> npt.NDArray[np.float32]:
        """(B, T_in, C, H, W) mm/h with NaN for missing → (B, num_steps, 1, H, W) mm/h, finite, ≥ 0."""


def forecast_windows(
    forecaster: Forecaster,
    rain: npt.NDArray[np.float32],
    num_steps: int,
    *,
    times: npt.NDArray[np.datetime64],
    y: Sequence[int],
    x: Sequence[int],
) -> npt.NDArray[np.float32]:
    """As `forecaster.forecast`; who has a `forecast_at` is also told when and where.

    `times` (B,): UTC of the newest input frames; `y`, `x` (B,): the top-left pixels within the archive.
    """
    forecast_at = getattr(forecaster, "forecast_at", None)
    if forecast_at is None:
        return forecaster.forecast(rain, num_steps)
    forecast: npt.NDArray[np.float32] = forecast_at(rain, num_steps, times=times, y=y, x=x)
    return forecast


def to_network_scale(transform: Transform, rain: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
    """mm/h with NaN → network scale, where a missing pixel becomes 0: no rain."""
    # before the transform, where no rain is 0 too: what exported networks run on differs in what it clips NaN to
    scaled: Tensor = transform.forward(torch.nan_to_num(rain, nan=0.0))
    return scaled


def network_input(
    network: nn.Module, transform: Transform, rain: Float[Tensor, "b t c h w"]
) -> Float[Tensor, "b t n h w"]:
    """Rain on the network's scale and, if it takes a channel more, where it was observed: 1, missing: 0.

    In the precision of the network's weights.
    """
    scaled = to_network_scale(transform, rain).to(_precision(network))
    channels = rain.shape[2]
    if getattr(network, "in_channels", channels) != channels + 1:
        return scaled
    observed = ~rain.isnan().any(dim=2, keepdim=True)
    return torch.cat([scaled, observed.to(scaled.dtype)], dim=2)


def _precision(network: nn.Module) -> torch.dtype:
    return next((weight.dtype for weight in network.parameters()), torch.float32)


def predict_output(
    network: nn.Module, transform: Transform, rain: Float[Tensor, "b t c h w"], num_steps: int
) -> Float[Tensor, "b s n h w"]:
    """The network's answer to rain in mm/h, for its head, in float32 whatever precision it ran in."""
    output: Tensor = network(network_input(network, transform, rain), num_steps)
    return output.float()


def predict_rates(
    network: nn.Module, head: Head, transform: Transform, rain: Float[Tensor, "b t c h w"], num_steps: int
) -> Float[Tensor, "b s 1 h w"]:
    """The network's forecast in mm/h."""
    return head.rates(predict_output(network, transform, rain, num_steps), transform)


class NetworkForecaster:
    """A trained network as a Forecaster.

    It was trained on `input_steps` frames of `step_minutes`, and refuses another number of frames.
    `head` says what its channels mean, `calibration` what its probabilities become before anyone sees them.
    """

    def __init__(
        self,
        network: nn.Module,
        head: Head,
        transform: Transform,
        *,
        name: str,
        input_steps: int,
        lead_steps: int,
        step_minutes: float,
        num_channels: int = 1,
        device: str | torch.device = "cpu",
        calibration: Calibration | None = None,
    ) -> None:
        self.network = network.to(device).eval()
        self.head = head
        self.transform = transform
        self.name = name
        self.input_steps = input_steps
        self.lead_steps = lead_steps
        self.step_minutes = step_minutes
        self.num_channels = num_channels
        self.device = torch.device(device)
        self.calibration = calibration

    @property
    def probabilistic(self) -> bool:
        """Whether `exceedance` is more than 0 and 1."""
        return self.head.probabilistic or self.calibration is not None

    def forecast(self, rain: npt.NDArray[np.float32], num_steps: int) -> npt.NDArray[np.float32]:
        """As the protocol says; ValueError for other frames or channels than it was trained on."""
        return self.forecast_with_exceedance(rain, num_steps, ())[0]

    def exceedance(
        self, rain: npt.NDArray[np.float32], num_steps: int, thresholds: Sequence[float]
    ) -> npt.NDArray[np.float32]:
        """(B, T_in, C, H, W) mm/h with NaN → (B, num_steps, K, H, W): P(rate >= threshold), each in 0 to 1.

        `thresholds` are K rates in mm/h, above 0 and increasing; ValueError otherwise, and as in `forecast`.
        Where the head is not probabilistic and nothing calibrated, the probabilities are 0 and 1.
        """
        return self.forecast_with_exceedance(rain, num_steps, thresholds)[1]

    @torch.inference_mode()
    def forecast_with_exceedance(
        self,
        rain: npt.NDArray[np.float32],
        num_steps: int,
        thresholds: Sequence[float],
        *,
        calibrated: bool = True,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """What `forecast` and `exceedance` give, from one run of the network; K may be 0.

        With `calibrated=False` the probabilities are the head's own.
        """
        if rain.ndim != 5 or rain.shape[1:3] != (self.input_steps, self.num_channels):
            raise ValueError(
                f"{self.name} takes (batch, {self.input_steps} frames, {self.num_channels} channels, y, x), "
                f"found {rain.shape}."
            )
        tensor = torch.from_numpy(np.ascontiguousarray(rain, dtype=np.float32)).to(self.device)
        output = predict_output(self.network, self.transform, tensor, num_steps)
        rates = self.head.rates(output, self.transform)
        # no threshold is no question
        chances = self.head.exceedance(output, thresholds, self.transform) if len(thresholds) else rates[:, :, :0]
        stated = chances.cpu().numpy()
        if calibrated and self.calibration is not None and len(thresholds):
            stated = self.calibration.apply(stated, thresholds)
        return rates.cpu().numpy(), stated
