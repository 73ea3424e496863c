"""The ConvLSTM over a whole sequence as one node of the graph: the fast path of `convlstm.ConvLSTM`.

Differences from the definition:

- tensors are channels last and time first, (T, B, H, W, C), so that the steps of a convolution over all steps,
  and each step alone, are contiguous;
- the input's convolution, and the gradients of all weights, are one call over many steps;
- a zero state is not convolved;
- the point-wise part is one pass (`gates`);
- for the backward pass it stores the hidden states, the gates and the cell of every few steps, from which the
  cells in between are recomputed. With `recompute` only the gate o is stored; the other three then cost another
  3/4 of the forward pass's convolutions.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raincast.models.fast import gates as pointwise
from raincast.models.fast.kernel import Kernel, autocast_dtype, rows_of

BLOCKS = 4
"""Number of blocks of steps in the backward pass: cells and gradients of gates exist for one block at a time."""

DRIVE_VALUES = 2**22
"""Number of output values per call of the input's convolution, which sets how many steps it takes at a time."""


def convlstm_sequence(
    x: Tensor | None,
    hidden: Tensor | None,
    cell: Tensor | None,
    input_weight: Tensor | None,
    state_weight: Tensor,
    bias: Tensor,
    peephole: Tensor | None,
    *,
    num_steps: int,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states (B, T, hidden, H, W), last hidden and last cell state; arguments as in `ConvLSTM`.

    Under autocast, convolutions and hidden states use its precision; cells stay in float32.
    """
    device = state_weight.device.type
    dtype = autocast_dtype(device) or state_weight.dtype
    exact = pointwise.cell_dtype(dtype)
    x, hidden, input_weight = (None if t is None else t.to(dtype) for t in (x, hidden, input_weight))
    cell, peephole = (None if t is None else t.to(exact) for t in (cell, peephole))
    with _without_autocast(device):
        outputs: tuple[Tensor, Tensor, Tensor] = _Sequence.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
            x,
            hidden,
            cell,
            input_weight,
            state_weight.to(dtype),
            bias.to(dtype),
            peephole,
            num_steps,
            recompute,
            torch.is_grad_enabled(),
        )
    return outputs


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if autocast_dtype(device) else nullcontext()


class _Weights(NamedTuple):
    """The layer's parameters; `table` holds the peepholes as (1|H, 1|W, 3, hidden)."""

    of_input: Kernel | None
    of_state: Kernel
    bias: Tensor
    table: Tensor | None

    @classmethod
    def of(
        cls,
        input_weight: Tensor | None,
        state_weight: Tensor,
        bias: Tensor,
        peephole: Tensor | None,
        *,
        step: tuple[int, int, int],
    ) -> "_Weights":
        """Arrange the parameters as the layer holds them; `step` is (B, H, W)."""
        return cls(
            None if input_weight is None else Kernel(input_weight, step),
            Kernel(state_weight, step),
            bias,
            None if peephole is None else peephole.permute(2, 3, 0, 1).contiguous(),
        )

    @property
    def width(self) -> int:
        return self.of_state.channels

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the backward pass; each costs one sum of the kernel's gradients."""
        return 1 if self.of_state.heavy else BLOCKS

    def drive(self, inputs: Tensor, gates: int = 4) -> Tensor:
        """Return the input's pre-activations, bias included, of the first `gates` of i, f, z, o."""
        assert self.of_input is not None
        if gates == 4:
            return self.of_input.convolve(inputs, self.bias)
        rows = gates * self.width
        return self.of_input.first(rows).convolve(inputs, self.bias[:rows])

    def recur(self, states: Tensor, gates: int = 4) -> Tensor:
        """Return the previous hidden states' pre-activations; the bias is included if there is no input."""
        bias = self.bias if self.of_input is None else None
        if gates == 4:
            return self.of_state.convolve(states, bias)
        rows = gates * self.width
        return self.of_state.first(rows).convolve(states, None if bias is None else bias[:rows])


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor | None,
        hidden: Tensor | None,
        cell: Tensor | None,
        input_weight: Tensor | None,
        state_weight: Tensor,
        bias: Tensor,
        peephole: Tensor | None,
        num_steps: int,
        recompute: bool,
        training: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        like = hidden if x is None else x[:, 0]
        assert like is not None
        B, _, H, W = like.shape
        weights = _Weights.of(input_weight, state_weight, bias, peephole, step=(B, H, W))
        keep = training and any(ctx.needs_input_grad)
        start = int(hidden is not None)  # row 0 is then the initial state
        states = like.new_empty(start + num_steps, B, H, W, weights.width)
        blocks = _blocks(num_steps, weights.num_blocks) if keep else []
        cells = _Cells(states, start, blocks)
        if hidden is not None and cell is not None:
            states[0] = hidden.permute(0, 2, 3, 1)
            cells.of(0).copy_(cell.permute(0, 2, 3, 1))
        inputs = None if x is None else _rows(x)
        # one tensor per step: malloc would often not reuse one for all, and each of its pages would be a page
        # fault
        gates: list[Tensor] = []
        out_gates = like.new_empty(num_steps, B, H, W, weights.width) if keep and recompute else None
        # views are made once for all steps: made one by one they would cost as much as a small convolution
        rows_of = states.unbind(0)
        for t, drive, out_of in zip(range(num_steps), _drives(weights, inputs), _steps(out_gates), strict=False):
            if keep and not recompute:
                # overwrites the input's pre-activations, which are no longer needed
                gates.append(like.new_empty(B, H, W, 4 * weights.width) if drive is None else drive)
            row = start + t
            recurrent = weights.recur(rows_of[row - 1]) if row else None
            a, b = (recurrent, None) if drive is None else (drive, recurrent)
            assert a is not None
            pointwise.forward(
                a,
                b,
                cells.of(row - 1) if row else None,
                weights.table,
                gates=gates[t] if gates else None,
                out_gate=out_of,
                cell=cells.of(row),
                hidden=rows_of[row],
            )
        if keep:
            ctx.save_for_backward(
                inputs, states, cells.kept, out_gates, input_weight, state_weight, bias, peephole, *gates
            )
            ctx.start = start
            ctx.set_materialize_grads(False)
        # copies of the last states: views of them would keep the whole sequence alive
        return (
            states[start:].permute(1, 0, 4, 2, 3),
            states[-1].clone().permute(0, 3, 1, 2),
            cells.of(start + num_steps - 1).clone().permute(0, 3, 1, 2),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor | None, d_hidden: Tensor | None, d_cell: Tensor | None) -> Any:
        inputs, states, kept, out_gates, *others = ctx.saved_tensors
        parameters, gates = others[:4], others[4:]
        start, needs = ctx.start, ctx.needs_input_grad
        _, B, H, W, _ = states.shape
        weights = _Weights.of(*parameters, step=(B, H, W))
        num_steps = len(states) - start
        dh_out = None if d_outputs is None else _rows(d_outputs)
        dh_next = None if d_hidden is None else rows_of(d_hidden.to(states.dtype))
        dcell = torch.zeros_like(kept[0]) if d_cell is None else rows_of(d_cell.to(kept.dtype)).clone()
        sums = _Gradients(weights, inputs if needs[0] else None, kept[0])
        blocks = _blocks(num_steps, weights.num_blocks)
        # buffers for one block: the cell before it and its own, its gates if they were not stored, their gradients
        cells = kept.new_empty(blocks[0].stop + 1, *kept.shape[1:])
        d_gates = states.new_empty(blocks[0].stop, *states.shape[1:4], 4 * weights.width)
        again = None if gates else torch.empty_like(d_gates)

        for number, steps in reversed(list(enumerate(blocks))):
            size, first = steps.stop - steps.start, start + steps.start
            # the states before the block's steps; the very first step may have none
            before = states[max(first - 1, 0) : first + size - 1]
            cells[0] = kept[number]
            block_inputs = None if inputs is None else inputs[steps]
            if again is None:
                block = gates[steps]
                for index in range(size):
                    pointwise.recell(block[index], cells[index] if first + index else None, cell=cells[index + 1])
            else:
                block = again[:size].unbind(0)
                _regate(weights, block_inputs, before, out_gates[steps], gates=block, cells=cells)
            for index in reversed(range(size)):
                row = first + index
                pointwise.backward(
                    block[index],
                    cells[index] if row else None,
                    cells[index + 1],
                    None if dh_out is None else dh_out[steps.start + index],
                    dh_next,
                    weights.table,
                    dcell=dcell,
                    dpeephole=sums.peephole_per_channel,
                    dgates=d_gates[index],
                )
                if row - start or (row and needs[1]):
                    dh_next = weights.of_state.gradient_of_rows(d_gates[index], states[row - 1])
            sums.add(d_gates[:size], block_inputs, before, cells[: size + 1], steps)
        return (
            None if sums.inputs is None else sums.inputs.permute(1, 0, 4, 2, 3),
            dh_next.permute(0, 3, 1, 2) if needs[1] and dh_next is not None else None,
            dcell.permute(0, 3, 1, 2) if needs[2] else None,
            *sums.of_parameters(),
            None,
            None,
            None,
        )


class _Gradients:
    """Gradients of inputs and parameters, accumulated block by block."""

    def __init__(self, weights: _Weights, inputs: Tensor | None, cell: Tensor) -> None:
        """Allocate the sums; `inputs` is None if their gradient is not wanted, `cell` is the cell of one step."""
        self.weights = weights
        self.inputs = None if inputs is None else torch.empty_like(inputs)
        self.of_input: Tensor | None = None
        self.of_state: Tensor | None = None
        self.bias: Tensor | None = None
        self.peephole_per_channel: Tensor | None = None
        self.peephole_per_pixel: Tensor | None = None
        if weights.table is None:
            return
        if weights.table.shape[:2] == (1, 1):
            self.peephole_per_channel = torch.zeros(
                pointwise.num_tables(cell), 3, weights.width, dtype=torch.float64, device=cell.device
            )
        else:
            self.peephole_per_pixel = torch.zeros_like(weights.table)

    def add(
        self,
        d_gates: Tensor,
        inputs: Tensor | None,
        states_before: Tensor,
        cells: Tensor,
        steps: slice,
    ) -> None:
        """Add one block of steps; `cells` also has the cell before it. An initial state of zeros is left out."""
        if inputs is not None:
            assert self.weights.of_input is not None
            d_weight, d_bias = self.weights.of_input.gradients(d_gates, inputs, bias=True)
            self.of_input, self.bias = _added(self.of_input, d_weight), _added(self.bias, d_bias)
            if self.inputs is not None:
                self.inputs[steps] = self.weights.of_input.gradient_of_rows(d_gates, inputs)
        recurrent = d_gates[len(d_gates) - len(states_before) :]
        if len(recurrent):
            d_weight, d_bias = self.weights.of_state.gradients(recurrent, states_before, bias=inputs is None)
            self.of_state, self.bias = _added(self.of_state, d_weight), _added(self.bias, d_bias)
        if self.peephole_per_pixel is not None:
            di, df, _, _ = recurrent.chunk(4, dim=-1)
            do = d_gates.chunk(4, dim=-1)[3]
            old = cells[len(d_gates) - len(recurrent) : -1]
            pairs = ((di, old), (df, old), (do, cells[1:]))
            for gate, (d_gate, cell) in enumerate(pairs):
                self.peephole_per_pixel[:, :, gate] += (d_gate * cell).sum((0, 1))

    def of_parameters(self) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
        """Return gradients as the layer holds its parameters: input weight, state weight, bias, peephole."""
        table = self.peephole_per_pixel
        if self.peephole_per_channel is not None:
            assert self.weights.table is not None
            table = self.peephole_per_channel.sum(0).to(self.weights.table.dtype)[None, None]
        of_state = torch.zeros_like(self.weights.of_state.weight) if self.of_state is None else self.of_state
        return self.of_input, of_state, self.bias, None if table is None else table.permute(2, 3, 0, 1)


def _added(total: Tensor | None, term: Tensor | None) -> Tensor | None:
    """Add `term` to `total` in place; without a total the first term becomes the total."""
    if total is None or term is None:
        return term if total is None else total
    return total.add_(term)


def _drives(weights: _Weights, inputs: Tensor | None) -> Iterator[Tensor | None]:
    """Yield the input-to-gate pre-activations of each step, convolving a few steps at a time."""
    if inputs is None:
        yield from itertools.repeat(None)
        return
    pixels = inputs[0].numel() // inputs.shape[-1]
    size = max(1, DRIVE_VALUES // max(1, 4 * weights.width * pixels))
    if size == 1:  # a large kernel is packed for single steps
        yield from (weights.drive(step) for step in inputs.unbind(0))
        return
    for begin in range(0, len(inputs), size):
        yield from weights.drive(inputs[begin : begin + size]).unbind(0)


def _steps(tensor: Tensor | None) -> Iterable[Tensor | None]:
    return itertools.repeat(None) if tensor is None else tensor.unbind(0)


def _regate(
    weights: _Weights,
    inputs: Tensor | None,
    states_before: Tensor,
    out_gates: Tensor,
    *,
    gates: Sequence[Tensor],
    cells: Tensor,
) -> None:
    """Recompute the gates of a block and the cells after its first from the stored o and the pre-activations."""
    drive = None if inputs is None else weights.drive(inputs, gates=3)
    recurrent = weights.recur(states_before, gates=3) if len(states_before) else None
    skip = len(out_gates) - len(states_before)
    for index in range(len(out_gates)):
        from_state = None if recurrent is None or index < skip else recurrent[index - skip]
        a, b = (from_state, None) if drive is None else (drive[index], from_state)
        assert a is not None
        old = None if index < skip else cells[index]
        pointwise.regate(a, b, old, weights.table, out_gates[index], gates=gates[index], cell=cells[index + 1])


def _blocks(num_steps: int, num_blocks: int) -> list[slice]:
    size = -(-num_steps // num_blocks)
    return [slice(begin, min(begin + size, num_steps)) for begin in range(0, num_steps, size)]


class _Cells:
    """Storage of cells: `kept` has those before each block of the backward pass, the others share two buffers."""

    def __init__(self, states: Tensor, start: int, blocks: list[slice]) -> None:
        """Allocate; rows are numbered as in `states`. Without blocks no cell is kept."""
        before = [start + steps.start - 1 for steps in blocks]
        exact = pointwise.cell_dtype(states.dtype)
        self.kept = states.new_zeros(len(before), *states.shape[1:], dtype=exact)
        self.turns = states.new_empty(2, *states.shape[1:], dtype=exact).unbind(0)
        self.number = {row: number for number, row in enumerate(before)}

    def of(self, row: int) -> Tensor:
        """Return the cell (B, H, W, hidden) of a row."""
        number = self.number.get(row)
        return self.turns[row % 2] if number is None else self.kept[number]


def _rows(sequence: Tensor) -> Tensor:
    """Reshape (B, T, C, H, W) → (T, B, H, W, C), contiguous."""
    return sequence.permute(1, 0, 3, 4, 2).contiguous()
