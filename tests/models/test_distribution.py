"""The distribution head: areas, cuts, rates and probabilities, each against its definition."""

import math

import pytest
import torch

from raincast.losses import DistributionLoss
from raincast.models.distribution import (
    DistributionHead,
    area_cuts,
    area_shift,
    best_cuts,
    decided_rate,
    expected_rate,
    quantiles,
)
from raincast.transforms import THRESHOLDS, UNKNOWN, DbzScaling, RateScaling

SCALE = RateScaling()


def output(seed: int = 0, size: int = 40, steps: int = 2) -> torch.Tensor:
    """Smooth logits that fall with the threshold, and rain that has moved: (1, steps, K + 1, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, steps, 6, 6, generator=generator)
    location = 2.0 * torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    logits = torch.stack([(location - math.log(t)) / 0.6 for t in THRESHOLDS], dim=2)
    return torch.cat([logits, location.exp()[:, :, None]], dim=2)


def test_rates_by_area_reach_each_threshold_as_often_as_is_expected() -> None:
    head = DistributionHead(area_step=False)
    made = head.rates(output(), SCALE)
    probability = head.exceedance(output(), THRESHOLDS, SCALE)
    for k, threshold in enumerate(THRESHOLDS[:9]):
        expected = float(probability[:, :, k].sum())
        assert float((made >= threshold * (1 - 1e-5)).sum()) == pytest.approx(expected, rel=0.03, abs=6)


def test_matched_rates_are_distributed_as_the_moved_frame() -> None:
    made = DistributionHead(rates_by="matched").rates(output(), SCALE)
    newest = output()[:, :, -1]
    for threshold in (0.1, 1.0, 5.0):
        assert float((made >= threshold * (1 - 1e-5)).sum()) == pytest.approx(
            float((newest >= threshold).sum()), rel=0.03
        )


def test_the_best_cut_has_the_largest_expected_csi() -> None:
    logits = output()[:, :, :-1]
    cut = best_cuts(logits)[0, 0, 3]
    chance = logits[0, 0, 3].sigmoid().flatten()

    def expected(cut: float) -> float:
        reached = chance >= torch.tensor(cut).sigmoid()
        return float(chance[reached].sum() / (reached.sum() + chance[~reached].sum()))

    best = max(expected(-4 + 0.01 * n) for n in range(600))
    assert expected(float(cut)) == pytest.approx(best, abs=2e-3)


def test_the_mean_is_the_integral_of_the_probabilities() -> None:
    """Of an exponential distribution with a mean of 3 mm/h."""
    chances = [torch.full((1, 1, 1, 1), math.exp(-t / 3.0)) for t in THRESHOLDS]
    assert float(expected_rate(chances)) == pytest.approx(3.0, rel=0.05)


def test_the_area_step_takes_the_geometric_mean() -> None:
    given = output()
    logits, newest = given[:, :, :-1], given[:, :, -1:]
    shift = area_shift(logits, newest)
    for k in (0, 3, 6):
        own, flow = logits[0, 0, k].sigmoid().sum(), (newest[0, 0] >= THRESHOLDS[k]).sum()
        after = (logits[0, 0, k] + shift[0, 0, k]).sigmoid().sum()
        assert float(after) == pytest.approx(float((own * flow).sqrt()), rel=1e-3)
    unseen = torch.full_like(newest, UNKNOWN)
    assert not area_shift(logits, unseen).any(), "where the flow knows nothing it has no say"


def test_an_output_that_was_stepped_once_gives_the_same() -> None:
    raw, head = output(), DistributionHead()
    expected = head.rates(raw, RateScaling()), head.exceedance(raw, [1.0], RateScaling())
    stepped = raw.clone()
    plain = head.stepped(stepped)
    assert not torch.equal(stepped, raw) and plain.stepped(stepped) is plain
    for found, known in zip(
        (plain.rates(stepped, RateScaling()), plain.exceedance(stepped, [1.0], RateScaling())),
        expected,
        strict=True,
    ):
        torch.testing.assert_close(found, known)


def test_rates_rise_without_steps() -> None:
    """Along a line on which the location rises evenly, the rate does too: no plateau at a threshold.

    Above the last threshold it rises with the fourth root: so much rarer is such rain.
    """
    location = torch.linspace(-3.5, 4.5, 400)[None, None, None]
    rate = decided_rate(location - math.log(t) for t in THRESHOLDS)[0, 0, 0]
    wet, expected, last = rate > 0, location[0, 0, 0].exp(), THRESHOLDS[-1]
    expected = torch.where(expected > last, last * (expected / last) ** 0.25, expected)
    torch.testing.assert_close(rate[wet], expected[wet], rtol=1e-3, atol=0)
    assert float(rate[wet].min()) >= 0.1 * (1 - 1e-5)


def test_rain_above_the_last_threshold_is_not_twice_as_heavy_because_two_logits_are_alike() -> None:
    """The logits of 35 and 50 mm/h are the same: nothing says how fast they fall, so the climate does."""
    levels = torch.tensor([6.0 - 0.3 * k for k in range(len(THRESHOLDS) - 2)] + [1.0, 1.0])
    rate = decided_rate(level[None] for level in levels)
    torch.testing.assert_close(rate, torch.tensor([50.0 * math.exp(1.0 / 4.0)]))
    torch.testing.assert_close(quantiles(levels[:, None], torch.zeros(1, 1))[0], rate)
    shaped = torch.cat([levels, torch.zeros(1)])[None, None, :, None, None]
    found = DistributionHead(area_step=False).exceedance(shaped, [50.0, 100.0], SCALE).flatten().logit()
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0 - 4.0 * math.log(2.0)]))


def test_probabilities_are_those_at_the_thresholds_and_fall_between_them() -> None:
    head = DistributionHead(area_step=False)
    asked = [0.05, 0.1, 0.3, 1.0, 4.0, 50.0, 80.0]
    found = head.exceedance(output(), asked, SCALE)
    logits = output()[:, :, :-1]
    torch.testing.assert_close(found[:, :, 1], logits[:, :, 0].sigmoid())
    torch.testing.assert_close(found[:, :, 3], logits[:, :, 3].sigmoid())
    assert (found.diff(dim=2) <= 1e-6).all()
    assert (found[:, :, -1] < found[:, :, -2]).any()


def test_dry_stays_dry_and_no_pixel_is_cut_when_none_is_expected() -> None:
    dry = torch.full((1, 1, len(THRESHOLDS) + 1, 8, 8), -12.0)
    dry[:, :, -1] = 0.0
    for decision in ("area", "csi", "matched"):
        assert not DistributionHead(rates_by=decision).rates(dry, SCALE).any()
    cuts = area_cuts(dry[:, :, :-1], torch.zeros(1, 1, len(THRESHOLDS)))
    assert (cuts > -12.0).all()


@pytest.mark.parametrize("decision", ["area", "csi", "mean", "matched"])
def test_where_nothing_is_known_it_does_not_rain(decision: str) -> None:
    """All rain comes from outside: no cut can be found, and none may let everything through."""
    dry = torch.full((1, 2, len(THRESHOLDS) + 1, 12, 12), -7.0)
    dry[:, :, -1] = UNKNOWN
    assert float(DistributionHead(rates_by=decision).rates(dry, SCALE).max()) < 0.1


def test_refusals() -> None:
    with pytest.raises(ValueError, match="rates_by=best"):
        DistributionHead(rates_by="best")
    with pytest.raises(ValueError, match="transform=rate"):
        DistributionLoss(DbzScaling())


def test_the_loss_is_cross_entropy_and_crps_by_hand_and_leaves_out_what_flows_in() -> None:
    loss = DistributionLoss(SCALE, power=0.0, crps_weight=0.0)
    given = output(size=4, steps=1)
    target, mask = given[:, :, -1:].clone(), torch.ones(1, 1, 1, 4, 4, dtype=torch.bool)
    truth = torch.stack([target[:, :, 0] >= t for t in THRESHOLDS], dim=2)
    chance = given[:, :, :-1].sigmoid()
    expected = -torch.where(truth, chance, 1 - chance).log().sum() / 16
    assert float(loss(given, target, mask)) == pytest.approx(float(expected), rel=1e-4)
    given[..., 0, 0] = UNKNOWN
    mask[..., 1, 1] = False
    target[..., 1, 1] = math.nan
    given.requires_grad_()
    loss(given, target, mask).backward()
    assert given.grad is not None
    assert given.grad.isfinite().all()
    assert not given.grad[..., 0, 0].any() and not given.grad[..., 1, 1].any()
    assert given.grad[..., 2, 2].any()
