"""Trace networks and layers to the programs that `files.py` writes."""

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from raincast.models.frames import PhysicalNetwork
from raincast.models.heads import Head
from raincast.models.inputs import RAIN_ALONE, Inputs, predict_rates
from raincast.models.layers import State
from raincast.transforms import Transform

INPUT = "rain_rate"
OUTPUT = "rain_rate_forecast"
COVARIATES = ("past", "future")
"""Further inputs, named as in a `Sample`."""

_FRAME_AXES = {0: "batch", 3: "y", 4: "x"}
_STATE_AXES = {0: "batch", 2: "y", 3: "x"}


@dataclass(frozen=True, eq=False)
class Traced:
    """A traced module with the names of its inputs, outputs and dynamic axes.

    `axes` has the structure of the module's arguments, each tensor as {axis: name}.
    """

    program: ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: Any


def smallest_grid(network: nn.Module) -> int:
    """Return the minimum number of pixels along y and x of a file with a dynamic grid: stride + 1.

    The tracer specialises size 1 at the coarsest level and therefore excludes it.
    """
    return int(getattr(network, "stride", 1)) + 1


def trace_forecast(
    network: nn.Module,
    head: Head,
    transform: Transform,
    *,
    input_steps: int,
    lead_steps: int,
    inputs: Inputs = RAIN_ALONE,
    size: tuple[int, int] | None = None,
    scale: tuple[float, float] | None = None,
) -> Traced:
    """Trace the whole forecast, including transform and head: mm/h with NaN for missing to mm/h.

    The program maps (B, input_steps, 1, H, W) to (B, lead_steps, 1, H, W), like `predict_rates`. Covariates are
    further arguments, in their own units with NaN for missing: past (B, input_steps, P, H, W) and, if there are
    any, future (B, lead_steps, F, H, W), as in a `Sample`. `size` fixes (H, W). A physical network needs `scale`,
    the time step in minutes and the pixel size in km; the program is then for this scale only. Raises ValueError
    if the network cannot be traced on a dynamic grid and no `size` is given.
    """
    if isinstance(network, PhysicalNetwork) and scale is None:
        raise ValueError("This network works in physical units: give the time step and the pixel size.")
    module = _Forecast(_frozen(network), head, transform, lead_steps, inputs, scale)
    grid = size or _example_grid(network)
    taken = [(INPUT, input_steps, 1), *_covariates(inputs, input_steps, lead_steps)]
    return _trace(
        module,
        tuple(torch.zeros(2, steps, channels, *grid) for _, steps, channels in taken),
        tuple({**_FRAME_AXES} for _ in taken),
        inputs=tuple(name for name, _, _ in taken),
        outputs=(OUTPUT,),
        size=size,
    )


def _covariates(inputs: Inputs, input_steps: int, lead_steps: int) -> list[tuple[str, int, int]]:
    """Return name, steps and channels of each further input."""
    numbers = zip(COVARIATES, (input_steps, lead_steps), (len(inputs.past), len(inputs.future)), strict=True)
    return [taken for taken in numbers if taken[2]]


def trace_network(
    network: nn.Module,
    *,
    input_steps: int,
    lead_steps: int,
    num_channels: int = 1,
    size: tuple[int, int] | None = None,
) -> Traced:
    """Trace the network alone, in network units and without NaN.

    The program maps frames (B, input_steps, num_channels, H, W) to (B, lead_steps, out, H, W). `size` and errors
    are as in `trace_forecast`.
    """
    module = _Frames(_frozen(network), lead_steps)
    example = torch.zeros(2, input_steps, num_channels, *(size or _example_grid(network)))
    return _trace(module, (example,), ({**_FRAME_AXES},), inputs=("frames",), outputs=("forecast",), size=size)


def trace_layer(layer: nn.Module, *, num_steps: int = 1, size: tuple[int, int] | None = None) -> Traced:
    """Trace one recurrent layer with its state as input and output, for streams that continue from call to call.

    The program maps x (B, num_steps, in, H, W) and the state, a tuple of (B, ·, H, W), to hidden states (B,
    num_steps, hidden, H, W) and the new state. In ONNX the tensors are called x, state_0, … and hidden,
    new_state_0, … A grid needs at least two pixels along y and x. `layer` has the interface of `models.layers`
    and an input.
    """
    made = _frozen(layer)
    x = torch.zeros(2, num_steps, int(layer.in_channels), *(size or (5, 7)))  # type: ignore[arg-type]
    with torch.no_grad():
        _, state = made(x)
    numbers = range(len(state))
    return _trace(
        _Layer(made),
        (x, tuple(torch.zeros_like(tensor) for tensor in state)),
        ({**_FRAME_AXES}, tuple({**_STATE_AXES} for _ in state)),
        inputs=("x", *(f"state_{n}" for n in numbers)),
        outputs=("hidden", *(f"new_state_{n}" for n in numbers)),
        size=size,
    )


class _Forecast(nn.Module):
    """`predict_rates` as a function of only the rain and its covariates."""

    def __init__(
        self,
        network: nn.Module,
        head: Head,
        transform: Transform,
        lead_steps: int,
        inputs: Inputs,
        scale: tuple[float, float] | None,
    ) -> None:
        super().__init__()
        self.scale: Tensor | None
        self.register_buffer("scale", None if scale is None else torch.tensor([scale]), persistent=False)
        self.inputs = inputs
        self.network = network
        self.head = head
        self.transform = transform
        self.lead_steps = lead_steps

    def forward(
        self, rain_rate: Float[Tensor, "b t c h w"], past: Tensor | None = None, future: Tensor | None = None
    ) -> Float[Tensor, "b s 1 h w"]:
        # pad with NaN, like the networks: a mask channel tells missing from dry
        padded, *covariates = (
            maps if self.scale is not None else _pad(maps, self.network, value=float("nan"))
            for maps in (rain_rate, past, future)
            if maps is not None
        )
        # zip works because future channels are always past channels too
        named = dict(zip(COVARIATES, covariates, strict=False))
        if self.scale is not None:
            named["scale"] = self.scale.expand(rain_rate.shape[0], -1)
        rates = predict_rates(
            self.network,
            self.head,
            self.transform,
            padded,
            self.lead_steps,
            inputs=self.inputs,
            covariates=named,
        )
        return rates if self.scale is not None else _cut(rates, rain_rate)


class _Frames(nn.Module):
    """A network with a fixed number of steps."""

    def __init__(self, network: nn.Module, lead_steps: int) -> None:
        super().__init__()
        self.network = network
        self.lead_steps = lead_steps

    def forward(self, frames: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b s out h w"]:
        return _cut(self.network(_pad(frames, self.network), self.lead_steps), frames)


class _Layer(nn.Module):
    """A recurrent layer with the state as a required argument."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Float[Tensor, "b t c h w"], state: State) -> tuple[Tensor, State]:
        hidden, new_state = self.layer(x, state)
        return hidden, tuple(new_state)


def _pad(frames: Tensor, network: nn.Module, value: float = 0.0) -> Tensor:
    """Pad bottom and right with `value` to a multiple of the stride, like the networks themselves.

    The networks branch on whether padding is needed, and a trace is valid for one branch only. This function
    always pads and selects the rows needed, so that the networks never have to pad.
    """
    stride = smallest_grid(network) - 1
    H, W = frames.shape[-2:]
    wider = F.pad(frames, (0, stride - 1, 0, stride - 1), value=value)
    # in this form, unlike -(-H // stride) · stride, the tracer sees that it is positive, and is twice as fast
    return _first(wider, (H - 1) // stride * stride + stride, (W - 1) // stride * stride + stride)


def _cut(forecast: Tensor, frames: Tensor) -> Tensor:
    return _first(forecast, frames.shape[-2], frames.shape[-1])


def _first(frames: Tensor, height: int, width: int) -> Tensor:
    """Select the first rows and columns by index; for a slice the tracer would branch on whether it is full."""
    rows = torch.arange(height, device=frames.device)
    columns = torch.arange(width, device=frames.device)
    return frames.index_select(-2, rows).index_select(-1, columns)


def _trace(
    module: nn.Module,
    example: tuple[Any, ...],
    axes: tuple[Any, ...],
    *,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    size: tuple[int, int] | None,
) -> Traced:
    if size is not None:
        axes = _mapped(axes, lambda free: {axis: name for axis, name in free.items() if name == "batch"})
    dims = _mapped(axes, lambda free: dict.fromkeys(free, Dim.DYNAMIC))
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(module.eval(), example, dynamic_shapes=dims)
            if size is None:
                # a trace may by chance be valid only for the grid that it was made on
                program.module()(*_other_example(example, axes))
    except (AssertionError, RuntimeError, ValueError) as error:
        if size is not None:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"The size of the grid cannot be left open with this network: {reason} Set the grid of the file: "
            "size=[y,x] in pixels."
        ) from error
    return Traced(program, inputs, outputs, axes)


def _other_example(example: tuple[Any, ...], axes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the example on a grid of twice the height and width, and as a batch of one."""

    def other(given: Tensor, free: dict[int, str]) -> Tensor:
        sizes = {axis: 1 if name == "batch" else 2 * given.shape[axis] for axis, name in free.items()}
        return torch.zeros([sizes.get(axis, length) for axis, length in enumerate(given.shape)])

    return tuple(
        _other_example(given, free) if isinstance(given, tuple) else other(given, free)
        for given, free in zip(example, axes, strict=True)
    )


def _mapped(axes: tuple[Any, ...], change: Callable[[dict[int, str]], dict[int, Any]]) -> tuple[Any, ...]:
    return tuple(_mapped(node, change) if isinstance(node, tuple) else change(node) for node in axes)


def _example_grid(network: nn.Module) -> tuple[int, int]:
    # two and three full strides plus a remainder, different along y and x
    stride = smallest_grid(network) - 1
    return 2 * stride + 3, 3 * stride + 5


def _frozen(module: nn.Module) -> nn.Module:
    """Return a copy on the CPU in float32 and evaluation mode; the caller's module is unchanged."""
    return copy.deepcopy(module).cpu().float().eval().requires_grad_(False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings, and the exporters' log messages below errors, within the block."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
