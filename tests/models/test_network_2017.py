"""The HKO-7 networks of Shi et al. 2017, as the configs build them, layer by layer."""

from collections.abc import Callable

import pytest
import torch
from omegaconf import OmegaConf
from running import compose_config
from torch import nn

from raincast import assembly
from raincast.models.encoder_forecaster import PyramidEncoderForecaster
from raincast.models.layers.convgru import ConvGRU
from raincast.models.layers.convlstm import ConvLSTM
from raincast.models.layers.trajgru import TrajGRU

# width of the recurrent layer, kernel of its state, links, per stage from fine to coarse
HIDDEN, KERNEL, LINKS = (64, 192, 192), (5, 5, 3), (13, 13, 9)


def conv(c: int, out: int, k: int) -> int:
    return out * (c * k**2 + 1)


def convgru(c: int, stage: int) -> int:
    # three gates: kernels over the input and over the state, a bias
    h = HIDDEN[stage]
    return 3 * h * (c * 3**2 + h * KERNEL[stage] ** 2 + 1)


def convlstm(c: int, stage: int) -> int:
    # four gates, and three peepholes per channel
    h = HIDDEN[stage]
    return 4 * h * (c * 3**2 + h * KERNEL[stage] ** 2 + 1) + 3 * h


def trajgru(c: int, stage: int) -> int:
    # three gates: 3×3 over the input, 1×1 over the state of each link, a bias; and for the flows 5×5 from input and
    # state to 32 channels with one bias, and 5×5 from these to 2 L maps
    h, links = HIDDEN[stage], LINKS[stage]
    return 3 * h * (c * 3**2 + h * links + 1) + 32 * ((c + h) * 5**2 + 1) + conv(32, 2 * links, 5)


def whole(layer: Callable[[int, int], int]) -> int:
    down = conv(1, 8, 7) + conv(64, 192, 5) + conv(192, 192, 3)
    encoder = layer(8, 0) + layer(192, 1) + layer(192, 2)
    # from coarse to fine: no input, what the level below sends up, the same
    forecaster = layer(0, 2) + layer(192, 1) + layer(64, 0)
    up = conv(192, 192, 4) + conv(192, 64, 5) + conv(64, 8, 7)
    head = conv(8, 8, 3) + conv(8, 1, 1)
    return down + encoder + forecaster + up + head


NETWORKS = {
    "convgru_2017": (ConvGRU, convgru, 1, 12_810_473),
    "trajgru_2017": (TrajGRU, trajgru, 1, 11_208_885),
    "convlstm_2017": (ConvLSTM, convlstm, 2, 16_562_409),
}
every = pytest.mark.parametrize("name", NETWORKS)


def network(name: str, tmp_path) -> PyramidEncoderForecaster:
    """Without memory for its weights: only shapes matter here."""
    with torch.device("meta"):
        net = assembly.network(compose_config("train", tmp_path, f"model={name}").model)
    assert isinstance(net, PyramidEncoderForecaster)
    return net


@every
def test_parameter_count(name, tmp_path):
    _, layer, _, count = NETWORKS[name]
    assert sum(p.numel() for p in network(name, tmp_path).parameters()) == whole(layer) == count


@every
def test_a_checkpoint_builds_the_same_network(name, tmp_path):
    config = compose_config("train", tmp_path, f"model={name}")
    with torch.device("meta"):
        loaded = assembly.construct(OmegaConf.to_container(config.model))
    shapes = [
        {key: value.shape for key, value in n.state_dict().items()} for n in (loaded, network(name, tmp_path))
    ]
    assert shapes[0] == shapes[1]


@every
def test_sizes_at_every_layer(name, tmp_path):
    net = network(name, tmp_path)
    kind, _, tensors_in_state, _ = NETWORKS[name]
    seen: dict[str, object] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: object, output: object) -> None:
            if isinstance(output, tuple):
                outputs, state = output
                assert len(state) == tensors_in_state
                assert {tuple(part.shape) for part in state} == {(1, *outputs.shape[2:])}
                output = outputs
            seen[name] = tuple(output.shape)

        return hook

    for part in ("down", "encoder", "forecaster", "up"):
        for number, module in enumerate(getattr(net, part)):
            module.register_forward_hook(remember(f"{part}.{number}"))
    net.head.register_forward_hook(remember("head"))

    assert net.stride == 30
    out = net(torch.empty(1, 5, 1, 480, 480, device="meta"), 20)
    assert out.shape == (1, 20, 1, 480, 480)
    assert seen == {  # in this order; convolutions take all frames at once
        "down.0": (5, 8, 96, 96),
        "encoder.0": (1, 5, 64, 96, 96),
        "down.1": (5, 192, 32, 32),
        "encoder.1": (1, 5, 192, 32, 32),
        "down.2": (5, 192, 16, 16),
        "encoder.2": (1, 5, 192, 16, 16),
        "forecaster.2": (1, 20, 192, 16, 16),
        "up.2": (20, 192, 32, 32),
        "forecaster.1": (1, 20, 192, 32, 32),
        "up.1": (20, 64, 96, 96),
        "forecaster.0": (1, 20, 64, 96, 96),
        "up.0": (20, 8, 480, 480),
        "head": (20, 1, 480, 480),
    }
    assert list(seen)[0::6] == ["down.0", "forecaster.2", "head"]
    assert {type(layer) for layer in (*net.encoder, *net.forecaster)} == {kind}


@every
def test_the_coarsest_forecaster_has_no_input_and_the_others_do(name, tmp_path):
    net = network(name, tmp_path)
    assert [layer.in_channels for layer in net.encoder] == [8, 192, 192]
    assert [layer.in_channels for layer in net.forecaster] == [64, 192, 0]
    assert [layer.input_weight is None for layer in net.forecaster] == [False, False, True]
    assert not any("input" in parameter for parameter, _ in net.forecaster[2].named_parameters())


def test_links_and_activations_are_the_papers(tmp_path):
    net = network("trajgru_2017", tmp_path)
    assert [layer.num_links for layer in net.encoder] == [13, 13, 9]
    assert [layer.num_links for layer in net.forecaster] == [13, 13, 9]
    assert {layer.flow_weight.shape[1:] for layer in net.encoder} == {(32, 5, 5)}
    x = torch.tensor([-1.0, 0.0, 2.0])
    for layer in (*net.encoder, *network("convgru_2017", tmp_path).encoder):
        assert layer.activate(x).tolist() == pytest.approx([-0.2, 0, 2])


@pytest.mark.parametrize("cell", [ConvGRU, TrajGRU])
@pytest.mark.parametrize("hw", [(31, 7), (30, 30)])
def test_a_narrow_network_runs_on_any_grid_and_trains_every_parameter(cell, hw):
    torch.manual_seed(0)
    shapes = [(5, 7, 7), (3, 5, 5), (2, 3, 4)]
    stages = [
        {"conv_channels": 3, "hidden_channels": 4, "stride": s, "down_kernel": k, "up_kernel": u}
        for s, k, u in shapes
    ]
    net = PyramidEncoderForecaster(stages=stages, cell=cell)
    with torch.no_grad():  # flows start at zero, behind which nothing learns at the first step
        for name, parameter in net.named_parameters():
            if name.endswith("flow_weight"):
                parameter.normal_(std=0.1)
    out = net(torch.rand(2, 3, 1, *hw), 3)
    assert out.shape == (2, 3, 1, *hw)
    out.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
