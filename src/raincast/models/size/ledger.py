"""Memory accounting for a network on the meta device, including the work space that oneDNN allocates."""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

META = torch.device("meta")
BLOCK = 16
"""Number of channels that oneDNN keeps in a block (AVX-512): its copies of narrower outputs are that wide."""


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of storages that operations allocate, from allocation to release.

    `live` is the current amount and `peak` the largest so far, both without storages that existed before. On a CPU
    (`blocked`) the work space of a convolution counts while it runs.
    """

    def __init__(self, *, blocked: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.blocked = blocked
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation; storages of its outputs that are not known yet are counted as new."""
        for tensor in tree_iter((args, kwargs)):
            # arguments that were not created here existed before
            if isinstance(tensor, Tensor):
                self._follow(tensor, nbytes=0)
        made = _laid_out(func, args, func(*args, **(kwargs or {})))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._follow(tensor, nbytes=tensor.untyped_storage().nbytes())
        work = _work_space(func, args, made) if self.blocked else 0
        self.peak = max(self.peak, self.live + work)
        return made

    def _follow(self, tensor: Tensor, *, nbytes: int) -> None:
        # a storage keeps one Python object as long as it lives, even if only autograd holds it
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.live += nbytes
            weakref.finalize(storage, self._forget, key, nbytes)

    def _forget(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.live -= nbytes


def _laid_out(func: Any, args: Sequence[Any], made: Any) -> Any:
    """Return a convolution's result in the memory layout of a CPU or GPU, which the meta device ignores."""
    if func is not torch.ops.aten.convolution.default or made.device != META:
        return made
    last = _channels_last(args[0]) or _channels_last(args[1])
    return made.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _work_space(func: Any, args: Sequence[Any], made: Any) -> int:
    """Return the bytes that oneDNN allocates in addition to the result, found by watching it (AVX-512).

    If input or kernel are channels last, oneDNN copies tensors of other layouts and the kernel: once forward,
    twice backward. Otherwise it convolves copies in its own layout. Forward these are copies of input, kernel and
    output, then of the output in addition to the result; a transposed convolution holds its output twice more.
    Backward they are copies of the input and of the output's gradient.
    """
    if func is torch.ops.aten.convolution.default:
        x, weight, transposed = args[0], args[1], args[6]
        if _channels_last(x) or _channels_last(weight):
            return _copied(x) + _copied(weight) + int(weight.nbytes)
        inner = _blocked(made)
        if transposed:
            return max(_read(x) + inner, 2 * inner)
        return max(_read(x) + int(weight.nbytes) + inner - int(made.nbytes), inner)
    if func is torch.ops.aten.convolution_backward.default:
        gradient, x, weight = args[:3]
        if _channels_last(x) or _channels_last(weight):
            return _copied(x) + _copied(gradient) + _copied(weight) + 2 * int(weight.nbytes)
        return _read(x) + _blocked(gradient)
    return 0


def _channels_last(x: Tensor) -> bool:
    # a 1×1 kernel has both layouts at once and counts as the other
    several = x.ndim == 4 and x.shape[-1] * x.shape[-2] > 1
    return several and x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last)


def _copied(x: Tensor) -> int:
    return 0 if _channels_last(x) else x.nbytes


def _read(x: Tensor) -> int:
    # an input narrower than a block is not widened
    return x.nbytes if x.shape[1] < BLOCK else _blocked(x)


def _blocked(x: Tensor) -> int:
    """Return the bytes of (N, C, H, W) with C padded to whole blocks."""
    channels = x.shape[1]
    return x.nbytes // channels * (-(-channels // BLOCK) * BLOCK)
