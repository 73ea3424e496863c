import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from torch import Tensor

from raincast.models.layers.convgru import ConvGRU
from raincast.models.layers.trajgru import TrajGRU, warp

F64 = torch.float64


def layer(in_channels: int = 2, hidden: int = 3, **kwargs) -> TrajGRU:
    """A layer with every parameter away from its start; flows of about a pixel, between the pixels."""
    torch.manual_seed(1)
    made = TrajGRU(
        in_channels, hidden, **({"num_links": 2, "flow_channels": 4, "state_kernel": 3} | kwargs)
    ).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return made


def look_up(maps: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The paper's sum over all pixels m, n: I_{c,m,n} max(0, 1 - |i + V_ij - m|) max(0, 1 - |j + U_ij - n|)."""
    _, _, H, W = maps.shape
    rows, columns = torch.arange(H, dtype=maps.dtype), torch.arange(W, dtype=maps.dtype)
    near_row = (1 - (rows[:, None, None] + v[..., None] - rows).abs()).clamp(min=0)  # b i j m
    near_column = (1 - (columns[:, None] + u[..., None] - columns).abs()).clamp(min=0)  # b i j n
    return torch.einsum("bcmn,bijm,bijn->bcij", maps, near_row, near_column)


def definition(cell: TrajGRU, x: Tensor | None, h: Tensor, steps: int):
    """The equations, one gate and one link at a time."""

    def f(v: Tensor) -> Tensor:
        return F.leaky_relu(v, 0.2)

    def given(weight: Tensor | None, bias: Tensor, t: int) -> Tensor:
        total = bias.view(1, -1, 1, 1)
        return total if weight is None else total + F.conv2d(x[:, t], weight, padding="same")

    links = cell.num_links
    wx = cell.input_weight.chunk(3) if cell.input_weight is not None else (None,) * 3
    b = cell.bias.chunk(3)
    wh = [gate.view(cell.hidden_channels, cell.hidden_channels, links) for gate in cell.state_weight.chunk(3)]
    outputs = []
    for t in range(steps):
        features = f(
            given(cell.flow_input_weight, cell.flow_bias, t) + F.conv2d(h, cell.flow_state_weight, padding="same")
        )
        flow = F.conv2d(features, cell.flow_weight, cell.flow_offset, padding="same")
        seen = [look_up(h, flow[:, 2 * link], flow[:, 2 * link + 1]) for link in range(links)]

        def carried(gate: int, seen: list[Tensor] = seen) -> Tensor:
            return sum(torch.einsum("oc,bcij->boij", wh[gate][..., n], maps) for n, maps in enumerate(seen))

        z = torch.sigmoid(given(wx[0], b[0], t) + carried(0))
        r = torch.sigmoid(given(wx[1], b[1], t) + carried(1))
        h = (1 - z) * f(given(wx[2], b[2], t) + r * carried(2)) + z * h
        outputs.append(h)
    return torch.stack(outputs, 1), (h,)


def random_state(hidden: int = 3, hw: tuple[int, int] = (5, 7)) -> tuple[Tensor]:
    g = torch.Generator().manual_seed(2)
    return (torch.randn(2, hidden, *hw, dtype=F64, generator=g),)


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_equals_the_equations_in_values_and_gradients(with_state, steps):
    cell = layer(input_kernel=3, state_kernel=5)
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


def test_without_input_equals_the_equations():
    cell = layer(in_channels=0)
    assert cell.input_weight is None
    assert cell.flow_input_weight is None
    state = random_state()
    torch.testing.assert_close(cell(None, state, 3), definition(cell, None, *state, 3))


def test_gradients_agree_with_finite_differences():
    cell = layer(1, 2, num_links=1, flow_channels=2, activation="tanh")
    x = torch.randn(1, 2, 1, 2, 3, dtype=F64, requires_grad=True)
    h = torch.randn(1, 2, 2, 3, dtype=F64, requires_grad=True)
    leaves = dict(cell.named_parameters())

    def call(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip(leaves, weights, strict=True))
        return torch.func.functional_call(cell, named, (x, (h,)))[0]

    assert torch.autograd.gradcheck(call, (x, h, *leaves.values()), fast_mode=True)


@pytest.mark.parametrize("hw", [(1, 1), (1, 6), (5, 7), (32, 16)])
def test_warp_by_nothing_is_the_identity(hw):
    maps = torch.randn(2, 3, *hw)
    torch.testing.assert_close(warp(maps, torch.zeros(2, 1, 2, *hw)), maps)


@pytest.mark.parametrize(("u", "v"), [(0, 1), (2, 0), (-1, 3), (-2, -1)])
def test_warp_by_whole_pixels_is_a_rolled_map_with_zeros_from_outside(u, v):
    maps = torch.randn(1, 2, 6, 7, dtype=F64)
    flow = torch.tensor([u, v], dtype=F64).view(1, 1, 2, 1, 1).expand(1, 1, 2, 6, 7)
    padded = F.pad(maps, (3, 3, 3, 3)).roll((-v, -u), (2, 3))[..., 3:-3, 3:-3]
    torch.testing.assert_close(warp(maps, flow), padded)


def test_warp_keeps_links_and_samples_apart():
    """Channel c and link l lie at c·L + l, each seen along its own flow, between the pixels too."""
    maps = torch.randn(2, 3, 5, 7, dtype=F64)
    flow = 2 * torch.randn(2, 4, 2, 5, 7, dtype=F64)
    got = warp(maps, flow)
    assert got.shape == (2, 12, 5, 7)
    for link in range(4):
        torch.testing.assert_close(got[:, link::4], look_up(maps, flow[:, link, 0], flow[:, link, 1]))


def test_a_new_layer_of_one_link_is_a_convgru_of_one_pixel():
    torch.manual_seed(0)
    cell = TrajGRU(2, 3, num_links=1).double()
    gru = ConvGRU(2, 3, state_kernel=1).double()
    gru.load_state_dict({name: value for name, value in cell.state_dict().items() if "flow" not in name})
    x = torch.randn(2, 4, 2, 5, 7, dtype=F64)
    torch.testing.assert_close(cell(x), gru(x))


def test_links_on_the_places_of_a_kernel_are_a_convgru():
    """Nine fixed links, one to each neighbour, see what a 3×3 kernel sees: a ConvGRU is a special TrajGRU."""
    torch.manual_seed(0)
    gru = ConvGRU(2, 3, state_kernel=3).double()
    cell = TrajGRU(2, 3, num_links=9).double()
    places = [(u, v) for v in (-1.0, 0.0, 1.0) for u in (-1.0, 0.0, 1.0)]  # as the kernel's weights lie
    with torch.no_grad():
        cell.flow_offset.copy_(torch.tensor(places).flatten())
        cell.state_weight.copy_(gru.state_weight.view(9, 3 * 9, 1, 1))
        cell.input_weight.copy_(gru.input_weight)
    x = torch.randn(2, 4, 2, 5, 7, dtype=F64)
    torch.testing.assert_close(cell(x), gru(x))


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
    """One step from a zero state has nothing to warp: only what stands before the gates gets more than 0."""
    cell = layer()
    gates, flow = {"input_weight", "bias"}, {"flow_weight", "flow_offset", "flow_bias"}
    kernels = {"state_weight", "flow_input_weight", "flow_state_weight"}
    assert {name for name, _ in cell.named_parameters()} == gates | flow | kernels
    cell(torch.randn(1, steps, 2, 5, 5, dtype=F64))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in cell.parameters())
    moved = {name for name, parameter in cell.named_parameters() if parameter.grad.any()}
    assert moved == (gates if steps == 1 else gates | flow | kernels)


def test_flows_start_at_zero_and_the_first_training_step_parts_the_links():
    torch.manual_seed(0)
    cell = TrajGRU(2, 3, num_links=4)
    assert not cell.flow_weight.any()
    assert not cell.flow_offset.any()
    cell(torch.randn(1, 3, 2, 6, 6))[0].sum().backward()
    assert len(cell.flow_offset.grad.unique()) == 8
    # only then the first half of the flows' sub-network begins to learn: it stands behind zeros
    assert not cell.flow_state_weight.grad.any()
    with torch.no_grad():
        cell.flow_weight -= 0.1 * cell.flow_weight.grad
    cell.zero_grad()
    cell(torch.randn(1, 3, 2, 6, 6))[0].sum().backward()
    assert cell.flow_state_weight.grad.any()
    assert cell.flow_input_weight.grad.any()


@pytest.mark.parametrize("hw", [(1, 1), (1, 6), (3, 2)])
def test_grids_smaller_than_the_kernel(hw):
    out, (h,) = TrajGRU(1, 2, input_kernel=7, num_links=3)(torch.randn(1, 2, 1, *hw))
    assert out.shape == (1, 2, 2, *hw)
    assert h.shape == (1, 2, *hw)


def test_bfloat16_autocast_follows_float32():
    cell = layer().float()
    with torch.no_grad():
        cell.flow_weight.mul_(0.1)  # rounded flows of whole pixels would compare other pixels
    x = torch.randn(2, 5, 2, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, (h,) = cell(x)
    want = cell(x)[0]
    assert h.dtype == torch.float32
    assert (out.float() - want).abs().max() < 0.05 * want.abs().max()


def test_bfloat16_maps_are_looked_up_at_exact_places():
    """bfloat16 itself could not tell column 299 from 300."""
    maps = torch.arange(300.0).expand(1, 1, 2, 300)
    seen = warp(maps.bfloat16(), torch.zeros(1, 1, 2, 2, 300, dtype=torch.bfloat16))
    torch.testing.assert_close(seen, maps.bfloat16().float(), atol=1e-3, rtol=1e-5)


def test_meta_device_and_export():
    with torch.device("meta"):
        assert TrajGRU(2, 3)(torch.empty(1, 4, 2, 8, 9))[0].shape == (1, 4, 3, 8, 9)
    cell, x = layer(), torch.randn(1, 2, 2, 4, 5, dtype=F64)
    torch.testing.assert_close(torch.export.export(cell, (x,)).module()(x), cell(x))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="state_kernel=4 must be odd"):
        TrajGRU(1, 1, state_kernel=4)
    with pytest.raises(ValueError, match="num_links >= 1 and flow_channels >= 1, found 0 and 32"):
        TrajGRU(1, 1, num_links=0)
    # checked annotations, where they are on, see it first
    with pytest.raises((ValueError, TypeCheckError), match="relu"):
        TrajGRU(1, 1, activation="relu")
    with pytest.raises(ValueError, match=r"\(B, T, 2, H, W\), found \(1, 2, 1, 4, 4\)"):
        layer()(torch.zeros(1, 2, 1, 4, 4, dtype=F64))
    with pytest.raises(ValueError, match=r"hidden of shape \(2, 3, 4, 4\), found \(2, 3, 5, 7\)"):
        layer()(torch.zeros(2, 2, 2, 4, 4, dtype=F64), random_state())
    with pytest.raises(ValueError, match="no state"):
        layer(in_channels=0)(None, None, 3)
