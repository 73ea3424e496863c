"""Additional measurements of `convlstm.py` on a GPU: TF32, without Triton, CUDA graphs, compiled, peak memory."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

Way = Callable[[], Any]


@dataclass(frozen=True)
class Precision:
    """A dtype; on a GPU float32 is measured with exact products and with TF32."""

    dtype: torch.dtype
    tf32: bool = False

    @property
    def name(self) -> str:
        """Name in the table."""
        return str(self.dtype).removeprefix("torch.") + (" tf32" if self.tf32 else "")

    def choose(self) -> None:
        """Use this precision for products from now on."""
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.tf32


def precisions(device: str) -> list[Precision]:
    """Return the precisions measured on the device; bfloat16 where it is fast."""
    exact, half = Precision(torch.float32), Precision(torch.bfloat16)
    if device != "cpu":
        return [exact, Precision(torch.float32, tf32=True), half]
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return [exact, half] if fast else [exact]


def without_triton(way: Way) -> Way:
    """Return the same function with the point-wise half in plain PyTorch."""

    def run() -> None:
        before = os.environ.get("RAINCAST_KERNELS")
        os.environ["RAINCAST_KERNELS"] = "0"
        try:
            way()
        finally:
            if before is None:
                del os.environ["RAINCAST_KERNELS"]
            else:
                os.environ["RAINCAST_KERNELS"] = before

    return run


def graphed(layer: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Run `layer` as CUDA graphs, forward and backward; return None, with a message, if that fails."""
    sample = x.detach().requires_grad_()
    try:
        call: Callable[[Tensor], Tensor] = torch.cuda.make_graphed_callables(_Outputs(layer), (sample,))
    except RuntimeError as error:
        Console(stderr=True).print(f"no CUDA graph: {error}", markup=False)
        return None
    return call


class _Outputs(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x)[0]
        return outputs


def peak_bytes(way: Way) -> int:
    """Return the peak GPU memory of the tensors of `way`, without what was allocated before."""
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    way()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
