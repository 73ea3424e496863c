import pytest
import torch
import torch.nn.functional as F
from recurrent import F64, assert_equals, moved, random_state
from torch import Tensor

from raincast.models.layers.convgru import ConvGRU


def layer(in_channels: int = 2, hidden: int = 3, **kwargs) -> ConvGRU:
    """A layer with every parameter away from its start."""
    return moved(ConvGRU(in_channels, hidden, **kwargs))


def definition(cell: ConvGRU, x: Tensor | None, state, steps: int, f=lambda v: F.leaky_relu(v, 0.2)):
    """The equations, one gate at a time."""
    (h,) = state
    wx = cell.input_weight.chunk(3) if cell.input_weight is not None else None
    wh, b = cell.state_weight.chunk(3), cell.bias.chunk(3)

    def given(gate: int, t: int) -> Tensor:
        bias = b[gate].view(1, -1, 1, 1)
        return bias if wx is None else bias + F.conv2d(x[:, t], wx[gate], padding="same")

    outputs = []
    for t in range(steps):
        z = torch.sigmoid(given(0, t) + F.conv2d(h, wh[0], padding="same"))
        r = torch.sigmoid(given(1, t) + F.conv2d(h, wh[1], padding="same"))
        new = f(given(2, t) + r * F.conv2d(h, wh[2], padding="same"))
        h = (1 - z) * new + z * h
        outputs.append(h)
    return torch.stack(outputs, 1), (h,)


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("steps", [1, 4])
def test_equals_the_equations_in_values_and_gradients(with_state, steps):
    cell = layer(input_kernel=5, state_kernel=3)
    assert_equals(cell, definition, random_state(1) if with_state else None, steps, 1)


def test_tanh_equals_the_equations():
    cell = layer(activation="tanh")
    x = torch.randn(2, 3, 2, 5, 7, dtype=F64)
    torch.testing.assert_close(cell(x, random_state(1)), definition(cell, x, random_state(1), 3, torch.tanh))


def test_without_input_equals_the_equations():
    cell = layer(in_channels=0)
    assert cell.input_weight is None
    state = random_state(1)
    torch.testing.assert_close(cell(None, state, 4), definition(cell, None, state, 4))


@pytest.mark.parametrize("steps", [1, 2])
def test_every_parameter_is_registered_and_receives_a_gradient(steps):
    cell = ConvGRU(2, 3)
    assert {name for name, _ in cell.named_parameters()} == {"input_weight", "state_weight", "bias"}
    cell(torch.randn(1, steps, 2, 5, 5))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in cell.parameters())
    # one step from a zero state cannot reach the state's weights, nor the reset gate, and rightly gives them 0
    reached = [bool(gate.any()) for gate in (*cell.state_weight.grad.chunk(3), *cell.bias.grad.chunk(3))]
    assert reached == ([False, False, False, True, False, True] if steps == 1 else [True] * 6)


def test_update_gate_open_keeps_the_state_and_closed_takes_the_new():
    cell = layer()
    x = torch.randn(2, 3, 2, 5, 7, dtype=F64)
    with torch.no_grad():
        cell.bias.chunk(3)[0].fill_(1e4)
        torch.testing.assert_close(cell(x, random_state(1))[1], random_state(1))
        cell.bias.chunk(3)[0].fill_(-1e4)
        cell.bias.chunk(3)[1].fill_(-1e4)  # and with the state's part reset, only the input counts
        torch.testing.assert_close(cell(x, random_state(1)), cell(x))


def test_a_new_layer_stays_bounded_though_its_activation_is_not():
    torch.manual_seed(0)
    for how in ("xavier", "he", "orthogonal"):
        cell = ConvGRU(4, 8, state_kernel=5, initialisation=how)
        out, _ = cell(torch.randn(1, 100, 4, 9, 9))
        assert out[:, 50:].abs().max() < 4 * out[:, :50].abs().max()
