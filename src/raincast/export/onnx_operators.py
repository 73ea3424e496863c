"""Operators that torch.onnx cannot translate, or onnxruntime computes badly, expressed by others.

Fourier transforms become products with matrices of cosines and sines. ONNX has an operator for them, DFT, but that
of onnxruntime 1.32 loses two digits and takes five to eight times as long on grids of 100 to 500 pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram


def rewritten(program: ExportedProgram) -> ExportedProgram:
    """Return `program` without the operators of `REWRITTEN`; itself, if it has none of them."""
    if not any(node.target in REWRITTEN for node in program.graph.nodes):
        return program
    made: ExportedProgram = program.run_decompositions(dict(REWRITTEN))
    return made


def _rfft2(fields: Tensor) -> Tensor:
    h, w = fields.shape[-2:]
    cos_y, sin_y = _tables(h, h, fields)
    cos_x, sin_x = _tables(w, w // 2 + 1, fields)
    even, odd = cos_y @ fields, sin_y @ fields
    return torch.complex(even @ cos_x - odd @ sin_x, -(even @ sin_x) - odd @ cos_x)


def _irfft2(spectrum: Tensor, s: Sequence[int]) -> Tensor:
    (h, w), half = s, spectrum.shape[-1]
    real, imaginary = torch.view_as_real(spectrum).unbind(-1)
    cos_y, sin_y = _tables(h, h, real)
    cos_x, sin_x = _tables(w, half, real)
    # a wavenumber along x also stands for its negative, except 0 and w / 2
    k = torch.arange(half, device=real.device)
    share = (2.0 - (2 * k % w == 0).to(real.dtype)) / (h * w)
    cos_x, sin_x = share[:, None] * cos_x.mT, share[:, None] * sin_x.mT
    return cos_y @ (real @ cos_x - imaginary @ sin_x) - sin_y @ (real @ sin_x + imaginary @ cos_x)


def _tables(size: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines (size, columns) of 2π / size · row · column."""
    rows = torch.arange(size, device=like.device)
    # full turns are removed from whole numbers, which are exact
    angle = (rows[:, None] * rows[:columns] % size).to(like.dtype) * (2.0 * torch.pi / size)
    return angle.cos(), angle.sin()


def _fftfreq(n: int, d: float = 1.0, *, dtype: torch.dtype, device: Any = None, **_: Any) -> Tensor:
    k = torch.arange(n, device=device)
    return torch.where(2 * k < n, k, k - n).to(dtype) / (n * d)


def _rfftfreq(n: int, d: float = 1.0, *, dtype: torch.dtype, device: Any = None, **_: Any) -> Tensor:
    return torch.arange(n // 2 + 1, device=device).to(dtype) / (n * d)


def _hypot(a: Tensor, b: Tensor) -> Tensor:
    return (a * a + b * b).sqrt()


def _bucketize(values: Tensor, edges: Tensor, *, right: bool = False) -> Tensor:
    passed = values[..., None] >= edges if right else values[..., None] > edges
    return passed.long().sum(-1)


_ATEN = torch.ops.aten

REWRITTEN: Mapping[Any, Callable[..., Tensor]] = {
    _ATEN.fft_rfft2.default: _rfft2,
    _ATEN.fft_irfft2.default: _irfft2,
    _ATEN.fft_fftfreq.default: _fftfreq,
    _ATEN.fft_rfftfreq.default: _rfftfreq,
    _ATEN.hypot.default: _hypot,
    _ATEN.bucketize.Tensor: _bucketize,
}
"""What is computed in place of each operator, with the arguments that networks here pass."""
