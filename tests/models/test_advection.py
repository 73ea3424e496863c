"""AdvectingForecaster: without motion and change persistence, else both and no more."""

import pytest
import torch
from torch import Tensor

from raincast.models.advection import AdvectingForecaster
from raincast.models.optical_flow import displacements, find_flow, move

STAGES = [{"conv_channels": 3, "hidden_channels": 4, "stride": 2}]


def network(**arguments) -> AdvectingForecaster:
    torch.manual_seed(0)
    return AdvectingForecaster(stages=STAGES, patch=2, **arguments)


def trained(**arguments) -> AdvectingForecaster:
    """No longer without change."""
    made = network(**arguments)
    torch.nn.init.normal_(made.change.head[-1].weight, std=0.1)
    return made


def moving(steps: int, size: int = 32) -> Tensor:
    """Smooth rain that goes one pixel down and two to the left a step: (1, steps, 1, size, size)."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    frames = [((0.4 * (y - t)).sin() * (0.3 * (x + 2 * t)).cos()).clamp(min=0) for t in range(steps)]
    return torch.stack(frames)[None, :, None].float()


def test_untrained_a_still_frame_persists() -> None:
    x = torch.rand(2, 1, 1, 11, 13, dtype=torch.float64).expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(network().double()(x, 4), x[:, -1:].expand(-1, 4, -1, -1, -1), rtol=0, atol=1e-9)


def test_untrained_moving_rain_moves_on() -> None:
    x = moving(6)
    found = network()(x[:, :4], 2)
    inner = (..., slice(10, 22), slice(10, 22))
    assert (found - x[:, 4:])[inner].abs().mean() < 0.3 * (x[:, 3:4] - x[:, 4:])[inner].abs().mean()


def test_the_change_moves_with_the_rain() -> None:
    made, x = trained(log_rate=0.0), moving(3)
    far = displacements(find_flow(x[:, :, 0]), 2)
    past = [move(x[:, 0], far[:, 1]), move(x[:, 1], far[:, 0]), x[:, 2]]
    change = made.change(torch.stack(past, dim=1), 2)
    expected = move(x[:, 2], far[:, 1]) + move(change[:, 1], far[:, 1], border=True)
    torch.testing.assert_close(made(x, 2)[:, 1], expected)
    assert change.abs().max() > 1e-3


def test_rates_are_interpolated_not_their_logarithms() -> None:
    rain, half = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 2, 1, 8)
    rain[..., 4] = 0.6
    half[:, :, 1] = 0.5
    found = network(log_rate=10.0)._moved(rain, half)[0, 0, 0, 4]
    torch.testing.assert_close((10 * found).expm1(), torch.tensor(6.0).expm1() / 2)
    assert float(network(log_rate=0.0)._moved(rain, half)[0, 0, 0, 4]) == pytest.approx(0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_precisions_and_channels_beside(dtype: torch.dtype) -> None:
    made = trained(in_channels=2, future_channels=1).to(dtype)
    for B, H, W in ((1, 5, 7), (2, 1, 1)):
        found = made(torch.rand(B, 3, 2, H, W).to(dtype), 1, torch.rand(B, 1, 1, H, W).to(dtype))
        assert found.shape == (B, 1, 1, H, W)
        assert found.dtype == dtype
        assert found.isfinite().all()


def test_gradients_are_those_of_differences() -> None:
    made = trained().double()
    x = (0.3 * moving(3, 8)).double()
    weight = made.change.head[-1].weight

    def answer(values: Tensor) -> Tensor:
        return torch.func.functional_call(made, {"change.head.2.weight": values}, (x, 2))

    assert torch.autograd.gradcheck(answer, (weight.detach().clone().requires_grad_(),), fast_mode=True)
    made(x, 2).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_what_it_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="head=rate"):
        network(out_channels=3)
    with pytest.raises(ValueError, match="log_rate"):
        network(log_rate=-1.0)
