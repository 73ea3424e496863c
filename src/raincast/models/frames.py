"""Shared by encoder-forecasters: convolutions over all frames of a sequence, padding, initial weights, checks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raincast.models.layers import SLOPE


class PhysicalNetwork(nn.Module):
    """A network in physical units: it takes the `scale` (B, 2) of each sample as its last argument.

    `scale` is the time step in minutes and the pixel size in km; such a network serves any of them. It reads at
    most the newest `most_frames` frames.
    """

    most_frames: int


def merge(x: Tensor) -> Tensor:
    """Reshape (B, T, C, H, W) → (T·B, C, H, W), time first: a view of what a ConvLSTM returns, not a copy."""
    return x.transpose(0, 1).flatten(0, 1)


def split(frames: Tensor, batch: int) -> Tensor:
    """Reshape (T·B, C, H, W) → (B, T, C, H, W), as a view."""
    return frames.view(-1, batch, *frames.shape[1:]).transpose(0, 1)


def framewise(module: nn.Module, x: Tensor) -> Tensor:
    """Apply a module for (N, C, H, W) to all frames of (B, T, C, H, W) in one call."""
    return split(module(merge(x)), x.shape[0])


def pad(x: Tensor, multiple: int) -> Tensor:
    """Pad the bottom and right with 0 (no rain) up to the next multiple."""
    H, W = x.shape[-2:]
    return F.pad(x, (0, -W % multiple, 0, -H % multiple)) if H % multiple or W % multiple else x


def from_patches(frames: Tensor, patch: int) -> Tensor:
    """Reshape (B, T, C·patch², H, W) → (B, T, C, patch·H, patch·W), contiguous."""
    # pixel_shuffle would copy single pixels, too, and take twice as long
    return frames.contiguous() if patch == 1 else F.pixel_shuffle(frames, patch)


def initialise(conv: nn.Conv2d | nn.ConvTranspose2d, *, fan_in: int | float) -> None:
    """Initialise as He et al.; PyTorch's own version misjudges the fan-in of a strided transposed convolution."""
    nn.init.normal_(conv.weight, std=nn.init.calculate_gain("leaky_relu", SLOPE) / math.sqrt(fan_in))
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    _channels_last(conv)


def initialise_output(conv: nn.Conv2d) -> None:
    """Initialise weights by Xavier's scheme and the bias with 0: forecasts start near no rain."""
    nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)  # 0 is no rain
    _channels_last(conv)


def _channels_last(conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
    # the layout in which recurrent layers hand on their frames, so that nothing is copied in between
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)


def check_frames(x: Tensor, channels: int, num_steps: int) -> None:
    """Raise ValueError unless `x` is (B, T, channels, H, W) and `num_steps` is at least 1."""
    if x.ndim != 5 or x.shape[2] != channels:
        raise ValueError(
            f"Expected frames of shape (B, T, C, H, W) with C={channels}, found {tuple(x.shape)}. "
            "Add the missing axis, or build the network with in_channels equal to the number of channels."
        )
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: ask for at least one frame.")


def check_future(x: Tensor, channels: int, num_steps: int, future: Tensor | None) -> Tensor | None:
    """Return `future` if it has the shape (B, num_steps, channels, H, W), or is None and there are no channels.

    Raises ValueError otherwise.
    """
    expected = (x.shape[0], num_steps, channels, *x.shape[-2:])
    if (future is None) != (channels == 0) or (future is not None and tuple(future.shape) != expected):
        found = None if future is None else tuple(future.shape)
        raise ValueError(
            f"Expected frames known in advance of shape {expected if channels else None}, found {found}. Build "
            "the network with future_channels equal to the number of channels that are known in advance."
        )
    return future
