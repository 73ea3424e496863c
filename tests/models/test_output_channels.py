"""What `docs/output_channels.md` says of one output map and of many."""

import math

import pytest
import torch
import torch.nn.functional as F
from running import REPO
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from raincast.models import ConvLSTM, StackedEncoderForecaster
from raincast.models.fast import sequence

F64 = torch.float64


def weights_of_a_gate(c: int, n: int, k: int) -> int:
    return math.prod((n, c + n, k, k))


def parameters(c: int, n: int, k: int) -> int:
    return 4 * n * ((c + n) * k**2 + 1) + 3 * n


def forward_flops(c: int, n: int, k: int, steps: int, pixels: int) -> int:
    return 8 * n * k**2 * pixels * (steps * c + (steps - 1) * n)


def kept_values(c: int, n: int, steps: int, pixels: int, *, recompute: bool = False) -> int:
    blocks = math.ceil(steps / math.ceil(steps / sequence.BLOCKS))
    return pixels * (steps * (c + (2 if recompute else 5) * n) + blocks * n)


def random_layer(c: int, n: int, k: int = 3) -> ConvLSTM:
    torch.manual_seed(1)
    cell = ConvLSTM(c, n, input_kernel=k, state_kernel=k, peephole="none").double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.normal_(std=0.3)
    return cell


def shared_layer(c: int, n: int) -> ConvLSTM:
    """All gates have the kernels and biases of the first."""
    cell = random_layer(c, n)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(parameter[:n].repeat(4, *[1] * (parameter.ndim - 1)))
    return cell


def pre_activations(cell: ConvLSTM, x: Tensor) -> list[tuple[Tensor, ...]]:
    """p of each gate and step: one convolution over input and hidden maps with kernels (n, c + n, k, k)."""
    weight = torch.cat([cell.input_weight, cell.state_weight], dim=1)
    before = F.pad(cell(x)[0][:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))  # hidden states one step later, from zeros
    frames = torch.cat([x, before], dim=2).unbind(1)
    return [F.conv2d(frame, weight, cell.bias, padding="same").chunk(4, dim=1) for frame in frames]


def saved_values(cell: ConvLSTM, x: Tensor) -> int:
    """Values that the forward keeps for the backward beside the parameters."""
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = cell(x)
    own = {parameter.data_ptr() for parameter in cell.parameters()}
    assert results[0].requires_grad
    return sum(tensor.numel() for pointer, tensor in saved.items() if pointer not in own)


def frames(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(2)).requires_grad_()


@pytest.mark.parametrize("n", [1, 3])
def test_gates_that_share_their_kernels_are_one_gate(n):
    cell, x = shared_layer(2, n), frames(1, 5, 2, 6, 7)
    assert parameters(2, n, 3) - 3 * n == sum(p.numel() for p in cell.parameters())  # no peepholes
    memory, outputs = torch.zeros(1, n, 6, 7, dtype=F64), []
    for i, f, z, o in pre_activations(cell, x):
        assert torch.equal(i, f) and torch.equal(i, z) and torch.equal(i, o)
        gate, written = i.sigmoid(), i.sigmoid() * i.tanh()
        # the candidate follows from the gate: tanh(p) from σ(p)
        torch.testing.assert_close(gate.logit().tanh(), z.tanh())
        memory = gate * memory + written
        outputs.append(gate * memory.tanh())
    torch.testing.assert_close(cell(x)[0], torch.stack(outputs, 1))


def test_what_shared_gates_can_write():
    p = torch.linspace(-30, 30, 60_001, dtype=F64)
    written = p.sigmoid() * p.tanh()
    assert -0.21 < written.min() < -0.205 and written.max() <= 1


@pytest.mark.parametrize("n", [1, 3])
def test_gates_with_kernels_of_their_own_differ(n):
    cell, x = random_layer(2, n), frames(1, 3, 2, 6, 7)
    assert cell.input_weight.shape == (4 * n, 2, 3, 3) and cell.state_weight.shape == (4 * n, n, 3, 3)
    assert cell.bias.shape == (4 * n,)
    assert ConvLSTM(2, n).peephole.shape == (3, n, 1, 1)
    assert weights_of_a_gate(2, n, 3) == sum(
        cell.get_parameter(f"{of}_weight").chunk(4)[0].numel() for of in ("input", "state")
    )
    memory, outputs = torch.zeros(1, n, 6, 7, dtype=F64), []
    for gates in pre_activations(cell, x):
        assert all(not torch.allclose(gates[a], gates[b]) for a in range(4) for b in range(a))
        i, f, z, o = gates
        assert i.shape == (1, n, 6, 7)
        memory = f.sigmoid() * memory + i.sigmoid() * z.tanh()
        outputs.append(o.sigmoid() * memory.tanh())
    torch.testing.assert_close(cell(x)[0], torch.stack(outputs, 1))


sizes = pytest.mark.parametrize(
    ("c", "n", "k", "steps", "hw"),
    [(1, 1, 3, 1, (4, 5)), (2, 1, 3, 8, (5, 4)), (3, 4, 5, 5, (4, 6)), (2, 8, 1, 9, (3, 3))],
)


@sizes
def test_cost_is_as_counted(c, n, k, steps, hw):
    cell = ConvLSTM(c, n, input_kernel=k, state_kernel=k).double()
    x, pixels = frames(2, steps, c, *hw), 2 * math.prod(hw)
    assert sum(p.numel() for p in cell.parameters()) == parameters(c, n, k)
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with forward:
        total = cell(x)[0].sum()
    with backward:
        total.backward()
    assert forward.get_total_flops() == forward_flops(c, n, k, steps, pixels)
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


@sizes
def test_memory_is_as_counted(c, n, k, steps, hw):
    x, pixels = frames(2, steps, c, *hw), 2 * math.prod(hw)
    found = {}
    for recompute in (False, True):
        cell = ConvLSTM(c, n, input_kernel=k, state_kernel=k, recompute=recompute).double()
        found[recompute] = saved_values(cell, x)
        assert found[recompute] == kept_values(c, n, steps, pixels, recompute=recompute)
    assert found[True] < found[False] <= saved_values(ConvLSTM(c, n, fast=False).double(), x)


@sizes
def test_recompute_costs_three_quarters_of_a_forward(c, n, k, steps, hw):
    cell = ConvLSTM(c, n, input_kernel=k, state_kernel=k, recompute=True).double()
    total = cell(frames(2, steps, c, *hw))[0].sum()
    with FlopCounterMode(display=False) as backward:
        total.backward()
    assert 4 * backward.get_total_flops() == (8 + 3) * forward_flops(c, n, k, steps, 2 * math.prod(hw))


def test_widths_differ_from_layer_to_layer():
    network = StackedEncoderForecaster(patch=4, hidden_channels=(128, 64, 64))
    shapes = [
        tuple(torch.cat([layer.input_weight, layer.state_weight], 1).chunk(4)[0].shape)
        for layer in network.encoder
    ]
    assert shapes == [(128, 144, 5, 5), (64, 192, 5, 5), (64, 128, 5, 5)]
    widths = [[layer.hidden_channels for layer in stack] for stack in (network.encoder, network.forecaster)]
    assert widths == [[128, 64, 64]] * 2
    small = StackedEncoderForecaster(patch=2, hidden_channels=(4, 1, 3), input_kernel=3, state_kernel=3)
    assert small(torch.zeros(1, 2, 1, 6, 4), 3).shape == (1, 3, 1, 6, 4)


def row(n: int) -> str:
    c, k, steps, pixels = 16, 3, 8, 64 * 64
    mib = [4 * kept_values(c, n, steps, pixels, recompute=recompute) / 2**20 for recompute in (False, True)]
    return (
        f"| {n} | {weights_of_a_gate(c, n, k):,} | {parameters(c, n, k):,} "
        f"| {forward_flops(c, n, k, steps, pixels) / 1e9:.2f} | {mib[0]:.1f} | {mib[1]:.1f} |"
    )


def test_the_table_of_the_page():
    page = (REPO / "docs" / "output_channels.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert rows == [row(n) for n in (1, 4, 16, 64, 128)]
