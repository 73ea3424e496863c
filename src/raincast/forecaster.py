"""The Forecaster protocol, and a trained network behind it.

mm/h in, mm/h out, whoever is behind it. A Forecaster always answers with finite rates: where it knows
nothing it says 0. Which pixels nobody can say anything about (never observed) is the caller's to mask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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


Beside = Mapping[str, npt.NDArray[np.float32]]
"""Seen beside the rain: "past" (B, T_in, P, H, W) and "future" (B, num_steps, F, H, W), as in a `Sample`."""


def beside_rain(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a sample or batch that go with its rain; none where no channels are declared."""
    return {name: sample[name] for name in ("past", "future") if name in sample}


def forecast_windows(
    forecaster: Forecaster,
    rain: npt.NDArray[np.float32],
    num_steps: int,
    *,
    times: npt.NDArray[np.datetime64],
    y: Sequence[int],
    x: Sequence[int],
    beside: Beside | None = None,
) -> npt.NDArray[np.float32]:
    """As `forecaster.forecast`; who has a `forecast_at` is also told when and where, a network what is `beside`.

    `times` (B,): UTC of the newest input frames; `y`, `x` (B,): the top-left pixels within the archive.
    """
    inputs = getattr(forecaster, "inputs", None)
    if beside and inputs is not None and inputs.scaled:
        seen: npt.NDArray[np.float32] = forecaster.forecast(rain, num_steps, beside=beside)  # type: ignore[call-arg]
        return seen
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


@dataclass(frozen=True)
class Inputs:
    """What a network sees, in this order: the rain; if `observed`, where it was observed; the channels of `past`.

    `past` and `future` are (name, transform) of each channel that a sample holds under that name. A missing value
    becomes 0 on the network's scale. Where `future` is not empty, the network's forecaster takes those channels.
    """

    observed: bool = False
    past: tuple[tuple[str, Transform], ...] = ()
    future: tuple[tuple[str, Transform], ...] = ()

    @property
    def num_channels(self) -> int:
        """The network's `in_channels`."""
        return 1 + self.observed + len(self.past)

    @property
    def scaled(self) -> bool:
        """Whether a sample has to hold more than rain."""
        return bool(self.past or self.future)

    def frames(
        self, transform: Transform, rain: Float[Tensor, "b t c h w"], beside: Mapping[str, Tensor]
    ) -> Float[Tensor, "b t n h w"]:
        """What the encoder reads, without NaN; ValueError where a channel is not given."""
        parts = [to_network_scale(transform, rain)]
        if self.observed:
            parts.append((~rain.isnan().any(dim=2, keepdim=True)).to(parts[0].dtype))
        if self.past:
            parts.append(_scaled(self.past, beside, "past"))
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]

    def ahead(self, beside: Mapping[str, Tensor], num_steps: int) -> tuple[Float[Tensor, "b s f h w"], ...]:
        """What the forecaster reads of the times to come: one argument of the network, or none."""
        if not self.future:
            return ()
        scaled = _scaled(self.future, beside, "future")
        if scaled.shape[1] != num_steps:
            raise ValueError(
                f"The channels known in advance have {scaled.shape[1]} steps, the forecast {num_steps}."
            )
        return (scaled,)


RAIN_ALONE = Inputs()


def _scaled(channels: Sequence[tuple[str, Transform]], beside: Mapping[str, Tensor], group: str) -> Tensor:
    names = ", ".join(name for name, _ in channels)
    if group not in beside or beside[group].shape[2] != len(channels):
        found = "none" if group not in beside else str(beside[group].shape[2])
        raise ValueError(
            f"The network sees {len(channels)} channels beside the rain ({names}), found {found}: give {group}."
        )
    scaled = []
    for number, (_, transform) in enumerate(channels):
        values = beside[group][:, :, number]
        missing = values.isnan()
        scaled.append(transform.forward(values.masked_fill(missing, 0.0)).masked_fill(missing, 0.0))
    return torch.stack(scaled, dim=2)


def _precision(network: nn.Module) -> torch.dtype:
    return next((weight.dtype for weight in network.parameters()), torch.float32)


def run_network(
    network: nn.Module,
    transform: Transform,
    rain: Float[Tensor, "b t c h w"],
    num_steps: int,
    *,
    inputs: Inputs,
    beside: Mapping[str, Tensor],
) -> Float[Tensor, "b s n h w"]:
    """The network's answer to rain in mm/h, given to it in the precision of its weights."""
    precision = _precision(network)
    frames = inputs.frames(transform, rain, beside).to(precision)
    ahead = (known.to(precision) for known in inputs.ahead(beside, num_steps))
    output: Tensor = network(frames, num_steps, *ahead)
    return output


def predict_output(
    network: nn.Module,
    transform: Transform,
    rain: Float[Tensor, "b t c h w"],
    num_steps: int,
    *,
    inputs: Inputs = RAIN_ALONE,
    beside: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "b s n h w"]:
    """The network's answer to rain in mm/h, for its head, in float32 whatever precision it ran in."""
    return run_network(network, transform, rain, num_steps, inputs=inputs, beside=beside or {}).float()


def predict_rates(
    network: nn.Module,
    head: Head,
    transform: Transform,
    rain: Float[Tensor, "b t c h w"],
    num_steps: int,
    *,
    inputs: Inputs = RAIN_ALONE,
    beside: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "b s 1 h w"]:
    """The network's forecast in mm/h."""
    return head.rates(predict_output(network, transform, rain, num_steps, inputs=inputs, beside=beside), transform)


PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
"""What a network's convolutions may run in; transform and head are float32."""


class NetworkForecaster:
    """A trained network as a Forecaster.

    It was trained on `input_steps` frames of `step_minutes`, and refuses another number of frames.
    `head` says what its channels mean, `inputs` what it sees beside the rain (`beside`, as in a `Sample`),
    `calibration` what its probabilities become before anyone sees them.
    `precision` is one of `PRECISIONS`: bf16 is faster where the processor multiplies in it, and less exact.
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
        inputs: Inputs = RAIN_ALONE,
        device: str | torch.device = "cpu",
        calibration: Calibration | None = None,
        precision: str = "float32",
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision}: choose one of {', '.join(PRECISIONS)}.")
        self.precision = PRECISIONS[precision]
        self.network = network.to(device).eval()
        self.head = head
        self.transform = transform
        self.name = name
        self.input_steps = input_steps
        self.lead_steps = lead_steps
        self.step_minutes = step_minutes
        self.inputs = inputs
        self.device = torch.device(device)
        self.calibration = calibration

    @property
    def probabilistic(self) -> bool:
        """Whether `exceedance` is more than 0 and 1."""
        return self.head.probabilistic or self.calibration is not None

    def forecast(
        self, rain: npt.NDArray[np.float32], num_steps: int, *, beside: Beside | None = None
    ) -> npt.NDArray[np.float32]:
        """As the protocol says; ValueError for other frames or channels than it was trained on."""
        return self.forecast_with_exceedance(rain, num_steps, (), beside=beside)[0]

    def exceedance(
        self,
        rain: npt.NDArray[np.float32],
        num_steps: int,
        thresholds: Sequence[float],
        *,
        beside: Beside | None = None,
    ) -> npt.NDArray[np.float32]:
        """(B, T_in, C, H, W) mm/h with NaN → (B, num_steps, K, H, W): P(rate >= threshold), each in 0 to 1.

        `thresholds` are K rates in mm/h, above 0 and increasing; ValueError otherwise, and as in `forecast`.
        Where the head is not probabilistic and nothing calibrated, the probabilities are 0 and 1.
        """
        return self.forecast_with_exceedance(rain, num_steps, thresholds, beside=beside)[1]

    @torch.inference_mode()
    def forecast_with_exceedance(
        self,
        rain: npt.NDArray[np.float32],
        num_steps: int,
        thresholds: Sequence[float],
        *,
        beside: Beside | None = None,
        calibrated: bool = True,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """What `forecast` and `exceedance` give, from one run of the network; K may be 0.

        With `calibrated=False` the probabilities are the head's own.
        """
        if rain.ndim != 5 or rain.shape[1:3] != (self.input_steps, 1):
            raise ValueError(
                f"{self.name} takes (batch, {self.input_steps} frames, 1 channels, y, x), found {rain.shape}."
            )
        given = {name: self._tensor(values) for name, values in (beside or {}).items()}
        reduced = torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32)
        with reduced:
            output = predict_output(
                self.network, self.transform, self._tensor(rain), num_steps, inputs=self.inputs, beside=given
            )
        rates = self.head.rates(output, self.transform)
        # no threshold is no question
        chances = self.head.exceedance(output, thresholds, self.transform) if len(thresholds) else rates[:, :, :0]
        stated = chances.cpu().numpy()
        if calibrated and self.calibration is not None and len(thresholds):
            stated = self.calibration.apply(stated, thresholds)
        return rates.cpu().numpy(), stated

    def _tensor(self, values: npt.NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.device)
