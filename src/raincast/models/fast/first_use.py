"""Verification of kernels: each must match the plain function on a small random input before it replaces it.

How a GPU kernel is compiled depends on the card, the driver and Triton. If a kernel is wrong or cannot be
compiled, results must still be right.
"""

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Tensors = Mapping[str, Tensor | None]

BATCH, GRID, TABLES = 2, (5, 7), 2
"""Shape of the small input: several tiles, the last one partly filled."""

FLOAT32_TOLERANCE = 1e-5
"""Tolerance as a share of a tensor's largest value; shorter formats add their own rounding error."""


class FirstUse:
    """Kernels that may run. Once one has failed, all are disabled, and one warning is logged."""

    def __init__(self) -> None:
        self._agreed: set[object] = set()
        self.failed = False

    def runs(self, kernel: Callable[..., None], plain: Callable[..., None], tensors: Tensors) -> bool:
        """Run `kernel` with the named `tensors` if it may run; otherwise return False and write nothing."""
        if self.failed:
            return False
        case = _case(kernel, tensors)
        if case not in self._agreed:
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                return False  # the comparison must not become part of a graph
            reason = _disagreement(kernel, plain, tensors)
            if reason:
                self.failed = True
                log.warning(f"ConvLSTM runs on plain PyTorch: {kernel.__name__} of its GPU kernels {reason}.")
                return False
            self._agreed.add(case)
        kernel(**tensors)
        return True


def _case(kernel: Callable[..., None], tensors: Tensors) -> object:
    """Return a key for one compilation of a kernel: tensors present, precision, width, type of peepholes."""
    forms = tuple(None if t is None else (t.dtype, t.shape[-1]) for t in tensors.values())
    table = tensors.get("peephole")
    device = next(t.device for t in tensors.values() if t is not None)
    return kernel, device, forms, table is not None and table.shape[:2] == (1, 1)


def _disagreement(kernel: Callable[..., None], plain: Callable[..., None], tensors: Tensors) -> str | None:
    """Compare the kernel with the plain function; return its error as text, None if there is none."""
    expected, found = _small(tensors), _small(tensors)
    plain(**expected)
    try:
        kernel(**found)
        for name, want in expected.items():
            if want is not None and (reason := _difference(name, found[name], want)):
                return reason
    except Exception as error:  # compilers, drivers and cards may raise anything
        return f"failed ({type(error).__name__}: {str(error)[:500]})"
    return None


def _difference(name: str, found: Tensor | None, want: Tensor) -> str | None:
    assert found is not None
    if name == "dpeephole":  # only the sum over the tables matters
        found, want = found.sum(0), want.sum(0)
    tolerance = max(FLOAT32_TOLERANCE, 2 * torch.finfo(want.dtype).eps)
    worst, largest = (float(t.abs().max()) for t in (found.double() - want.double(), want.double()))
    # NaN exceeds every tolerance
    return None if worst <= tolerance * max(1.0, largest) else f"gave a {name} up to {worst:.2g} off"


def _small(tensors: Tensors) -> dict[str, Tensor | None]:
    """Return reproducible random tensors for the same arguments; tensors that share memory share it here too."""
    generator = torch.Generator().manual_seed(0)  # leaves the run's own random state alone
    made: dict[str, Tensor | None] = {}
    by_memory: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor is None:
            made[name] = None
        elif tensor.data_ptr() in by_memory:
            made[name] = by_memory[tensor.data_ptr()]
        else:
            # gates lie between 0 and 1: with other values the gradients would be sums of huge terms
            draw = torch.rand if name in ("gates", "out_gate") else torch.randn
            values = draw(_shape(name, tensor), generator=generator)
            made[name] = by_memory[tensor.data_ptr()] = values.to(tensor.device, tensor.dtype)
    return made


def _shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    if name == "dpeephole":
        return TABLES, *tensor.shape[1:]
    if name == "peephole":
        return (1, 1, *tensor.shape[2:]) if tensor.shape[:2] == (1, 1) else (*GRID, *tensor.shape[2:])
    return BATCH, *GRID, tensor.shape[-1]
