"""The contract of all recurrent layers; each layer's equations and settings are in its own file."""

from collections.abc import Callable

import pytest
import torch
from jaxtyping import TypeCheckError
from recurrent import F64, moved, random_state
from torch import Tensor, nn

from raincast.models import ConvLSTM
from raincast.models.layers.convgru import ConvGRU
from raincast.models.layers.trajgru import TrajGRU
from raincast.models.predrnn import STLSTM

Make = Callable[..., nn.Module]


def trajgru(in_channels: int, hidden: int, **settings) -> TrajGRU:
    return TrajGRU(in_channels, hidden, **({"num_links": 2, "flow_channels": 4, "state_kernel": 3} | settings))


def st_lstms(in_channels: int, hidden: int, **settings) -> STLSTM:
    return STLSTM(in_channels, hidden, num_layers=3, **settings)


LAYERS = {
    "convlstm": (ConvLSTM, 2), "convgru": (ConvGRU, 1), "trajgru": (trajgru, 1), "st_lstm": (STLSTM, 3),
    "st_lstms": (st_lstms, 7),
}  # fmt: skip
"""How to build each layer, and the number of tensors in its state."""


@pytest.fixture(params=LAYERS)
def kind(request: pytest.FixtureRequest) -> tuple[Make, int]:
    return LAYERS[request.param]


@pytest.fixture
def make(kind: tuple[Make, int]) -> Make:
    return kind[0]


def test_two_calls_of_three_steps_are_one_of_six(make: Make) -> None:
    cell = moved(make(2, 3))
    x = torch.randn(2, 6, 2, 4, 4, dtype=F64)
    first, state = cell(x[:, :3])
    second, last = cell(x[:, 3:], state)
    torch.testing.assert_close((torch.cat([first, second], 1), last), cell(x))


def test_a_state_of_zeros_is_no_state(kind: tuple[Make, int]) -> None:
    make, count = kind
    cell = moved(make(2, 3))
    x = torch.randn(2, 3, 2, 4, 5, dtype=F64)
    torch.testing.assert_close(cell(x), cell(x, (torch.zeros(2, 3, 4, 5, dtype=F64),) * count))


def test_the_first_of_the_state_is_the_last_hidden_state(kind: tuple[Make, int]) -> None:
    make, count = kind
    outputs, state = moved(make(2, 3))(torch.randn(2, 3, 2, 4, 5, dtype=F64))
    assert len(state) == count
    torch.testing.assert_close(state[0], outputs[:, -1])


def test_samples_do_not_mix(make: Make) -> None:
    cell = moved(make(2, 3))
    x = torch.randn(3, 2, 2, 4, 5, dtype=F64)
    torch.testing.assert_close(cell(x)[0][1:2], cell(x[1:2])[0])


@pytest.mark.parametrize("kind", [name for name in LAYERS if name != "convlstm"], indirect=True)
def test_gradients_agree_with_finite_differences(kind: tuple[Make, int]) -> None:
    make, count = kind
    smooth = {"activation": "tanh"} if count == 1 else {}  # leaky ReLU has a kink
    cell = moved(make(1, 2, **smooth))
    x = torch.randn(1, 2, 1, 2, 3, dtype=F64, requires_grad=True)
    state = tuple(torch.randn(1, 2, 2, 3, dtype=F64, requires_grad=True) for _ in range(count))
    leaves = dict(cell.named_parameters())

    def call(x: Tensor, *given: Tensor) -> Tensor:
        named = dict(zip(leaves, given[count:], strict=True))
        return torch.func.functional_call(cell, named, (x, given[:count]))[0]

    assert torch.autograd.gradcheck(call, (x, *state, *leaves.values()), fast_mode=True)


@pytest.mark.parametrize("hw", [(1, 1), (1, 6), (3, 2)])
def test_grids_smaller_than_the_kernel(kind: tuple[Make, int], hw: tuple[int, int]) -> None:
    make, count = kind
    out, state = make(1, 2, input_kernel=7, state_kernel=5)(torch.randn(1, 2, 1, *hw))
    assert out.shape == (1, 2, 2, *hw)
    assert [part.shape for part in state] == [(1, 2, *hw)] * count


def test_meta_device_and_export(make: Make) -> None:
    with torch.device("meta"):
        assert make(2, 3)(torch.empty(1, 4, 2, 8, 9))[0].shape == (1, 4, 3, 8, 9)
    cell, x = moved(make(2, 3)), torch.randn(1, 2, 2, 4, 5, dtype=F64)
    torch.testing.assert_close(torch.export.export(cell, (x,)).module()(x), cell(x))


def test_bfloat16_autocast_follows_float32(kind: tuple[Make, int]) -> None:
    make, count = kind
    cell = moved(make(2, 3)).float()
    if isinstance(cell, TrajGRU):
        with torch.no_grad():
            cell.flow_weight.mul_(0.1)  # rounded flows of whole pixels would compare other pixels
    x = torch.randn(2, 5, 2, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, state = cell(x)
    want = cell(x)[0]
    assert (out.float() - want).abs().max() < (0.05 if isinstance(cell, TrajGRU) else 0.03) * want.abs().max()
    # what adds up from step to step is not rounded: the state of a GRU, cells and memories of the others
    num_hidden = {1: 0, 2: 1, 3: 1, 7: 3}[count]
    assert {part.dtype for part in state[num_hidden:]} == {torch.float32}


def test_what_does_not_fit_is_refused(kind: tuple[Make, int]) -> None:
    make, count = kind
    with pytest.raises(ValueError, match="state_kernel=4 must be odd"):
        make(1, 1, state_kernel=4)
    with pytest.raises(ValueError, match="hidden_channels >= 1, found 1 and 0"):
        make(1, 0)
    # checked annotations, where they are on, see it first
    with pytest.raises((ValueError, TypeCheckError), match="initialisation='zero'|Type-check error"):
        make(1, 1, initialisation="zero")
    if count == 1:
        with pytest.raises((ValueError, TypeCheckError), match="relu"):
            make(1, 1, activation="relu")
    cell = make(2, 3).double()
    with pytest.raises(ValueError, match=r"\(B, T, 2, H, W\), found \(1, 2, 1, 4, 4\)"):
        cell(torch.zeros(1, 2, 1, 4, 4, dtype=F64))
    with pytest.raises(ValueError, match=r"of shape \(2, 3, 4, 4\), found \(2, 3, 5, 7\)"):
        cell(torch.zeros(2, 2, 2, 4, 4, dtype=F64), random_state(count))
    with pytest.raises(ValueError, match=rf"A state is \(hidden.*\), found {count + 1} tensors"):
        cell(torch.zeros(2, 2, 2, 5, 7, dtype=F64), random_state(count + 1))
    with pytest.raises(ValueError, match="no state"):
        make(0, 3)(None, None, 3)
