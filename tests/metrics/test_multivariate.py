"""Means over boxes, and members judged as a whole."""

import numpy as np
import properscoring
import pytest
import torch
from scipy.ndimage import gaussian_filter

from raincast.metrics.ensemble import (
    LAGS,
    MultivariateSums,
    areal_means,
    crps,
    energy_score,
    ensemble_sums,
    fair_energy_score,
    multivariate_sums,
    rank_histogram,
    variogram_score,
)

FORMULAS = (energy_score, fair_energy_score, variogram_score)


def fields(batch: int = 2, members: int = 4, size: tuple[int, int] = (11, 13), seed: int = 0):
    """Members and observations of one distribution, in mm/h, with holes in the observation."""
    noise = np.random.default_rng(seed).normal(size=(batch, 3, members + 1, *size))
    rain = np.maximum(3 * gaussian_filter(noise, (0, 0, 0, 1.5, 1.5)), 0).astype(np.float32)
    rain = torch.from_numpy(rain)
    target, ensemble = rain[:, :, :1].clone(), rain[:, :, 1:].clone()
    target[torch.rand(target.shape, generator=torch.Generator().manual_seed(seed)) < 0.2] = torch.nan
    return ensemble, target, target.isfinite()


def test_means_are_over_counted_pixels_of_whole_boxes() -> None:
    ensemble, target, mask = fields()
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
    ensemble, target, mask = fields()
    boxes = areal_means(ensemble, target, mask, size=1)
    torch.testing.assert_close(crps(ensemble_sums(*boxes)), crps(ensemble_sums(ensemble, target, mask)))
    none = areal_means(ensemble, target, mask, size=12)
    sums = multivariate_sums(*none)
    assert not any(part.nan_to_num().any() for part in sums) and not rank_histogram(*none).any()
    assert all(formula(sums).isnan().all() for formula in FORMULAS)


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
    ensemble, target, mask = fields()
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
    ensemble, target, mask = fields(batch=6, members=12, size=(32, 32))
    shuffled = torch.from_numpy(np.random.default_rng(0).permuted(ensemble.numpy(), axis=2))

    def scores(members: torch.Tensor, size: int) -> list[float]:
        boxes = areal_means(members, target, mask, size=size)
        whole = MultivariateSums(*(part.sum() for part in multivariate_sums(*boxes)))
        sums = ensemble_sums(*boxes)
        mean = float((sums.absolute_error - 0.5 * sums.fair_difference).sum() / sums.count.sum())
        return [mean, *(float(formula(whole)) for formula in FORMULAS)]

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
    ensemble, target, mask = fields()
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
