"""`gates` on a GPU: each of its functions as one Triton kernel, which reads and writes each value once.

Rows are float32, bfloat16 or float16; cells and the arithmetic are float32. Exponentials use the polynomials of
`gates.c` instead of the hardware's approximations, so that Triton's interpreter on a CPU (TRITON_INTERPRET=1)
computes what a GPU computes. Needs Triton, which comes with PyTorch's CUDA builds.

A program processes a tile of pixels and channels. Rows are counted in 64 bits. An absent tensor is None, which
Triton compiles as a separate case; image sizes do not trigger a new compilation. The kernels are excluded from
type checks at run time (`no_type_check`), since Triton reads their source.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 512
"""Number of values of a tile: four per thread, or 16 bytes of float32."""

WARPS = 4
CHANNEL, PIXEL = 1, 2  # peepholes; 0: none


def _over_pixels(kernel: Any, name: str) -> Callable[..., None]:
    """Wrap `kernel` as the function `name` of `gates`, which takes its tensors by name."""

    def run(**tensors: Tensor | None) -> None:
        _launch(kernel, tensors)

    run.__name__ = name
    return run


def _launch(kernel: Any, tensors: Mapping[str, Tensor | None]) -> None:
    """Launch over the cell's pixels and channels.

    With tables of sums, at most one program per table shares the pixels.
    """
    cell, tables = tensors["cell"], tensors.get("dpeephole")
    assert cell is not None
    width = cell.shape[-1]
    pixels = cell.numel() // width
    if not pixels:
        return
    channels = triton.next_power_of_2(width) if width <= 32 else 64 if width % 64 == 0 else 32
    block = TILE // channels
    blocks = triton.cdiv(pixels, block)
    grid = (blocks if tables is None else min(blocks, len(tables)), triton.cdiv(width, channels))
    others = _of_peepholes(tensors["peephole"]) if "peephole" in tensors else {}
    with _on(cell.device):
        kernel[grid](
            **tensors, pixels=pixels, width=width, **others, PIXELS=block, CHANNELS=channels, num_warps=WARPS
        )


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Make the tensors' device current: Triton launches on the current device, wherever the tensors are."""
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    return torch.cuda.device(device) if elsewhere else nullcontext()


def _of_peepholes(table: Tensor | None) -> dict[str, int]:
    """Return the type of peepholes, and after how many pixels they repeat."""
    period = 1 if table is None else table.shape[0] * table.shape[1]
    return {"PEEPHOLE": 0 if table is None else CHANNEL if period == 1 else PIXEL, "period": period}


@no_type_check
@triton.jit
def _exponential(x):
    """Compute e^x for x <= 0: x = n ln 2 + r, 2^n from the exponent bits, e^r by Cephes' polynomial.

    NaN propagates.
    """
    x = tl.where(x < -87.0, -87.0, x)
    n = tl.floor(x * 1.44269504088896341 + 0.5)
    r = x - n * 0.693359375 + n * 2.12194440e-4
    p = 1.9875691500e-4 * r + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    p = p * (r * r) + r + 1.0
    power = (n.to(tl.int32) + 127) << 23
    return p * power.to(tl.float32, bitcast=True)


@no_type_check
@triton.jit
def _sigmoid(x):
    e = _exponential(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@no_type_check
@triton.jit
def _tanh(x):
    """Compute tanh(x); near 0 with the odd polynomial of Cephes (tanhf), since 1 - e^-2|x| would cancel there."""
    a = tl.abs(x)
    s = x * x
    e = _exponential(-2.0 * a)
    p = -5.70498872745e-3 * s + 2.06390887954e-2
    p = p * s - 5.37397155531e-2
    p = p * s + 1.33314422036e-1
    p = p * s - 3.33332819422e-1
    t = tl.where(a < 0.625, p * s * a + a, (1.0 - e) / (1.0 + e))
    return tl.where(x < 0, -t, t)


@no_type_check
@triton.jit
def _load(rows, at, mask):
    return tl.load(rows + at, mask=mask, other=0.0).to(tl.float32)


@no_type_check
@triton.jit
def _store(rows, at, value, mask):
    tl.store(rows + at, value.to(rows.dtype.element_ty), mask=mask)


@no_type_check
@triton.jit
def _pixels_and_channels(block, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the offsets of a tile: a column of pixels and a row of channels."""
    p = tl.cast(block, tl.int64) * PIXELS + tl.arange(0, PIXELS)
    k = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    return p[:, None], k[None, :]


@no_type_check
@triton.jit
def _peepholes(table, p, k, pixels, width, period, PEEPHOLE: tl.constexpr):
    """Load the peepholes of i, f and o."""
    if PEEPHOLE == 1:
        at, mask = k, k < width
    else:
        at, mask = (p % period) * 3 * width + k, (p < pixels) & (k < width)
    return _load(table, at, mask), _load(table, at + width, mask), _load(table, at + 2 * width, mask)


@no_type_check
@triton.jit
def _summed(a, b, at, mask):
    """Load the pre-activation of a gate: input plus state."""
    total = _load(a, at, mask)
    if b is not None:
        total += _load(b, at, mask)
    return total


@no_type_check
@triton.jit
def _cell_of(a, b, old, peephole, at, row, mask, p, k, pixels, width, period, PEEPHOLE: tl.constexpr):
    """Compute the gates i, f, z and the new cell; `at` is the offset of each value's i in the pre-activations."""
    i = _summed(a, b, at, mask)
    f = _summed(a, b, at + width, mask)
    z = _summed(a, b, at + 2 * width, mask)
    if old is not None:
        before = _load(old, row, mask)
        if PEEPHOLE:
            of_i, of_f, _ = _peepholes(peephole, p, k, pixels, width, period, PEEPHOLE)
            i += of_i * before
            f += of_f * before
    i, f, z = _sigmoid(i), _sigmoid(f), _tanh(z)
    c = i * z
    if old is not None:
        c += f * before
    return i, f, z, c


@no_type_check
@triton.jit
def _store_gates(gates, at, width, i, f, z, o, mask):
    _store(gates, at, i, mask)
    _store(gates, at + width, f, mask)
    _store(gates, at + 2 * width, z, mask)
    _store(gates, at + 3 * width, o, mask)


@no_type_check
@triton.jit(do_not_specialize=["pixels", "period"])
def _forward(
    a,
    b,
    old,
    peephole,
    gates,
    out_gate,
    cell,
    hidden,
    pixels,
    width,
    period,
    PEEPHOLE: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    p, k = _pixels_and_channels(tl.program_id(0), PIXELS, CHANNELS)
    mask = (p < pixels) & (k < width)
    row, wide = p * width + k, p * (4 * width) + k
    i, f, z, c = _cell_of(a, b, old, peephole, wide, row, mask, p, k, pixels, width, period, PEEPHOLE)
    o = _summed(a, b, wide + 3 * width, mask)
    if PEEPHOLE:
        _, _, of_o = _peepholes(peephole, p, k, pixels, width, period, PEEPHOLE)
        o += of_o * c
    o = _sigmoid(o)
    _store(cell, row, c, mask)
    _store(hidden, row, o * _tanh(c), mask)
    if gates is not None:
        _store_gates(gates, wide, width, i, f, z, o, mask)
    if out_gate is not None:
        _store(out_gate, row, o, mask)


@no_type_check
@triton.jit(do_not_specialize=["pixels", "period"])
def _regate(
    a,
    b,
    old,
    peephole,
    out_gate,
    gates,
    cell,
    pixels,
    width,
    period,
    PEEPHOLE: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    p, k = _pixels_and_channels(tl.program_id(0), PIXELS, CHANNELS)
    mask = (p < pixels) & (k < width)
    row, wide, three = p * width + k, p * (4 * width) + k, p * (3 * width) + k
    i, f, z, c = _cell_of(a, b, old, peephole, three, row, mask, p, k, pixels, width, period, PEEPHOLE)
    _store(cell, row, c, mask)
    _store_gates(gates, wide, width, i, f, z, _load(out_gate, row, mask), mask)


@no_type_check
@triton.jit(do_not_specialize=["pixels"])
def _recell(gates, old, cell, pixels, width, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    p, k = _pixels_and_channels(tl.program_id(0), PIXELS, CHANNELS)
    mask = (p < pixels) & (k < width)
    row, wide = p * width + k, p * (4 * width) + k
    c = _load(gates, wide, mask) * _load(gates, wide + 2 * width, mask)
    if old is not None:
        c += _load(gates, wide + width, mask) * _load(old, row, mask)
    _store(cell, row, c, mask)


@no_type_check
@triton.jit(do_not_specialize=["pixels", "period"])
def _backward(
    gates,
    old,
    cell,
    dh_out,
    dh_next,
    peephole,
    dcell,
    dpeephole,
    dgates,
    pixels,
    width,
    period,
    PEEPHOLE: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Compute the gradients (formulas in `gates.c`); sums over a tile are float32, sums of tiles float64."""
    if dpeephole is not None:
        of_i_sum = tl.zeros((CHANNELS,), tl.float64)
        of_f_sum = tl.zeros((CHANNELS,), tl.float64)
        of_o_sum = tl.zeros((CHANNELS,), tl.float64)
    for block in range(tl.program_id(0), tl.cdiv(pixels, PIXELS), tl.num_programs(0)):
        p, k = _pixels_and_channels(block, PIXELS, CHANNELS)
        mask = (p < pixels) & (k < width)
        row, wide = p * width + k, p * (4 * width) + k
        i = _load(gates, wide, mask)
        f = _load(gates, wide + width, mask)
        z = _load(gates, wide + 2 * width, mask)
        o = _load(gates, wide + 3 * width, mask)
        c = _load(cell, row, mask)
        tanh_c = _tanh(c)
        dh = tl.zeros((PIXELS, CHANNELS), tl.float32)
        if dh_out is not None:
            dh += _load(dh_out, row, mask)
        if dh_next is not None:
            dh += _load(dh_next, row, mask)
        do = dh * tanh_c * o * (1.0 - o)
        dc = _load(dcell, row, mask) + dh * o * (1.0 - tanh_c * tanh_c)
        if PEEPHOLE:
            of_i, of_f, of_o = _peepholes(peephole, p, k, pixels, width, period, PEEPHOLE)
            dc += of_o * do
        di, dz = dc * z * i * (1.0 - i), dc * i * (1.0 - z * z)
        df = tl.zeros((PIXELS, CHANNELS), tl.float32)
        if old is not None:
            before = _load(old, row, mask)
            df += dc * before * f * (1.0 - f)
        dold = dc * f
        if PEEPHOLE:
            dold += of_i * di + of_f * df
        if dpeephole is not None:
            if old is not None:
                of_i_sum += tl.sum(di * before, axis=0).to(tl.float64)
                of_f_sum += tl.sum(df * before, axis=0).to(tl.float64)
            of_o_sum += tl.sum(do * c, axis=0).to(tl.float64)
        _store(dcell, row, dold, mask)
        _store_gates(dgates, wide, width, di, df, dz, do, mask)
    if dpeephole is not None:
        k = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        at, mask = dpeephole + tl.program_id(0) * (3 * width) + k, k < width
        tl.store(at, tl.load(at, mask=mask, other=0.0) + of_i_sum, mask=mask)
        tl.store(at + width, tl.load(at + width, mask=mask, other=0.0) + of_f_sum, mask=mask)
        tl.store(at + 2 * width, tl.load(at + 2 * width, mask=mask, other=0.0) + of_o_sum, mask=mask)


forward, regate = _over_pixels(_forward, "forward"), _over_pixels(_regate, "regate")
recell, backward = _over_pixels(_recell, "recell"), _over_pixels(_backward, "backward")
