"""What a network reads: rain in mm/h and further channels, on the network's scale; and how it is run on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raincast.models.frames import PhysicalNetwork
from raincast.models.heads import Head
from raincast.transforms import Transform

Covariates = Mapping[str, Tensor]
"""Further channels by group, as in a `Sample`: past (B, T_in, P, H, W) and future (B, S, F, H, W).

Physical networks need scale (B, 2), too: the time step in minutes and the pixel size in km.
"""


def covariates_of(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The covariates of a sample or batch; empty if no channels are declared."""
    return {name: sample[name] for name in ("past", "future", "scale") if name in sample}


def to_network_scale(transform: Transform, rain: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
    """mm/h with NaN → network scale, where a missing pixel becomes 0: no rain."""
    # before the transform, where no rain is 0 too: what exported networks run on differs in what it clips NaN to
    scaled: Tensor = transform.forward(torch.nan_to_num(rain, nan=0.0))
    return scaled


@dataclass(frozen=True)
class Inputs:
    """The channels of a network's input, in order: the rain; if `observed`, where it was observed; those of
    `past`.

    `past` and `future` are (name, transform) of each channel of the group. A missing value becomes 0 on the
    network's scale. Where `future` is not empty, the forecaster of the network takes those channels.
    """

    observed: bool = False
    past: tuple[tuple[str, Transform], ...] = ()
    future: tuple[tuple[str, Transform], ...] = ()

    @property
    def num_channels(self) -> int:
        """The network's `in_channels`."""
        return 1 + self.observed + len(self.past)

    def frames(
        self, transform: Transform, rain: Float[Tensor, "b t c h w"], covariates: Covariates
    ) -> Float[Tensor, "b t n h w"]:
        """The encoder's input, without NaN; ValueError where a channel is not given."""
        parts = [to_network_scale(transform, rain)]
        if self.observed:
            parts.append((~rain.isnan().any(dim=2, keepdim=True)).to(parts[0].dtype))
        if self.past:
            parts.append(_scaled(self.past, covariates, "past"))
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]

    def ahead(self, covariates: Covariates, num_steps: int) -> tuple[Float[Tensor, "b s f h w"], ...]:
        """The forecaster's input at the times to come: one argument of the network, or none."""
        if not self.future:
            return ()
        scaled = _scaled(self.future, covariates, "future")
        if scaled.shape[1] != num_steps:
            raise ValueError(
                f"The channels known in advance have {scaled.shape[1]} steps, the forecast {num_steps}."
            )
        return (scaled,)


RAIN_ALONE = Inputs()


def _scaled(channels: Sequence[tuple[str, Transform]], covariates: Covariates, group: str) -> Tensor:
    names = ", ".join(name for name, _ in channels)
    if group not in covariates or covariates[group].shape[2] != len(channels):
        found = "none" if group not in covariates else str(covariates[group].shape[2])
        raise ValueError(
            f"The network takes {len(channels)} channels of {group} besides the rain ({names}), found {found}: "
            f"give the covariates {group}."
        )
    scaled = []
    for number, (_, transform) in enumerate(channels):
        values = covariates[group][:, :, number]
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
    covariates: Covariates,
) -> Float[Tensor, "b s n h w"]:
    """The network's output for rain in mm/h; it runs in the precision of its weights."""
    precision = _precision(network)
    frames = inputs.frames(transform, rain, covariates).to(precision)
    others = [known.to(precision) for known in inputs.ahead(covariates, num_steps)]
    if isinstance(network, PhysicalNetwork):
        if "scale" not in covariates:
            raise ValueError("This network works in physical units: give the covariate scale, minutes and km.")
        others.append(covariates["scale"])
    output: Tensor = network(frames, num_steps, *others)
    return output


def predict_output(
    network: nn.Module,
    transform: Transform,
    rain: Float[Tensor, "b t c h w"],
    num_steps: int,
    *,
    inputs: Inputs = RAIN_ALONE,
    covariates: Covariates | None = None,
) -> Float[Tensor, "b s n h w"]:
    """The network's output for rain in mm/h, for its head: in float32 whatever precision it ran in."""
    return run_network(network, transform, rain, num_steps, inputs=inputs, covariates=covariates or {}).float()


def predict_rates(
    network: nn.Module,
    head: Head,
    transform: Transform,
    rain: Float[Tensor, "b t c h w"],
    num_steps: int,
    *,
    inputs: Inputs = RAIN_ALONE,
    covariates: Covariates | None = None,
) -> Float[Tensor, "b s 1 h w"]:
    """The network's forecast in mm/h."""
    output = predict_output(network, transform, rain, num_steps, inputs=inputs, covariates=covariates)
    return head.rates(output, transform)
