"""A convolution over rows of frames with channels last, and its gradients: what `sequence` is made of.

Rows are (…, B, H, W, C), contiguous: any number of steps of B frames.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LARGE = 2**20
"""Values of a kernel that no core's own cache holds: to lay it out anew at each call then costs."""

PIXELS_RATIO = 16
"""So many times more values than a step has pixels, a map's kernel is faster as a product."""


class Kernel:
    """The weights (O, C, k, k) of a convolution that keeps H and W, for steps of B·H·W = `pixels`.

    Large kernels on tiny grids are multiplied as a matrix with the pixels' neighbourhoods: a library's convolution
    brings such a kernel into its own layout at every step, which takes longer than the step.
    """

    def __init__(self, weight: Tensor, pixels: int) -> None:
        # no copy for what the layers hold
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.size = weight.shape[-1]
        values = weight[0].numel()
        large = weight.numel() >= LARGE and values >= PIXELS_RATIO * pixels
        self.as_product = large and weight.device.type == "cpu" and weight.dtype.itemsize >= 4

    @property
    def channels(self) -> int:
        """C."""
        return self.weight.shape[1]

    def first(self, outputs: int) -> "Kernel":
        """The kernel of the first `outputs` maps."""
        part = object.__new__(Kernel)
        part.weight, part.size, part.as_product = self.weight[:outputs], self.size, self.as_product
        return part

    def convolve(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """(…, B, H, W, C) → (…, B, H, W, O)."""
        shape = (*rows.shape[:-1], len(self.weight))
        if self.as_product:
            near, matrix = _neighbourhoods(_frames(rows), self.size), self._matrix().t()
            return (near @ matrix if bias is None else torch.addmm(bias, near, matrix)).view(shape)
        return _last(F.conv2d(_image(rows), self.weight, bias, padding=self.size // 2)).view(shape)

    def gradient_of_rows(self, d_rows: Tensor, like: Tensor) -> Tensor:
        """From the gradient of the result (…, B, H, W, O); `like` is the rows or has their shape."""
        if self.as_product:
            return _from_neighbourhoods(
                d_rows.flatten(0, -2) @ self._matrix(), _frames(like).shape, self.size
            ).view(like.shape)
        return _last(self._backward(d_rows, like, [True, False, False])[0]).view(like.shape)

    def gradients(self, d_rows: Tensor, rows: Tensor, *, bias: bool) -> tuple[Tensor, Tensor | None]:
        """Of the weights and, if wanted, of the bias, summed over all rows."""
        if self.as_product:
            flat = d_rows.flatten(0, -2)
            d_matrix = flat.t() @ _neighbourhoods(_frames(rows), self.size)
            d_weight = d_matrix.view(len(self.weight), self.size, self.size, -1).permute(0, 3, 1, 2)
            return d_weight, flat.sum(0) if bias else None
        _, d_weight, d_bias = self._backward(d_rows, rows, [False, True, bias])
        return d_weight, d_bias if bias else None

    def _matrix(self) -> Tensor:
        """(O, k·k·C), a view."""
        return self.weight.permute(0, 2, 3, 1).flatten(1)

    def _backward(self, d_rows: Tensor, rows: Tensor, wanted: list[bool]) -> Any:
        pad = self.size // 2
        sizes = ([1, 1], [pad, pad], [1, 1], False, [0, 0], 1)
        return torch.ops.aten.convolution_backward(
            _image(d_rows), _image(rows), self.weight, [len(self.weight)], *sizes, wanted
        )


def _frames(rows: Tensor) -> Tensor:
    """(…, B, H, W, C) → (N, H, W, C), a view."""
    return rows if rows.ndim == 4 else rows.flatten(0, -4)


def _image(rows: Tensor) -> Tensor:
    """(…, B, H, W, C) → (N, C, H, W), a view."""
    return _frames(rows).permute(0, 3, 1, 2)


def _last(image: Tensor) -> Tensor:
    """(N, C, H, W) → (N, H, W, C), contiguous."""
    return image.permute(0, 2, 3, 1).contiguous()


def _neighbourhoods(frames: Tensor, size: int) -> Tensor:
    """(N, H, W, C) → (N·H·W, k·k·C): what each output pixel sees, zeros beyond the edge."""
    N, H, W, C = frames.shape
    pad = size // 2
    padded = F.pad(frames, (0, 0, pad, pad, pad, pad))
    n, y, x, c = padded.stride()
    return padded.as_strided((N, H, W, size, size, C), (n, y, x, y, x, c)).reshape(N * H * W, -1)


def _from_neighbourhoods(near: Tensor, shape: torch.Size, size: int) -> Tensor:
    """The transpose of `_neighbourhoods`: what all that see a pixel say, added up, first along rows."""
    N, H, W, C = shape
    pad = size // 2
    seen = near.view(N, H, W, size, size, C)
    rows = near.new_zeros(N, H + 2 * pad, W, size, C)
    for row in range(size):
        rows[:, row : row + H] += seen[:, :, :, row]
    rows = rows[:, pad : pad + H]
    found = near.new_zeros(N, H, W + 2 * pad, C)
    for column in range(size):
        found[:, :, column : column + W] += rows[:, :, :, column]
    return found[:, :, pad : pad + W].contiguous()
