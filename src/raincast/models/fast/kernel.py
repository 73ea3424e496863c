"""A convolution over rows of frames with channels last, and its gradients: what `sequence` is made of.

Rows are (…, B, H, W, C), contiguous: any number of steps of B frames, or one step (B, H, W, C).
"""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

mkldnn = torch.ops.mkldnn

LARGE = 2**18
"""Values of a kernel from which on it is packed: laying out a smaller one at each step costs next to nothing."""

HEAVY_RATIO = 4
"""A kernel of so many times more values than it gives a step is heavy: a sum of its gradients is no trifle."""


class Kernel:
    """The weights (O, C, k, k), k odd, of a convolution that keeps H and W, for steps of B frames of H × W.

    oneDNN, which convolves on a CPU, brings a kernel into a layout of its own at each call. For a recurrence,
    which calls it step by step, that can take longer than the step: large kernels are packed once for all steps.
    """

    def __init__(self, weight: Tensor, step: tuple[int, int, int]) -> None:
        """`step` is (B, H, W)."""
        # no copy for what the layers hold
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.step = step
        self.size = weight.shape[-1]
        self.packs = weight.numel() >= LARGE and 0 not in step and _can_pack(weight)

    @property
    def channels(self) -> int:
        """C."""
        return self.weight.shape[1]

    @property
    def heavy(self) -> bool:
        """True if it has many more values than its output has in a step."""
        B, H, W = self.step
        return self.weight.numel() >= max(LARGE, HEAVY_RATIO * len(self.weight) * B * H * W)

    def first(self, outputs: int) -> "Kernel":
        """The kernel of the first `outputs` maps."""
        return Kernel(self.weight[:outputs], self.step)

    def convolve(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """(…, B, H, W, C) → (…, B, H, W, O)."""
        if self.packs and rows.ndim == 4:
            frames = mkldnn._convolution_pointwise(_image(rows), self._packed, bias, *self._geometry, *_NO_MORE)
        else:
            frames = F.conv2d(_image(rows), self.weight, bias, padding=self.size // 2)
        return rows_of(frames).view(*rows.shape[:-1], len(self.weight))

    def gradient_of_rows(self, d_rows: Tensor, like: Tensor) -> Tensor:
        """From the gradient of the result (…, B, H, W, O); `like` is the rows or has their shape."""
        if self.packs and d_rows.ndim == 4:
            padding, *others = self._geometry
            geometry = (padding, [0, 0], *others)
            frames = mkldnn._convolution_transpose_pointwise(
                _image(d_rows), self._packed_back, None, *geometry, *_NO_MORE
            )
        else:
            frames = self._backward(d_rows, like, [True, False, False])[0]
        return rows_of(frames).view(like.shape)

    def gradients(self, d_rows: Tensor, rows: Tensor, *, bias: bool) -> tuple[Tensor, Tensor | None]:
        """Gradients of the weights and, on request, of the bias, summed over all rows."""
        _, d_weight, d_bias = self._backward(d_rows, rows, [False, True, bias])
        return d_weight, d_bias if bias else None

    @cached_property
    def _packed(self) -> Tensor:
        B, H, W = self.step
        packed: Tensor = mkldnn._reorder_convolution_weight(self.weight, *self._geometry, [B, self.channels, H, W])
        return packed

    @cached_property
    def _packed_back(self) -> Tensor:
        """For the gradient of the rows, which is the transposed convolution."""
        B, H, W = self.step
        padding, *others = self._geometry
        packed: Tensor = mkldnn._reorder_convolution_transpose_weight(
            self.weight, padding, [0, 0], *others, [B, len(self.weight), H, W]
        )
        return packed

    @property
    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        """Padding, stride, dilation, groups."""
        pad = self.size // 2
        return [pad, pad], [1, 1], [1, 1], 1

    def _backward(self, d_rows: Tensor, rows: Tensor, wanted: list[bool]) -> Any:
        padding, stride, dilation, groups = self._geometry
        geometry = (stride, padding, dilation, False, [0, 0], groups)
        return torch.ops.aten.convolution_backward(
            _image(d_rows), _image(rows), self.weight, [len(self.weight)], *geometry, wanted
        )


def _can_pack(weight: Tensor) -> bool:
    """True if oneDNN convolves with `weight` and PyTorch offers its layout.

    What watches or traces (a count of FLOPs, fake tensors) sees plain convolutions.
    """
    onednn = torch._C._has_mkldnn and torch._C._get_mkldnn_enabled()
    if not (onednn and all(hasattr(mkldnn, name) for name in _NEEDED)):
        return False
    half = weight.dtype == torch.bfloat16 and bool(mkldnn._is_mkldnn_bf16_supported())
    known = weight.dtype == torch.float32 or half
    return known and weight.device.type == "cpu" and _get_current_dispatch_mode() is None


_NEEDED = (
    "_convolution_pointwise",
    "_convolution_transpose_pointwise",
    "_reorder_convolution_weight",
    "_reorder_convolution_transpose_weight",
    "_is_mkldnn_bf16_supported",
)
_NO_MORE: tuple[str, list[float], str] = ("none", [], "")
"""No fused operation after the convolution, as inductor passes it."""


def _frames(rows: Tensor) -> Tensor:
    """(…, B, H, W, C) → (N, H, W, C), a view."""
    return rows if rows.ndim == 4 else rows.flatten(0, -4)


def _image(rows: Tensor) -> Tensor:
    """(…, B, H, W, C) → (N, C, H, W), a view."""
    return _frames(rows).permute(0, 3, 1, 2)


def rows_of(image: Tensor) -> Tensor:
    """(N, C, H, W) → (N, H, W, C), contiguous: no copy where it lies so."""
    return image.permute(0, 2, 3, 1).contiguous()


def autocast_dtype(device: str) -> torch.dtype | None:
    """The precision that autocast asks for on a type of device; None where it is off or unknown (meta)."""
    known = torch.amp.is_autocast_available(device)
    return torch.get_autocast_dtype(device) if known and torch.is_autocast_enabled(device) else None
