"""The gradient of a convolution's weights: the C kernel (`raincast.models.fast.weight_gradient`) beside oneDNN's.

Both with channels last, interleaved; in GFLOP/s, for which products with padding count, too; and how far each is
from float64, in parts of the largest value. Run: `python benchmarks/weights.py [--threads N]`.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import medians, write_json
from torch import Tensor

from raincast.models.fast.weight_gradient import weight_gradient
from raincast.training.heap import keep_freed_memory


@dataclass(frozen=True)
class Case:
    """A convolution of `images` of (channels, size, size), or a transposed one that is as wide behind it."""

    images: int
    channels: int
    outputs: int
    kernel: int
    size: int
    stride: int = 1
    transposed: bool = False

    @property
    def name(self) -> str:
        """As the table has it."""
        how = f" {'up' if self.transposed else 'down'} {self.stride}" if self.stride > 1 else ""
        return f"{self.images} × {self.channels} → {self.outputs}, {self.kernel}×{self.kernel}, {self.size}²{how}"


CASES = [
    Case(1, 32, 128, 3, 32),
    Case(12, 32, 128, 3, 64),
    Case(3, 32, 128, 5, 128),
    Case(12, 64, 256, 3, 64),
    Case(6, 16, 256, 5, 64),
    Case(6, 64, 256, 5, 64),
    Case(6, 96, 384, 5, 32),
    Case(3, 128, 512, 3, 32),
    Case(12, 128, 256, 5, 16),
    Case(10, 192, 768, 3, 4),
    Case(24, 64, 64, 4, 64, stride=2),
    Case(48, 96, 64, 4, 32, stride=2, transposed=True),
]


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Seconds of both ways, and their distance from float64."""
    torch.manual_seed(0)
    pad = (case.kernel - case.stride + 1) // 2
    shape = (case.channels, case.outputs) if case.transposed else (case.outputs, case.channels)
    weight = torch.randn(*shape, case.kernel, case.kernel)
    x = torch.randn(case.images, case.channels, case.size, case.size)
    geometry = ([case.stride] * 2, [pad] * 2, [1, 1], case.transposed, [0, 0], 1)
    d_result = torch.randn_like(torch.convolution(x, weight, None, *geometry))
    last = partial(torch.Tensor.contiguous, memory_format=torch.channels_last)
    x, weight, d_result = last(x), last(weight), last(d_result)

    def onednn(dtype: torch.dtype = torch.float32) -> Tensor:
        tensors = (tensor.to(dtype) for tensor in (d_result, x, weight))
        found = torch.ops.aten.convolution_backward(*tensors, None, *geometry, [False, True, False])
        gradient: Tensor = found[1]
        return gradient

    def ours() -> Tensor:
        small, large = (x, d_result) if case.transposed else (d_result, x)
        rows = (tensor.permute(0, 2, 3, 1) for tensor in (small, large))
        found = weight_gradient(*rows, case.kernel, stride=case.stride, padding=pad, bias=False)
        if found is None:
            raise SystemExit("The C kernel does not run here: it needs a C compiler, and AVX2 or AVX-512.")
        return found[0]

    ways: dict[str, Callable[[], Tensor]] = {"onednn": onednn, "raincast": ours}
    want = onednn(torch.float64)
    pixels = (x if case.transposed else d_result)[:, 0].numel()
    return {
        **asdict(case),
        "case": case.name,
        "flop": 2 * weight.numel() * pixels,
        "seconds": medians(ways, repeats=repeats),
        "distance": {name: float((way() - want).abs().max() / want.abs().max()) for name, way in ways.items()},
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks/weights.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    table = Table(title=f"gradient of weights, {args.threads} threads")
    for column in (
        "case",
        "oneDNN, ms",
        "GFLOP/s",
        "raincast, ms",
        "GFLOP/s",
        "faster",
        "oneDNN off",
        "raincast off",
    ):
        table.add_column(column, justify="left" if column == "case" else "right")
    rows = []
    for case in CASES:
        row = measure(case, args.repeats)
        rows.append(row)
        cells = [row["case"]]
        for seconds in row["seconds"].values():
            cells += [f"{1000 * seconds:.2f}", f"{row['flop'] / seconds / 1e9:.0f}"]
        cells.append(f"{row['seconds']['onednn'] / row['seconds']['raincast']:.2f}")
        table.add_row(*cells, *(f"{distance:.0e}" for distance in row["distance"].values()))
    Console(width=140).print(table)
    write_json(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
