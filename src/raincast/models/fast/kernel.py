"""A convolution over channels-last rows of frames, and its gradients: the building block of `sequence`.

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
"""Size in values from which a kernel is packed; rearranging a smaller one at each step costs next to nothing."""

HEAVY_RATIO = 4
"""A kernel with this many times more values than its output of one step is heavy: summing its gradients is costly.
"""


class Kernel:
    """The weights (O, C, k, k), k odd, of a convolution that keeps H and W, for steps of B frames of H × W.

    oneDNN, which convolves on a CPU, rearranges a kernel into its own layout at each call. In a recurrence, which
    calls it step by step, that can take longer than the step itself: large kernels are packed once for all steps.
    """

    def __init__(self, weight: Tensor, step: tuple[int, int, int]) -> None:
        """Wrap `weight`; `step` is (B, H, W)."""
        # not a copy for the layers' weights
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.step = step
        self.size = weight.shape[-1]
        self.packs = weight.numel() >= LARGE and 0 not in step and _can_pack(weight)

    @property
    def channels(self) -> int:
        """C, the number of input channels."""
        return self.weight.shape[1]

    @property
    def heavy(self) -> bool:
        """True if the kernel has many more values than its output of one step."""
        B, H, W = self.step
        return self.weight.numel() >= max(LARGE, HEAVY_RATIO * len(self.weight) * B * H * W)

    def first(self, outputs: int) -> "Kernel":
        """Return the kernel of the first `outputs` output channels."""
        return Kernel(self.weight[:outputs], self.step)

    def convolve(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve (…, B, H, W, C) → (…, B, H, W, O)."""
        if self.packs and rows.ndim == 4:
            frames = mkldnn._convolution_pointwise(_image(rows), self._packed, bias, *self._geometry, *_NO_MORE)
        else:
            frames = F.conv2d(_image(rows), self.weight, bias, padding=self.size // 2)
        return rows_of(frames).view(*rows.shape[:-1], len(self.weight))

    def gradient_of_rows(self, d_rows: Tensor, like: Tensor) -> Tensor:
        """Return the rows' gradient, given the output's (…, B, H, W, O); `like` is the rows or has their shape."""
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
        """Return the gradients of the weights and, on request, of the bias, summed over all rows."""
        _, d_weight, d_bias = self._backward(d_rows, rows, [False, True, bias])
        return d_weight, d_bias if bias else None

    @cached_property
    def _packed(self) -> Tensor:
        B, H, W = self.step
        packed: Tensor = mkldnn._reorder_convolution_weight(self.weight, *self._geometry, [B, self.channels, H, W])
        return packed

    @cached_property
    def _packed_back(self) -> Tensor:
        """Kernel packed for the gradient of the rows, which is the transposed convolution."""
        B, H, W = self.step
        padding, *others = self._geometry
        packed: Tensor = mkldnn._reorder_convolution_transpose_weight(
            self.weight, padding, [0, 0], *others, [B, len(self.weight), H, W]
        )
        return packed

    @property
    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        """Padding, stride, dilation and groups of the convolution."""
        pad = self.size // 2
        return [pad, pad], [1, 1], [1, 1], 1

    def _backward(self, d_rows: Tensor, rows: Tensor, wanted: list[bool]) -> Any:
        padding, stride, dilation, groups = self._geometry
        geometry = (stride, padding, dilation, False, [0, 0], groups)
        return torch.ops.aten.convolution_backward(
            _image(d_rows), _image(rows), self.weight, [len(self.weight)], *geometry, wanted
        )


def _can_pack(weight: Tensor) -> bool:
    """Return True if oneDNN convolves with `weight` and PyTorch exposes its layout.

    Observers and tracers (FLOP counters, fake tensors) see plain convolutions.
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
"""No fused operation after the convolution, in the form that inductor passes it."""


def _frames(rows: Tensor) -> Tensor:
    """Reshape (…, B, H, W, C) → (N, H, W, C), as a view."""
    return rows if rows.ndim == 4 else rows.flatten(0, -4)


def _image(rows: Tensor) -> Tensor:
    """Reshape (…, B, H, W, C) → (N, C, H, W), as a view."""
    return _frames(rows).permute(0, 3, 1, 2)


def rows_of(image: Tensor) -> Tensor:
    """Reshape (N, C, H, W) → (N, H, W, C), contiguous; no copy if the memory layout already fits."""
    return image.permute(0, 2, 3, 1).contiguous()


def autocast_dtype(device: str) -> torch.dtype | None:
    """Return autocast's precision for a type of device; None if it is off or not supported (meta)."""
    known = torch.amp.is_autocast_available(device)
    return torch.get_autocast_dtype(device) if known and torch.is_autocast_enabled(device) else None
