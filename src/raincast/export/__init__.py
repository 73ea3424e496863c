"""Export networks to files that run without raincast: torch.export programs (.pt2) and ONNX.

Tracing unrolls the recurrences, so the numbers of input frames and forecast steps are fixed. Batch size and grid
are dynamic, with at least `smallest_grid` pixels along y and x. With a fixed `size`, the file is for this grid
only, and is traced and loaded several times faster.

Programs compute in float32 on the CPU; `torch.export.passes.move_to_device_pass` moves one to another device.
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
