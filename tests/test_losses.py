import pytest
import torch

from raincast.losses import BalancedLoss
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
