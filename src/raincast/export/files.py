"""Write and read traced programs as torch.export programs (.pt2) or ONNX files."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from raincast.export.onnx_operators import rewritten
from raincast.export.pt2 import checked_archive
from raincast.export.quiet import quiet
from raincast.export.trace import Traced

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
        program = rewritten(traced.program)
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
