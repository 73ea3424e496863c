"""The ConvGRU layer of Shi et al. 2017 (arXiv 1706.03458), and the equations it shares with TrajGRU."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from raincast.models.layers import (
    SLOPE,
    Initialisation,
    RecurrentLayer,
    State,
    check_state,
    initialise_gates,
)

Activation = Literal["leaky_relu", "tanh"]


class ConvGRU(RecurrentLayer):
    """A ConvGRU layer over a whole sequence. `*` is a convolution, `∘` element-wise, f the activation:

        Z_t  = σ(W_xz * X_t + W_hz * H_{t-1} + b_z)
        R_t  = σ(W_xr * X_t + W_hr * H_{t-1} + b_r)
        H'_t = f(W_xh * X_t + R_t ∘ (W_hh * H_{t-1}) + b_h)
        H_t  = (1 - Z_t) ∘ H'_t + Z_t ∘ H_{t-1}

    The reset gate R acts after the convolution of the state, so that one convolution serves all gates.
    Convolutions pad with zeros and keep H and W. The gates are in the order z, r, h along the first axis of
    `input_weight` (3·hidden, in, k, k), `state_weight` (3·hidden, hidden, k, k) and `bias`. `in_channels=0` makes
    a layer without input. The state is (hidden,), of shape (B, hidden, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        *,
        input_kernel: int = 3,
        state_kernel: int = 3,
        activation: Activation = "leaky_relu",
        initialisation: Initialisation = "xavier",
    ) -> None:
        """Build the layer.

        Kernel sizes are odd, `activation` is f: leaky ReLU of slope 0.2 (the paper's) or tanh.
        """
        super().__init__(in_channels, hidden_channels, input_kernel=input_kernel, state_kernel=state_kernel)
        self.activate = activation_of(activation)
        gates = 3 * hidden_channels
        weight = torch.empty(gates, in_channels, input_kernel, input_kernel)
        self.input_weight = nn.Parameter(weight) if in_channels else None
        self.state_weight = nn.Parameter(torch.empty(gates, hidden_channels, state_kernel, state_kernel))
        self.bias = nn.Parameter(torch.zeros(gates))
        initialise_gates(self.input_weight, self.state_weight, num_gates=3, how=initialisation)

    def run(self, x: Tensor | None, state: State | None, num_steps: int) -> tuple[Tensor, State]:
        """Evaluate the equations; all steps of the input are convolved in one call."""
        hidden = first_hidden(x, state, self.hidden_channels)
        outputs = []
        for given in input_terms(x, self.input_weight, self.bias, num_steps):
            carried = F.conv2d(hidden, self.state_weight, padding=self.state_weight.shape[-1] // 2)
            hidden = gru_update(given, carried, hidden, self.activate)
            outputs.append(hidden)
        return torch.stack(outputs, dim=1), (hidden,)


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    """Return the function named by a recurrent layer's `activation`; raises ValueError for an unknown name."""
    if name == "tanh":
        return torch.tanh
    if name != "leaky_relu":
        raise ValueError(f"activation={name!r}: take leaky_relu or tanh.")
    return _leaky_relu


def _leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def first_hidden(x: Tensor | None, state: State | None, width: int) -> Tensor:
    """Return the initial hidden state (B, width, H, W) of a layer whose state is (hidden,)."""
    if state is not None:
        check_state(state, x, (width,), ("hidden",))
        return state[0]
    assert x is not None
    return x.new_zeros(x.shape[0], width, *x.shape[-2:])


def input_terms(
    x: Float[Tensor, "b t c h w"] | None,
    weight: Float[Tensor, "out c k k"] | None,
    bias: Float[Tensor, " out"],
    num_steps: int,
) -> Sequence[Tensor]:
    """Return each step's pre-activations from input and bias, (B, out, H, W), or the bias alone, (out, 1, 1).

    All steps of the input are known beforehand, so they are convolved in one call.
    """
    if x is None:
        return [bias[:, None, None]] * num_steps
    assert weight is not None
    terms = F.conv2d(x.flatten(0, 1), weight, bias, padding=weight.shape[-1] // 2)
    return terms.view(*x.shape[:2], *terms.shape[1:]).unbind(1)


def gru_update(
    given: Tensor,
    carried: Float[Tensor, "b gates h w"],
    hidden: Float[Tensor, "b hidden h w"],
    activate: Callable[[Tensor], Tensor],
) -> Float[Tensor, "b hidden h w"]:
    """Return H_t: the point-wise part of a step, from the pre-activations of z, r and h by input and state."""
    z, r, new = given.chunk(3, dim=-3)
    carried_z, carried_r, carried_new = carried.chunk(3, dim=-3)
    z = (z + carried_z).sigmoid()
    r = (r + carried_r).sigmoid()
    return (1 - z) * activate(new + r * carried_new) + z * hidden
