import math
from itertools import pairwise

import pytest
import torch

from raincast.losses import BalancedLoss, ClassLoss, OrdinalLoss, QuantileLoss
from raincast.transforms import DbzScaling, LogScaling

HKO = DbzScaling(a=58.53, b=1.56)
THRESHOLDS = (0.5, 2.0, 5.0, 10.0, 30.0)
WEIGHTS = (1.0, 1.0, 2.0, 5.0, 10.0, 30.0)


def batch(seed: int = 0, shape: tuple[int, ...] = (2, 3, 1, 8, 9)):
    g = torch.Generator().manual_seed(seed)
    rates = [torch.rand(shape, generator=g, dtype=torch.float64) ** 6 * 60 for _ in range(2)]
    mask = torch.rand(shape, generator=g) > 0.2
    return rates[0], rates[1], mask


@pytest.mark.parametrize("transform", [HKO, DbzScaling(), LogScaling()])
def test_equals_a_loop_over_pixels(transform):
    pred_rate, rate, mask = batch()
    pred, target = transform.forward(pred_rate), transform.forward(rate)
    total = 0.0
    for p, t, r, m in zip(pred.flatten(), target.flatten(), rate.flatten(), mask.flatten(), strict=True):
        weight = WEIGHTS[sum(float(r) >= threshold for threshold in THRESHOLDS)]
        total += float(m) * weight * (2.0 * float(p - t) ** 2 + 0.5 * abs(float(p - t)))
    loss = BalancedLoss(transform, mse_weight=2.0, mae_weight=0.5)(pred, target, mask)
    assert float(loss) == pytest.approx(total / target.numel(), rel=1e-6)


@pytest.mark.parametrize("transform", [HKO, DbzScaling(), LogScaling()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 37])  # a single value and a vector may round their logarithms apart
def test_a_rate_at_a_threshold_lies_in_the_upper_bin(transform, dtype, size):
    loss = BalancedLoss(transform, mse_weight=0.0)
    for threshold, weight in zip(THRESHOLDS, WEIGHTS[1:], strict=True):
        target = transform.forward(torch.full((1, 1, 1, 1, size), threshold, dtype=dtype))
        value = loss(target + 0.125, target, torch.ones_like(target, dtype=torch.bool))
        assert float(value) == pytest.approx(0.125 * weight, rel=1e-4)


def test_just_below_a_threshold_lies_in_the_lower_bin():
    target = HKO.forward(torch.full((1, 1, 1, 1, 1), 29.99))
    value = BalancedLoss(HKO, mse_weight=0.0)(target + 0.1, target, torch.ones_like(target, dtype=torch.bool))
    assert float(value) == pytest.approx(0.1 * 10, rel=1e-4)


def test_published_bounds():
    # Shi et al. 2017: the thresholds as HKO-7 pixels
    bounds = BalancedLoss(HKO).bounds
    torch.testing.assert_close(bounds, torch.tensor([0.3283, 0.4624, 0.5511, 0.6182, 0.7245]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rubbish", [7.0, float("nan"), float("inf")])
def test_masked_pixels_change_neither_value_nor_gradient(rubbish):
    def run(fill: float):
        pred_rate, rate, mask = batch()
        forecast, target = HKO.forward(pred_rate), HKO.forward(rate)
        pred = forecast.masked_fill(~mask, fill).requires_grad_()
        loss = BalancedLoss(HKO)(pred, target.masked_fill(~mask, fill), mask)
        loss.backward()
        return loss.detach(), pred.grad, mask, forecast != target

    clean, clean_grad, mask, wrong = run(0.0)
    dirty, dirty_grad, _, _ = run(rubbish)
    assert clean == dirty
    torch.testing.assert_close(clean_grad, dirty_grad, rtol=0, atol=0)
    assert not dirty_grad[~mask].any()
    assert dirty_grad[mask & wrong].all()


def test_zero_for_a_perfect_forecast_and_for_an_empty_mask():
    pred_rate, rate, mask = batch()
    pred, target, loss = HKO.forward(pred_rate), HKO.forward(rate), BalancedLoss(HKO)
    assert loss(target, target, mask) == 0
    assert loss(pred, target, torch.zeros_like(mask)) == 0


def test_mean_over_equal_ranks_is_one_process_and_size_does_not_matter():
    pred_rate, rate, mask = batch()
    pred, target, loss = HKO.forward(pred_rate), HKO.forward(rate), BalancedLoss(HKO)
    whole = loss(pred, target, mask)
    ranks = [loss(pred[b : b + 1], target[b : b + 1], mask[b : b + 1]) for b in range(2)]
    torch.testing.assert_close(torch.stack(ranks).mean(), whole)
    tiled = (1, 1, 1, 2, 2)
    torch.testing.assert_close(loss(pred.repeat(tiled), target.repeat(tiled), mask.repeat(tiled)), whole)


def test_half_precision_forecasts_are_compared_in_the_targets_precision():
    pred_rate, rate, mask = batch()
    target = HKO.forward(rate).float()
    value = BalancedLoss(HKO)(HKO.forward(pred_rate).bfloat16(), target, mask)
    assert value.dtype == torch.float32


def test_nothing_is_saved_with_the_weights():
    assert BalancedLoss(HKO).state_dict() == {}


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="5 thresholds cut 6 bins, found 2 weights"):
        BalancedLoss(HKO, weights=(1.0, 2.0))
    with pytest.raises(ValueError, match="must increase"):
        BalancedLoss(HKO, thresholds=(2.0, 1.0), weights=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="outside the range"):
        BalancedLoss(LogScaling(max_rate=20.0), thresholds=(20.0, 30.0), weights=(1.0, 1.0, 1.0))


CLASSES = (0.5, 2.0, 10.0)
LEVELS = (0.1, 0.5, 0.9, 0.99)
DISTRIBUTIONS = [
    ClassLoss(HKO, thresholds=CLASSES),
    ClassLoss(HKO, thresholds=CLASSES, weights=(0.5, 1.0, 3.0, 10.0)),
    OrdinalLoss(HKO, thresholds=CLASSES),
    OrdinalLoss(HKO, thresholds=CLASSES, weights=(0.5, 1.0, 3.0)),
    QuantileLoss(HKO, levels=LEVELS),
    QuantileLoss(HKO, levels=LEVELS, weights=(0.5, 1.0, 3.0, 10.0)),
]
any_distribution = pytest.mark.parametrize(
    "loss",
    DISTRIBUTIONS,
    ids=[f"{type(loss).__name__}-{'weighted' if loss.weights.std() else 'equal'}" for loss in DISTRIBUTIONS],
)


def distribution(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four channels, a target in network units, and a mask."""
    _, rate, mask = batch(seed)
    pred = torch.randn(2, 3, 4, 8, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return pred, HKO.forward(rate), mask


def pixel_loss(loss, pred: list[float], rate: float) -> float:
    """By its definition, for one pixel."""
    weights = loss.weights.tolist()
    if isinstance(loss, QuantileLoss):
        errors = [float(HKO.forward(torch.tensor(rate, dtype=torch.float64))) - q for q in pred]
        costs = [level * e if e > 0 else (level - 1) * e for level, e in zip(LEVELS, errors, strict=True)]
        return sum(w * cost for w, cost in zip(weights, costs, strict=True)) / len(LEVELS)
    powers = [math.exp(z) for z in pred]
    p = [power / sum(powers) for power in powers]
    if isinstance(loss, ClassLoss):
        observed = sum(rate >= threshold for threshold in CLASSES)
        return -weights[observed] * math.log(p[observed])
    reached = [sum(p[k:]) for k in (1, 2, 3)]
    surprises = [-math.log(g if rate >= t else 1 - g) for g, t in zip(reached, CLASSES, strict=True)]
    return sum(w * surprise for w, surprise in zip(weights, surprises, strict=True))


@any_distribution
def test_a_distributions_loss_equals_a_loop_over_pixels(loss):
    pred, _, mask = distribution()
    _, rate, _ = batch()
    total = 0.0
    for channels, r, m in zip(pred.movedim(2, -1).flatten(0, -2), rate.flatten(), mask.flatten(), strict=True):
        total += float(m) * pixel_loss(loss, channels.tolist(), float(r))
    assert float(loss(pred, HKO.forward(rate), mask)) == pytest.approx(total / rate.numel(), rel=1e-6)


@any_distribution
@pytest.mark.parametrize("rubbish", [7.0, -1e4, float("nan"), float("inf")])
def test_masked_pixels_of_a_distribution_change_neither_value_nor_gradient(loss, rubbish):
    def run(fill: float):
        pred, target, mask = distribution()
        pred = torch.where(mask, pred, fill).requires_grad_()
        value = loss(pred, target.masked_fill(~mask, fill), mask)
        value.backward()
        return value.detach(), pred.grad, mask.expand_as(pred)

    clean, clean_grad, mask = run(0.0)
    dirty, dirty_grad, _ = run(rubbish)
    assert clean == dirty and clean.isfinite()
    torch.testing.assert_close(clean_grad, dirty_grad, rtol=0, atol=0)
    assert not dirty_grad[~mask].any() and dirty_grad[mask].all()


@any_distribution
def test_a_distributions_loss_averages_over_ranks_and_does_not_depend_on_size(loss):
    pred, target, mask = distribution()
    whole = loss(pred, target, mask)
    ranks = [loss(pred[b : b + 1], target[b : b + 1], mask[b : b + 1]) for b in range(2)]
    torch.testing.assert_close(torch.stack(ranks).mean(), whole)
    tiled = (1, 1, 1, 2, 2)
    torch.testing.assert_close(loss(pred.repeat(tiled), target.repeat(tiled), mask.repeat(tiled)), whole)
    assert loss(pred, target, torch.zeros_like(mask)) == 0
    assert loss(pred.bfloat16(), target.float(), mask).dtype == torch.float32
    assert loss.state_dict() == {}


@any_distribution
def test_gradients_of_a_distributions_loss_are_those_of_differences(loss):
    pred, target, mask = (values[:1, :1, :, :2, :2] for values in distribution())
    assert torch.autograd.gradcheck(lambda p: loss(p, target, mask), (pred.clone().requires_grad_(),))


def test_cross_entropies_of_no_knowledge():
    _, target, mask = distribution()
    mask = torch.ones_like(mask)
    nothing = torch.zeros(2, 3, 4, 8, 9, dtype=torch.float64)
    assert float(ClassLoss(HKO, thresholds=CLASSES)(nothing, target, mask)) == pytest.approx(math.log(4))
    # of four equal classes 3, 2 and 1 quarters reach the thresholds
    dry = torch.zeros_like(target)
    expected = -sum(math.log(1 - k / 4) for k in (3, 2, 1))
    assert float(OrdinalLoss(HKO, thresholds=CLASSES)(nothing, dry, mask)) == pytest.approx(expected)


@pytest.mark.parametrize("kind", [ClassLoss, OrdinalLoss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_perfect_logits_cost_nothing_and_sure_mistakes_cost_their_logit(kind, dtype):
    """No rounding of probabilities to 0 or 1: a hundred nats of error are a hundred nats of loss, with a gradient."""
    rates = torch.tensor([0.0, 0.5, 3.0, 10.0], dtype=dtype).view(1, 1, 1, 1, 4)
    target, mask = HKO.forward(rates), torch.ones(1, 1, 1, 1, 4, dtype=torch.bool)
    logits = 100 * torch.eye(4, dtype=dtype).view(1, 1, 4, 1, 4)
    loss = kind(HKO, thresholds=CLASSES)
    assert float(loss(logits, target, mask)) == pytest.approx(0, abs=1e-30)
    wrong = logits.flip(2).requires_grad_()
    value = loss(wrong, target, mask)
    value.backward()
    # off by 3, 1, 1, 3 classes: so many thresholds are misjudged, each by 100 less the ln of 1, 2 or 3 classes
    assert value.item() == pytest.approx(100 if kind is ClassLoss else 100 * 8 / 4, rel=0.01)
    assert wrong.grad.abs().sum((2, 3)).min() > 0.2


def test_only_the_ordinal_loss_knows_the_order():
    target = HKO.forward(torch.full((1, 1, 1, 1, 1), 20.0))
    mask = torch.ones_like(target, dtype=torch.bool)
    near_to_far = [20 * torch.eye(4)[k].view(1, 1, 4, 1, 1) for k in (2, 1, 0)]
    costs = {
        kind: [float(kind(HKO, thresholds=CLASSES)(z, target, mask)) for z in near_to_far]
        for kind in (ClassLoss, OrdinalLoss)
    }
    assert costs[ClassLoss] == pytest.approx([costs[ClassLoss][0]] * 3)
    assert all(b > a + 15 for a, b in pairwise(costs[OrdinalLoss]))


def test_two_classes_are_the_same_to_both():
    pred, target, mask = distribution()
    losses = [kind(HKO, thresholds=(2.0,))(pred[:, :, :2], target, mask) for kind in (ClassLoss, OrdinalLoss)]
    torch.testing.assert_close(*losses)


def test_pinball_at_one_half_is_half_the_absolute_error():
    pred, target, mask = distribution()
    median = pred[:, :, :1]
    expected = torch.where(mask, (median - target).abs(), 0.0).mean() / 2
    torch.testing.assert_close(QuantileLoss(HKO, levels=(0.5,))(median, target, mask), expected)


def test_pinball_is_smallest_at_the_quantiles_of_the_targets():
    target = torch.rand(1, 1, 1, 40, 25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones_like(target, dtype=torch.bool)
    best = torch.quantile(target.flatten(), torch.tensor(LEVELS, dtype=torch.float64))
    loss = QuantileLoss(HKO, levels=LEVELS)

    def at(quantiles: torch.Tensor) -> torch.Tensor:
        return loss(quantiles.view(1, 1, 4, 1, 1).expand(1, 1, 4, 40, 25), target, mask)

    for k in range(4):
        for step in (-0.02, 0.02):
            assert at(best + step * torch.eye(4, dtype=torch.float64)[k]) > at(best)


@any_distribution
def test_another_number_of_channels_is_refused(loss):
    pred, target, mask = distribution()
    with pytest.raises(ValueError, match=r"predictions \(B, T, 4, H, W\).*belongs to the head"):
        loss(pred[:, :, :3], target, mask)
    with pytest.raises(ValueError, match=r"predictions \(B, T, 1, H, W\).*belongs to the head"):
        BalancedLoss(HKO)(pred, target, mask)


def test_wrong_numbers_of_a_distribution_are_refused():
    for kind, count in ((ClassLoss, "4 classes"), (OrdinalLoss, "3 thresholds")):
        with pytest.raises(ValueError, match="must increase"):
            kind(HKO, thresholds=(2.0, 1.0))
        with pytest.raises(ValueError, match=f"There are {count}, found 2 weights"):
            kind(HKO, thresholds=CLASSES, weights=(1.0, 2.0))
    with pytest.raises(ValueError, match="There are 4 levels, found 1 weights"):
        QuantileLoss(HKO, levels=LEVELS, weights=(1.0,))
    for levels in ((), (0.0, 0.5), (0.9, 0.1)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            QuantileLoss(HKO, levels=levels)
