import numpy as np
import properscoring
import pytest
import scores.probability
import torch
import xarray as xr
from scipy.ndimage import gaussian_filter

from raincast.metrics import error_sums
from raincast.metrics.continuous import mae, rmse
from raincast.metrics.ensemble import (
    LAGS,
    EnsembleSums,
    MultivariateSums,
    areal_means,
    crps,
    energy_score,
    ensemble_sums,
    fair_crps,
    fair_energy_score,
    mean_rmse,
    multivariate_sums,
    rank_histogram,
    spread,
    variogram_score,
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


FIELD_FORMULAS = (energy_score, fair_energy_score, variogram_score)


def maps(batch: int = 2, members: int = 4, size: tuple[int, int] = (11, 13), seed: int = 0):
    """Members and observations of one distribution, in mm/h, with holes in the observation."""
    noise = np.random.default_rng(seed).normal(size=(batch, 3, members + 1, *size))
    rain = np.maximum(3 * gaussian_filter(noise, (0, 0, 0, 1.5, 1.5)), 0).astype(np.float32)
    rain = torch.from_numpy(rain)
    target, ensemble = rain[:, :, :1].clone(), rain[:, :, 1:].clone()
    target[torch.rand(target.shape, generator=torch.Generator().manual_seed(seed)) < 0.2] = torch.nan
    return ensemble, target, target.isfinite()


def test_means_are_over_counted_pixels_of_whole_boxes() -> None:
    ensemble, target, mask = maps()
    mask[0, 1, 0, 1:4, :4] = False  # the first row alone is left: less than half of the box
    x, y, counted = areal_means(ensemble, target, mask, size=4)
    assert x.shape == (2, 3, 4, 2, 3) and y.shape == counted.shape == (2, 3, 1, 2, 3)
    assert not counted[0, 1, 0, 0, 0] and counted.sum() > 30
    for b, t, _, v, u in counted.nonzero().tolist():
        box = slice(4 * v, 4 * v + 4), slice(4 * u, 4 * u + 4)
        seen = mask[b, t, 0][box]
        assert seen.float().mean() >= 0.5
        np.testing.assert_allclose(y[b, t, 0, v, u], target[b, t, 0][box][seen].double().mean())
        np.testing.assert_allclose(x[b, t, :, v, u], ensemble[b, t][:, box[0], box[1]][:, seen].double().mean(1))


def test_a_box_of_one_pixel_is_the_pixel_and_one_larger_than_the_field_has_no_place() -> None:
    ensemble, target, mask = maps()
    boxes = areal_means(ensemble, target, mask, size=1)
    torch.testing.assert_close(crps(ensemble_sums(*boxes)), crps(ensemble_sums(ensemble, target, mask)))
    none = areal_means(ensemble, target, mask, size=12)
    sums = multivariate_sums(*none)
    assert not any(part.nan_to_num().any() for part in sums) and not rank_histogram(*none).any()
    assert all(formula(sums).isnan().all() for formula in FIELD_FORMULAS)


def test_by_hand() -> None:
    """Two members in two boxes: (0, 0) and (3, 4), where (0, 0) was observed."""
    ensemble, target = torch.tensor([[[[[0.0, 0.0]], [[3.0, 4.0]]]]]), torch.zeros(1, 1, 1, 1, 2)
    sums = multivariate_sums(ensemble, target, torch.ones_like(target).bool())
    # (0 + 5) / 2 − 2·5 / (2·4) = 1.25, fair 2.5 − 2·5 / (2·2) = 0; both over √2
    assert float(energy_score(sums)) == pytest.approx(1.25 / 2**0.5)
    assert float(fair_energy_score(sums)) == pytest.approx(0)
    # (0 − (0 + √1) / 2)²
    assert float(variogram_score(sums)) == pytest.approx(0.25)


def test_against_brute_force_and_the_crps_of_one_box() -> None:
    ensemble, target, mask = maps()
    sums = multivariate_sums(ensemble, target, mask)
    for b, t in np.ndindex(2, 3):
        seen = mask[b, t, 0]
        x, y = ensemble[b, t][:, seen].double().numpy(), target[b, t, 0][seen].double().numpy()
        error = np.linalg.norm(x - y, axis=1).mean()
        pairs = np.linalg.norm(x[:, None] - x[None], axis=2).sum()
        root = np.sqrt(y.size)
        assert float(energy_score(sums)[b, t]) == pytest.approx((error - pairs / 16 / 2) / root)
        assert float(fair_energy_score(sums)[b, t]) == pytest.approx((error - pairs / 12 / 2) / root)
        at, total, weights = seen.nonzero().tolist(), 0.0, 0.0
        for (i, j), (k, m) in ((one, other) for one in at for other in at):
            lag = (k - i) + (m - j)
            if (k - i and m - j) or lag not in LAGS:
                continue
            observed = abs(float(target[b, t, 0, i, j]) - float(target[b, t, 0, k, m])) ** 0.5
            forecast = (ensemble[b, t, :, i, j] - ensemble[b, t, :, k, m]).abs().sqrt().mean()
            total, weights = total + (observed - float(forecast)) ** 2 / lag, weights + 1 / lag
        assert float(variogram_score(sums)[b, t]) == pytest.approx(total / weights, rel=1e-5)
    one = (part[..., :1, :1] for part in (ensemble, target.nan_to_num(), torch.ones_like(mask)))
    single = multivariate_sums(*one)
    known = properscoring.crps_ensemble(target.nan_to_num()[:, :, 0, 0, 0], ensemble[:, :, :, 0, 0])
    np.testing.assert_allclose(energy_score(single), known, atol=1e-6)
    assert variogram_score(single).isnan().all(), "one box has no pairs"


def test_members_in_the_wrong_order_are_found_out_though_every_pixel_is_right() -> None:
    """Permuted at each pixel by itself an ensemble has the same CRPS there, and a worse one of every mean."""
    ensemble, target, mask = maps(batch=6, members=12, size=(32, 32))
    shuffled = torch.from_numpy(np.random.default_rng(0).permuted(ensemble.numpy(), axis=2))

    def scores(members: torch.Tensor, size: int) -> list[float]:
        boxes = areal_means(members, target, mask, size=size)
        whole = MultivariateSums(*(part.sum() for part in multivariate_sums(*boxes)))
        sums = ensemble_sums(*boxes)
        mean = float((sums.absolute_error - 0.5 * sums.fair_difference).sum() / sums.count.sum())
        return [mean, *(float(formula(whole)) for formula in FIELD_FORMULAS)]

    right, wrong = scores(ensemble, 1), scores(shuffled, 1)
    assert right[0] == pytest.approx(wrong[0]) and right[2] < wrong[2] and 1.3 * right[3] < wrong[3]
    right, wrong = scores(ensemble, 4), scores(shuffled, 4)
    assert 1.05 * right[0] < wrong[0] and right[2] < wrong[2]
    ranks = [rank_histogram(*areal_means(m, target, mask, size=4)).sum((0, 1)) for m in (ensemble, shuffled)]
    flat, steep = (counts / counts.sum() for counts in ranks)
    # exchangeable members: each rank as often; members too alike in boxes: the ends twice as often
    torch.testing.assert_close(flat, torch.full((13,), 1 / 13).double(), atol=0.03, rtol=0)
    assert steep[0] + steep[-1] > 2 * (flat[0] + flat[-1])


def test_what_is_masked_counts_nowhere_and_frames_add_up() -> None:
    ensemble, target, mask = maps()
    dirt = ensemble.masked_fill(~mask, torch.inf), target.masked_fill(~mask, torch.nan), mask
    boxes, clean = (areal_means(*of, size=3) for of in (dirt, (ensemble, target, mask)))
    for a, b in zip(multivariate_sums(*boxes), multivariate_sums(*clean), strict=True):
        assert torch.equal(a, b)
    whole = multivariate_sums(*(part.flatten(0, 1)[:, None] for part in clean))
    torch.testing.assert_close(
        energy_score(MultivariateSums(*(p.sum() for p in whole))), whole.energy.mean(), atol=0, rtol=1e-12
    )
    with pytest.raises(ValueError, match="ensemble has NaN in"):
        areal_means(ensemble.masked_fill(mask, torch.nan), target, mask, size=3)
    with pytest.raises(ValueError, match="Boxes of 0 pixels"):
        areal_means(ensemble, target, mask, size=0)
