import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from torch import Tensor

from raincast.models.layers.convgru import ConvGRU

F64 = torch.float64


def layer(in_channels: int = 2, hidden: int = 3, **kwargs) -> ConvGRU:
    """A layer with every parameter away from its start."""
    torch.manual_seed(1)
    made = ConvGRU(in_channels, hidden, **kwargs).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return made


def definition(cell: ConvGRU, x: Tensor | None, h: Tensor, steps: int, f=lambda v: F.leaky_relu(v, 0.2)):
    """The equations, one gate at a time."""
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


def random_state(hidden: int = 3, hw: tuple[int, int] = (5, 7)) -> tuple[Tensor]:
    g = torch.Generator().manual_seed(2)
    return (torch.randn(2, hidden, *hw, dtype=F64, generator=g),)


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("steps", [1, 4])
def test_equals_the_equations_in_values_and_gradients(with_state, steps):
    cell = layer(input_kernel=5, state_kernel=3)
    x = torch.randn(2, steps, 2, 5, 7, dtype=F64, requires_grad=True)
    state = random_state() if with_state else None
    got, (h,) = cell(x, state)
    want, (want_h,) = definition(cell, x, *(state or (torch.zeros(2, 3, 5, 7, dtype=F64),)), steps)
    torch.testing.assert_close((got, h), (want, want_h))

    leaves = [x, *cell.parameters()]
    probe = torch.randn_like(got)
    mine = torch.autograd.grad((got * probe).sum() + h.sum(), leaves)
    theirs = torch.autograd.grad((want * probe).sum() + want_h.sum(), leaves)
    torch.testing.assert_close(mine, theirs)


def test_tanh_equals_the_equations():
    cell = layer(activation="tanh")
    x = torch.randn(2, 3, 2, 5, 7, dtype=F64)
    torch.testing.assert_close(cell(x, random_state()), definition(cell, x, *random_state(), 3, torch.tanh))


def test_without_input_equals_the_equations():
    cell = layer(in_channels=0)
    assert cell.input_weight is None
    state = random_state()
    torch.testing.assert_close(cell(None, state, 4), definition(cell, None, *state, 4))


def test_gradients_agree_with_finite_differences():
    cell = layer(1, 2, activation="tanh")  # smooth everywhere
    x = torch.randn(1, 2, 1, 2, 3, dtype=F64, requires_grad=True)
    h = torch.randn(1, 2, 2, 3, dtype=F64, requires_grad=True)
    leaves = dict(cell.named_parameters())

    def call(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip(leaves, weights, strict=True))
        return torch.func.functional_call(cell, named, (x, (h,)))[0]

    assert torch.autograd.gradcheck(call, (x, h, *leaves.values()), fast_mode=True)


def test_two_calls_of_three_steps_are_one_of_six():
    cell = layer()
    x = torch.randn(2, 6, 2, 4, 4, dtype=F64)
    first, state = cell(x[:, :3])
    second, last = cell(x[:, 3:], state)
    torch.testing.assert_close((torch.cat([first, second], 1), last), cell(x))


def test_a_state_of_zeros_is_no_state():
    cell = layer()
    x = torch.randn(2, 3, 2, 4, 5, dtype=F64)
    torch.testing.assert_close(cell(x), cell(x, (torch.zeros(2, 3, 4, 5, dtype=F64),)))


def test_samples_do_not_mix():
    cell = layer()
    x = torch.randn(3, 2, 2, 4, 5, dtype=F64)
    torch.testing.assert_close(cell(x)[0][1:2], cell(x[1:2])[0])


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
        torch.testing.assert_close(cell(x, random_state())[1], random_state())
        cell.bias.chunk(3)[0].fill_(-1e4)
        cell.bias.chunk(3)[1].fill_(-1e4)  # and with the state's part reset, only the input counts
        torch.testing.assert_close(cell(x, random_state()), cell(x))


def test_a_new_layer_stays_bounded_though_its_activation_is_not():
    torch.manual_seed(0)
    for how in ("xavier", "he", "orthogonal"):
        cell = ConvGRU(4, 8, state_kernel=5, initialisation=how)
        out, _ = cell(torch.randn(1, 100, 4, 9, 9))
        assert out[:, 50:].abs().max() < 4 * out[:, :50].abs().max()


@pytest.mark.parametrize("hw", [(1, 1), (1, 6), (3, 2)])
def test_grids_smaller_than_the_kernel(hw):
    out, (h,) = ConvGRU(1, 2, input_kernel=7, state_kernel=5)(torch.randn(1, 2, 1, *hw))
    assert out.shape == (1, 2, 2, *hw)
    assert h.shape == (1, 2, *hw)


def test_bfloat16_autocast_follows_float32():
    cell = layer().float()
    x = torch.randn(2, 5, 2, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, (h,) = cell(x)
    want = cell(x)[0]
    assert h.dtype == torch.float32  # the state is not rounded from step to step
    assert (out.float() - want).abs().max() < 0.03 * want.abs().max()


def test_meta_device_and_export():
    with torch.device("meta"):
        assert ConvGRU(2, 3)(torch.empty(1, 4, 2, 8, 9))[0].shape == (1, 4, 3, 8, 9)
    cell, x = layer(), torch.randn(1, 2, 2, 4, 5, dtype=F64)
    torch.testing.assert_close(torch.export.export(cell, (x,)).module()(x), cell(x))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="state_kernel=4 must be odd"):
        ConvGRU(1, 1, state_kernel=4)
    with pytest.raises(ValueError, match="hidden_channels >= 1, found 1 and 0"):
        ConvGRU(1, 0)
    # checked annotations, where they are on, see it first
    with pytest.raises((ValueError, TypeCheckError), match="relu"):
        ConvGRU(1, 1, activation="relu")
    with pytest.raises(ValueError, match=r"\(B, T, 2, H, W\), found \(1, 2, 1, 4, 4\)"):
        layer()(torch.zeros(1, 2, 1, 4, 4, dtype=F64))
    with pytest.raises(ValueError, match=r"hidden of shape \(2, 3, 4, 4\), found \(2, 3, 5, 7\)"):
        layer()(torch.zeros(2, 2, 2, 4, 4, dtype=F64), random_state())
    with pytest.raises(ValueError, match=r"A state is \(hidden\), found 2 tensors"):
        layer()(torch.zeros(2, 2, 2, 5, 7, dtype=F64), random_state() * 2)
    with pytest.raises(ValueError, match="no state"):
        layer(in_channels=0)(None, None, 3)
