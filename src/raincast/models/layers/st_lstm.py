"""The spatiotemporal LSTM of PredRNN (Wang et al. 2017, NeurIPS; Wang et al. 2021, arXiv 2103.09504)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raincast.models.layers.convgru import input_terms
from raincast.models.layers.recurrent import (
    Initialisation,
    RecurrentLayer,
    State,
    check_layer,
    check_state,
    initialise_gates,
)


class STLSTM(RecurrentLayer):
    """A stack of ST-LSTM layers over a whole sequence; they share a memory M in addition to each layer's cell C.

    Layer l of n, with X^1 the input and X^l = H^{l-1}_t above; `*` is a convolution, `∘` element-wise:

        g = tanh(W_xg * X + W_hg * H_{t-1} + b_g)       g' = tanh(W'_xg * X + W_mg * M^{l-1}_t + b'_g)
        i = σ(W_xi * X + W_hi * H_{t-1} + b_i)          i' = σ(W'_xi * X + W_mi * M^{l-1}_t + b'_i)
        f = σ(W_xf * X + W_hf * H_{t-1} + b_f)          f' = σ(W'_xf * X + W_mf * M^{l-1}_t + b'_f)
        C_t = f ∘ C_{t-1} + i ∘ g                       M^l_t = f' ∘ M^{l-1}_t + i' ∘ g'
        o = σ(W_xo * X + W_ho * H_{t-1} + W_co * C_t + W_mo * M^l_t + b_o)
        H_t = o ∘ tanh(W_1×1 * [C_t, M^l_t])

    M zigzags: up through the layers within a step, then from the top to the bottom of the next, M^0_t = M^n_{t-1}.
    Therefore all layers have the same width, and the layers cannot be run one after the other over all steps.

    The state is (H^n, …, H^1, C^n, …, C^1, M), 2n + 1 tensors (B, hidden, H, W), the top layer's hidden state
    first. A single layer has the state (hidden, cell, memory). `in_channels=0` makes a stack whose bottom layer
    has no input. Convolutions pad with zeros and keep H and W.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        *,
        input_kernel: int = 3,
        state_kernel: int = 3,
        num_layers: int = 1,
        initialisation: Initialisation = "xavier",
        forget_bias: float = 1.0,
    ) -> None:
        """Build the stack; kernel sizes are odd: `input_kernel` over X, `state_kernel` over H, C and M.

        `forget_bias` is the initial bias of f and f'.
        """
        super().__init__()
        check_layer("STLSTM", in_channels, hidden_channels, input_kernel=input_kernel, state_kernel=state_kernel)
        if num_layers < 1:
            raise ValueError(f"An STLSTM needs num_layers >= 1, found {num_layers}.")
        self.in_channels = in_channels
        self.hidden_channels = hidden_channels
        self.layers = nn.ModuleList(
            _Unit(channels, hidden_channels, input_kernel, state_kernel, initialisation, forget_bias)
            for channels in (in_channels, *[hidden_channels] * (num_layers - 1))
        )

    def run(self, x: Tensor | None, state: State | None, num_steps: int) -> tuple[Tensor, State]:
        """Evaluate the equations; the hidden states are those of the top layer."""
        bottom, *above = self.layers
        assert isinstance(bottom, _Unit)
        hidden, cell, memory = self._unpack(x, state)
        outputs = []
        for term in input_terms(x, bottom.input_weight, bottom.bias, num_steps):
            hidden[0], cell[0], memory = bottom(term, hidden[0], cell[0], memory)
            for n, layer in enumerate(above, start=1):
                assert isinstance(layer, _Unit)
                (term_above,) = input_terms(hidden[n - 1][:, None], layer.input_weight, layer.bias, 1)
                hidden[n], cell[n], memory = layer(term_above, hidden[n], cell[n], memory)
            outputs.append(hidden[-1])
        return torch.stack(outputs, dim=1), (*hidden[::-1], *cell[::-1], memory)

    def _unpack(self, x: Tensor | None, state: State | None) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return hidden states and cells from bottom to top, and M."""
        n, width = len(self.layers), self.hidden_channels
        if state is None:
            assert x is not None
            zeros = x.new_zeros(x.shape[0], width, *x.shape[-2:])
            return [zeros] * n, [zeros] * n, zeros
        downwards = [f" {layer}" for layer in range(n, 0, -1)] if n > 1 else [""]
        names = [f"{kind}{layer}" for kind in ("hidden", "cell") for layer in downwards]
        check_state(state, x, [width] * (2 * n + 1), [*names, "memory"])
        return list(state[:n])[::-1], list(state[n : 2 * n])[::-1], state[-1]


class _Unit(nn.Module):
    """The weights and one step of a layer; gates are in the order i, f, g, o, i', f', g', as far as present."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        input_kernel: int,
        state_kernel: int,
        initialisation: Initialisation,
        forget_bias: float,
    ) -> None:
        super().__init__()
        h, k = hidden_channels, state_kernel
        weight = torch.empty(7 * h, in_channels, input_kernel, input_kernel)
        self.input_weight = nn.Parameter(weight) if in_channels else None
        self.state_weight = nn.Parameter(torch.empty(4 * h, h, k, k))
        self.memory_weight = nn.Parameter(torch.empty(3 * h, h, k, k))
        self.output_weight = nn.Parameter(torch.empty(h, 2 * h, k, k))  # W_co and W_mo
        self.merge_weight = nn.Parameter(torch.empty(h, 2 * h, 1, 1))
        self.bias = nn.Parameter(torch.zeros(7 * h))
        of_cell, of_memory = (weight[: 4 * h], weight[4 * h :]) if in_channels else (None, None)
        initialise_gates(of_cell, self.state_weight, num_gates=4, how=initialisation)
        initialise_gates(of_memory, self.memory_weight, num_gates=3, how=initialisation)
        initialise_gates(None, self.output_weight, num_gates=1, how=initialisation)
        initialise_gates(None, self.merge_weight, num_gates=1, how=initialisation)
        with torch.no_grad():
            for gate in (1, 5):
                self.bias.view(7, h)[gate].fill_(forget_bias)

    def forward(
        self, given: Tensor, hidden: Tensor, cell: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (H_t, C_t, M^l_t) from the input's pre-activations, H_{t-1}, C_{t-1} and M^{l-1}_t."""
        i, f, g, o, i_m, f_m, g_m = given.chunk(7, dim=-3)
        padding = self.state_weight.shape[-1] // 2
        i_h, f_h, g_h, o_h = F.conv2d(hidden, self.state_weight, padding=padding).chunk(4, dim=-3)
        cell = (f + f_h).sigmoid() * cell + (i + i_h).sigmoid() * (g + g_h).tanh()
        more_i, more_f, more_g = F.conv2d(memory, self.memory_weight, padding=padding).chunk(3, dim=-3)
        memory = (f_m + more_f).sigmoid() * memory + (i_m + more_i).sigmoid() * (g_m + more_g).tanh()
        both = torch.cat((cell, memory), dim=1)
        o = (o + o_h + F.conv2d(both, self.output_weight, padding=padding)).sigmoid()
        return o * F.conv2d(both, self.merge_weight).tanh(), cell, memory
