import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from running import compose_config

from raincast import assembly
from raincast.losses import BalancedLoss
from raincast.models.predrnn import PredRNN
from raincast.transforms import DbzScaling


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
