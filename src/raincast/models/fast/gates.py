"""The point-wise half of a ConvLSTM step, forward and backward, on rows of pixels.

Tensors are (..., H, W, C), channels last and contiguous. Gates are (B, H, W, 4·hidden) in the order i, f, z, o (z
is the candidate). There are three equivalent implementations: plain PyTorch on every device, and kernels that read
and write each value once. On a CPU with a C compiler these are those of `gates.c` (see `loading`), on a GPU with
Triton those of `gates_triton`, which Triton compiles at first use (seconds) and caches. `RAINCAST_KERNELS=0`
disables the kernels.
"""

import ctypes
import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, ParamSpec

import torch
from torch import Tensor

from raincast.models.fast.loading import FirstUse, load, say_once, switched_off, watched

SOURCE = "gates.c"
PRECISIONS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float64: "F64"}

GPUS = ("cuda",)
"""Device types with Triton kernels; their rows are float32 or shorter."""

TABLES = 1024
"""Largest number of GPU programs that share the pixels when gradients of peepholes are summed."""

on_gpus = FirstUse()

P = ParamSpec("P")


def _with_kernels(plain: Callable[P, None]) -> Callable[P, None]:
    """Wrap `plain` to run the kernel of its name, where available, on the same tensors in the same order."""
    name, order = plain.__name__, list(inspect.signature(plain).parameters)
    cell, table = order.index("cell"), order.index("peephole") if "peephole" in order else None

    @functools.wraps(plain)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        tensors: list[Any] = [*args, *map(kwargs.__getitem__, order[len(args) :])]
        like = tensors[0]
        if watched(like):
            plain(*args, **kwargs)
        elif like.device.type in GPUS:
            kernel = _gpu_kernel(name, like)
            if kernel is None or not on_gpus.runs(kernel, plain, dict(zip(order, tensors, strict=True))):
                plain(*args, **kwargs)
        elif (compiled := _kernel(name, like)) is not None:
            period = 1 if table is None else _period(tensors[table])
            compiled(*_size(tensors[cell]), period, *map(_pointer, tensors))
        else:
            plain(*args, **kwargs)

    return run


def cell_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of cell states: at least float32, since they are sums over all steps."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@_with_kernels
def forward(
    a: Tensor,
    b: Tensor | None,
    old: Tensor | None,
    peephole: Tensor | None,
    *,
    gates: Tensor | None,
    out_gate: Tensor | None,
    cell: Tensor,
    hidden: Tensor,
) -> None:
    """Run one step: `a` + `b` are the gates' pre-activations, `old` is the previous cell (None: zeros).

    Writes the new `cell` and `hidden` and, if given, all `gates` (which may be `a`) or `out_gate` alone.
    `peephole` is (1 or H, 1 or W, 3, hidden) with i, f, o.
    """
    i, f, z, o = _split(a, b, 4, cell.dtype)
    if peephole is not None and old is not None:
        i, f = i + peephole[..., 0, :] * old, f + peephole[..., 1, :] * old
    i, f, z = i.sigmoid(), f.sigmoid(), z.tanh()
    new = i * z if old is None else torch.addcmul(i * z, f, old)
    if peephole is not None:
        o = o + peephole[..., 2, :] * new
    o = o.sigmoid()
    cell.copy_(new)
    hidden.copy_(o * new.tanh())
    if gates is not None:
        torch.cat([part.to(gates.dtype) for part in (i, f, z, o)], dim=-1, out=gates)
    if out_gate is not None:
        out_gate.copy_(o)


@_with_kernels
def regate(
    a: Tensor,
    b: Tensor | None,
    old: Tensor | None,
    peephole: Tensor | None,
    out_gate: Tensor,
    *,
    gates: Tensor,
    cell: Tensor,
) -> None:
    """Recompute the gates and cell of a step: `a` + `b` are the pre-activations of i, f and z; o was stored."""
    i, f, z = _split(a, b, 3, cell.dtype)
    if peephole is not None and old is not None:
        i, f = i + peephole[..., 0, :] * old, f + peephole[..., 1, :] * old
    i, f, z = i.sigmoid(), f.sigmoid(), z.tanh()
    cell.copy_(i * z if old is None else torch.addcmul(i * z, f, old))
    gates.copy_(torch.cat([i, f, z, out_gate.to(cell.dtype)], dim=-1))


@_with_kernels
def recell(gates: Tensor, old: Tensor | None, *, cell: Tensor) -> None:
    """Recompute the cell of a step from its gates."""
    i, f, z, _ = _split(gates, None, 4, cell.dtype)
    cell.copy_(i * z if old is None else torch.addcmul(i * z, f, old))


@_with_kernels
def backward(
    gates: Tensor,
    old: Tensor | None,
    cell: Tensor,
    dh_out: Tensor | None,
    dh_next: Tensor | None,
    peephole: Tensor | None,
    *,
    dcell: Tensor,
    dpeephole: Tensor | None,
    dgates: Tensor,
) -> None:
    """Compute the gradients of one step; the hidden state's gradient is the sum of `dh_out` and `dh_next`.

    `dcell` holds the gradient of the new cell and is overwritten with that of the old one. `dgates` is written.
    The gradient of the peepholes is added to `dpeephole` (`num_tables`, 3, hidden) in float64, to be summed over
    tables.
    """
    i, f, z, o = _split(gates, None, 4, cell.dtype)
    squashed = cell.tanh()
    dh = sum((part.to(cell.dtype) for part in (dh_out, dh_next) if part is not None), torch.zeros_like(cell))
    do = dh * squashed * o * (1 - o)
    dnew = dcell + dh * o * (1 - squashed * squashed)
    if peephole is not None:
        dnew = dnew + peephole[..., 2, :] * do
    di, dz = dnew * z * i * (1 - i), dnew * i * (1 - z * z)
    df = torch.zeros_like(di) if old is None else dnew * old * f * (1 - f)
    dcell.copy_(dnew * f)
    if peephole is not None:
        dcell += peephole[..., 0, :] * di + peephole[..., 1, :] * df
    if dpeephole is not None:
        before = torch.zeros_like(cell) if old is None else old
        parts = [
            (d * c).flatten(0, -2).sum(0, dtype=torch.float64) for d, c in ((di, before), (df, before), (do, cell))
        ]
        dpeephole[0] += torch.stack(parts)
    dgates.copy_(torch.cat([di, df, dz, do], dim=-1))


def num_tables(cell: Tensor) -> int:
    """Return the number of tables for the peepholes' gradients in `backward`: one per parallel writer."""
    if cell.device.type not in GPUS:  # on the meta device, memory is estimated mostly for a CPU
        return torch.get_num_threads()
    return min(TABLES, 1 + cell.numel() // (16 * cell.shape[-1]))


def _split(a: Tensor, b: Tensor | None, parts: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    total = a.to(dtype) if b is None else a.to(dtype) + b.to(dtype)
    return total.chunk(parts, dim=-1)


def _size(rows: Tensor) -> tuple[int, int, int]:
    return torch.get_num_threads(), rows.numel() // rows.shape[-1], rows.shape[-1]


def _period(peephole: Tensor | None) -> int:
    return 1 if peephole is None else peephole.shape[0] * peephole.shape[1]


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _kernel(name: str, like: Tensor) -> Callable[..., Any] | None:
    if like.device.type != "cpu" or like.dtype not in PRECISIONS:
        return None
    return _kernels(PRECISIONS[like.dtype]).get(name)


def _gpu_kernel(name: str, like: Tensor) -> Callable[..., None] | None:
    if switched_off() or like.dtype == torch.float64 or not like.numel():
        return None
    kernels = gpu_kernels()
    return None if kernels is None else getattr(kernels, name)


@functools.cache
def gpu_kernels() -> ModuleType | None:
    """Return the module of GPU kernels; None, after one warning, without Triton."""
    try:
        from raincast.models.fast import gates_triton
    except ImportError as error:
        say_once(f"ConvLSTM runs on plain PyTorch: its GPU kernels need Triton ({error}).")
        return None
    return gates_triton


@functools.cache
def _kernels(precision: str) -> dict[str, Callable[..., Any]]:
    """Return the compiled functions of one precision; empty, after one warning, if they cannot be compiled."""
    library = load(SOURCE, f"RAINCAST_{precision}")
    if library is None:
        return {}
    names = {"forward": 8, "regate": 7, "recell": 3, "backward": 9}
    found: dict[str, Callable[..., Any]] = {}
    for name, tensors in names.items():
        function = library[f"raincast_{name}"]
        function.argtypes = [ctypes.c_int, *[ctypes.c_int64] * 3, *[ctypes.c_void_p] * tensors]
        function.restype = None
        found[name] = function
    return found
