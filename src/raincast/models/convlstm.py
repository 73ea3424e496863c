"""The ConvLSTM layer of Shi et al. 2015 (arXiv 1506.04214): the recurrence everything else is built on."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

State = tuple[Float[Tensor, "b hidden h w"], Float[Tensor, "b hidden h w"]]
"""Hidden state H and cell state C of one layer."""


class ConvLSTM(nn.Module):
    """A ConvLSTM layer over a whole sequence. `*` is a convolution, `∘` element-wise:

        i_t = σ(W_xi * X_t + W_hi * H_{t-1} + W_ci ∘ C_{t-1} + b_i)
        f_t = σ(W_xf * X_t + W_hf * H_{t-1} + W_cf ∘ C_{t-1} + b_f)
        C_t = f_t ∘ C_{t-1} + i_t ∘ tanh(W_xc * X_t + W_hc * H_{t-1} + b_c)
        o_t = σ(W_xo * X_t + W_ho * H_{t-1} + W_co ∘ C_t + b_o)
        H_t = o_t ∘ tanh(C_t)

    The output gate peeps at the new cell state. Peepholes are one weight per channel, biases one per gate
    and channel; convolutions pad with zeros and keep H and W. The gates lie in the order i, f, c, o along
    the first axis of `input_weight` (4·hidden, in, k, k), `state_weight` (4·hidden, hidden, k, k) and
    `bias`; `peephole` (3, hidden) has the rows i, f, o. `in_channels=0` makes a layer without input.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        *,
        input_kernel: int = 3,
        state_kernel: int = 3,
        peephole: bool = True,
        forget_bias: float = 1.0,
    ) -> None:
        """Kernels are odd; `forget_bias` is where the forget gate's bias starts."""
        super().__init__()
        if in_channels < 0 or hidden_channels < 1:
            raise ValueError(
                f"A ConvLSTM needs in_channels >= 0 and hidden_channels >= 1, "
                f"found {in_channels} and {hidden_channels}."
            )
        _check_odd(input_kernel, "input_kernel")
        _check_odd(state_kernel, "state_kernel")
        self.in_channels = in_channels
        self.hidden_channels = hidden_channels
        gates = 4 * hidden_channels
        weight = torch.empty(gates, in_channels, input_kernel, input_kernel)
        self.input_weight = nn.Parameter(weight) if in_channels else None
        self.state_weight = nn.Parameter(torch.empty(gates, hidden_channels, state_kernel, state_kernel))
        self.bias = nn.Parameter(torch.zeros(gates))
        self.peephole = nn.Parameter(torch.zeros(3, hidden_channels)) if peephole else None
        self._initialise(forget_bias)

    @torch.no_grad()
    def _initialise(self, forget_bias: float) -> None:
        for weight in (self.input_weight, self.state_weight):
            if weight is not None:
                for gate in weight.chunk(4):  # each gate is a convolution of its own: its own fan-out
                    nn.init.xavier_uniform_(gate)
        self.bias.chunk(4)[1].fill_(forget_bias)

    def forward(
        self,
        x: Float[Tensor, "b t c h w"] | None,
        state: State | None = None,
        num_steps: int | None = None,
    ) -> tuple[Float[Tensor, "b steps hidden h w"], State]:
        """Hidden states of all steps, and the last state to carry on from.

        Without `state` the layer starts from zeros. A layer without input takes `x=None` and then needs
        `state` and `num_steps`; elsewhere `num_steps` is the length of `x` and may be left out.
        """
        drives = self._drives(x, state, num_steps)
        hidden: Tensor | None
        cell: Tensor | None
        if state is not None:
            hidden, cell = state
        elif len(drives) == 1:
            # A single step from zeros would leave the state weights out of the graph, and DDP waits for
            # the gradient of every parameter: convolve the zeros.
            assert drives[0] is not None
            hidden = cell = torch.zeros_like(drives[0][:, : self.hidden_channels])
        else:
            hidden, cell = None, None
        outputs = []
        for drive in drives:
            hidden, cell = self._step(drive, hidden, cell)
            outputs.append(hidden)
        assert hidden is not None and cell is not None
        return torch.stack(outputs, dim=1), (hidden, cell)

    def _drives(self, x: Tensor | None, state: State | None, num_steps: int | None) -> list[Tensor | None]:
        """What the input gives the gates, bias included, (B, 4·hidden, H, W) for each step."""
        if x is None:
            if self.input_weight is not None:
                raise ValueError(f"This layer has in_channels={self.in_channels} but x is None. Pass x.")
            if state is None or num_steps is None or num_steps < 1:
                given = "no state" if state is None else "a state"
                raise ValueError(f"x=None needs a state and num_steps >= 1, found {given} and {num_steps}.")
            return [None] * num_steps
        if self.input_weight is None or x.ndim != 5 or x.shape[2] != self.in_channels:
            raise ValueError(
                f"Expected x of shape (B, T, {self.in_channels}, H, W), found {tuple(x.shape)}. "
                "A layer with in_channels=0 takes x=None."
            )
        B, T = x.shape[:2]
        if T < 1 or num_steps not in (None, T):
            raise ValueError(f"x has {T} steps but num_steps={num_steps}. Leave num_steps out, or x.")
        padding = self.input_weight.shape[-1] // 2
        # the input of all steps is known: one large convolution costs less than T small ones
        gates = F.conv2d(x.flatten(0, 1), self.input_weight, self.bias, padding=padding)
        return list(gates.view(B, T, *gates.shape[1:]).unbind(1))

    def _step(self, drive: Tensor | None, hidden: Tensor | None, cell: Tensor | None) -> State:
        gates = drive
        if hidden is not None:
            padding = self.state_weight.shape[-1] // 2
            bias = self.bias if drive is None else None
            gates = F.conv2d(hidden, self.state_weight, bias, padding=padding)
            if drive is not None:
                gates += drive
        assert gates is not None
        return self._gate(gates, cell)

    def _gate(self, gates: Tensor, cell: Tensor | None) -> State:
        """The point-wise half of a step; `cell=None` is a cell state of zeros."""
        width = self.hidden_channels
        # split and unbind, not slices: the backward of a slice fills a tensor as large as the whole
        both, candidate, out = torch.split(gates, [2 * width, width, width], dim=1)
        both = torch.unflatten(both, 1, (2, width))
        peep = None if self.peephole is None else self.peephole[:, :, None, None]
        if peep is not None and cell is not None:
            both = torch.addcmul(both, peep[:2], cell.unsqueeze(1))
        write, keep = both.sigmoid().unbind(1)
        written = write * candidate.tanh()
        cell = written if cell is None else torch.addcmul(written, keep, cell)
        if peep is not None:
            out = torch.addcmul(out, peep[2], cell)
        return out.sigmoid() * cell.tanh(), cell


def _check_odd(kernel: int, name: str) -> None:
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(
            f"{name}={kernel} must be odd and positive: an even kernel would shift the state at each step. "
            f"Take {max(kernel, 2) - 1} or {max(kernel, 0) + 1}."
        )
