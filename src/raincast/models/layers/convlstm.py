"""The ConvLSTM layer of Shi et al. 2015 (arXiv 1506.04214), the recurrence on which everything else is built."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raincast.models.fast.sequence import convlstm_sequence
from raincast.models.layers import (
    Initialisation,
    RecurrentLayer,
    State,
    check_state,
    initialise_gates,
)

Peephole = Literal["none", "channel", "pixel"]


class ConvLSTM(RecurrentLayer):
    """A ConvLSTM layer over a whole sequence. `*` is a convolution, `∘` element-wise:

        i_t = σ(W_xi * X_t + W_hi * H_{t-1} + W_ci ∘ C_{t-1} + b_i)
        f_t = σ(W_xf * X_t + W_hf * H_{t-1} + W_cf ∘ C_{t-1} + b_f)
        C_t = f_t ∘ C_{t-1} + i_t ∘ tanh(W_xc * X_t + W_hc * H_{t-1} + b_c)
        o_t = σ(W_xo * X_t + W_ho * H_{t-1} + W_co ∘ C_t + b_o)
        H_t = o_t ∘ tanh(C_t)

    The output gate's peephole reads the new cell state. Convolutions pad with zeros and keep H and W. The gates
    are in the order i, f, c, o along the first axis of `input_weight` (4·hidden, in, k, k), `state_weight`
    (4·hidden, hidden, k, k) and `bias`; `peephole` (3, hidden, 1 or H, 1 or W) has the rows i, f, o.
    `in_channels=0` makes a layer without input. The state is (hidden, cell), both (B, hidden, H, W).

    Extensions of the equations, each off by default:

    - `norm`: the sum of the convolutions is normalised before biases and peepholes are added, each gate
      separately: over its channels and pixels ("layer"; Ba et al. 2016, arXiv 1607.06450) or over groups of
      `norm_group` channels and their pixels ("group"; Wu & He 2018, arXiv 1803.08494);
    - `zoneout`: in training, each value of H and C keeps its old value with this probability; in evaluation
      it is the corresponding weighted mean of both (Krueger et al. 2017, arXiv 1606.01305);
    - `recurrent_dropout`: in training, the update of the cell, i ∘ tanh(…), is dropped with this
      probability (Semeniuta et al. 2016, arXiv 1603.05118).
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        *,
        input_kernel: int = 3,
        state_kernel: int = 3,
        peephole: Peephole = "channel",
        size: tuple[int, int] | None = None,
        norm: Literal["none", "layer", "group"] = "none",
        norm_group: int = 16,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        initialisation: Initialisation = "xavier",
        forget_bias: float = 1.0,
        recompute: bool = False,
        fast: bool = True,
    ) -> None:
        """Build the layer; kernel sizes are odd.

        `size` is the grid (H, W) of per-pixel peepholes; `forget_bias` is the initial bias of the forget gate.
        `recompute` stores less for the backward pass and recomputes it there. `fast=False` always uses the
        definition, as norms, zoneout and recurrent dropout do anyway. Raises ValueError for values that do not fit
        together.
        """
        super().__init__(in_channels, hidden_channels, input_kernel=input_kernel, state_kernel=state_kernel)
        for name, rate in (("zoneout", zoneout), ("recurrent_dropout", recurrent_dropout)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name}={rate} is a probability: take 0 <= {name} < 1.")
        self.zoneout = zoneout
        self.recurrent_dropout = recurrent_dropout
        self.recompute = recompute
        self.fast = fast
        gates = 4 * hidden_channels
        self.input_weight = _kernels(gates, in_channels, input_kernel) if in_channels else None
        self.state_weight = _kernels(gates, hidden_channels, state_kernel)
        self.bias = nn.Parameter(torch.zeros(gates))
        self.peephole = _peepholes(peephole, hidden_channels, size)
        self.norm = _norm(norm, hidden_channels, norm_group)
        initialise_gates(self.input_weight, self.state_weight, num_gates=4, how=initialisation)
        with torch.no_grad():
            self.bias.chunk(4)[1].fill_(forget_bias)

    def run(self, x: Tensor | None, state: State | None, num_steps: int) -> tuple[Tensor, State]:
        """Evaluate the equations, by the fast path where it has these settings."""
        if state is not None:
            width = self.hidden_channels
            check_state(state, x, (width, width), ("hidden", "cell"))
        self._check_size(x if x is not None else state)
        if self._takes_fast_way():
            hidden, cell = (None, None) if state is None else state
            weights = (self.input_weight, self.state_weight, self.bias, self.peephole)
            outputs, *last = convlstm_sequence(
                x, hidden, cell, *weights, num_steps=num_steps, recompute=self.recompute
            )
            return outputs, tuple(last)
        return self.definition(x, state, num_steps)

    def _takes_fast_way(self) -> bool:
        # compilers and exporters get the definition: they fuse it themselves
        plain = self.norm is None and not self.zoneout and not (self.training and self.recurrent_dropout)
        return self.fast and plain and not torch.compiler.is_compiling()

    def definition(self, x: Tensor | None, state: State | None, num_steps: int) -> tuple[Tensor, State]:
        """Evaluate the equations in plain operations, step by step: the reference for faster implementations."""
        if state is None:
            assert x is not None
            B, _, _, H, W = x.shape
            zeros = x.new_zeros(B, self.hidden_channels, H, W)
            state = (zeros, zeros)
        hidden, cell = state
        outputs = []
        for t in range(num_steps):
            hidden, cell = self._step(None if x is None else x[:, t], hidden, cell)
            outputs.append(hidden)
        return torch.stack(outputs, dim=1), (hidden, cell)

    def _step(self, x: Tensor | None, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        gates = F.conv2d(hidden, self.state_weight, padding=self.state_weight.shape[-1] // 2)
        if x is not None:
            assert self.input_weight is not None
            gates = gates + F.conv2d(x, self.input_weight, padding=self.input_weight.shape[-1] // 2)
        if self.norm is not None:
            gates = self.norm(gates)
        i, f, z, o = (gates + self.bias[:, None, None]).chunk(4, dim=1)
        if self.peephole is not None:
            i = i + self.peephole[0] * cell
            f = f + self.peephole[1] * cell
        written = i.sigmoid() * z.tanh()
        written = F.dropout(written, self.recurrent_dropout, self.training)
        new_cell = self._zone_out(f.sigmoid() * cell + written, cell)
        if self.peephole is not None:
            o = o + self.peephole[2] * new_cell
        return self._zone_out(o.sigmoid() * new_cell.tanh(), hidden), new_cell

    def _zone_out(self, new: Tensor, old: Tensor) -> Tensor:
        if not self.zoneout:
            return new
        if not self.training:
            return torch.lerp(new, old.to(new.dtype), self.zoneout)
        return torch.where(torch.rand_like(new) < self.zoneout, old.to(new.dtype), new)

    def _check_size(self, like: Tensor | State | None) -> None:
        if self.peephole is None or self.peephole.shape[-1] == self.peephole.shape[-2] == 1:
            return
        found = tuple((like if isinstance(like, Tensor) else like[0]).shape[-2:]) if like is not None else None
        expected = tuple(self.peephole.shape[-2:])
        if found != expected:
            raise ValueError(
                f"Peepholes per pixel were made for a grid of {expected}, found {found}. "
                "peephole=channel works on any grid."
            )


def _kernels(outputs: int, inputs: int, size: int) -> nn.Parameter:
    # the memory layout of the fast path, so that it does not copy the kernels at each call
    return nn.Parameter(torch.empty(outputs, inputs, size, size).contiguous(memory_format=torch.channels_last))


def _peepholes(kind: Peephole, hidden_channels: int, size: tuple[int, int] | None) -> nn.Parameter | None:
    if kind not in ("none", "channel", "pixel"):
        raise ValueError(f"peephole={kind!r}: take none, channel or pixel.")
    if (kind == "pixel") != (size is not None):
        raise ValueError(
            f"peephole={kind} with size={size}: peepholes per pixel need the size (H, W) of this layer's grid, "
            "others take none."
        )
    if kind == "none":
        return None
    H, W = size or (1, 1)
    return nn.Parameter(torch.zeros(3, hidden_channels, H, W))


class _GateNorm(nn.GroupNorm):
    """Group norm without a shift: the gates' biases, added afterwards, are the shift."""

    def __init__(self, num_groups: int, num_channels: int) -> None:
        super().__init__(num_groups, num_channels)
        self.register_parameter("bias", None)


def _norm(kind: str, hidden_channels: int, norm_group: int) -> nn.Module | None:
    if kind == "none":
        return None
    if kind == "layer":
        return _GateNorm(4, 4 * hidden_channels)
    if kind != "group":
        raise ValueError(f"norm={kind!r}: take none, layer or group.")
    if norm_group < 1 or hidden_channels % norm_group:
        raise ValueError(
            f"norm_group={norm_group} channels do not divide the {hidden_channels} hidden channels into groups."
        )
    return _GateNorm(4 * hidden_channels // norm_group, 4 * hidden_channels)
