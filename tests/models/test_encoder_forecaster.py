import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from torch import nn

from raincast.losses import BalancedLoss
from raincast.models import PyramidEncoderForecaster, StackedEncoderForecaster
from raincast.models.frames import from_patches
from raincast.transforms import DbzScaling

SMALL = [
    {"conv_channels": 3, "hidden_channels": 4, "stride": 2},
    {"conv_channels": 5, "hidden_channels": 6, "stride": 3, "down_kernel": 5, "state_kernel": 5},
    {"conv_channels": 7, "hidden_channels": 3, "stride": 1, "input_kernel": 1},
]


def stacked(**kwargs) -> StackedEncoderForecaster:
    given = {"patch": 2, "hidden_channels": (4, 3), "input_kernel": 3, "state_kernel": 3}
    return StackedEncoderForecaster(**(given | kwargs))


def pyramid(**kwargs) -> PyramidEncoderForecaster:
    return PyramidEncoderForecaster(**({"stages": SMALL} | kwargs))


both = pytest.mark.parametrize("network", [stacked, pyramid])


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Shi et al. 2015, table 1 (Moving MNIST)
@pytest.mark.parametrize(
    ("hidden", "input_kernel", "state_kernel", "published"),
    [
        ((256,), 5, 5, 13_524_496),
        ((128, 128), 5, 5, 10_042_896),
        ((128, 64, 64), 5, 5, 7_585_296),
        ((128, 128), 9, 1, 11_550_224),
        ((128, 64, 64), 9, 1, 8_830_480),
    ],
)
def test_published_parameter_counts(hidden, input_kernel, state_kernel, published):
    network = StackedEncoderForecaster(
        hidden_channels=hidden, input_kernel=input_kernel, state_kernel=state_kernel
    )
    assert num_parameters(network) == published


def test_parameter_count_with_kernels_per_layer():
    # by the formula, layer by layer: 4h(c·ki² + h·kh²) + 4h + 3h, forecaster's first c = 0
    encoder = 4 * 4 * (4 * 25 + 4 * 9) + 7 * 4 + 4 * 3 * (4 * 9 + 3 * 1) + 7 * 3
    forecaster = 4 * 4 * (4 * 9) + 7 * 4 + 4 * 3 * (4 * 9 + 3 * 1) + 7 * 3
    head = 7 * 4 + 4
    network = stacked(input_kernel=(5, 3), state_kernel=(3, 1))
    assert num_parameters(network) == encoder + forecaster + head


@both
@pytest.mark.parametrize("hw", [(1, 1), (1, 9), (7, 5), (13, 12), (24, 24)])
def test_any_grid(network, hw):
    out = network(in_channels=2, out_channels=3)(torch.rand(2, 3, 2, *hw), 4)
    assert out.shape == (2, 4, 3, *hw)
    assert out.isfinite().all()


@pytest.mark.parametrize(("stride", "kernel"), [(1, 1), (1, 3), (2, 2), (2, 3), (2, 4), (3, 5), (5, 7)])
def test_any_stride_and_kernel(stride, kernel):
    stage = {"conv_channels": 2, "hidden_channels": 2, "stride": stride, "down_kernel": kernel}
    network = pyramid(stages=[stage, stage], patch=2)
    assert network.stride == 2 * stride**2
    assert network(torch.rand(1, 2, 1, 11, 7), 2).shape == (1, 2, 1, 11, 7)


@both
def test_padding_is_no_rain(network):
    """An odd grid is the larger grid with 0 at the bottom and right."""
    torch.manual_seed(0)
    made = network()
    x = torch.rand(1, 3, 1, 10, 7)
    larger = torch.zeros(1, 3, 1, *(-(-n // made.stride) * made.stride for n in (10, 7)))
    larger[..., :10, :7] = x
    torch.testing.assert_close(made(x, 2), made(larger, 2)[..., :10, :7])


@both
@pytest.mark.parametrize("steps", [1, 3])
def test_every_parameter_receives_a_gradient(network, steps):
    torch.manual_seed(0)
    made = network()
    made(torch.rand(2, steps, 1, 13, 12), steps).square().sum().backward()
    silent = [name for name, p in made.named_parameters() if p.grad is None]
    assert silent == []
    if steps > 1:  # one step from a zero state cannot reach the state weights, and rightly gives them 0
        assert [name for name, p in made.named_parameters() if not p.grad.any()] == []
    assert sum(name.endswith("peephole") for name, _ in made.named_parameters()) == len(made.encoder) * 2


@both
def test_shorter_forecast_is_the_start_of_the_longer(network):
    made = network()
    x = torch.rand(1, 3, 1, 12, 12)
    torch.testing.assert_close(made(x, 5)[:, :2], made(x, 2))


@both
def test_all_inputs_matter_and_samples_do_not_mix(network):
    torch.manual_seed(0)
    x = torch.rand(2, 4, 1, 12, 12, requires_grad=True)
    network()(x, 2)[0].sum().backward()
    assert x.grad[0].abs().amax(dim=(1, 2, 3)).gt(0).all()
    assert not x.grad[1].any()


def test_encoder_states_reach_the_forecaster_layer_of_the_same_number():
    """With the head reading one layer only, zeroing that layer's state must change the output."""
    torch.manual_seed(0)
    made = pyramid()
    x = torch.rand(1, 3, 1, 12, 12)
    states = made._encode(x)
    whole = made._forecast(states, 2)
    for level in range(len(states)):
        changed = list(states)
        changed[level] = tuple(torch.zeros_like(part) for part in states[level])
        assert not torch.allclose(made._forecast(changed, 2), whole)


def test_upsampling_has_no_checkerboard():
    """A constant field stays constant away from the border, whatever the weights' sum."""
    made = pyramid(stages=[SMALL[1]])
    conv = made.up[0][0]
    with torch.no_grad():
        conv.weight.fill_(0.1)
        inner = made.up[0](torch.ones(1, conv.in_channels, 6, 6))[..., 6:-6, 6:-6]
    torch.testing.assert_close(inner, torch.full_like(inner, inner.mean().item()))


@both
def test_output_is_linear_and_starts_without_bias(network):
    made = network()
    head = made.head if isinstance(made.head, nn.Conv2d) else made.head[-1]
    assert not head.bias.any()
    with torch.no_grad():
        head.bias.fill_(-5.0)
    assert made(torch.zeros(1, 1, 1, 12, 12), 1).min() < -1.0


@both
def test_wrong_frames_are_refused(network):
    with pytest.raises(ValueError, match=r"C=1, found \(1, 2, 3, 8, 8\)"):
        network()(torch.zeros(1, 2, 3, 8, 8), 2)
    # checked annotations, where they are on, see it first
    with pytest.raises((ValueError, TypeCheckError), match=r"2, ?8, ?8"):
        network()(torch.zeros(2, 8, 8), 2)
    with pytest.raises(ValueError, match="num_steps=0"):
        network()(torch.zeros(1, 2, 1, 8, 8), 0)


def test_wrong_configurations_are_refused():
    with pytest.raises(ValueError, match=r"unknown keys \['hidden'\] and lacks \['hidden_channels'\]"):
        pyramid(stages=[{"conv_channels": 2, "hidden": 2}])
    with pytest.raises(ValueError, match="would skip pixels"):
        pyramid(stages=[{"conv_channels": 2, "hidden_channels": 2, "stride": 4, "down_kernel": 3}])
    with pytest.raises(ValueError, match="at least one stage"):
        pyramid(stages=[])
    with pytest.raises(ValueError, match="has 3 sizes for 2 layers"):
        stacked(input_kernel=(3, 3, 3))


@both
def test_overfits_one_batch(network):
    """A moving square is learned: the loss falls below a sixth of what forecasting no rain costs."""
    torch.manual_seed(0)
    frames = torch.zeros(1, 6, 1, 16, 16)
    for t in range(6):
        frames[:, t, :, 4:9, t + 2 : t + 7] = 0.5
    x, target = frames[:, :3], frames[:, 3:]
    mask = torch.ones_like(target, dtype=torch.bool)
    loss = BalancedLoss(DbzScaling())
    wide = [{"conv_channels": 8, "hidden_channels": 16}]
    made = network(hidden_channels=(16, 16)) if network is stacked else network(stages=wide, patch=2)
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    for _ in range(160):
        optimizer.zero_grad()
        value = loss(made(x, 3), target, mask)
        value.backward()
        optimizer.step()
    dry = loss(torch.zeros_like(target), target, mask)
    assert value.item() < float(dry) / 6


def ahead(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "pyramid":
        return PyramidEncoderForecaster(
            future_channels=1, patch=2, stages=[{"conv_channels": 8, "hidden_channels": 8, "stride": 2}]
        )
    return StackedEncoderForecaster(
        future_channels=1, patch=2, hidden_channels=[8], input_kernel=3, state_kernel=3
    )


@pytest.mark.parametrize("kind", ["pyramid", "stacked"])
def test_what_is_known_in_advance_is_learnt_step_by_step(kind: str) -> None:
    """The rain to come is at random and stands in the field: who does not see it is left with its variance."""
    net = ahead(kind)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    past = torch.zeros(4, 2, 1, 8, 8)
    for _ in range(120):
        # a rate for each quarter of the grid, which the coarsest level resolves
        field = torch.rand(4, 3, 1, 2, 2).repeat_interleave(4, -1).repeat_interleave(4, -2)
        loss = (net(past, 3, field) - field).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3 / 12  # of the variance of a number at random in 0 to 1


@pytest.mark.parametrize("kind", ["pyramid", "stacked"])
def test_a_step_ahead_reaches_its_frame_and_later_ones(kind: str) -> None:
    net = ahead(kind)
    past, field = torch.rand(2, 2, 1, 7, 9), torch.rand(2, 4, 1, 7, 9)  # no multiple of the stride
    changed = field.clone()
    changed[:, 2] += 1
    difference = (net(past, 4, changed) - net(past, 4, field)).abs().amax(dim=(0, 2, 3, 4))
    assert difference[:2].max() == 0 and difference[2:].min() > 0


def test_what_is_known_in_advance_has_to_be_given() -> None:
    net = ahead("pyramid")
    with pytest.raises(ValueError, match=r"known in advance of shape \(1, 3, 1, 8, 8\), found None"):
        net(torch.zeros(1, 2, 1, 8, 8), 3)
    with pytest.raises(ValueError, match=r"shape None, found \(1, 3, 1, 8, 8\).*future_channels"):
        pyramid()(torch.zeros(1, 2, 1, 8, 8), 3, torch.zeros(1, 3, 1, 8, 8))


@pytest.mark.parametrize("patch", [1, 2])
def test_patches_become_pixels_again(patch: int) -> None:
    frames = torch.randn(2, 5, 3, 7, 8).permute(0, 1, 4, 2, 3)  # channels last, as convolutions hand them on
    pixels = from_patches(frames, patch)
    assert torch.equal(pixels, F.pixel_shuffle(frames, patch)) and pixels.is_contiguous()
