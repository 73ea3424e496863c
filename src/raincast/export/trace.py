"""Networks and layers traced: the programs that `files.py` writes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from raincast.export.quiet import quiet
from raincast.models.frames import PhysicalNetwork
from raincast.models.heads import Head
from raincast.models.inputs import RAIN_ALONE, Inputs, predict_rates
from raincast.models.layers.recurrent import State
from raincast.transforms import Transform

INPUT = "rain_rate"
OUTPUT = "rain_rate_forecast"
COVARIATES = ("past", "future")
"""Further inputs, as in a `Sample`."""

_FRAME_AXES = {0: "batch", 3: "y", 4: "x"}
_STATE_AXES = {0: "batch", 2: "y", 3: "x"}


@dataclass(frozen=True, eq=False)
class Traced:
    """A traced module, and the names of what goes in, what comes out and the axes that are free.

    `axes` has the structure of the module's arguments, each tensor as {axis: name}.
    """

    program: ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: Any


def smallest_grid(network: nn.Module) -> int:
    """The fewest pixels along y and x that a file with a free grid takes: one more than the stride.

    The tracer takes sizes of one at the coarsest level for a special case, and leaves it out.
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
    """The whole forecast, transform and head inside: mm/h with NaN for missing → mm/h.

    (B, input_steps, 1, H, W) → (B, lead_steps, 1, H, W): what `predict_rates` gives. A network that sees channels
    which are not made of the rain takes them as further arguments, in their own units with NaN for missing: past
    (B, input_steps, P, H, W) and, where it has any, future (B, lead_steps, F, H, W), as in a `Sample`. `size`
    fixes (H, W). A physical network needs `scale`, the time step in minutes and the pixel size in km, which the
    program then is for. ValueError where the network cannot be traced on a free grid and no `size` is given.
    """
    if isinstance(network, PhysicalNetwork) and scale is None:
        raise ValueError("This network works in physical units: state the time step and the pixel size.")
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
    """Name, steps and channels of each further input."""
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
    """The network alone, in network units and without NaN: frames → the frames after them.

    (B, input_steps, num_channels, H, W) → (B, lead_steps, out, H, W), `size` and errors as in `trace_forecast`.
    """
    module = _Frames(_frozen(network), lead_steps)
    example = torch.zeros(2, input_steps, num_channels, *(size or _example_grid(network)))
    return _trace(module, (example,), ({**_FRAME_AXES},), inputs=("frames",), outputs=("forecast",), size=size)


def trace_layer(layer: nn.Module, *, num_steps: int = 1, size: tuple[int, int] | None = None) -> Traced:
    """One recurrent layer with its state in and out, for a stream that goes on from call to call.

    x (B, num_steps, in, H, W) and the state, a tuple of (B, ·, H, W) → hidden states (B, num_steps, hidden, H, W)
    and the new state. In ONNX the tensors are called x, state_0, … and hidden, new_state_0, … A grid has at least
    two pixels along y and x. `layer` has the interface of `models.recurrent` and an input.
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
    """`predict_rates` as a function of the rain and its covariates alone."""

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
        # missing, as the networks' own padding is: a mask channel tells it from dry
        padded, *covariates = (
            maps if self.scale is not None else _pad(maps, self.network, value=float("nan"))
            for maps in (rain_rate, past, future)
            if maps is not None
        )
        # nothing is known in advance that is not past too
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
    """A network with its number of steps given."""

    def __init__(self, network: nn.Module, lead_steps: int) -> None:
        super().__init__()
        self.network = network
        self.lead_steps = lead_steps

    def forward(self, frames: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b s out h w"]:
        return _cut(self.network(_pad(frames, self.network), self.lead_steps), frames)


class _Layer(nn.Module):
    """A recurrent layer whose state has to be given."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Float[Tensor, "b t c h w"], state: State) -> tuple[Tensor, State]:
        hidden, new_state = self.layer(x, state)
        return hidden, tuple(new_state)


def _pad(frames: Tensor, network: nn.Module, value: float = 0.0) -> Tensor:
    """Bottom and right filled with `value` up to a multiple of the stride, as the networks do it themselves.

    They ask first whether it is needed, and a trace would hold for the one answer alone. This always adds
    rows and takes those that are wanted, so that the networks have nothing left to ask.
    """
    stride = smallest_grid(network) - 1
    H, W = frames.shape[-2:]
    wider = F.pad(frames, (0, stride - 1, 0, stride - 1), value=value)
    # not -(-H // stride) · stride: in this form the tracer sees that it is positive, and is twice as fast
    return _first(wider, (H - 1) // stride * stride + stride, (W - 1) // stride * stride + stride)


def _cut(forecast: Tensor, frames: Tensor) -> Tensor:
    return _first(forecast, frames.shape[-2], frames.shape[-1])


def _first(frames: Tensor, height: int, width: int) -> Tensor:
    """The first rows and columns, by index: of a slice the tracer would ask whether it is the whole."""
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
                # a trace may hold by chance for the grid that it was made on
                program.module()(*_other_example(example, axes))
    except (AssertionError, RuntimeError, ValueError) as error:
        if size is not None:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"The size of the grid cannot be left open with this network: {reason} State the grid that the file "
            "is for: size=[y,x] in pixels."
        ) from error
    return Traced(program, inputs, outputs, axes)


def _other_example(example: tuple[Any, ...], axes: tuple[Any, ...]) -> tuple[Any, ...]:
    """The example on a grid of twice the height and width, and as a batch of one."""

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
    # two and three whole strides and a rest, different along y and x
    stride = smallest_grid(network) - 1
    return 2 * stride + 3, 3 * stride + 5


def _frozen(module: nn.Module) -> nn.Module:
    """A copy for the CPU in float32 and evaluation mode; the caller's stays as it is."""
    return copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
