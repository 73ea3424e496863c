"""The input of a network: rain in mm/h and covariates, converted to network units; and running a network on it."""

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
"""Covariates by group, as in a `Sample`: past (B, T_in, P, H, W) and future (B, S, F, H, W).

Physical networks also need scale (B, 2): the time step in minutes and the pixel size in km.
"""


def covariates_of(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the covariates of a sample or batch; empty if none are configured."""
    return {name: sample[name] for name in ("past", "future", "scale") if name in sample}


def to_network_scale(transform: Transform, rain: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
    """Convert mm/h to network units; missing pixels (NaN) become 0, no rain."""
    # before the transform, which maps no rain to 0 too: runtimes of exported networks clip NaN to different values
    scaled: Tensor = transform.forward(torch.nan_to_num(rain, nan=0.0))
    return scaled


@dataclass(frozen=True)
class Inputs:
    """The channels of a network's input: rain, a mask of observed pixels (if `observed`), those of `past`.

    `past` and `future` hold (name, transform) of each channel of the group. A missing value becomes 0 in network
    units. If `future` is not empty, the forecaster part of the network reads those channels.
    """

    observed: bool = False
    past: tuple[tuple[str, Transform], ...] = ()
    future: tuple[tuple[str, Transform], ...] = ()

    @property
    def num_channels(self) -> int:
        """Number of input channels: the network's `in_channels`."""
        return 1 + self.observed + len(self.past)

    def frames(
        self, transform: Transform, rain: Float[Tensor, "b t c h w"], covariates: Covariates
    ) -> Float[Tensor, "b t n h w"]:
        """Return the encoder's input, without NaN; raises ValueError if a channel is missing."""
        parts = [to_network_scale(transform, rain)]
        if self.observed:
            parts.append((~rain.isnan().any(dim=2, keepdim=True)).to(parts[0].dtype))
        if self.past:
            parts.append(_scaled(self.past, covariates, "past"))
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]

    def ahead(self, covariates: Covariates, num_steps: int) -> tuple[Float[Tensor, "b s f h w"], ...]:
        """Return the forecaster's input at the lead times as a tuple: one argument of the network, or none."""
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


def run_network(
    network: nn.Module,
    transform: Transform,
    rain: Float[Tensor, "b t c h w"],
    num_steps: int,
    *,
    inputs: Inputs,
    covariates: Covariates,
    **further: Any,
) -> Float[Tensor, "b s n h w"]:
    """Run the network on rain in mm/h, in the precision of its weights, and return its output.

    `further` are keyword arguments of the network.
    """
    precision = next((weight.dtype for weight in network.parameters()), torch.float32)
    frames = inputs.frames(transform, rain, covariates).to(precision)
    others = [known.to(precision) for known in inputs.ahead(covariates, num_steps)]
    if isinstance(network, PhysicalNetwork):
        if "scale" not in covariates:
            raise ValueError("This network works in physical units: give the covariate scale, minutes and km.")
        others.append(covariates["scale"])
    output: Tensor = network(frames, num_steps, *others, **further)
    return output


def predict_output(
    network: nn.Module,
    transform: Transform,
    rain: Float[Tensor, "b t c h w"],
    num_steps: int,
    *,
    inputs: Inputs = RAIN_ALONE,
    covariates: Covariates | None = None,
    **further: Any,
) -> Float[Tensor, "b s n h w"]:
    """Run the network on rain in mm/h and return its output for the head, always in float32."""
    given = {"inputs": inputs, "covariates": covariates or {}, **further}
    return run_network(network, transform, rain, num_steps, **given).float()


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
    """Return the network's forecast in mm/h."""
    output = predict_output(network, transform, rain, num_steps, inputs=inputs, covariates=covariates)
    return head.rates(output, transform)
