"""What a summary says of a network, against formulas, against real tensors and against the profiler."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raincast.losses import BalancedLoss
from raincast.models import ConvLSTM, PyramidEncoderForecaster, StackedEncoderForecaster
from raincast.models.size import NetworkSummary, summarise
from raincast.models.size.ledger import Ledger
from raincast.transforms import DbzScaling

SIZES: dict[str, Any] = {"batch_size": 2, "input_steps": 3, "lead_steps": 4, "height": 32, "width": 48}


def pyramid(cell: Any = ConvLSTM) -> PyramidEncoderForecaster:
    stages = [{"conv_channels": 8, "hidden_channels": 16}, {"conv_channels": 16, "hidden_channels": 16}]
    return PyramidEncoderForecaster(stages=stages, patch=2, cell=cell)


def stacked(cell: Any = ConvLSTM) -> StackedEncoderForecaster:
    return StackedEncoderForecaster(patch=2, hidden_channels=[16, 8], input_kernel=3, state_kernel=3, cell=cell)


class OneConvolution(nn.Module):
    """1 → 2 channels, 3×3, one step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x: Tensor, num_steps: int) -> Tensor:
        found: Tensor = self.conv(x[:, 0])
        return found.sum(1, keepdim=True)[:, None].expand(-1, num_steps, -1, -1, -1)


class OneLayer(nn.Module):
    """A ConvLSTM that starts from a state, so that each step has both convolutions."""

    def __init__(self, hidden: int = 5) -> None:
        super().__init__()
        self.layer = ConvLSTM(1, hidden, input_kernel=3, state_kernel=5)

    def forward(self, x: Tensor, num_steps: int) -> Tensor:
        B, _, _, H, W = x.shape
        state = (x.new_ones(B, self.layer.hidden_channels, H, W),) * 2
        hidden: Tensor = self.layer(x, state)[0]
        return hidden[:, -1:, :1].expand(-1, num_steps, -1, -1, -1)


def sizes_of(summary: NetworkSummary) -> dict[str, int]:
    return {name: getattr(summary, name) for name in SIZES}


@pytest.mark.parametrize("make", [pyramid, stacked])
def test_layers_are_those_of_a_real_run(make: Any) -> None:
    net = make()
    found: dict[str, tuple[int, ...]] = {}
    for name, module in net.named_modules():
        module.register_forward_hook(
            lambda _, __, out, name=name: found.update(
                {name: tuple((out[0] if isinstance(out, tuple) else out).shape)}
            )
        )
    net(torch.zeros(2, 3, 1, 32, 48), 4)
    summary = summarise(net, **SIZES)
    assert sizes_of(summary) == SIZES
    assert {layer.name: layer.output_shape for layer in summary.layers} == {
        layer.name: found[layer.name] for layer in summary.layers
    }
    assert summary.parameters == sum(p.numel() for p in net.parameters())
    assert summary.parameters == sum(layer.parameters for layer in summary.layers)
    assert summary.parameter_bytes == summary.gradient_bytes == 4 * summary.parameters
    assert summary.forward_flops == sum(layer.flops for layer in summary.layers)
    # what lies between the layers is small
    assert sum(layer.kept_bytes for layer in summary.layers) == pytest.approx(summary.activation_bytes, rel=0.2)


def test_flops_of_a_convlstm_layer_by_hand() -> None:
    B, T, H, W, hidden = 2, 3, 32, 48, 5
    (layer,) = summarise(OneLayer(hidden), **SIZES).layers
    # per step and pixel, four gates: 3×3 from one input channel and 5×5 from the hidden ones
    assert layer.flops == 2 * B * T * H * W * 4 * hidden * (9 * 1 + 25 * hidden)
    assert layer.output_shape == (B, T, hidden, H, W)


def test_flops_and_memory_of_one_convolution_by_hand() -> None:
    # powers of two, and no work space: on a GPU it is not known
    summary = summarise(OneConvolution(), **SIZES, loss=lambda out, _, __: out.sum(), device="cuda")
    pixels = 2 * 32 * 48
    assert summary.forward_flops == 2 * pixels * 9 * 2
    # backward: the kernel's gradient costs as much again, and the input needs none
    assert summary.training_step_flops == 2 * summary.forward_flops
    assert (summary.parameters, summary.parameter_bytes) == (20, 80)
    assert summary.optimizer_bytes == 160
    # input of 3 steps and target of 4 in four bytes, mask in one
    assert summary.batch_bytes == pixels * (3 * 4 + 4 * 4 + 4 * 1)
    # the network's input is kept for the kernel's gradient, and the loss is one number
    assert summary.activation_bytes == 3 * 4 * pixels + 4
    assert summary.layers[0].kept_bytes == 2 * 4 * pixels
    # without gradients: the parameters, the rain, the network's input, two channels, their sum
    assert summary.forecast_peak_bytes == 80 + 4 * pixels * (3 + 3 + 2 + 1)


class Training:
    """Steps as Lightning takes them, all but the optimiser's part."""

    def __init__(self, net: nn.Module) -> None:
        B, T, L, H, W = SIZES.values()
        self.net = net
        self.loss = BalancedLoss(DbzScaling())
        self.batch = torch.rand(B, T, 1, H, W), torch.rand(B, L, 1, H, W), torch.ones(B, L, 1, H, W).bool()
        self.summary = summarise(net, **SIZES, loss=self.loss)

    def step(self) -> None:
        rain, target, mask = self.batch
        loss = self.loss(self.net(rain.clone(), target.shape[1]), target.clone(), mask)
        self.net.zero_grad()
        loss.backward()

    def expected_peak(self) -> int:
        """Of what a step makes itself."""
        s = self.summary
        return s.training_peak_bytes - s.parameter_bytes - s.optimizer_bytes - s.batch_bytes


@pytest.mark.parametrize("make", [pyramid, stacked])
def test_the_ledger_of_shapes_is_that_of_real_tensors(make: Any) -> None:
    """The same storages come and go where nothing is computed."""
    # the fast way is left out: on a CPU its point-wise part may be a kernel that allocates nothing
    training = Training(make(functools.partial(ConvLSTM, fast=False)))
    ledger = Ledger(blocked=True)
    with ledger:
        training.step()
        training.step()  # begins with the gradients of the first
    assert ledger.peak == training.expected_peak()
    assert ledger.live == training.summary.gradient_bytes
    training.net.zero_grad()
    assert ledger.live == 0


@pytest.mark.parametrize("make", [pyramid, stacked])
def test_the_peak_is_what_the_profiler_measures(make: Any) -> None:
    from torch.profiler import ProfilerActivity, profile

    training = Training(make())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        training.step()
        training.step()
    results: Any = profiler.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert live == pytest.approx(training.summary.gradient_bytes, rel=0.01)
    assert training.expected_peak() == pytest.approx(peak, rel=0.2)


def test_memory_grows_with_the_batch_and_parameters_do_not() -> None:
    two, six = (summarise(pyramid(), **SIZES | {"batch_size": n}) for n in (2, 6))
    assert six.parameters == two.parameters
    assert six.forward_flops == 3 * two.forward_flops
    assert six.activation_bytes == pytest.approx(3 * two.activation_bytes, rel=0.01)
    assert two.forecast_peak_bytes < six.forecast_peak_bytes < six.training_peak_bytes


def test_the_network_is_not_touched_and_may_have_no_values() -> None:
    net = pyramid().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    summary = summarise(net, **SIZES)
    assert not net.training
    assert all(p.grad is None and p.device.type == "cpu" for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.device("meta"):
        assert summarise(pyramid(), **SIZES) == summary


def test_frozen_parameters_have_neither_gradients_nor_state() -> None:
    net = pyramid()
    for parameter in net.encoder.parameters():
        parameter.requires_grad_(False)
    summary = summarise(net, **SIZES, optimizer_slots=1)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert summary.gradient_bytes == summary.optimizer_bytes == 4 * trained < summary.parameter_bytes


def test_a_layer_that_runs_twice_counts_twice() -> None:
    class Twice(OneConvolution):
        def forward(self, x: Tensor, num_steps: int) -> Tensor:
            return super().forward(x, num_steps) + super().forward(x, num_steps)

    once, twice = (summarise(net, **SIZES) for net in (OneConvolution(), Twice()))
    assert twice.layers[0].flops == 2 * once.layers[0].flops
    assert twice.parameters == once.parameters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"batch_size=0: give a whole number, at least 1"),
        ({"width": -1}, r"width=-1"),
        ({"height": 1.5}, r"height=1\.5"),
        ({"optimizer_slots": -1}, r"optimizer_slots=-1: 2 for Adam"),
        ({"device": "tpu"}, r"device='tpu': take cpu or cuda"),
    ],
)
def test_bad_sizes_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarise(pyramid(), **SIZES | arguments)
