"""Networks as files that run without raincast: torch.export programs (.pt2) and ONNX.

Tracing unrolls the recurrences, so the numbers of input frames and of forecast steps are fixed. The batch and
the grid stay free, the grid from `smallest_grid` up, unless a `size` is stated: then the file holds for that grid
alone, and is traced and loaded several times faster.

Programs compute in float32 on the CPU; `torch.export.passes.move_to_device_pass` moves one elsewhere.
"""

from raincast.export.files import METADATA_FILE, Arrays, read_onnx, read_torch, write_onnx, write_torch
from raincast.export.trace import (
    INPUT,
    OUTPUT,
    Traced,
    smallest_grid,
    trace_forecast,
    trace_layer,
    trace_network,
)

__all__ = [
    "INPUT",
    "METADATA_FILE",
    "OUTPUT",
    "Arrays",
    "Traced",
    "read_onnx",
    "read_torch",
    "smallest_grid",
    "trace_forecast",
    "trace_layer",
    "trace_network",
    "write_onnx",
    "write_torch",
]
