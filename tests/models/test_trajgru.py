import pytest
import torch
import torch.nn.functional as F
from recurrent import F64, assert_equals, moved, random_state
from torch import Tensor

from raincast.models.layers.convgru import ConvGRU
from raincast.models.layers.trajgru import TrajGRU, warp


def layer(in_channels: int = 2, hidden: int = 3, **kwargs) -> TrajGRU:
    """A layer with every parameter away from its start; flows of about a pixel, between the pixels."""
    return moved(
        TrajGRU(in_channels, hidden, **({"num_links": 2, "flow_channels": 4, "state_kernel": 3} | kwargs))
    )


def look_up(maps: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The paper's sum over all pixels m, n: I_{c,m,n} max(0, 1 - |i + V_ij - m|) max(0, 1 - |j + U_ij - n|)."""
    _, _, H, W = maps.shape
    rows, columns = torch.arange(H, dtype=maps.dtype), torch.arange(W, dtype=maps.dtype)
    near_row = (1 - (rows[:, None, None] + v[..., None] - rows).abs()).clamp(min=0)  # b i j m
    near_column = (1 - (columns[:, None] + u[..., None] - columns).abs()).clamp(min=0)  # b i j n
    return torch.einsum("bcmn,bijm,bijn->bcij", maps, near_row, near_column)


def definition(cell: TrajGRU, x: Tensor | None, state, steps: int):
    """The equations, one gate and one link at a time."""
    (h,) = state

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


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_equals_the_equations_in_values_and_gradients(with_state, steps):
    cell = layer(input_kernel=3, state_kernel=5)
    assert_equals(cell, definition, random_state(1) if with_state else None, steps, 1)


def test_without_input_equals_the_equations():
    cell = layer(in_channels=0)
    assert cell.input_weight is None
    assert cell.flow_input_weight is None
    state = random_state(1)
    torch.testing.assert_close(cell(None, state, 3), definition(cell, None, state, 3))


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


def test_bfloat16_maps_are_looked_up_at_exact_places():
    """bfloat16 itself could not tell column 299 from 300."""
    maps = torch.arange(300.0).expand(1, 1, 2, 300)
    seen = warp(maps.bfloat16(), torch.zeros(1, 1, 2, 2, 300, dtype=torch.bfloat16))
    torch.testing.assert_close(seen, maps.bfloat16().float(), atol=1e-3, rtol=1e-5)


def test_no_links_and_no_flow_are_refused():
    with pytest.raises(ValueError, match="num_links >= 1 and flow_channels >= 1, found 0 and 32"):
        TrajGRU(1, 1, num_links=0)
