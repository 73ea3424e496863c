"""Convolutions between recurrent layers: those of PyTorch, with `weight_gradient` where it can be had."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from raincast.models.compiled import watched
from raincast.models.recurrent import autocast_dtype
from raincast.models.weight_gradient import weight_gradient


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, of which a square kernel, stride and padding are taken."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, O, H / stride, W / stride)."""
        return _convolve(self, x) if _trains(self, x) else super().forward(x)


class ConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d`, of which a square kernel, stride and padding are taken."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, C, H, W) → (N, O, stride · H, stride · W)."""
        fast = output_size is None and _trains(self, x)
        return _convolve(self, x) if fast else super().forward(x, output_size)


def _trains(module: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> bool:
    # compilers and exporters, and who counts operations, see PyTorch's own
    wanted = torch.is_grad_enabled() and module.weight.requires_grad and x.ndim == 4
    hidden = torch.compiler.is_compiling() or watched(x) or autocast_dtype(x.device.type) is not None
    return wanted and not hidden and x.device.type == "cpu" and x.dtype == torch.float32


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
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        d_x, d_weight, d_bias = None, None, None
        if of_weight:
            # what a transposed convolution gives takes the part of what another reads
            small, large = (x, d_result) if transposed else (d_result, x)
            found = weight_gradient(
                _rows(small),
                _rows(large),
                weight.shape[-1],
                stride=stride,
                padding=padding,
                bias=of_bias and not transposed,
            )
            if found is not None:
                d_weight, d_bias = found
        if of_bias and d_bias is None and d_weight is not None:
            d_bias = _rows(d_result).flatten(0, 2).sum(0)
        missing = [of_x, of_weight and d_weight is None, of_bias and d_bias is None]
        if any(missing):
            others = torch.ops.aten.convolution_backward(
                d_result, x, weight, [len(d_result[0])] if of_bias else None, *ctx.geometry, missing
            )
            d_x = others[0]
            d_weight = others[1] if missing[1] else d_weight
            d_bias = others[2] if missing[2] else d_bias
        return d_x, d_weight, d_bias, None, None, None, None


def _rows(image: Tensor) -> Tensor:
    """(N, C, H, W) → (N, H, W, C), contiguous: no copy where it lies so."""
    return image.permute(0, 2, 3, 1).contiguous()
