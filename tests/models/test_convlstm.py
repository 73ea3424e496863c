import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raincast.models import ConvLSTM

F64 = torch.float64


def layer(in_channels: int = 2, hidden: int = 3, **kwargs) -> ConvLSTM:
    """A layer with every parameter away from its start, peepholes included."""
    torch.manual_seed(1)
    made = ConvLSTM(in_channels, hidden, **kwargs).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return made


def definition(cell: ConvLSTM, x: Tensor | None, h: Tensor, c: Tensor, steps: int):
    """The equations, one gate at a time."""
    wx = cell.input_weight.chunk(4) if cell.input_weight is not None else None
    wh, b = cell.state_weight.chunk(4), cell.bias.chunk(4)
    peep = cell.peephole if cell.peephole is not None else torch.zeros(3, cell.hidden_channels, dtype=F64)
    wci, wcf, wco = (row.view(1, -1, 1, 1) for row in peep)

    def pre(gate: int, t: int, h: Tensor) -> Tensor:
        total = F.conv2d(h, wh[gate], padding="same") + b[gate].view(1, -1, 1, 1)
        return total if wx is None else total + F.conv2d(x[:, t], wx[gate], padding="same")

    outputs = []
    for t in range(steps):
        i = torch.sigmoid(pre(0, t, h) + wci * c)
        f = torch.sigmoid(pre(1, t, h) + wcf * c)
        new = f * c + i * torch.tanh(pre(2, t, h))
        o = torch.sigmoid(pre(3, t, h) + wco * new)
        h, c = o * torch.tanh(new), new
        outputs.append(h)
    return torch.stack(outputs, 1), (h, c)


def random_state(hidden: int = 3, hw: tuple[int, int] = (5, 7)):
    g = torch.Generator().manual_seed(2)
    return tuple(torch.randn(2, hidden, *hw, dtype=F64, generator=g) for _ in range(2))


@pytest.mark.parametrize("peephole", ["channel", "none"])
@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("steps", [1, 4])
def test_equals_the_equations_in_values_and_gradients(peephole, with_state, steps):
    cell = layer(peephole=peephole, input_kernel=5, state_kernel=3)
    x = torch.randn(2, steps, 2, 5, 7, dtype=F64, requires_grad=True)
    zeros = torch.zeros(2, 3, 5, 7, dtype=F64)
    state = random_state() if with_state else None
    got, (h, c) = cell(x, state)
    want, (want_h, want_c) = definition(cell, x, *(state or (zeros, zeros)), steps)
    torch.testing.assert_close((got, h, c), (want, want_h, want_c))

    leaves = [x, *cell.parameters()]
    probe = torch.randn_like(got)
    mine = torch.autograd.grad((got * probe).sum() + c.sum(), leaves)
    theirs = torch.autograd.grad((want * probe).sum() + want_c.sum(), leaves)
    torch.testing.assert_close(mine, theirs)


def test_without_input_equals_the_equations():
    cell = layer(in_channels=0)
    assert cell.input_weight is None
    state = random_state()
    torch.testing.assert_close(cell(None, state, 4), definition(cell, None, *state, 4))


def test_two_calls_of_three_steps_are_one_of_six():
    cell = layer()
    x = torch.randn(2, 6, 2, 4, 4, dtype=F64)
    first, state = cell(x[:, :3])
    second, last = cell(x[:, 3:], state)
    torch.testing.assert_close((torch.cat([first, second], 1), last), cell(x))


def test_a_state_of_zeros_is_no_state():
    cell = layer()
    x = torch.randn(2, 3, 2, 4, 5, dtype=F64)
    zeros = torch.zeros(2, 3, 4, 5, dtype=F64)
    torch.testing.assert_close(cell(x), cell(x, (zeros, zeros)))


@pytest.mark.parametrize("steps", [1, 2])
def test_every_parameter_is_registered_and_receives_a_gradient(steps):
    cell = ConvLSTM(2, 3)
    assert {name for name, _ in cell.named_parameters()} == {
        "input_weight", "state_weight", "bias", "peephole",
    }  # fmt: skip
    cell(torch.randn(1, steps, 2, 5, 5))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in cell.parameters())
    assert cell.peephole.grad.abs().sum() > 0


def test_start_values():
    cell = ConvLSTM(2, 3, forget_bias=1.5)
    assert not cell.peephole.any()
    assert [gate.unique().tolist() for gate in cell.bias.chunk(4)] == [[0.0], [1.5], [0.0], [0.0]]


@pytest.mark.parametrize("hw", [(1, 1), (1, 6), (3, 2)])
def test_grids_smaller_than_the_kernel(hw):
    out, (h, c) = ConvLSTM(1, 2, input_kernel=7, state_kernel=5)(torch.randn(1, 2, 1, *hw))
    assert out.shape == (1, 2, 2, *hw)
    assert h.shape == c.shape == (1, 2, *hw)


def test_bfloat16_autocast_follows_float32():
    cell = layer().float()
    x = torch.randn(2, 5, 2, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = cell(x)
    torch.testing.assert_close(out.float(), cell(x)[0], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("kernel", [0, 2, 4, -1])
def test_even_kernels_are_refused(kernel):
    with pytest.raises(ValueError, match=f"state_kernel={kernel} must be odd"):
        ConvLSTM(1, 1, state_kernel=kernel)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(B, T, 2, H, W\), found \(1, 2, 1, 4, 4\)"):
        layer()(torch.zeros(1, 2, 1, 4, 4, dtype=F64))
    with pytest.raises(ValueError, match="x is None"):
        layer()(None, random_state(), 3)
    with pytest.raises(ValueError, match="no state"):
        layer(in_channels=0)(None, None, 3)
    with pytest.raises(ValueError, match="num_steps=5"):
        layer()(torch.zeros(1, 2, 2, 4, 4, dtype=F64), None, 5)


@pytest.mark.parametrize("how", ["xavier", "he", "orthogonal"])
def test_each_gate_starts_as_a_convolution_of_its_own(how):
    torch.manual_seed(0)
    cell = ConvLSTM(32, 32, initialisation=how)
    fan = 32 * 9
    # Xavier: 2 / (fan-in + fan-out) with as many maps in as out; He: 2 / fan-in; orthonormal rows: 1 / fan-in
    variance = {"xavier": 1 / fan, "he": 2 / fan, "orthogonal": 1 / fan}[how]
    for gate in cell.state_weight.chunk(4):
        assert gate.var().item() == pytest.approx(variance, rel=0.1)
        if how == "orthogonal":
            rows = gate.flatten(1)
            torch.testing.assert_close(rows @ rows.T, torch.eye(32), atol=1e-5, rtol=0)


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match="initialisation='zeros': take xavier, he, orthogonal"):
        ConvLSTM(1, 1, initialisation="zeros")
