import numpy as np
import pytest
import scores.probability
import torch
import xarray as xr

from raincast.metrics import error_sums
from raincast.metrics.continuous import mae, rmse
from raincast.metrics.ensemble import (
    EnsembleSums,
    crps,
    ensemble_sums,
    fair_crps,
    mean_rmse,
    rank_histogram,
    spread,
)

DIMS = ("b", "t", "m", "h", "w")
FORMULAS = (crps, fair_crps, spread, mean_rmse)


def fields(seed: int = 0, batch: int = 2, members: int = 5, size: int = 9):
    """Members and observations of one distribution, on multiples of 0.1 mm/h, mostly dry; NaN is masked."""
    g = torch.Generator().manual_seed(seed)
    rain = ((torch.rand(batch, 3, members + 1, size, 8, generator=g) ** 6 * 200).round() / 10 - 2).clamp(min=0)
    target, ensemble = rain[:, :, :1].clone(), rain[:, :, 1:]
    target[torch.rand(target.shape, generator=g) < 0.2] = torch.nan
    return ensemble, target, target.isfinite()


def arrays(ensemble, target):
    """As xarray; the observation without the axis of the members."""
    observed = xr.DataArray(target[:, :, 0].double().numpy(), dims=("b", "t", "h", "w"))
    return xr.DataArray(ensemble.double().numpy(), dims=DIMS), observed


def test_pixel_by_pixel():
    ensemble, target, mask = fields()
    sums = ensemble_sums(ensemble, target, mask)
    assert all(part.shape == (2, 3) for part in sums) and sums.count.dtype == torch.int64
    for b, t in np.ndindex(2, 3):
        seen = mask[b, t, 0]
        y, x = target[b, t, 0][seen].double().numpy(), ensemble[b, t][:, seen].double().numpy()
        error, pairs = np.abs(x - y).mean(0), np.abs(x[:, None] - x[None]).sum((0, 1))
        assert int(sums.count[b, t]) == y.size
        assert float(crps(sums)[b, t]) == pytest.approx((error - pairs / 25 / 2).mean())
        assert float(fair_crps(sums)[b, t]) == pytest.approx((error - pairs / 20 / 2).mean())
        assert float(spread(sums)[b, t]) == pytest.approx(np.sqrt(x.var(0, ddof=1).mean() * 6 / 5))
        assert float(mean_rmse(sums)[b, t]) == pytest.approx(np.sqrt(((x.mean(0) - y) ** 2).mean()))


@pytest.mark.parametrize(("method", "ours"), [("ecdf", crps), ("fair", fair_crps)])
def test_crps_agrees_with_the_package_scores(method, ours):
    ensemble, target, mask = fields(seed=3)
    theirs = scores.probability.crps_for_ensemble(
        *arrays(ensemble, target), "m", method=method, preserve_dims=("b", "t")
    )
    np.testing.assert_allclose(ours(ensemble_sums(ensemble, target, mask)), theirs, atol=1e-6)


def test_rank_histogram_agrees_with_the_package_scores():
    ensemble, target, mask = fields(seed=3)
    theirs = scores.probability.rank_histogram(*arrays(ensemble, target), "m", preserve_dims=("b", "t"))
    counts = rank_histogram(ensemble, target, mask)
    np.testing.assert_allclose(counts / counts.sum(-1, keepdim=True), theirs, atol=1e-6)


def test_agrees_with_xskillscore():
    xskillscore = pytest.importorskip("xskillscore")
    ensemble, target, mask = fields(seed=4)
    members, observed = arrays(ensemble, target)
    theirs = xskillscore.crps_ensemble(observed, members, member_dim="m", dim=[]).mean(("h", "w"))
    np.testing.assert_allclose(crps(ensemble_sums(ensemble, target, mask)), theirs, atol=1e-6)


def test_one_member_is_its_mae():
    ensemble, target, mask = fields(members=1)
    sums, errors = ensemble_sums(ensemble, target, mask), error_sums(ensemble, target, mask)
    torch.testing.assert_close(crps(sums), mae(errors), rtol=1e-6, atol=0)
    torch.testing.assert_close(mean_rmse(sums), rmse(errors), rtol=1e-6, atol=0)
    assert fair_crps(sums).isnan().all() and spread(sums).isnan().all()


def test_members_that_are_all_right_score_perfectly():
    _, target, mask = fields()
    sums = ensemble_sums(target.expand(-1, -1, 4, -1, -1), target, mask)
    for formula in FORMULAS:
        assert formula(sums).abs().max() < 1e-12, formula.__name__
    counts = rank_histogram(target.expand(-1, -1, 4, -1, -1), target, mask)
    torch.testing.assert_close(counts, (mask.sum((2, 3, 4)) / 5)[..., None].expand(-1, -1, 5).double())


def test_a_dry_ensemble_scores_the_rain_it_misses():
    ensemble, target, mask = fields()
    mean = (target.nan_to_num() * mask).double().sum((2, 3, 4)) / mask.sum((2, 3, 4))
    dry = ensemble_sums(0 * ensemble, target, mask)
    torch.testing.assert_close(crps(dry), mean)
    assert not spread(dry).any()


def test_a_reliable_ensemble_is_flat_and_as_wide_as_its_error():
    """Observation and members are drawn alike; a narrow ensemble gets its edges full, a wet one its first rank."""
    ensemble, target, mask = fields(batch=8, size=400)
    sums = EnsembleSums(*(part.sum() for part in ensemble_sums(ensemble, target, mask)))
    assert float(spread(sums) / mean_rmse(sums)) == pytest.approx(1, abs=0.03)
    frequencies = (counts := rank_histogram(ensemble, target, mask).sum((0, 1))) / counts.sum()
    torch.testing.assert_close(frequencies, torch.full((6,), 1 / 6).double(), atol=5e-3, rtol=0)
    middle = ensemble.mean(2, keepdim=True)
    narrow = rank_histogram(middle + (ensemble - middle) / 10, target, mask).sum((0, 1))
    assert narrow[0] + narrow[-1] > 0.5 * narrow.sum()
    wet = rank_histogram(ensemble + 5, target, mask).sum((0, 1))
    assert wet.argmax() == 0


def test_fair_crps_does_not_depend_on_the_number_of_members():
    """The same draws scored as ensembles of 20 and of 2: only plain CRPS punishes the few."""
    ensemble, target, mask = fields(batch=4, members=20, size=200)
    many, few = (
        EnsembleSums(*(part.sum() for part in ensemble_sums(e, target, mask)))
        for e in (ensemble, ensemble[:, :, :2])
    )
    assert float(fair_crps(few)) == pytest.approx(float(fair_crps(many)), rel=0.02)
    assert float(crps(few)) > 1.2 * float(crps(many))


def test_batches_and_ranks_add_up_to_the_whole():
    ensemble, target, mask = fields(batch=5)
    slices = (slice(2), slice(2, 5))
    whole = EnsembleSums(*(part.sum(0) for part in ensemble_sums(ensemble, target, mask)))
    ranks = [ensemble_sums(ensemble[s], target[s], mask[s]) for s in slices]
    merged = EnsembleSums(*(a.sum(0) + b.sum(0) for a, b in zip(*ranks, strict=True)))
    for formula in FORMULAS:
        torch.testing.assert_close(formula(merged), formula(whole))
    counts = [rank_histogram(ensemble[s], target[s], mask[s]).sum(0) for s in slices]
    torch.testing.assert_close(counts[0] + counts[1], rank_histogram(ensemble, target, mask).sum(0))


@pytest.mark.parametrize("rubbish", [99.0, torch.nan, torch.inf])
def test_masked_pixels_count_nowhere(rubbish):
    ensemble, target, mask = fields()
    dirt = ensemble.masked_fill(~mask, rubbish), target.masked_fill(~mask, rubbish), mask
    clean = ensemble_sums(ensemble, target, mask)
    assert all(torch.equal(a, b) for a, b in zip(clean, ensemble_sums(*dirt), strict=True))
    assert torch.equal(rank_histogram(ensemble, target, mask), rank_histogram(*dirt))


def test_nothing_to_score_is_nan_and_nan_inside_the_mask_is_refused():
    ensemble, target, mask = fields()
    nothing = ensemble_sums(ensemble, target, torch.zeros_like(mask))
    assert all(formula(nothing).isnan().all() for formula in FORMULAS)
    ensemble[:, :, 2] = torch.nan  # one member alone
    for function in (ensemble_sums, rank_histogram):
        with pytest.raises(ValueError, match="ensemble has NaN in"):
            function(ensemble, target, mask)
