"""Members of a distribution: its quantiles at each pixel, coherent in space and time."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from raincast.forecaster import Query
from raincast.forecasting.network import NetworkForecaster, box_forecaster
from raincast.models.members import correlated_noise, logits_of_ranks, ranks
from raincast.models.sprog import statistics

STEPS, MEMBERS = 6, 12


@pytest.fixture(scope="module")
def rain() -> np.ndarray:
    """Four frames of showers that stand still and change, (T, H, W)."""
    noise = np.random.default_rng(0).normal(size=(7, 64, 72))
    fields = gaussian_filter(noise, (1.5, 3, 3))[1:5]
    return np.maximum(fields / fields.std() - 0.5, 0).astype(np.float32) * 4


@pytest.fixture(scope="module")
def network() -> NetworkForecaster:
    return box_forecaster().as_ensemble(MEMBERS)


def query(rain: np.ndarray) -> Query:
    return Query.for_steps(rain[None, :, None], STEPS, step_minutes=5.0, pixel_km=1.0, members=True)


def noise_of(rain: np.ndarray, seed: int) -> torch.Tensor:
    frames = torch.from_numpy(rain[None, -3:])
    five, one = torch.tensor([5.0]), torch.tensor([1.0])
    bands = statistics(frames, torch.ones_like(frames[:, 0]), step_minutes=five, pixel_km=one)
    far = torch.zeros(STEPS, 2, *rain.shape[1:])
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(list(correlated_noise(frames[0, -1], bands, 0, far, generator)))


def test_noise_is_correlated_in_space_and_time_and_follows_from_its_seed(rain: np.ndarray) -> None:
    noise = noise_of(rain, 1)
    assert torch.equal(noise, noise_of(rain, 1)) and not torch.equal(noise, noise_of(rain, 2))
    np.testing.assert_allclose(noise.square().mean((1, 2)), 1.0, rtol=1e-4)

    def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])

    assert correlation(noise[:, :, 1:], noise[:, :, :-1]) > 0.7
    assert correlation(noise[3], noise[4]) > correlation(noise[1], noise[4]) > 0


def test_noise_moves_with_the_rain(rain: np.ndarray) -> None:
    frames = torch.from_numpy(rain[None, -3:])
    five, one = torch.tensor([5.0]), torch.tensor([1.0])
    bands = statistics(frames, torch.ones_like(frames[:, 0]), step_minutes=five, pixel_km=one)
    far = torch.zeros(STEPS, 2, *rain.shape[1:])
    far[:, 0], far[:, 1] = 3.0, -2.0
    generator = torch.Generator().manual_seed(1)
    moved = torch.stack(list(correlated_noise(frames[0, -1], bands, 0, far, generator)))
    assert torch.equal(moved, noise_of(rain, 1).roll((3, -2), (1, 2)))


def test_ranks_are_those_of_a_sort() -> None:
    noise = torch.randn(7, 5, 4, generator=torch.Generator().manual_seed(0))
    noise[3] = noise[2]  # equal values: the first one ranks lower
    expected = noise.argsort(dim=0, stable=True).argsort(dim=0)
    assert torch.equal(ranks(noise).long(), expected)
    chances = logits_of_ranks(4).sigmoid()
    np.testing.assert_allclose(chances, [0.875, 0.625, 0.375, 0.125], rtol=1e-6)


def test_members_are_the_quantiles_of_each_pixel(rain: np.ndarray, network: NetworkForecaster) -> None:
    members = network.predict(query(rain)).members
    assert members is not None and members.shape == (1, STEPS, MEMBERS, *rain.shape[1:])
    one_hour = Query.for_steps(rain[None, :, None], STEPS, step_minutes=5.0, pixel_km=1.0, thresholds=[0.5, 1, 5])
    chances = box_forecaster().predict(one_hour).probabilities
    assert chances is not None
    for k, threshold in enumerate((0.5, 1, 5)):
        share = (members >= threshold).mean(axis=2)
        # a share of 12 members is within half a member of the probability
        assert np.abs(share - chances[:, :, k]).max() <= 0.5 / MEMBERS + 1e-3


def test_members_are_coherent(rain: np.ndarray, network: NetworkForecaster) -> None:
    """Means over the image differ between them by more than if each pixel had drawn by itself."""
    first, again = (network.predict(query(rain)).members for _ in range(2))
    assert first is not None and again is not None
    np.testing.assert_array_equal(first, again)
    other = network.with_members(MEMBERS, seed=1).predict(query(rain)).members
    assert other is not None
    same = [np.array_equal(a, b) for a in first[0].swapaxes(0, 1) for b in other[0].swapaxes(0, 1)]
    assert not any(same), "another seed gives other members, all of them"
    shuffled = np.random.default_rng(0).permuted(first, axis=2)
    spread, by_itself = (made.mean(axis=(1, 3, 4)).std() for made in (first, shuffled))
    assert spread > 5 * by_itself


def test_who_has_none_says_so(rain: np.ndarray) -> None:
    from raincast.models.heads import RateHead
    from raincast.transforms import RateScaling

    plain = NetworkForecaster(
        torch.nn.Identity(), RateHead(), RateScaling(), name="plain", input_steps=4, lead_steps=6, step_minutes=5.0
    )
    with pytest.raises(ValueError, match="plain has none"):
        plain.as_ensemble(20)
    with pytest.raises(ValueError, match="at least 2"):
        box_forecaster().as_ensemble(1)
