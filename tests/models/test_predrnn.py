import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from recurrent import F64, assert_equals, moved, random_state
from running import compose_config
from torch import Tensor

from raincast import assembly
from raincast.losses import BalancedLoss
from raincast.models.encoder_forecaster import PyramidEncoderForecaster
from raincast.models.predrnn import STLSTM, PredRNN
from raincast.transforms import DbzScaling


def stack(in_channels: int = 2, hidden: int = 3, num_layers: int = 3, **kwargs) -> STLSTM:
    """A stack with every parameter away from its start."""
    return moved(STLSTM(in_channels, hidden, num_layers=num_layers, **kwargs))


def definition(net: STLSTM, x: Tensor | None, state: tuple[Tensor, ...], steps: int):
    """The equations, one gate and one layer at a time; layers count from 0 at the bottom."""
    n = len(net.layers)
    H = {layer: state[n - 1 - layer] for layer in range(n)}
    C = {layer: state[2 * n - 1 - layer] for layer in range(n)}
    M = state[2 * n]

    def conv(maps: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(maps, weight, padding="same")

    outputs = []
    for t in range(steps):
        for layer, w in enumerate(net.layers):
            below = (None if x is None else x[:, t]) if layer == 0 else H[layer - 1]
            bias = [b.view(1, -1, 1, 1) for b in w.bias.chunk(7)]
            given = bias
            if below is not None:
                given = [conv(below, k) + b for k, b in zip(w.input_weight.chunk(7), bias, strict=True)]
            wh, wm = w.state_weight.chunk(4), w.memory_weight.chunk(3)
            wco, wmo = w.output_weight.chunk(2, dim=1)
            to_c, to_m = w.merge_weight.chunk(2, dim=1)

            i = torch.sigmoid(given[0] + conv(H[layer], wh[0]))
            f = torch.sigmoid(given[1] + conv(H[layer], wh[1]))
            g = torch.tanh(given[2] + conv(H[layer], wh[2]))
            C[layer] = f * C[layer] + i * g

            i_m = torch.sigmoid(given[4] + conv(M, wm[0]))
            f_m = torch.sigmoid(given[5] + conv(M, wm[1]))
            g_m = torch.tanh(given[6] + conv(M, wm[2]))
            M = f_m * M + i_m * g_m

            o = torch.sigmoid(given[3] + conv(H[layer], wh[3]) + conv(C[layer], wco) + conv(M, wmo))
            H[layer] = o * torch.tanh(conv(C[layer], to_c) + conv(M, to_m))
        outputs.append(H[n - 1])
    downwards = range(n - 1, -1, -1)
    return torch.stack(outputs, 1), (*(H[layer] for layer in downwards), *(C[layer] for layer in downwards), M)


@pytest.mark.parametrize(("num_layers", "steps"), [(1, 3), (2, 1), (3, 2)])
@pytest.mark.parametrize("with_state", [True, False])
def test_equals_the_equations_in_values_and_gradients(num_layers, steps, with_state):
    net = stack(num_layers=num_layers, input_kernel=5, state_kernel=3)
    count = 2 * num_layers + 1
    assert_equals(net, definition, random_state(count) if with_state else None, steps, count)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_without_input_equals_the_equations(num_layers):
    net = stack(in_channels=0, num_layers=num_layers)
    assert net.layers[0].input_weight is None
    state = random_state(2 * num_layers + 1)
    torch.testing.assert_close(net(None, state, 3), definition(net, None, state, 3))


def test_the_memory_goes_from_the_top_to_the_bottom_of_the_next_step():
    """Nothing else does: what the top does to M changes the bottom's hidden state one step later, not before."""
    net = stack(num_layers=2)
    x = torch.randn(2, 2, 2, 5, 7, dtype=F64)

    def bottom(steps: int) -> torch.Tensor:
        return net(x[:, :steps])[1][1]

    before = bottom(1), bottom(2)
    with torch.no_grad():
        net.layers[1].bias.chunk(7)[6].add_(1)  # g' of the top
    torch.testing.assert_close(bottom(1), before[0])
    assert not torch.allclose(bottom(2), before[1])


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("steps", [1, 2])
def test_every_parameter_is_registered_and_receives_a_gradient(num_layers, steps):
    net = STLSTM(2, 3, num_layers=num_layers)
    kinds = {"input_weight", "state_weight", "memory_weight", "output_weight", "merge_weight", "bias"}
    expected = {f"layers.{layer}.{kind}" for layer in range(num_layers) for kind in kinds}
    assert {name for name, _ in net.named_parameters()} == expected
    net(torch.randn(1, steps, 2, 5, 5))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    silent = {name for name, parameter in net.named_parameters() if not parameter.grad.any()}
    # one step from zeros: nothing to carry for H anywhere, and for M only from the bottom up
    states = {f"layers.{layer}.state_weight" for layer in range(num_layers)}
    assert silent == (states | {"layers.0.memory_weight"} if steps == 1 else set())


def test_start_values():
    net = STLSTM(2, 3, num_layers=2, forget_bias=1.5)
    for layer in net.layers:
        assert [gate.unique().tolist() for gate in layer.bias.chunk(7)] == [[0], [1.5], [0], [0], [0], [1.5], [0]]
        assert all(layer.get_parameter(name).std() > 0 for name, _ in layer.named_parameters())
        # Xavier for one gate: uniform within √(6 / (fan in + fan out)), fans h·k² each, here 3·9
        bound = (6 / (27 + 27)) ** 0.5
        assert 0.8 * bound < layer.memory_weight.abs().max() <= bound


def test_parameter_count():
    # input 7h·c·ki², state 4h·h·ks², memory 3h·h·ks², o from C and M 2h·h·ks², 1×1 2h·h, biases 7h
    def unit(c: int, h: int, ki: int, ks: int) -> int:
        return 7 * h * c * ki**2 + 9 * h * h * ks**2 + 2 * h * h + 7 * h

    net = STLSTM(2, 4, input_kernel=5, state_kernel=3, num_layers=3)
    assert sum(p.numel() for p in net.parameters()) == unit(2, 4, 5, 3) + 2 * unit(4, 4, 5, 3)


def test_a_single_layer_is_a_cell_of_the_pyramid():
    torch.manual_seed(0)
    stages = [{"conv_channels": 3, "hidden_channels": 4}, {"conv_channels": 4, "hidden_channels": 5}]
    net = PyramidEncoderForecaster(stages=stages, cell=STLSTM)
    assert net.forecaster[-1].layers[0].input_weight is None
    out = net(torch.rand(2, 3, 1, 9, 10), 2)
    assert out.shape == (2, 2, 1, 9, 10)
    out.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_what_does_not_fit_the_stack_is_refused():
    with pytest.raises(ValueError, match="num_layers >= 1, found 0"):
        STLSTM(1, 1, num_layers=0)
    x = torch.zeros(2, 2, 2, 5, 7, dtype=F64)
    names = "hidden 3, hidden 2, hidden 1, cell 3, cell 2, cell 1, memory"
    with pytest.raises(ValueError, match=rf"A state is \({names}\), found 6 tensors"):
        stack()(x, random_state(6))
    with pytest.raises(ValueError, match=r"cell of shape \(2, 3, 5, 7\), found \(2, 4, 5, 7\)"):
        stack(num_layers=1)(x, (*random_state(1), *random_state(2, hidden=4)))


def network(**kwargs) -> PredRNN:
    torch.manual_seed(0)
    small = {"patch": 2, "hidden_channels": 4, "num_layers": 2, "input_kernel": 3, "state_kernel": 3}
    return PredRNN(**(small | kwargs))


@pytest.mark.parametrize("hw", [(1, 1), (1, 9), (7, 5), (12, 12)])
def test_any_grid(hw):
    net = network(in_channels=2, out_channels=2, patch=4)
    assert net.stride == 4
    out = net(torch.rand(2, 3, 2, *hw), 4)
    assert out.shape == (2, 4, 2, *hw)
    assert out.isfinite().all()


def test_padding_is_no_rain():
    net, x = network(patch=4), torch.rand(1, 3, 1, 10, 7)
    larger = F.pad(x, (0, 1, 0, 2))
    torch.testing.assert_close(net(x, 3), net(larger, 3)[..., :10, :7])


def test_equals_the_loop_written_out():
    """The first frame follows the last input; each frame after it, the one before."""
    net = network().double()
    x = torch.rand(2, 3, 1, 6, 8, dtype=torch.float64)
    state, frame, written = None, None, []
    for t in range(3 + 4 - 1):
        read = x[:, t] if t < 3 else written[-1]
        hidden, state = net.stack(F.pixel_unshuffle(read, 2)[:, None], state)
        frame = F.pixel_shuffle(F.conv2d(hidden[:, 0], net.head.weight, net.head.bias), 2)
        if t >= 2:
            written.append(frame)
    torch.testing.assert_close(net(x, 4), torch.stack(written, 1))


def test_reading_its_own_forecast_is_forecasting_further():
    net = network()
    x = torch.rand(2, 3, 1, 6, 8)
    whole = net(x, 5)
    torch.testing.assert_close(net(torch.cat([x, whole[:, :2]], 1), 3), whole[:, 2:])
    torch.testing.assert_close(net(x, 2), whole[:, :2])


def test_all_inputs_matter_and_samples_do_not_mix():
    x = torch.rand(2, 4, 1, 8, 8, requires_grad=True)
    network()(x, 2)[0].sum().backward()
    assert x.grad[0].abs().amax(dim=(1, 2, 3)).gt(0).all()
    assert not x.grad[1].any()


@pytest.mark.parametrize("steps", [1, 2])
def test_every_parameter_receives_a_gradient(steps):
    net = network()
    net(torch.rand(2, steps, 1, 7, 6), steps).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    silent = {name for name, p in net.named_parameters() if not p.grad.any()}
    # one frame read and one written is one step from zeros, which carries nothing but M from layer to layer
    first = {"stack.layers.0.state_weight", "stack.layers.1.state_weight", "stack.layers.0.memory_weight"}
    assert silent == (first if steps == 1 else set())


def test_output_is_linear_and_starts_without_bias():
    net = network()
    assert not net.head.bias.any()
    with torch.no_grad():
        net.head.bias.fill_(-5.0)
    assert net(torch.zeros(1, 1, 1, 4, 4), 1).min() < -1.0


def test_parameter_count_of_the_config(tmp_path):
    # the published code has 23,838,720 without biases: with P² = 16, h = 128 and k² = 25,
    # bottom 7h·16·25 and above 3 × 7h·h·25 for the input, 4 × (4 + 3 + 2)h·h·25 for H, M and o, 4 × 2h·h, head 16h
    h, k2 = 128, 25
    kernels = 7 * h * 16 * k2 + 3 * 7 * h * h * k2 + 4 * 9 * h * h * k2 + 4 * 2 * h * h + 16 * h
    assert kernels == 23_838_720
    config = compose_config("train", tmp_path, "model=predrnn")
    with torch.device("meta"):
        net = assembly.network(config.model)
        assert net(torch.empty(1, 2, 1, 64, 64), 2).shape == (1, 2, 1, 64, 64)
    assert sum(p.numel() for p in net.parameters()) == kernels + 4 * 7 * h + 16


def test_overfits_one_batch():
    """A moving square is learned: the loss falls below a sixth of what forecasting no rain costs."""
    frames = torch.zeros(1, 6, 1, 16, 16)
    for t in range(6):
        frames[:, t, :, 4:9, t + 2 : t + 7] = 0.5
    x, target = frames[:, :3], frames[:, 3:]
    mask = torch.ones_like(target, dtype=torch.bool)
    loss = BalancedLoss(DbzScaling())
    net = network(hidden_channels=16)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        value = loss(net(x, 3), target, mask)
        value.backward()
        optimizer.step()
    assert value.item() < float(loss(torch.zeros_like(target), target, mask)) / 6


def test_bfloat16_autocast_follows_float32():
    net, x = network(), torch.rand(2, 3, 1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(x, 3)
    torch.testing.assert_close(out.float(), net(x, 3), atol=0.02, rtol=0.02)


def test_export():
    net, x = network(), torch.rand(1, 2, 1, 4, 6)
    torch.testing.assert_close(torch.export.export(net, (x, 2)).module()(x, 2), net(x, 2))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="in_channels=3 and out_channels=1 must be equal"):
        PredRNN(3, 1)
    with pytest.raises(ValueError, match="patch >= 1, found 0"):
        network(patch=0)
    with pytest.raises(ValueError, match=r"C=1, found \(1, 2, 3, 8, 8\)"):
        network()(torch.zeros(1, 2, 3, 8, 8), 2)
    # checked annotations, where they are on, see it first
    with pytest.raises((ValueError, TypeCheckError), match=r"2, ?8, ?8"):
        network()(torch.zeros(2, 8, 8), 2)
    with pytest.raises(ValueError, match="num_steps=0"):
        network()(torch.zeros(1, 2, 1, 8, 8), 0)
