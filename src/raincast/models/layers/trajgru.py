"""The TrajGRU layer of Shi et al. 2017 (arXiv 1706.03458): a recurrence along learned flows."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from raincast.models.layers import Initialisation, RecurrentLayer, State, initialise_gates
from raincast.models.layers.convgru import Activation, activation_of, first_hidden, gru_update, input_terms


class TrajGRU(RecurrentLayer):
    """A TrajGRU layer over a whole sequence: a ConvGRU whose state arrives along L learned flows.

        U_t, V_t = γ(X_t, H_{t-1})
        S_t  = [warp(H_{t-1}, U_{t,1}, V_{t,1}), …, warp(H_{t-1}, U_{t,L}, V_{t,L})]
        Z_t  = σ(W_xz * X_t + W_hz * S_t + b_z)
        R_t  = σ(W_xr * X_t + W_hr * S_t + b_r)
        H'_t = f(W_xh * X_t + R_t ∘ (W_hh * S_t) + b_h)
        H_t  = (1 - Z_t) ∘ H'_t + Z_t ∘ H_{t-1}

    `*` is a convolution, `∘` element-wise, f the activation. The state's kernels are 1×1: neighbours are reached
    through the flows (see `warp`), in pixels of this layer's grid per step. γ adds a convolution of the input and
    one of the state, `flow_channels` wide, applies the activation, and convolves to 2L maps.

    The gates are in the order z, r, h along the first axis of `input_weight` (3·hidden, in, k, k), `state_weight`
    (3·hidden, hidden·L, 1, 1), whose second axis is channel·L + link, and `bias`. The first half of γ has
    `flow_input_weight`, `flow_state_weight` and `flow_bias`; the second half has `flow_weight` (2L, ·, k, k) in
    the order U_1, V_1, U_2, … and `flow_offset`. Both of the second half start at zero: every flow is zero at
    first, as offsets of deformable convolutions are (Dai et al. 2017, arXiv 1703.06211), and the links diverge
    because their 1×1 kernels differ. `in_channels=0` makes a layer without input. The state is (hidden,), of shape
    (B, hidden, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        *,
        input_kernel: int = 3,
        state_kernel: int = 5,
        num_links: int = 9,
        flow_channels: int = 32,
        activation: Activation = "leaky_relu",
        initialisation: Initialisation = "xavier",
    ) -> None:
        """Build the layer; kernel sizes are odd.

        `state_kernel` is the kernel size of all convolutions of γ, 5 in the paper; the gates' own kernels over the
        state are 1×1. `activation` is f, in γ as well: leaky ReLU of slope 0.2 (the paper's) or tanh.
        """
        super().__init__(in_channels, hidden_channels, input_kernel=input_kernel, state_kernel=state_kernel)
        if num_links < 1 or flow_channels < 1:
            raise ValueError(
                f"A TrajGRU needs num_links >= 1 and flow_channels >= 1, found {num_links} and {flow_channels}."
            )
        self.num_links = num_links
        self.activate = activation_of(activation)

        def kernels(out: int, channels: int, size: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(out, channels, size, size))

        gates = 3 * hidden_channels
        self.input_weight = kernels(gates, in_channels, input_kernel) if in_channels else None
        self.state_weight = kernels(gates, hidden_channels * num_links, 1)
        self.bias = nn.Parameter(torch.zeros(gates))
        initialise_gates(self.input_weight, self.state_weight, num_gates=3, how=initialisation)

        self.flow_input_weight = kernels(flow_channels, in_channels, state_kernel) if in_channels else None
        self.flow_state_weight = kernels(flow_channels, hidden_channels, state_kernel)
        self.flow_bias = nn.Parameter(torch.zeros(flow_channels))
        initialise_gates(self.flow_input_weight, self.flow_state_weight, num_gates=1, how=initialisation)
        self.flow_weight = nn.Parameter(torch.zeros(2 * num_links, flow_channels, state_kernel, state_kernel))
        self.flow_offset = nn.Parameter(torch.zeros(2 * num_links))

    def run(self, x: Tensor | None, state: State | None, num_steps: int) -> tuple[Tensor, State]:
        """Evaluate the equations; all steps of the input are convolved in one call."""
        hidden = first_hidden(x, state, self.hidden_channels)
        to_gates = input_terms(x, self.input_weight, self.bias, num_steps)
        to_flow = input_terms(x, self.flow_input_weight, self.flow_bias, num_steps)
        outputs = []
        for given, given_flow in zip(to_gates, to_flow, strict=True):
            carried = F.conv2d(warp(hidden, self._flow(given_flow, hidden)), self.state_weight)
            hidden = gru_update(given, carried, hidden, self.activate)
            outputs.append(hidden)
        return torch.stack(outputs, dim=1), (hidden,)

    def _flow(self, given: Tensor, hidden: Tensor) -> Tensor:
        padding = self.flow_weight.shape[-1] // 2
        features = self.activate(given + F.conv2d(hidden, self.flow_state_weight, padding=padding))
        flow = F.conv2d(features, self.flow_weight, self.flow_offset, padding=padding)
        return flow.view(flow.shape[0], self.num_links, 2, *flow.shape[2:])


def warp(maps: Float[Tensor, "b c h w"], flow: Float[Tensor, "b links 2 h w"]) -> Float[Tensor, "b c*links h w"]:
    """Warp maps along each flow; channel c and link l of the output is c·links + l.

    The value at row i and column j is that of `maps` at row i + V and column j + U, interpolated bilinearly, 0
    outside the grid (Shi et al. 2017). `flow` holds U (to the right), then V (down the rows), both in pixels. It
    points to where a pixel's value comes from, against the motion.
    """
    links, _, H, W = flow.shape[1:]
    # bfloat16's 8 bits cannot count the columns of a grid: coordinates are at least float32
    exact = torch.promote_types(maps.dtype, torch.float32)
    flow = flow.to(exact)
    columns = torch.arange(W, device=maps.device, dtype=exact)
    rows = torch.arange(H, device=maps.device, dtype=exact)
    # align_corners=False puts the centre of column j at (2j + 1 - W) / W, on grids of one pixel too
    x = (2 * (columns + flow[:, :, 0]) + (1 - W)) / W
    y = (2 * (rows[:, None] + flow[:, :, 1]) + (1 - H)) / H
    # the links are stacked vertically on one tall grid, so that the maps are not repeated for each
    places = torch.stack((x, y), dim=-1).flatten(1, 2)
    seen = F.grid_sample(maps.to(exact), places, mode="bilinear", padding_mode="zeros", align_corners=False)
    return seen.view(*maps.shape[:2], links, H, W).flatten(1, 2)
