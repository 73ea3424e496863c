"""Encoder-forecasters: encode the past into recurrent states, from which further layers forecast.

Both take frames in network units without NaN (the caller fills missing values) and return frames in the same
units, linear and unclipped. With `future_channels` they also take channels known in advance at the lead times, in
network units without NaN. The first forecaster layer, which has no input otherwise, reads them step by step. Grids
of any size work: they are padded at the bottom and right with 0, which is *no rain* in network units (every
transform maps 0 mm/h to 0), and the output is cropped to the input's size.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from raincast.models.frames import (
    check_frames,
    check_future,
    framewise,
    from_patches,
    initialise,
    initialise_output,
    merge,
    pad,
    split,
)
from raincast.models.layers import SLOPE, CellFactory, State
from raincast.models.layers.convlstm import ConvLSTM


class StackedEncoderForecaster(nn.Module):
    """The network of Shi et al. 2015 (arXiv 1506.04214): two stacks of ConvLSTMs at one resolution.

    Frames are cut into patch × patch squares whose pixels become channels. Each forecaster layer has the width of
    the encoder layer of the same number and starts from that layer's last state. The first forecaster layer reads
    only the channels known in advance, if any; each further layer reads the hidden states below it. A 1×1
    convolution over the hidden states of all forecaster layers gives the pixels of each patch.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        future_channels: int = 0,
        patch: int = 4,
        hidden_channels: Sequence[int] = (128, 64, 64),
        input_kernel: int | Sequence[int] = 5,
        state_kernel: int | Sequence[int] = 5,
        cell: CellFactory = ConvLSTM,
    ) -> None:
        """Build the network; a kernel size is one number for all layers or one per layer.

        `cell` builds each recurrent layer. Raises ValueError without layers or with `patch` below 1.
        """
        super().__init__()
        self.in_channels = in_channels
        self.future_channels = future_channels
        self.patch = patch
        self.stride = patch
        widths = list(hidden_channels)
        if not widths or patch < 1:
            raise ValueError(f"Need at least one hidden width and patch >= 1, found {widths} and {patch}.")
        input_kernels = _per_layer(input_kernel, len(widths), "input_kernel")
        state_kernels = _per_layer(state_kernel, len(widths), "state_kernel")

        def stack(first_channels: int) -> nn.ModuleList:
            channels = [first_channels, *widths[:-1]]
            return nn.ModuleList(
                cell(c, h, input_kernel=k, state_kernel=s)
                for c, h, k, s in zip(channels, widths, input_kernels, state_kernels, strict=True)
            )

        self.encoder = stack(in_channels * patch**2)
        self.forecaster = stack(future_channels * patch**2)
        self.head = nn.Conv2d(sum(widths), out_channels * patch**2, 1)
        initialise_output(self.head)

    def forward(
        self, x: Float[Tensor, "b t c h w"], num_steps: int, future: Float[Tensor, "b steps f h w"] | None = None
    ) -> Float[Tensor, "b steps out h w"]:
        """Forecast `num_steps` frames from past frames and the channels known in advance, in network units."""
        check_frames(x, self.in_channels, num_steps)
        known = check_future(x, self.future_channels, num_steps, future)
        H, W = x.shape[-2:]
        hidden = F.pixel_unshuffle(pad(x, self.stride), self.patch)
        states = []
        for layer in self.encoder:
            hidden, state = layer(hidden)
            states.append(state)
        below = None if known is None else F.pixel_unshuffle(pad(known, self.stride), self.patch)
        outputs = []
        for layer, state in zip(self.forecaster, states, strict=True):
            below, _ = layer(below, state, num_steps)
            outputs.append(below)
        B = x.shape[0]  # not len(x), which a tracer takes for a constant
        frames = split(self.head(torch.cat([merge(hidden) for hidden in outputs], dim=1)), B)
        return from_patches(frames, self.patch)[..., :H, :W]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One level of the pyramid: a strided convolution and the recurrent layer after it.

    The convolution on the way down has `conv_channels` outputs; the up-sampling on the way back has `up_channels`
    (by default as many). Both kernels are at least as large as `stride`, so that no pixel is skipped; `up_kernel`
    is twice the stride by default. `cell` builds this level's recurrent layers and overrides the network's.
    """

    conv_channels: int
    hidden_channels: int
    stride: int = 2
    down_kernel: int = 3
    input_kernel: int = 3
    state_kernel: int = 3
    up_channels: int | None = None
    up_kernel: int | None = None
    cell: CellFactory | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "Stage":
        """Build a stage from a mapping as written in YAML.

        Raises ValueError for unknown, missing or invalid values.
        """
        allowed = [field.name for field in fields(cls)]
        unknown = [str(key) for key in values if key not in allowed]
        missing = [key for key in ("conv_channels", "hidden_channels") if key not in values]
        if unknown or missing:
            raise ValueError(
                f"Stage {dict(values)} has unknown keys {unknown} and lacks {missing}. "
                f"It takes {', '.join(allowed)}, of which conv_channels and hidden_channels must be given."
            )
        stage = cls(**values)
        if not 1 <= stage.stride <= stage.down_kernel:
            raise ValueError(
                f"stride={stage.stride} with down_kernel={stage.down_kernel} would skip pixels. "
                "Take 1 <= stride <= down_kernel."
            )
        if stage.up_kernel is not None and stage.up_kernel < stage.stride:
            raise ValueError(
                f"up_kernel={stage.up_kernel} with stride={stage.stride} would leave holes. "
                "Take up_kernel >= stride."
            )
        return stage

    @property
    def outputs(self) -> int:
        """Number of channels passed up from this level."""
        return self.up_channels or self.conv_channels


class PyramidEncoderForecaster(nn.Module):
    """The network of Shi et al. 2017 (arXiv 1706.03458): each level coarser than the last.

    The encoder has a strided convolution, a leaky ReLU and a recurrent layer per stage, from fine to coarse. The
    forecaster goes from coarse to fine: a recurrent layer that starts from the last encoder state of its level,
    up-sampling and a leaky ReLU. The coarsest forecaster layer reads only the channels known in advance, if any,
    through one convolution per square of `stride` pixels. A 3×3 and a 1×1 convolution give the output. With
    `patch` > 1 the pixels of each square become channels at the input and pixels again at the output, which makes
    the network cheap.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        future_channels: int = 0,
        stages: Sequence[Mapping[str, Any]],
        patch: int = 1,
        head_channels: int | None = None,
        cell: CellFactory = ConvLSTM,
    ) -> None:
        """Build the network from `stages`, mappings of the fields of `Stage`, ordered from fine to coarse.

        `head_channels` defaults to the channels passed up from the first stage; `cell` builds each recurrent
        layer.
        """
        super().__init__()
        levels = [Stage.parse(stage) for stage in stages]
        if not levels or patch < 1:
            raise ValueError(f"Need at least one stage and patch >= 1, found {len(levels)} and {patch}.")
        self.in_channels = in_channels
        self.future_channels = future_channels
        self.patch = patch
        self.stride = patch * math.prod(level.stride for level in levels)

        def recurrent(level: Stage, channels: int) -> nn.Module:
            return (level.cell or cell)(
                channels,
                level.hidden_channels,
                input_kernel=level.input_kernel,
                state_kernel=level.state_kernel,
            )

        widths = [in_channels * patch**2, *(level.hidden_channels for level in levels)]
        self.down = nn.ModuleList(_down(c, level) for c, level in zip(widths, levels, strict=False))
        self.encoder = nn.ModuleList(recurrent(level, level.conv_channels) for level in levels)
        known = levels[-1].conv_channels if future_channels else 0
        from_below = [*(level.outputs for level in levels[1:]), known]
        self.forecaster = nn.ModuleList(recurrent(level, c) for level, c in zip(levels, from_below, strict=True))
        self.up = nn.ModuleList(_up(level) for level in levels)
        first = levels[0].outputs
        self.head = _head(first, head_channels or first, out_channels * patch**2)
        self.known = _known(future_channels, self.stride, known) if known else None

    def forward(
        self, x: Float[Tensor, "b t c h w"], num_steps: int, future: Float[Tensor, "b steps f h w"] | None = None
    ) -> Float[Tensor, "b steps out h w"]:
        """Forecast `num_steps` frames from past frames and the channels known in advance, in network units."""
        check_frames(x, self.in_channels, num_steps)
        ahead = check_future(x, self.future_channels, num_steps, future)
        H, W = x.shape[-2:]
        states = self._encode(F.pixel_unshuffle(pad(x, self.stride), self.patch))
        known = None if ahead is None or self.known is None else framewise(self.known, pad(ahead, self.stride))
        frames = framewise(self.head, self._forecast(states, num_steps, known))
        return from_patches(frames, self.patch)[..., :H, :W]

    def _encode(self, hidden: Tensor) -> list[State]:
        states = []
        for down, layer in zip(self.down, self.encoder, strict=True):
            hidden, state = layer(framewise(down, hidden))
            states.append(state)
        return states

    def _forecast(self, states: list[State], num_steps: int, below: Tensor | None = None) -> Tensor:
        for layer, up, state in zip(reversed(self.forecaster), reversed(self.up), reversed(states), strict=True):
            hidden, _ = layer(below, state, num_steps)
            below = framewise(up, hidden)
        assert below is not None
        return below


def _down(channels: int, level: Stage) -> nn.Sequential:
    # pad by half of what the kernel exceeds the stride: H becomes exactly H / stride
    padding = (level.down_kernel - level.stride + 1) // 2
    conv = nn.Conv2d(channels, level.conv_channels, level.down_kernel, level.stride, padding)
    initialise(conv, fan_in=channels * level.down_kernel**2)
    return nn.Sequential(conv, nn.LeakyReLU(SLOPE, inplace=True))


def _known(channels: int, stride: int, width: int) -> nn.Sequential:
    """Build the layer that brings channels known in advance from pixels to the coarsest level."""
    conv = nn.Conv2d(channels, width, stride, stride)
    initialise(conv, fan_in=channels * stride**2)
    return nn.Sequential(conv, nn.LeakyReLU(SLOPE, inplace=True))


def _up(level: Stage) -> nn.Sequential:
    # a kernel divisible by the stride touches every output pixel equally often: no checkerboard
    stride = level.stride
    kernel = level.up_kernel or (2 * stride if stride > 1 else 3)
    padding = (kernel - stride + 1) // 2
    conv = nn.ConvTranspose2d(
        level.hidden_channels,
        level.outputs,
        kernel,
        stride,
        padding,
        output_padding=2 * padding - (kernel - stride),  # exactly H · stride, for odd strides too
    )
    initialise(conv, fan_in=level.hidden_channels * kernel**2 / stride**2)
    return nn.Sequential(conv, nn.LeakyReLU(SLOPE, inplace=True))


def _head(channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, hidden, 3, padding=1)
    last = nn.Conv2d(hidden, out_channels, 1)
    initialise(conv, fan_in=9 * channels)
    initialise_output(last)
    return nn.Sequential(conv, nn.LeakyReLU(SLOPE, inplace=True), last)


def _per_layer(kernel: int | Iterable[int], layers: int, name: str) -> list[int]:
    kernels = [kernel] * layers if isinstance(kernel, int) else list(kernel)
    if len(kernels) != layers:
        raise ValueError(
            f"{name}={kernels} has {len(kernels)} sizes for {layers} layers. Give one per layer or one number."
        )
    return kernels
