"""PredRNN (Wang et al. 2017, NeurIPS; 2021, arXiv 2103.09504): ST-LSTMs that read their own forecasts."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from raincast.models.frames import check_frames, framewise, from_patches, initialise_output, pad
from raincast.models.layers import (
    Initialisation,
    RecurrentLayer,
    State,
    check_state,
    initialise_gates,
)
from raincast.models.layers.convgru import input_terms


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
        super().__init__(in_channels, hidden_channels, input_kernel=input_kernel, state_kernel=state_kernel)
        if num_layers < 1:
            raise ValueError(f"An STLSTM needs num_layers >= 1, found {num_layers}.")
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


class PredRNN(nn.Module):
    """One stack of ST-LSTMs at one resolution that forecasts frame by frame.

    Frames are cut into patch × patch squares whose pixels become channels. At each step the stack reads a frame,
    and a 1×1 convolution of the top layer's hidden state gives the next one. After the past frames, each forecast
    frame is the input of the next step. Output and input therefore have the same channels: `in_channels` and
    `out_channels` are equal.

    `forward` has no teacher forcing, in training either: after the last input frame the network reads its own
    forecasts, and its one-step forecasts of the input frames are not returned. `unroll` is for training schemes
    that choose which frames the network reads (scheduled sampling). Grids of any size work: they are padded at the
    bottom and right with 0, no rain, and the output is cropped to the input's size.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        patch: int = 4,
        hidden_channels: int = 128,
        num_layers: int = 4,
        input_kernel: int = 5,
        state_kernel: int = 5,
        initialisation: Initialisation = "xavier",
        forget_bias: float = 1.0,
    ) -> None:
        """Build the network; all layers are `hidden_channels` wide, as they share one memory.

        See `STLSTM` for the other arguments. Raises ValueError if `in_channels` and `out_channels` differ or
        `patch` is below 1.
        """
        super().__init__()
        if in_channels != out_channels:
            raise ValueError(
                f"PredRNN reads its own forecasts, so in_channels={in_channels} and out_channels={out_channels} "
                "must be equal. Take head=rate and no data.channels, or an encoder-forecaster, which reads none."
            )
        if patch < 1:
            raise ValueError(f"Need patch >= 1, found {patch}.")
        self.in_channels = in_channels
        self.patch = patch
        self.stride = patch
        self.stack = STLSTM(
            in_channels * patch**2,
            hidden_channels,
            input_kernel=input_kernel,
            state_kernel=state_kernel,
            num_layers=num_layers,
            initialisation=initialisation,
            forget_bias=forget_bias,
        )
        self.head = nn.Conv2d(hidden_channels, out_channels * patch**2, 1)
        initialise_output(self.head)

    def forward(self, x: Float[Tensor, "b t c h w"], num_steps: int) -> Float[Tensor, "b steps out h w"]:
        """Forecast the `num_steps` frames after the past frames `x`, in network units."""
        check_frames(x, self.in_channels, num_steps)
        H, W = x.shape[-2:]
        hidden, state = self.stack(self._patches(x))
        outputs = [framewise(self.head, hidden[:, -1:])]
        while len(outputs) < num_steps:
            hidden, state = self.stack(outputs[-1], state)
            outputs.append(framewise(self.head, hidden))
        return from_patches(torch.cat(outputs, dim=1), self.patch)[..., :H, :W]

    def unroll(
        self,
        x: Float[Tensor, "b t c h w"],
        truth: Float[Tensor, "b steps c h w"],
        use_truth: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b t_and_steps_less_1 c h w"]:
        """Return one-step forecasts of all frames of `x` and `truth` but the first, in network units.

        `use_truth` (B, T + steps − 2) selects which frames after the first are read from the data; the others are
        read from the forecast, as are all pixels where `truth` is NaN.
        """
        check_frames(x, self.in_channels, truth.shape[1])
        H, W = x.shape[-2:]
        frames = torch.cat([x, truth[:, :-1]], dim=1)
        known = self._patches(frames.isnan().to(x.dtype)) == 0
        frames = self._patches(frames.nan_to_num(0.0))
        read, state, outputs = frames[:, :1], None, []
        for step in range(frames.shape[1]):
            hidden, state = self.stack(read, state)
            outputs.append(framewise(self.head, hidden))
            if step + 1 < frames.shape[1]:
                chosen = use_truth[:, step, None, None, None, None] & known[:, step + 1 : step + 2]
                read = torch.where(chosen, frames[:, step + 1 : step + 2], outputs[-1])
        return from_patches(torch.cat(outputs, dim=1), self.patch)[..., :H, :W]

    def _patches(self, frames: Tensor) -> Tensor:
        return F.pixel_unshuffle(pad(frames, self.stride), self.patch)
