"""The floor: a network's convolutions alone, with nothing between them, in the cheapest arrangement.

Each convolution is tried over all time steps in one call and step by step, in both memory layouts, and the
cheapest is taken. A zero state is not convolved, and no unused gradient is computed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timing import medians
from torch import Tensor, nn

from raincast.models import ConvLSTM

Way = Callable[[], None]


@dataclass(frozen=True)
class Convolution:
    """A convolution as a network runs it: `steps` times on (batch, channels, height, width)."""

    weight: tuple[int, ...]
    batch: int
    channels: int
    height: int
    width: int
    steps: int
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    transposed: bool = False
    input_gradient: bool = True


def convolutions(network: nn.Module, run: Callable[[], Any], *, first_gradient: bool) -> list[Convolution]:
    """Return the convolutions of `run`, which calls the network once.

    With `first_gradient` the frames need one, too.
    """
    found: list[Convolution] = []

    def layer(module: ConvLSTM, arguments: tuple[Any, ...], result: Any) -> None:
        x, state = arguments[0], arguments[1] if len(arguments) > 1 else None
        B, T, h, H, W = result[0].shape
        kernel = module.state_weight.shape[-1]
        if x is not None:
            weight = tuple(module.input_weight.shape)
            found.append(
                Convolution(weight, B, x.shape[2], H, W, T, padding=weight[-1] // 2, input_gradient=wanted())
            )
        steps = T if state is not None else T - 1
        found.append(Convolution(tuple(module.state_weight.shape), B, h, H, W, steps, padding=kernel // 2))

    def plain(module: nn.Conv2d | nn.ConvTranspose2d, arguments: tuple[Any, ...], result: Any) -> None:
        N, C, H, W = arguments[0].shape
        found.append(
            Convolution(
                tuple(module.weight.shape),
                N,
                C,
                H,
                W,
                1,  # N includes the time steps
                stride=module.stride[0],
                padding=module.padding[0],
                output_padding=module.output_padding[0],
                transposed=isinstance(module, nn.ConvTranspose2d),
                input_gradient=wanted(),
            )
        )

    def wanted() -> bool:
        return bool(found) or first_gradient

    hooks = [
        module.register_forward_hook(layer if isinstance(module, ConvLSTM) else plain)
        for module in network.modules()
        if isinstance(module, (ConvLSTM, nn.Conv2d, nn.ConvTranspose2d))
    ]
    run()
    for hook in hooks:
        hook.remove()
    return found


def floor(parts: list[Convolution], *, backward: bool, dtype: torch.dtype, device: str) -> Way:
    """Run all convolutions in their cheapest arrangement; with `backward` both gradients as well."""
    chosen: list[Way] = []
    for part in parts:
        for ways in _operations(part, backward=backward, dtype=dtype, device=device):
            times = medians(ways, repeats=3, warm_up=1)
            chosen.append(ways[min(times, key=times.__getitem__)])

    def run() -> None:
        for way in chosen:
            way()

    return run


def _operations(part: Convolution, *, backward: bool, dtype: torch.dtype, device: str) -> list[dict[str, Way]]:
    """Return the alternatives for the forward pass and, if wanted, for the gradients of weight and input."""
    kinds = ["forward"]
    if backward:
        kinds.append("weight")
        if part.input_gradient:
            kinds.append("input")
    ways: list[dict[str, Way]] = [{} for _ in kinds]
    for layout in (torch.channels_last, torch.contiguous_format):
        for pieces in sorted({1, part.steps}):
            tensors = _tensors(part, pieces, layout, dtype, device)
            for way, kind in zip(ways, kinds, strict=True):
                way[f"{layout} {pieces}"] = _operation(part, kind, *tensors)
    return ways


def _tensors(part: Convolution, pieces: int, layout: Any, dtype: torch.dtype, device: str) -> tuple[Any, ...]:
    def made(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device).mul_(0.1).contiguous(memory_format=layout)

    batch = part.batch * part.steps // pieces
    weight = made(*part.weight)
    inputs = [made(batch, part.channels, part.height, part.width) for _ in range(pieces)]
    with torch.no_grad():
        shape = _forward(part, inputs[0], weight).shape
    return weight, inputs, [made(*shape) for _ in range(pieces)]


def _forward(part: Convolution, x: Tensor, weight: Tensor) -> Tensor:
    if part.transposed:
        return torch.conv_transpose2d(
            x, weight, stride=part.stride, padding=part.padding, output_padding=part.output_padding
        )
    return torch.conv2d(x, weight, stride=part.stride, padding=part.padding)


def _operation(part: Convolution, kind: str, weight: Tensor, inputs: list[Tensor], gradients: list[Tensor]) -> Way:
    mask = [kind == "input", kind == "weight", False]

    @torch.no_grad()
    def forward() -> None:
        for x in inputs:
            _forward(part, x, weight)

    @torch.no_grad()
    def backward() -> None:
        for x, d in zip(inputs, gradients, strict=True):
            torch.ops.aten.convolution_backward(
                d,
                x,
                weight,
                None,
                [part.stride] * 2,
                [part.padding] * 2,
                [1, 1],
                part.transposed,
                [part.output_padding] * 2,
                1,
                mask,
            )

    return forward if kind == "forward" else backward
