"""The forecaster in moving coordinates: what it is untrained, how rain moves, and bad input."""

import math
from collections.abc import Sequence

import pytest
import torch

from raincast.losses import DistributionLoss
from raincast.models.distribution import DistributionHead
from raincast.models.lagrangian import (
    DRY,
    PIVOT,
    REACH,
    SMALLEST_CHANCE,
    LagrangianForecaster,
    Tile,
    distribution,
    log_rate,
)
from raincast.models.sprog import sprog
from raincast.transforms import THRESHOLDS, UNKNOWN, RateScaling

STAGES = [
    {"conv_channels": 4, "hidden_channels": 4, "stride": 2, "down_kernel": 4},
    {"conv_channels": 4, "hidden_channels": 4, "stride": 2, "down_kernel": 4},
]
HEAD = DistributionHead()
SCALE = RateScaling()


def forecaster() -> LagrangianForecaster:
    torch.manual_seed(0)
    return LagrangianForecaster(stages=STAGES, features=4, hidden=6).eval()


def waves(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A random field of unit variance with waves of 10 to 200 km, as rain has them, at any place (km)."""
    generator = torch.Generator().manual_seed(7)
    length = 10.0 * 20.0 ** torch.rand(80, generator=generator)
    angle, phase = 2 * math.pi * torch.rand(2, 80, generator=generator)
    along = (y[..., None] * angle.sin() + x[..., None] * angle.cos()) / length
    weight = length.sqrt()
    return ((2 * math.pi * along + phase).cos() * weight).sum(-1) / (weight.square().sum() / 2).sqrt()


def storm(
    t: float, *, size: int = 64, dy: float = 0.0, dx: float = 0.0, pixel: float = 1.0, fade: float = 0.0
) -> torch.Tensor:
    """Rain on two fifths of the grid, after t steps of (dy, dx) km: (size, size) mm/h."""
    y, x = torch.meshgrid(torch.arange(size) * pixel - dy * t, torch.arange(size) * pixel - dx * t, indexing="ij")
    field = waves(y, x)
    return (1.5 * field - 0.5 - fade * t).exp() * (field > 0.2)


def sample(frames: Sequence[torch.Tensor]) -> torch.Tensor:
    rain = torch.stack(list(frames))[None]
    return torch.stack([rain, torch.ones_like(rain)], dim=2)


def scale(step: float = 5.0, pixel: float = 1.0) -> torch.Tensor:
    return torch.tensor([[step, pixel]])


@torch.inference_mode()
def test_untrained_it_is_s_prog() -> None:
    """As it is trained: without the correction by observed persistence."""
    frames = [storm(0, fade=0.1 * t) for t in range(4)]
    output = forecaster().train()(sample(frames), 3, scale())
    rate = log_rate(torch.stack(frames)[None])
    anchor = sprog(
        rate[:, -3:], torch.ones(1, 64, 64), torch.tensor([[1.0, 2.0, 3.0]]), step_minutes=torch.tensor([5.0]),
        pixel_km=torch.ones(1), longest=3,
    )  # fmt: skip
    spread = ((3.0 * anchor.variance).sqrt() / math.pi).clamp_min(0.12)
    expected = torch.stack([(anchor.field - math.log(t)) / spread[..., None, None] for t in THRESHOLDS], dim=2)
    expected = expected.clamp(*torch.tensor([SMALLEST_CHANCE, 1 - SMALLEST_CHANCE]).logit())
    inner = (..., slice(12, -12), slice(12, -12))
    torch.testing.assert_close(output[:, :, :-1][inner], expected[inner], rtol=0.02, atol=0.3)


def test_without_correction_the_distribution_is_logistic_and_bends_keep_the_order() -> None:
    location = torch.randn(1, 2, 5, 5)
    spread = torch.tensor([[0.3, 0.9]])
    plain = distribution(location, spread, torch.zeros(1, 2, len(THRESHOLDS) + 1, 5, 5))
    for k in (0, 5, 12):
        torch.testing.assert_close(
            plain[:, :, k], (location - math.log(THRESHOLDS[k])) / spread[..., None, None], rtol=1e-4, atol=1e-4
        )
    bent = distribution(location, spread, 50 * torch.randn(1, 2, len(THRESHOLDS) + 1, 5, 5))
    assert (bent.diff(dim=2) < 0).all()


@torch.inference_mode()
def test_rain_moves_with_its_flow() -> None:
    """By 1.5 km down and 2 km left a step, at three sizes of pixels."""
    for pixel in (0.5, 1.0, 2.0):
        size = int(96 / pixel) if pixel < 2 else 64
        frames = [storm(t, size=size, dy=1.5, dx=-2.0, pixel=pixel) for t in range(8)]
        output = forecaster()(sample(frames[:4]), 4, scale(pixel=pixel))
        truth, moved = frames[7], output[0, 3, -1]
        # 4 steps of the flow stay inside
        inside = (slice(size // 4, -size // 8), slice(size // 8, -size // 4))
        assert (moved[inside] != UNKNOWN).all()
        error = (moved[inside] - truth[inside]).abs().mean()
        standing = (frames[3][inside] - truth[inside]).abs().mean()
        assert float(error) < 0.3 * float(standing), pixel


@torch.inference_mode()
def test_what_flows_in_from_outside_is_unknown() -> None:
    frames = [storm(t, dx=4.0) for t in range(4)]
    output = forecaster()(sample(frames), 3, scale())
    newest = output[0, :, -1]
    assert (newest[0, :, :3] == UNKNOWN).all()
    assert (newest[2, :, :9] == UNKNOWN).all()
    assert (newest[2, 8:-8, 24:-8] != UNKNOWN).all()
    hole = sample(frames)
    hole[:, :, :, 20:40, 20:40] = 0.0  # nobody looked there
    newest = forecaster()(hole, 1, scale())[0, 0, -1]
    assert (newest[24:36, 30:38] == UNKNOWN).all()


@torch.inference_mode()
def test_far_from_all_radars_nothing_is_computed_and_their_rain_is_the_same() -> None:
    """The layers with weights see a part of the grid; the forecast of what was observed is that of the whole."""
    seen: list[torch.Size] = []
    network = forecaster()
    for weight in network.core.out.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    network.core.recurrent.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2:]))
    x = sample([storm(t, size=256, dx=2.0) for t in range(4)])
    x[..., :90, :] = x[..., 130:, :] = x[..., :, 200:] = 0.0
    part, whole = network(x, 3, scale()), network(x, 3, scale(), tiles=[Tile(slice(0, 256), slice(0, 256))])
    assert seen == [(130 + REACH - 24, 256), (256, 256)], (
        "90 less the reach is 26; a tile begins at a multiple of 4"
    )
    known = part[:, :, -1] != UNKNOWN
    assert known.any() and torch.equal(part[:, :, -1], whole[:, :, -1])
    for found, expected in zip(part[:, :, :-1].unbind(2), whole[:, :, :-1].unbind(2), strict=True):
        torch.testing.assert_close(found[known], expected[known], rtol=0, atol=1e-4)
    halves = [Tile(slice(y, y + 128), slice(0, 256), torch.ones(128, 256)) for y in (0, 128)]
    x = sample([storm(t, size=256) for t in range(4)])
    for start, passes in ((60, 2), (200, 1), (256, 0)):
        seen.clear()
        x[..., :start, :] = 0.0
        network(x, 1, scale(), tiles=halves)
        assert len(seen) == passes


@torch.inference_mode()
def test_the_same_storm_at_other_pixels_and_steps_gives_the_same_forecast() -> None:
    """1 km every 5 minutes, and 2 km every 10 minutes: probabilities after 20 minutes within .05 in the mean."""
    network = forecaster()
    fine = [storm(t, size=128, dy=1.0, dx=1.5, fade=0.02) for t in range(-3, 4)]
    coarse = [torch.nn.functional.avg_pool2d(frame[None], 2)[0] for frame in fine[::2]]
    at_fine = HEAD.exceedance(network(sample(fine[-4:]), 4, scale(5.0, 1.0)), [1.0], SCALE)[0, 3, 0]
    at_coarse = HEAD.exceedance(network(sample(coarse), 2, scale(10.0, 2.0)), [1.0], SCALE)[0, 1, 0]
    averaged = torch.nn.functional.avg_pool2d(at_fine[None], 2)[0]
    inner = (slice(10, -6), slice(10, -6))
    assert float((averaged - at_coarse)[inner].abs().mean()) < 0.05
    assert float(averaged[inner].std()) > 0.2, "there is something to agree on"


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (33, 50)])
@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_any_number_of_frames_on_any_grid_gives_finite_rates(shape: tuple[int, int], num_frames: int) -> None:
    generator = torch.Generator().manual_seed(1)
    rain = 40.0 * torch.rand(1, num_frames, *shape, generator=generator).square()
    x = torch.stack([rain, (torch.rand(rain.shape, generator=generator) > 0.3).float()], dim=2)
    output = forecaster()(x, 2, scale())
    assert output.shape == (1, 2, len(THRESHOLDS) + 1, *shape)
    rates = HEAD.rates(output, SCALE)
    assert rates.isfinite().all() and (rates >= 0).all()


@torch.inference_mode()
def test_dry_stays_dry_and_one_frame_stays_where_it_is() -> None:
    network = forecaster()
    dry = network(sample([torch.zeros(40, 40)] * 4), 2, scale())
    assert not HEAD.rates(dry, SCALE).any()
    assert float(HEAD.exceedance(dry, [0.1], SCALE).max()) < 0.01
    still = network(sample([storm(0)]), 2, scale())
    torch.testing.assert_close(still[0, 0, -1], storm(0).clamp(max=300.0))


@torch.inference_mode()
def test_a_few_wet_pixels_leave_the_rest_dry() -> None:
    """Specks that come and go have no motion; wherever they are said to go, most of the grid stays dry."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(6):
        rain = (torch.rand(1, 4, 37, 48, generator=generator) > 0.999).float() * 3.0
        x = torch.stack([rain, torch.ones_like(rain)], dim=2)
        output = forecaster()(x, 12, scale(5.0, 2.0))
        for rule in ("area", "csi", "matched"):
            rates = DistributionHead(rates_by=rule).rates(output, SCALE)
            assert float((rates > 0).float().mean()) < 0.03


@torch.inference_mode()
def test_older_frames_than_it_takes_change_nothing() -> None:
    frames = [storm(t, dx=1.0) for t in range(6)]
    network = forecaster()
    torch.testing.assert_close(network(sample(frames), 2, scale()), network(sample(frames[2:]), 2, scale()))


def test_all_weights_are_trained() -> None:
    network = forecaster().train()
    loss = DistributionLoss(SCALE)
    frames = [storm(t, dx=1.0) for t in range(6)]
    target = torch.stack(frames[4:])[None, :, None]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):  # last layers are 0 at first: those below learn one step later
        optimizer.zero_grad()
        output = network(sample(frames[:4]), 2, scale())
        loss(HEAD.prediction(output), target, torch.ones_like(target, dtype=torch.bool)).backward()
        optimizer.step()
    still = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not still


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"data/channels=\[observed\]"):
        LagrangianForecaster(1, stages=STAGES)
    with pytest.raises(ValueError, match="model.weights=mine"):
        LagrangianForecaster(stages=STAGES, weights="mine")
    with pytest.raises(ValueError, match="model.weights=null"):
        LagrangianForecaster(stages=STAGES, weights="box")


def test_the_logarithm_of_no_rain_is_dry() -> None:
    assert log_rate(torch.tensor([0.0, 0.05, 0.1, 2.0])).tolist() == pytest.approx(
        [DRY, DRY, math.log(0.1), math.log(2.0)]
    )


@torch.inference_mode()
def test_certainty_moves_logits_away_from_the_pivot_and_keeps_it() -> None:
    network, x = forecaster().train(), sample([storm(0) for t in range(4)])
    before = network(x, 2, scale())
    network.certainty[: THRESHOLDS.index(2.0) + 1] = 1.2
    after = network(x, 2, scale())
    inner = (slice(None), slice(None), slice(0, THRESHOLDS.index(2.0) + 1), slice(16, -16), slice(16, -16))
    moved = (PIVOT + 1.2 * (before[inner] - PIVOT)).clamp(
        *torch.tensor([SMALLEST_CHANCE, 1 - SMALLEST_CHANCE]).logit()
    )
    torch.testing.assert_close(after[inner], moved, rtol=0.02, atol=0.02)
    torch.testing.assert_close(after[:, :, -1], before[:, :, -1])
    assert "certainty" not in dict(network.named_parameters()), "training leaves it"
