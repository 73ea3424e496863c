import pytest
import torch

from raincast.metrics import ErrorSums, error_sums
from raincast.metrics.continuous import mae, mean_error, rmse


def fields(shape: tuple[int, ...] = (2, 3, 2, 5, 4)):
    g = torch.Generator().manual_seed(0)
    pred, target = (torch.rand(shape, generator=g) * 10 for _ in range(2))
    return pred, target, torch.rand(shape, generator=g) > 0.3


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
    torch.testing.assert_close(rmse(merged), rmse(error_sums(pred, target, mask)))


@pytest.mark.parametrize("rubbish", [99.0, torch.nan, torch.inf])
def test_masked_pixels_count_nowhere(rubbish):
    pred, target, mask = fields()
    dirty = error_sums(pred.masked_fill(~mask, rubbish), target.masked_fill(~mask, rubbish), mask)
    assert all(torch.equal(a, b) for a, b in zip(error_sums(pred, target, mask), dirty, strict=True))


def test_perfect_forecast_and_sign():
    _, target, mask = fields()
    assert not rmse(error_sums(target, target, mask)).any()
    torch.testing.assert_close(mean_error(error_sums(target + 2, target, mask)), torch.full((2, 3), 2.0).double())


@pytest.mark.parametrize("formula", [mean_error, mae, rmse])
def test_no_pixels_is_nan(formula):
    pred, target, mask = fields()
    assert formula(error_sums(pred, target, torch.zeros_like(mask))).isnan().all()


def test_nan_inside_the_mask_is_refused():
    pred, target, mask = fields()
    pred = pred.clone()
    pred.view(-1)[mask.view(-1).nonzero()[0]] = torch.nan
    with pytest.raises(ValueError, match="pred: 1 pixels, target: 0 pixels"):
        error_sums(pred, target, mask)
