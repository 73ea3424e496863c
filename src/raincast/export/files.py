"""Write and read traced programs as torch.export programs (.pt2) or ONNX files."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.export import ExportedProgram

from raincast.export.pt2 import checked_archive
from raincast.export.trace import Traced, quiet

METADATA_FILE = "raincast.json"
"""The extra file in a .pt2 with the metadata, one JSON object; ONNX has `metadata_props`."""

Arrays = tuple[npt.NDArray[np.float32], ...]


def write_torch(traced: Traced, path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a torch.export program; `path` ends in .pt2, and `torch.export.load(path).module()` runs it."""
    for node in traced.program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it has source lines and paths of this machine
    traced.program.example_inputs = None  # a pickle, which runs code when it is loaded
    files = {METADATA_FILE: json.dumps(dict(metadata or {}), indent=1)}
    content = io.BytesIO()
    with quiet():
        torch.export.save(traced.program, content, extra_files=files)
    # write with Python, because torch aborts the process if it cannot write, on a full disk for example
    path.write_bytes(content.getbuffer())
    checked_archive(path)  # make sure that read_torch accepts it
    return path


def write_onnx(traced: Traced, path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write one ONNX file including the weights (at most 2 GB); needs the packages onnx and onnxscript."""
    from onnxscript import optimizer

    with quiet():
        program = _rewritten(traced.program)
        made = torch.onnx.export(
            program,
            dynamo=True,
            optimize=program is traced.program,  # takes many minutes for thousands of operators
            dynamic_shapes=traced.axes,  # the program is already dynamic; this names the axes
            input_names=traced.inputs,
            output_names=traced.outputs,
            verbose=False,
        )
        assert made is not None
        if program is not traced.program:
            # onnxruntime optimises too, but warns of each constant in a CastLike
            optimizer.fold_constants(made.model)
            optimizer.remove_unused_nodes(made.model)
    for node in made.model.graph.all_nodes():
        node.metadata_props.clear()  # the tracer's metadata, which is larger than a small network
    made.model.metadata_props.update(metadata or {})
    made.save(path, external_data=False)
    return path


def read_torch(path: Path) -> tuple[Callable[..., Arrays], dict[str, str]]:
    """Read the program of a .pt2 as a function of arrays, and its metadata.

    Raises ValueError if the file has anything that `write_torch` does not write, such as a pickle; see `pt2`.
    """
    archive, metadata = checked_archive(path)
    with quiet():
        program = torch.export.load(archive)
        module = program.module()
    arguments = program.call_spec.in_spec.children()[0].children()
    has_state = any(not argument.is_leaf() for argument in arguments)

    @torch.inference_mode()
    def run(*arrays: npt.NDArray[np.float32]) -> Arrays:
        given = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        found = module(given[0], tuple(given[1:])) if has_state else module(*given)
        hidden, new_state = found if has_state else (found, ())
        return tuple(tensor.numpy() for tensor in (hidden, *new_state))

    return run, json.loads(metadata)


def read_onnx(path: Path) -> tuple[Callable[..., Arrays], dict[str, str]]:
    """Read the network of an ONNX file as a function of arrays, and its metadata; needs onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [put.name for put in session.get_inputs()]

    def run(*arrays: npt.NDArray[np.float32]) -> Arrays:
        return tuple(session.run(None, dict(zip(names, arrays, strict=True))))

    return run, dict(session.get_modelmeta().custom_metadata_map)


def _rewritten(program: ExportedProgram) -> ExportedProgram:
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
"""What is computed in place of operators that torch.onnx cannot translate, or onnxruntime computes badly.

Fourier transforms become products with matrices of cosines and sines. ONNX has an operator for them, DFT, but that
of onnxruntime 1.32 loses two digits and takes five to eight times as long on grids of 100 to 500 pixels.
"""
