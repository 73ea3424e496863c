"""The gradient of a convolution's weights on a CPU, by `kernels/weights.c`.

It is a third of a training step, and the one where oneDNN, which PyTorch convolves with, is furthest from what the
processor can do (`benchmarks/README.md`).
"""

import ctypes
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from raincast.models.fast.compiled import load, watched

SOURCE = "weights.c"


def weight_gradient(
    d_rows: Tensor, rows: Tensor, size: int, *, stride: int = 1, padding: int | None = None, bias: bool
) -> tuple[Tensor, Tensor | None] | None:
    """Of a kernel of `size` × `size` and, if wanted, of a bias, summed over all rows.

    `rows` (…, H, W, C) are what was convolved, `d_rows` (…, H / stride, W / stride, O) is the gradient of the
    result; `padding` is by default what keeps H and W. Gives (O, C, size, size), with channels last, and (O).
    None where it is not for the kernel to do: it takes float32 on a processor with AVX2 or AVX-512, and O a
    multiple of the numbers in a vector, from some vectors on.
    """
    if d_rows.device.type != "cpu" or d_rows.dtype != torch.float32 or watched(d_rows):
        return None
    kernel = _kernel()
    outputs, channels = d_rows.shape[-1], rows.shape[-1]
    if kernel is None or not kernel.takes(outputs) or not (d_rows.numel() and channels):
        return None
    d_rows, rows = d_rows.contiguous(), rows.contiguous()
    height, width = d_rows.shape[-3:-1]
    threads, images = torch.get_num_threads(), d_rows.numel() // (height * width * outputs)
    pad = size // 2 if padding is None else padding
    sizes = _Sizes(images, height, width, outputs, *rows.shape[-3:], size, stride, pad)
    room = d_rows.new_empty(threads * kernel.room(threads, sizes))
    d_weight = d_rows.new_empty(outputs, size, size, channels)
    d_bias = d_rows.new_empty(outputs) if bias else None
    tensors = (d_rows, rows, room, d_weight, d_bias)
    kernel.run(threads, sizes, *(None if tensor is None else tensor.data_ptr() for tensor in tensors))
    return d_weight.permute(0, 3, 1, 2), d_bias


_Sizes = ctypes.c_int64 * 10
"""As in the source."""


class _Kernel(NamedTuple):
    """The functions of the library: whether it takes so many outputs, the floats that a thread needs, the work."""

    takes: Callable[[int], int]
    room: Callable[..., int]
    run: Callable[..., None]


@functools.cache
def _kernel() -> _Kernel | None:
    """None where it cannot be compiled, which is said once."""
    library = load(SOURCE)
    if library is None:
        return None
    takes, room, run = (library[f"raincast_weights{name}"] for name in ("_takes", "_room", ""))
    takes.argtypes, takes.restype = [ctypes.c_int64], ctypes.c_int
    room.argtypes, room.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_int64
    run.argtypes, run.restype = [ctypes.c_int, *[ctypes.c_void_p] * 6], None
    return _Kernel(takes, room, run)
