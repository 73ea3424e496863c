import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from recurrent import F64, assert_equals, moved, random_state
from torch import Tensor

from raincast.models import ConvLSTM


def layer(in_channels: int = 2, hidden: int = 3, **kwargs) -> ConvLSTM:
    """A layer with every parameter away from its start, peepholes included."""
    return moved(ConvLSTM(in_channels, hidden, **kwargs))


def definition(cell: ConvLSTM, x: Tensor | None, state, steps: int):
    """The equations, one gate at a time."""
    h, c = state
    wx = cell.input_weight.chunk(4) if cell.input_weight is not None else None
    wh, b = cell.state_weight.chunk(4), cell.bias.chunk(4)
    wci, wcf, wco = cell.peephole if cell.peephole is not None else torch.zeros(3, dtype=F64)

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


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("peephole", ["channel", "pixel", "none"])
@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("steps", [1, 4])
def test_equals_the_equations_in_values_and_gradients(peephole, with_state, steps, fast):
    size = (5, 7) if peephole == "pixel" else None
    cell = layer(peephole=peephole, size=size, input_kernel=5, state_kernel=3, fast=fast)
    assert_equals(cell, definition, random_state(2) if with_state else None, steps, 2)


@pytest.mark.parametrize("fast", [True, False])
def test_without_input_equals_the_equations(fast):
    cell = layer(in_channels=0, fast=fast)
    assert cell.input_weight is None
    state = random_state(2)
    torch.testing.assert_close(cell(None, state, 4), definition(cell, None, state, 4))


@pytest.mark.parametrize("variant", [{}, {"recompute": True}, {"fast": False}])
@pytest.mark.parametrize("steps", [1, 2])
def test_every_parameter_is_registered_and_receives_a_gradient(steps, variant):
    """After one step from zeros, too: gradients that are summed over processes have to exist in all."""
    cell = ConvLSTM(2, 3, **variant)
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


@pytest.mark.parametrize("kernel", [0, 2, 4, -1])
def test_even_kernels_are_refused(kernel):
    with pytest.raises(ValueError, match=f"state_kernel={kernel} must be odd"):
        ConvLSTM(1, 1, state_kernel=kernel)


def refused(message: str):
    """Where annotations are checked while the tests run, they may be what refuses."""
    return pytest.raises((ValueError, TypeCheckError), match=f"{message}|Type-check error")


def zeros(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layer()(zeros(1, 2, 1, 4, 4)), r"\(B, T, 2, H, W\), found \(1, 2, 1, 4, 4\)"),
        (lambda: layer()(zeros(1, 2, 4, 4)), r"\(B, T, 2, H, W\), found \(1, 2, 4, 4\)"),
        # (B, C, T, H, W) and (B, T, H, W, C)
        (lambda: layer()(zeros(1, 2, 5, 4, 4)), r"\(B, T, 2, H, W\), found \(1, 2, 5, 4, 4\)"),
        (lambda: layer()(zeros(1, 5, 4, 4, 2)), r"\(B, T, 2, H, W\), found \(1, 5, 4, 4, 2\)"),
        (lambda: layer()(None, random_state(2), 3), "in_channels=2 but x is None"),
        (lambda: layer(in_channels=0)(None, None, 3), "found no state and 3"),
        (lambda: layer(in_channels=0)(None, random_state(2)), "found a state and None"),
        (lambda: layer(in_channels=0)(None, random_state(2), 0), "found a state and 0"),
        (lambda: layer(in_channels=0)(zeros(1, 2, 1, 4, 4)), r"takes x=None, found x of shape \(1, 2, 1, 4, 4\)"),
        (lambda: layer()(zeros(1, 2, 2, 4, 4), None, 5), "2 steps but num_steps=5"),
        (lambda: layer()(zeros(1, 0, 2, 4, 4)), "0 steps"),
        (lambda: layer()(zeros(1, 2, 2, 4, 4, dtype=torch.float32)), "x is torch.float32 but .* are torch.float64"),
        (lambda: layer()(zeros(1, 2, 2, 4, 4, dtype=torch.int64)), "x is torch.int64 but .* are torch.float64"),
    ],
)  # fmt: skip
def test_frames_that_do_not_fit_are_refused(call, message):
    with refused(message):
        call()


def test_autocast_takes_any_floating_point_and_no_integers():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer().float()(zeros(1, 2, 2, 4, 4))[0].isfinite().all()
        with refused("x is torch.int32 but"):
            layer()(zeros(1, 2, 2, 4, 4, dtype=torch.int32))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((zeros(2, 3, 5, 7),), r"\(hidden, cell\), found 1 tensors"),
        ((zeros(2, 3, 5, 7),) * 3, r"\(hidden, cell\), found 3 tensors"),
        ((zeros(1, 3, 5, 7),) * 2, r"hidden of shape \(2, 3, 5, 7\), found \(1, 3, 5, 7\)"),
        ((zeros(2, 4, 5, 7),) * 2, r"hidden of shape \(2, 3, 5, 7\), found \(2, 4, 5, 7\)"),
        ((zeros(2, 3, 5, 7), zeros(2, 3, 7, 5)), r"cell of shape \(2, 3, 5, 7\), found \(2, 3, 7, 5\)"),
        ((zeros(2, 3, 5, 7), zeros(3, 5, 7)), r"cell of shape \(2, 3, 5, 7\), found \(3, 5, 7\)"),
        ((zeros(2, 3, 5, 7, dtype=torch.int64),) * 2, "hidden as floating-point numbers, found torch.int64"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("fast", [True, False])
def test_states_that_do_not_fit_are_refused(state, message, fast):
    with pytest.raises(ValueError, match=message):
        layer(fast=fast)(zeros(2, 1, 2, 5, 7), state)


@pytest.mark.parametrize("fast", [True, False])
def test_peepholes_for_another_grid_are_refused(fast):
    message = r"for a grid of \(5, 7\), found \(7, 5\).*peephole=channel works on any grid"
    cell = layer(peephole="pixel", size=(5, 7), fast=fast)
    with pytest.raises(ValueError, match=message):
        cell(zeros(2, 1, 2, 7, 5))
    with pytest.raises(ValueError, match=message):
        layer(0, peephole="pixel", size=(5, 7), fast=fast)(None, random_state(2, hw=(7, 5)), 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peephole": "pixels"}, "peephole='pixels': take none, channel or pixel"),
        ({"peephole": "pixel"}, r"peephole=pixel with size=None.*size \(H, W\)"),
        ({"peephole": "none", "size": (4, 4)}, r"peephole=none with size=\(4, 4\)"),
        ({"norm": "batch"}, "norm='batch': take none, layer or group"),
        ({"norm": "group", "norm_group": 4}, "norm_group=4 channels do not divide the 6 hidden"),
        ({"norm": "group", "norm_group": 0}, "norm_group=0"),
        ({"norm": "group"}, "norm_group=16 channels do not divide the 6 hidden"),
        ({"zoneout": 1.0}, "zoneout=1.0 is a probability: take 0 <= zoneout < 1"),
        ({"zoneout": -0.1}, "zoneout=-0.1"),
        ({"zoneout": float("nan")}, "zoneout=nan"),
        ({"recurrent_dropout": 1.5}, "recurrent_dropout=1.5 is a probability"),
        ({"initialisation": "zero"}, "initialisation='zero': take xavier, he, orthogonal"),
        ({"input_kernel": 4}, "input_kernel=4 must be odd.*Take 3 or 5"),
        ({"in_channels": -1}, "found -1 and 6"),
        ({"hidden_channels": 0}, "found 2 and 0"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(settings, message):
    with refused(message):
        ConvLSTM(**({"in_channels": 2, "hidden_channels": 6} | settings))
