import numpy as np
import pytest
import scores.continuous
import torch
import xarray as xr

from raincast.losses import BalancedLoss
from raincast.metrics import ErrorSums, error_sums
from raincast.metrics.categorical import over_frames, reaching
from raincast.metrics.continuous import (
    HKO7_PIXEL,
    BalancedSums,
    balanced_mae,
    balanced_mse,
    balanced_rows,
    correlation,
    hko7_b_mae,
    hko7_b_mse,
    least_rate,
    mae,
    mean_error,
    rmse,
    uncentred_correlation,
)


def fields(shape: tuple[int, ...] = (2, 3, 2, 5, 4)):
    g = torch.Generator().manual_seed(0)
    pred, target = (torch.rand(shape, generator=g) * 10 for _ in range(2))
    return pred, target, torch.rand(shape, generator=g) > 0.3


def balanced_sums(pred, target, mask) -> BalancedSums:
    """(B, T) each, as evaluation sums them."""
    parts = over_frames(lambda p, t, n: balanced_rows(*reaching(p, t, least_rate()), n), pred, target, mask)
    return BalancedSums(*parts)


def test_equals_numbers_taken_one_by_one():
    pred, target, mask = fields()
    sums = error_sums(pred, target, mask)
    assert sums.count.dtype == torch.int64
    assert all(part.shape == (2, 3) for part in sums)
    assert all(part.dtype == torch.float64 for part in sums[1:])
    for b in range(2):
        for t in range(3):
            e = (pred - target)[b, t][mask[b, t]].double()
            assert int(sums.count[b, t]) == len(e)
            want = torch.stack([e.mean(), e.abs().mean(), e.square().mean().sqrt()])
            got = torch.stack([formula(sums)[b, t] for formula in (mean_error, mae, rmse)])
            torch.testing.assert_close(got, want)


def test_sums_merge_by_addition():
    pred, target, mask = fields()
    parts = [error_sums(pred[..., s], target[..., s], mask[..., s]) for s in (slice(0, 1), slice(1, None))]
    merged = ErrorSums(*(a + b for a, b in zip(*parts, strict=True)))
    whole = error_sums(pred, target, mask)
    for formula in (rmse, correlation, uncentred_correlation):
        torch.testing.assert_close(formula(merged), formula(whole))


@pytest.mark.parametrize("rubbish", [99.0, torch.nan, torch.inf])
def test_masked_pixels_count_nowhere(rubbish):
    pred, target, mask = fields()
    dirty = error_sums(pred.masked_fill(~mask, rubbish), target.masked_fill(~mask, rubbish), mask)
    assert all(torch.equal(a, b) for a, b in zip(error_sums(pred, target, mask), dirty, strict=True))


def test_perfect_forecast_and_sign():
    _, target, mask = fields()
    assert not rmse(error_sums(target, target, mask)).any()
    torch.testing.assert_close(mean_error(error_sums(target + 2, target, mask)), torch.full((2, 3), 2.0).double())


@pytest.mark.parametrize("formula", [mean_error, mae, rmse, correlation, uncentred_correlation])
def test_no_pixels_is_nan(formula):
    pred, target, mask = fields()
    assert formula(error_sums(pred, target, torch.zeros_like(mask))).isnan().all()


def test_nan_inside_the_mask_is_refused():
    pred, target, mask = fields()
    pred = pred.clone()
    pred.view(-1)[mask.view(-1).nonzero()[0]] = torch.nan
    with pytest.raises(ValueError, match="pred has NaN in 1 of"):
        error_sums(pred, target, mask)


def test_correlation_agrees_with_the_package_scores():
    pred, target, mask = fields()
    pred = pred + target  # correlated
    dims = ("b", "t", "c", "h", "w")
    theirs = scores.continuous.correlation.pearsonr(
        xr.DataArray(pred.double().numpy(), dims=dims),
        xr.DataArray(target.masked_fill(~mask, torch.nan).double().numpy(), dims=dims),
        preserve_dims=("b", "t"),
    )
    np.testing.assert_allclose(correlation(error_sums(pred, target, mask)), theirs, atol=1e-6)


def test_correlations_by_their_definitions():
    pred, target, mask = fields()
    sums = error_sums(pred, target, mask)
    p, t = (rain[0, 0][mask[0, 0]].double() for rain in (pred, target))
    assert float(correlation(sums)[0, 0]) == pytest.approx(np.corrcoef(p, t)[0, 1], abs=1e-12)
    assert float(uncentred_correlation(sums)[0, 0]) == pytest.approx(float(p @ t / (p.norm() * t.norm())))
    perfect = error_sums(target, target, mask)
    for formula in (correlation, uncentred_correlation):
        torch.testing.assert_close(formula(perfect), torch.ones(2, 3).double())
        torch.testing.assert_close(formula(error_sums(3 * target, target, mask)), formula(perfect))
    # more rain everywhere: the same about the means, another pattern about zero
    wetter = error_sums(target + 5, target, mask)
    torch.testing.assert_close(correlation(wetter), correlation(perfect))
    assert (uncentred_correlation(wetter) < 1).all()


def test_constant_forecasts_have_no_correlation():
    _, target, mask = fields()
    for rate in (0.0, 0.1, 7.3):
        assert correlation(error_sums(torch.full_like(target, rate), target, mask)).isnan().all()
    assert uncentred_correlation(error_sums(0 * target, target, mask)).isnan().all()


def one_channel():
    pred, target, mask = fields((2, 3, 1, 9, 8))
    return pred**2 / 2, target**2 / 2, mask  # up to 50 mm/h: all bins of HKO-7


def test_balanced_errors_pixel_by_pixel():
    pred, target, mask = one_channel()
    target[0, 0, 0, 0, :5] = torch.tensor([0.5, 2.0, 5.0, 10.0, 30.0])  # at a threshold: the upper bin
    mask[0, 0, 0, 0, :5] = True
    sums = balanced_sums(pred, target, mask)
    for b, t in np.ndindex(2, 3):
        squared = absolute = 0.0
        for r, o in zip(pred[b, t][mask[b, t]].tolist(), target[b, t][mask[b, t]].tolist(), strict=True):
            weight = 30 if o >= 30 else 10 if o >= 10 else 5 if o >= 5 else 2 if o >= 2 else 1
            dbz = [10 * np.log10(58.53) + 15.6 * np.log10(max(rate, 1e-9)) for rate in (r, o)]
            error = np.subtract(*np.clip((np.array(dbz) + 10) / 70, 0, 1))
            squared, absolute = squared + weight * error**2, absolute + weight * abs(error)
        n = int(mask[b, t].sum())
        assert float(balanced_mse(sums)[b, t]) == pytest.approx(squared / n, rel=1e-5)
        assert float(balanced_mae(sums)[b, t]) == pytest.approx(absolute / n, rel=1e-5)
        assert float(hko7_b_mse(sums)[b, t]) == pytest.approx(squared, rel=1e-5)


def test_rates_that_are_left_out_are_pixel_0():
    """Networks say a little rain everywhere: it costs no time, and changes no sum."""
    assert 0.0168 < least_rate() < 0.01682827  # 10^((-10 - 10·log10(58.53)) / 15.6) mm/h
    assert not HKO7_PIXEL.forward(torch.tensor([0.0, least_rate()])).any()
    pred, target, mask = (part[:1, :1] for part in one_channel())
    around = least_rate() * torch.tensor([0.9, 0.99999, 1.0, 1.00001, 1.1])
    pred[0, 0, 0, 0, :5], target[0, 0, 0, 0, :5] = around, around.flip(0)
    pred[0, 0, 0, 1:5], target[0, 0, 0, 1:5] = 0.01, 0.0
    sums = balanced_sums(pred, target, mask)
    dense = [torch.where(mask, rain, 0.0).flatten(2)[0] for rain in (pred, target)]
    whole = balanced_rows(*dense, mask.flatten(2).sum(-1)[0])
    for part, expected in zip(sums, whole, strict=True):
        torch.testing.assert_close(part[0], expected, rtol=1e-14, atol=0)


def test_balanced_errors_are_those_the_network_is_trained_on():
    pred, target, mask = one_channel()
    loss = BalancedLoss(HKO7_PIXEL)(HKO7_PIXEL.forward(pred), HKO7_PIXEL.forward(target), mask)
    sums = BalancedSums(*(part.sum() for part in balanced_sums(pred, target, mask)))
    assert sums.frames == 6
    assert float(loss) * 9 * 8 == pytest.approx(float(hko7_b_mse(sums) + hko7_b_mae(sums)), rel=1e-5)


def test_balanced_errors_perfect_masked_merged_and_undefined():
    pred, target, mask = one_channel()
    assert not balanced_mse(balanced_sums(target, target, mask)).any()
    whole = balanced_sums(pred, target, mask)
    parts = [
        balanced_sums(pred[:, :, :, s], target[:, :, :, s], mask[:, :, :, s]) for s in (slice(4), slice(4, 9))
    ]
    merged = BalancedSums(*(a + b for a, b in zip(*parts, strict=True)))
    torch.testing.assert_close(balanced_mse(merged), balanced_mse(whole))
    for rubbish in (99.0, torch.nan, torch.inf):
        dirty = balanced_sums(pred.masked_fill(~mask, rubbish), target.masked_fill(~mask, rubbish), mask)
        assert all(torch.equal(a, b) for a, b in zip(whole, dirty, strict=True))
    nothing = balanced_sums(pred, target, torch.zeros_like(mask))
    for formula in (balanced_mse, balanced_mae, hko7_b_mse, hko7_b_mae):
        assert formula(nothing).isnan().all()
    with pytest.raises(ValueError, match=r"pred has NaN in 291 of 291"):
        balanced_sums(pred * torch.nan, target, mask)
