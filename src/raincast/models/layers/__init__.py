"""Recurrent layers, and what they share: one interface over a sequence, checks, initial weights.

    layer(x, state, num_steps) → (hidden states, state)

`x` is (B, T, C, H, W), or None for a layer built with `in_channels=0`, which continues from a state alone. `state`
is a tuple of tensors (B, ·, H, W) that begins with the hidden state; None starts from zeros. The returned state
has the same form, so a sequence may be split anywhere: two calls give the same result as one.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raincast.models.fast.kernel import autocast_dtype

SLOPE = 0.2
"""Negative slope of the leaky ReLUs (Shi et al. 2017, arXiv 1706.03458)."""

State = tuple[Tensor, ...]
"""The state of a layer; the first tensor is the hidden state (B, hidden, H, W)."""


@runtime_checkable  # so that checked annotations (jaxtyping, beartype) accept it
class CellFactory(Protocol):
    """Constructor of a stage's recurrent layer: a class, or a class with some arguments bound."""

    def __call__(
        self, in_channels: int, hidden_channels: int, *, input_kernel: int, state_kernel: int
    ) -> nn.Module:
        """Build a layer with the interface of this module and an attribute `hidden_channels`."""


class RecurrentLayer(nn.Module):
    """A layer with the interface of this module: `run` does the work, after the checks."""

    def __init__(self, in_channels: int, hidden_channels: int, *, input_kernel: int, state_kernel: int) -> None:
        """Raise ValueError for negative input channels, no hidden channels, or kernel sizes that are not odd."""
        super().__init__()
        if in_channels < 0 or hidden_channels < 1:
            raise ValueError(
                f"A {type(self).__name__} needs in_channels >= 0 and hidden_channels >= 1, found {in_channels} "
                f"and {hidden_channels}."
            )
        for which, kernel in (("input_kernel", input_kernel), ("state_kernel", state_kernel)):
            if kernel < 1 or kernel % 2 == 0:
                raise ValueError(
                    f"{which}={kernel} must be odd and positive: an even kernel would shift the state at each "
                    f"step. Take {max(kernel, 2) - 1} or {max(kernel, 0) + 1}."
                )
        self.in_channels = in_channels
        self.hidden_channels = hidden_channels

    def forward(
        self,
        x: Float[Tensor, "b t c h w"] | None,
        state: State | None = None,
        num_steps: int | None = None,
    ) -> tuple[Float[Tensor, "b steps hidden h w"], State]:
        """Return the hidden states of all steps, and the last state to continue from.

        Without `state` the layer starts from zeros. A layer without input takes `x=None` and needs `state` and
        `num_steps`; otherwise `num_steps` is the length of `x` and may be omitted.
        """
        dtype = next(self.parameters()).dtype
        steps = check_sequence(x, state, num_steps, in_channels=self.in_channels, dtype=dtype)
        return self.run(x, state, steps)

    def run(self, x: Tensor | None, state: State | None, num_steps: int) -> tuple[Tensor, State]:
        """Return what `forward` does; all arguments but the form of `state` are checked."""
        raise NotImplementedError


def check_sequence(
    x: Float[Tensor, "b t c h w"] | None,
    state: State | None,
    num_steps: int | None,
    *,
    in_channels: int,
    dtype: torch.dtype,
) -> int:
    """Return the number of steps of a call; raises ValueError if arguments do not fit the layer or each other."""
    if x is None:
        if in_channels:
            raise ValueError(f"This layer has in_channels={in_channels} but x is None. Pass x.")
        if state is None or num_steps is None or num_steps < 1:
            given = "no state" if state is None else "a state"
            raise ValueError(f"x=None needs a state and num_steps >= 1, found {given} and {num_steps}.")
        return num_steps
    if not in_channels:
        raise ValueError(f"A layer with in_channels=0 takes x=None, found x of shape {tuple(x.shape)}.")
    if x.ndim != 5 or x.shape[2] != in_channels:
        raise ValueError(f"Expected x of shape (B, T, {in_channels}, H, W), found {tuple(x.shape)}.")
    if x.dtype != dtype and not (x.is_floating_point() and autocast_dtype(x.device.type)):
        raise ValueError(f"x is {x.dtype} but the layer's weights are {dtype}. Convert one of them.")
    if x.shape[1] < 1 or num_steps not in (None, x.shape[1]):
        raise ValueError(f"x has {x.shape[1]} steps but num_steps={num_steps}. Leave num_steps out, or x.")
    return int(x.shape[1])


def check_state(state: State, x: Tensor | None, channels: Sequence[int], names: Sequence[str]) -> None:
    """Raise ValueError unless `state` holds tensors (B, channels, H, W) of the same batch and grid as `x`."""
    if len(state) != len(names):
        raise ValueError(f"A state is ({', '.join(names)}), found {len(state)} tensors.")
    lead, grid = (state[0].shape[0], state[0].shape[-2:]) if x is None else (x.shape[0], x.shape[-2:])
    for tensor, width, name in zip(state, channels, names, strict=True):
        expected = (lead, width, *grid)
        if tuple(tensor.shape) != expected:
            raise ValueError(f"Expected the state {name} of shape {expected}, found {tuple(tensor.shape)}.")
        if not tensor.is_floating_point():
            raise ValueError(f"Expected the state {name} as floating-point numbers, found {tensor.dtype}.")


Initialisation = Literal["xavier", "he", "orthogonal"]

_STARTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # for the input's and for the state's kernels
    "xavier": (nn.init.xavier_uniform_, nn.init.xavier_uniform_),
    "he": (nn.init.kaiming_normal_, nn.init.kaiming_normal_),
    "orthogonal": (nn.init.xavier_uniform_, nn.init.orthogonal_),
}


@torch.no_grad()
def initialise_gates(
    input_weight: Tensor | None, state_weight: Tensor, *, num_gates: int, how: Initialisation
) -> None:
    """Initialise the kernels (num_gates·hidden, in, k, k) in place, each gate as a separate convolution.

    "xavier": uniform, for the fan of one gate (Glorot & Bengio 2010). "he": normal, variance 2 / fan-in (He et al.
    2015). "orthogonal": Xavier for the input; for the state each gate's (hidden, hidden·k·k) matrix has
    orthonormal rows (Saxe et al. 2014). Raises ValueError for another name.
    """
    if how not in _STARTS:
        raise ValueError(f"initialisation={how!r}: take {', '.join(_STARTS)}.")
    for weight, start in zip((input_weight, state_weight), _STARTS[how], strict=True):
        if weight is not None:
            for gate in weight.chunk(num_gates):
                # on a copy: orthogonal_ needs a matrix view, which a channels-last tensor does not have
                gate.copy_(start(torch.empty_like(gate, memory_format=torch.contiguous_format)))
