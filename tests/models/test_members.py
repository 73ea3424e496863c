"""Members of a distribution: its quantiles at each pixel, coherent in space and time."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from raincast.forecaster import Query
from raincast.forecasting.network import NetworkForecaster, box_forecaster
from raincast.models.distribution import _fill, decided_rate, quantiles
from raincast.models.members import SMOOTHING, correlated_noise, logit_of_highest, logits_of_ranks, order
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
    generators = [torch.Generator().manual_seed(own) for own in (seed, 100)]
    return torch.stack(
        [fields[0].clone() for fields in correlated_noise(frames[0, -1], bands, 0, far, generators)]
    )


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
    generators = [torch.Generator().manual_seed(1)]
    moved = torch.cat([fields.clone() for fields in correlated_noise(frames[0, -1], bands, 0, far, generators)])
    assert torch.equal(moved, noise_of(rain, 1).roll((3, -2), (1, 2)))


def test_noise_has_the_spectrum_of_the_rain(rain: np.ndarray) -> None:
    """Long after the newest frame, smoothed; of even and odd widths, of whose columns different ones have no mirror image."""
    frames = torch.from_numpy(rain[None, -3:])
    for width in (72, 71):
        own = frames[..., :width]
        bands = statistics(
            own, torch.ones_like(own[:, 0]), step_minutes=torch.tensor([5.0]), pixel_km=torch.ones(1)
        )
        generators = [torch.Generator().manual_seed(seed) for seed in range(60)]
        *_, last = correlated_noise(own[0, -1], bands, 0, torch.zeros(40, 2, 64, width), generators)
        power, observed = (
            torch.fft.rfft2(fields - fields.mean((-2, -1), keepdim=True)).abs().square().mean(0)
            for fields in (last, own[0, -1:])
        )
        k = torch.fft.fftfreq(64)[:, None].square() + torch.fft.rfftfreq(width)[None].square()
        observed *= torch.exp(-4 * (torch.pi * SMOOTHING) ** 2 * k)
        for columns in (slice(0, 1), slice(1, 4), slice(-1, None)):
            share = power[1:, columns].sum() / power.sum() / (observed[1:, columns].sum() / observed.sum())
            assert 0.7 < float(share) < 1.4, (width, columns)


def test_ranks_are_those_of_a_sort() -> None:
    noise = torch.randn(7, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise.gather(0, order(noise)), noise.sort(dim=0).values)
    chances = logits_of_ranks(4).sigmoid()
    np.testing.assert_allclose(chances, [0.875, 0.625, 0.375, 0.125], rtol=1e-6)


def test_the_highest_member_covers_the_tail_evenly() -> None:
    """On the whole its level is uniform within the highest 1 / M, so that the mean of members has no bias."""
    noise = torch.randn(8, 20_000, generator=torch.Generator().manual_seed(0))
    within = 1.0 - 8 * logit_of_highest(noise).sigmoid()
    np.testing.assert_allclose(np.quantile(within, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)
    largest = noise.amax(0)
    assert within[largest > 2].min() > 0.8 > 0.3 > within[largest < 1].max(), "extreme where the noise is extreme"


def test_many_quantiles_at_once_equal_one_after_the_other() -> None:
    g = torch.Generator().manual_seed(0)
    levels = torch.stack([*(4 - 6 * torch.rand(13, 9_000, generator=g).cumsum(0) / 4)])
    levels[:, :50] = levels[:1, :50]  # no fall: all thresholds alike
    levels[:, 50:90] = 20 - torch.arange(13.0)[:, None] / 100  # above the last threshold
    cuts = logits_of_ranks(5)[:, None].repeat(1, 9_000)
    expected = torch.stack(
        [decided_rate(level[None, None, None] - cut for level in levels)[0, 0, 0] for cut in cuts]
    )
    torch.testing.assert_close(quantiles(levels, cuts), expected, rtol=1e-4, atol=1e-4)
    # written in the order of the noise, in blocks of which one is dry and one has few wet pixels
    noise = torch.randn(5, 9_000, generator=g)
    levels[:, 4_096:8_192] = -40.0
    levels[0, 5_000:5_100] = -1.0
    made = torch.zeros(5, 9_000)
    _fill(made, levels, noise)
    cuts[-1] = logit_of_highest(noise)
    ordered = torch.zeros_like(made).scatter_(0, noise.argsort(dim=0), quantiles(levels, cuts))
    torch.testing.assert_close(made, ordered)
    assert not made[:, 4_096:5_000].any() and made[:, 5_000:5_100].any() and made.max() > 50


def test_members_are_the_quantiles_of_each_pixel(rain: np.ndarray, network: NetworkForecaster) -> None:
    members = network.predict(query(rain)).members
    assert members is not None and members.shape == (1, STEPS, MEMBERS, *rain.shape[1:])
    one_hour = Query.for_steps(rain[None, :, None], STEPS, step_minutes=5.0, pixel_km=1.0, thresholds=[0.5, 1, 5])
    chances = box_forecaster().predict(one_hour).probabilities
    assert chances is not None
    for k, threshold in enumerate((0.5, 1, 5)):
        share = (members >= threshold).mean(axis=2)
        error = share - chances[:, :, k]
        # the share of 12 members is within half a member of the probability, or the highest alone decides
        lonely = chances[:, :, k] < 1.0 / MEMBERS
        assert np.abs(error[~lonely]).max() <= 0.5 / MEMBERS + 1e-3
        assert np.abs(error[lonely]).max() <= 1.0 / MEMBERS + 1e-3
        rare = chances[:, :, k] < 0.5 / MEMBERS
        # the middle of the highest rank would never rain there
        assert 0.5 < share[rare].mean() / chances[:, :, k][rare].mean() < 1.3, threshold


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
    with pytest.raises(ValueError, match="plain gives no members"):
        plain.as_ensemble(20)
    with pytest.raises(ValueError, match="at least 2"):
        box_forecaster().as_ensemble(1)
