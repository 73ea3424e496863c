"""Convolutions between recurrent layers: those of PyTorch, with `weight_gradient` where it can be had."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from raincast.models.fast.compiled import watched
from raincast.models.fast.kernel import rows_of
from raincast.models.fast.weight_gradient import weight_gradient
from raincast.models.layers.recurrent import autocast_dtype


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with a square kernel, one stride and one padding."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, O, H / stride, W / stride)."""
        return _convolve(self, x) if _trains(self, x) else super().forward(x)


class ConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with a square kernel, one stride and one padding."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        output_padding: int = 0,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, output_padding, bias=bias)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, C, H, W) → (N, O, stride · H, stride · W)."""
        fast = output_size is None and _trains(self, x)
        return _convolve(self, x) if fast else super().forward(x, output_size)


def _trains(module: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> bool:
    # compilers and exporters, and who counts operations, see PyTorch's own
    return (
        torch.is_grad_enabled()
        and module.weight.requires_grad
        and (x.device.type, x.dtype, x.ndim) == ("cpu", torch.float32, 4)
        and not (torch.compiler.is_compiling() or watched(x) or autocast_dtype("cpu"))
    )


def _convolve(module: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> Tensor:
    result: Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        x,
        module.weight,
        module.bias,
        module.stride,
        module.padding,
        isinstance(module, nn.ConvTranspose2d),
        module.output_padding,
    )
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = (stride, padding, [1, 1], transposed, output_padding, 1)
        return torch.convolution(x, weight, bias, *ctx.geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_result: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        (stride, _), (padding, _), _, transposed, *_ = ctx.geometry
        of_x, of_weight, of_bias = wanted = ctx.needs_input_grad[:3]
        found = None
        if of_weight:
            # what a transposed convolution gives takes the part of what another reads
            small, large = (x, d_result) if transposed else (d_result, x)
            size = weight.shape[-1]
            found = weight_gradient(
                rows_of(small), rows_of(large), size, stride=stride, padding=padding, bias=False
            )

        def gradients(wanted: Sequence[bool]) -> Any:
            sizes = [d_result.shape[1]]  # of the bias
            return torch.ops.aten.convolution_backward(d_result, x, weight, sizes, *ctx.geometry, wanted)

        if found is None:
            return *gradients(wanted), None, None, None, None
        d_x = gradients([True, False, False])[0] if of_x else None
        d_bias = d_result.sum((0, 2, 3)) if of_bias else None
        return d_x, found[0], d_bias, None, None, None, None
