import numpy as np
import pytest
import scores.probability
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from raincast.metrics.probabilistic import (
    MIN_EVENTS,
    NUM_BINS,
    BinSums,
    Calibration,
    bin_sums,
    brier,
    brier_parts,
    pool,
    reliability_curve,
    roc,
    roc_area,
)

THRESHOLDS = (0.1, 1.0, 5.0)
DIMS = ("b", "t", "m", "h", "w")


def fields(seed: int = 0, batch: int = 2, members: int = 5):
    """An ensemble with some skill, on multiples of 0.1 mm/h, and observations; NaN is masked."""
    g = torch.Generator().manual_seed(seed)
    common = torch.rand(batch, 3, 1, 9, 8, generator=g)
    own = torch.rand(batch, 3, members + 1, 9, 8, generator=g)
    rain = (((common + own) / 2) ** 6 * 200).round() / 10
    target, ensemble = rain[:, :, :1].clone(), rain[:, :, 1:]
    target[torch.rand(target.shape, generator=g) < 0.2] = torch.nan
    return ensemble, target, target.isfinite()


def exceedance_share(ensemble: torch.Tensor, thresholds) -> torch.Tensor:
    """The share of the members that reach each threshold: (B, T, K, H, W)."""
    return torch.stack([(ensemble >= threshold).double().mean(2) for threshold in thresholds], dim=2)


def some(num_bins: int = 11, **kwargs):
    """Continuous probabilities."""
    ensemble, target, mask = fields(**kwargs)
    g = torch.Generator().manual_seed(9)
    share = exceedance_share(ensemble, THRESHOLDS)
    probability = (share + torch.rand(share.shape, generator=g).double()) / 2
    return probability, target, mask, bin_sums(probability, target, mask, THRESHOLDS, num_bins=num_bins)


def test_bin_by_bin():
    probability, target, mask, sums = some()
    assert all(part.shape == (2, 3, 3, 11) for part in sums)
    assert sums.forecasts.dtype == sums.events.dtype == torch.int64
    for b, k, t in np.ndindex(2, 3, 3):
        p = probability[b, t, k][mask[b, t, 0]].numpy()
        event = (target[b, t, 0][mask[b, t, 0]] >= THRESHOLDS[k]).numpy()
        for i in range(11):
            own = np.abs(p - i / 10) < 0.05
            assert int(sums.forecasts[b, k, t, i]) == own.sum()
            assert int(sums.events[b, k, t, i]) == event[own].sum()
            assert float(sums.probability[b, k, t, i]) == pytest.approx(p[own].sum())
            assert float(sums.squared_error[b, k, t, i]) == pytest.approx(((p - event)[own] ** 2).sum())


def test_brier_agrees_with_the_package_scores():
    ensemble, target, mask = fields()
    ours = brier(bin_sums(exceedance_share(ensemble, THRESHOLDS), target, mask, THRESHOLDS))
    theirs = scores.probability.brier_score_for_ensemble(
        xr.DataArray(ensemble.double().numpy(), dims=DIMS),
        xr.DataArray(target[:, :, 0].double().numpy(), dims=("b", "t", "h", "w")),
        "m",
        [float(np.float32(t)) for t in THRESHOLDS],
        preserve_dims=("b", "t"),
        fair_correction=False,
    )
    np.testing.assert_allclose(ours, theirs.transpose("b", "threshold", "t"), atol=1e-6)


@pytest.mark.parametrize("num_bins", [2, 6, 11])
def test_the_parts_add_up(num_bins):
    *_, sums = some(num_bins)
    parts = brier_parts(sums)
    whole = parts.reliability - parts.resolution + parts.uncertainty + parts.within_bins
    torch.testing.assert_close(whole, brier(sums))
    assert (parts.within_bins.abs() > 1e-6).all()


def test_nothing_remains_where_each_bin_holds_one_probability():
    """Murphy (1973) by its own formula, and the decomposition without a remainder."""
    ensemble, target, mask = fields()
    share = exceedance_share(ensemble, THRESHOLDS)
    parts = brier_parts(bin_sums(share, target, mask, THRESHOLDS, num_bins=6))
    assert (parts.within_bins.abs() < 1e-12).all()
    p = share[0, 0, 1][mask[0, 0, 0]].numpy()
    event = (target[0, 0, 0][mask[0, 0, 0]] >= THRESHOLDS[1]).numpy()
    groups = [(np.mean(p == v), v, event[p == v].mean()) for v in np.unique(p)]
    assert float(parts.reliability[0, 1, 0]) == pytest.approx(sum(n * (v - o) ** 2 for n, v, o in groups))
    assert float(parts.resolution[0, 1, 0]) == pytest.approx(
        sum(n * (o - event.mean()) ** 2 for n, v, o in groups)
    )
    assert float(parts.uncertainty[0, 1, 0]) == pytest.approx(event.mean() * (1 - event.mean()))


def test_perfect_climatological_and_inverted_forecasts():
    _, target, mask = fields()
    event = torch.cat([target >= t for t in THRESHOLDS], dim=2).double()
    perfect = bin_sums(event, target, mask, THRESHOLDS)
    assert (brier(perfect) == 0).all() and (roc_area(perfect) == 1).all()
    torch.testing.assert_close(brier_parts(perfect).resolution, brier_parts(perfect).uncertainty)
    inverted = bin_sums(1 - event, target, mask, THRESHOLDS)
    assert (brier(inverted) == 1).all() and (roc_area(inverted) == 0).all()
    rate = (event * mask).sum((-2, -1), keepdim=True) / mask.sum((-2, -1), keepdim=True)
    always = bin_sums(rate.expand_as(event), target, mask, THRESHOLDS)
    parts = brier_parts(always)
    torch.testing.assert_close(brier(always), parts.uncertainty)
    assert (parts.reliability.abs() < 1e-12).all() and (parts.resolution.abs() < 1e-12).all()
    torch.testing.assert_close(roc_area(always), torch.full_like(rate[..., 0, 0].transpose(1, 2), 0.5))


def test_reliability_curve():
    *_, sums = some(num_bins=101)
    stated, observed = reliability_curve(sums)
    empty = sums.forecasts == 0
    assert empty.any() and (stated.isnan() == empty).all() and (observed.isnan() == empty).all()
    centre = (torch.arange(101) / 100).double().expand_as(stated)
    assert ((stated - centre)[~empty].abs() <= 0.005 + 1e-12).all()
    assert ((observed >= 0) & (observed <= 1))[~empty].all()


def test_roc_agrees_with_the_package_scores():
    ensemble, target, mask = fields()
    sums = bin_sums(exceedance_share(ensemble, THRESHOLDS), target, mask, THRESHOLDS, num_bins=6)
    pofd, pod = (curve.flip(-1) for curve in roc(sums))
    for k, threshold in enumerate(THRESHOLDS):
        event = xr.DataArray(target[:, :, 0].numpy() >= np.float32(threshold), dims=("b", "t", "h", "w"))
        event = event.astype(float).where(mask[:, :, 0].numpy())
        share = xr.DataArray(exceedance_share(ensemble, [threshold])[:, :, 0].numpy(), dims=("b", "t", "h", "w"))
        theirs = scores.probability.roc_curve_data(
            share, event, [0.0, *(i / 5 - 0.1 for i in range(1, 6))], preserve_dims=("b", "t"), check_args=False
        )
        np.testing.assert_allclose(pofd[:, k], theirs.POFD.transpose("b", "t", "threshold"), atol=1e-6)
        np.testing.assert_allclose(pod[:, k], theirs.POD.transpose("b", "t", "threshold"), atol=1e-6)
        np.testing.assert_allclose(roc_area(sums)[:, k], theirs.AUC.transpose("b", "t"), atol=1e-6)


def test_batches_and_ranks_add_up_to_the_whole():
    probability, target, mask, sums = some(batch=5)
    ranks = [bin_sums(probability[s], target[s], mask[s], THRESHOLDS) for s in (slice(2), slice(2, 5))]
    merged = BinSums(*(a.sum(0) + b.sum(0) for a, b in zip(*ranks, strict=True)))
    whole = BinSums(*(part.sum(0) for part in sums))
    assert torch.equal(merged.forecasts, whole.forecasts) and torch.equal(merged.events, whole.events)
    torch.testing.assert_close(brier(merged), brier(whole))
    torch.testing.assert_close(brier_parts(merged), brier_parts(whole))


@pytest.mark.parametrize("rubbish", [0.5, 99.0, torch.nan, torch.inf])
def test_masked_pixels_count_nowhere(rubbish):
    probability, target, mask, clean = some()
    dirty = bin_sums(probability.masked_fill(~mask, rubbish), target.masked_fill(~mask, rubbish), mask, THRESHOLDS)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


def test_undefined_is_nan():
    probability, target, mask, _ = some()
    nothing = bin_sums(probability, target, torch.zeros_like(mask), THRESHOLDS)
    for value in (brier(nothing), roc_area(nothing), *brier_parts(nothing)):
        assert value.isnan().all()
    never = bin_sums(probability, target, mask, [500.0, 600.0, 700.0])
    assert roc_area(never).isnan().all() and brier(never).isfinite().all()


def test_what_is_no_probability_is_refused():
    probability, target, mask, _ = some()
    for wrong in (probability * 3, probability - 1, probability * torch.nan):
        with pytest.raises(ValueError, match="NaN, below 0 or above 1"):
            bin_sums(wrong, target, mask, THRESHOLDS)
    with pytest.raises(ValueError, match="2 thresholds have as many probabilities, found 3"):
        bin_sums(probability, target, mask, [1.0, 2.0])
    with pytest.raises(ValueError, match="num_bins=1"):
        bin_sums(probability, target, mask, THRESHOLDS, num_bins=1)


CALIBRATED = (1.0, 5.0)


def overconfident(seed: int = 0, windows: int = 6, leads: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T, 2, H, W) stated probabilities and (B, T, 1, H, W) rates that come less often than stated."""
    rng = np.random.default_rng(seed)
    stated = np.sort(rng.beta(0.4, 0.6, (windows, leads, 2, 24, 24)), axis=2)[:, :, ::-1].copy()
    drawn = rng.uniform(size=(windows, leads, 24, 24))
    true = 0.7 * stated**2
    rain = np.where(drawn < true[:, :, 1], 7.0, np.where(drawn < true[:, :, 0], 2.0, 0.0))
    return torch.from_numpy(stated.astype(np.float32)), torch.from_numpy(rain.astype(np.float32))[:, :, None]


def sums_of(stated: torch.Tensor, rain: torch.Tensor, num_bins: int = NUM_BINS) -> BinSums:
    return pool(bin_sums(stated, rain, torch.ones_like(rain, dtype=torch.bool), CALIBRATED, num_bins=num_bins))


def test_of_what_it_calls_p_as_much_comes():
    fitted = Calibration.fit(sums_of(*overconfident()), CALIBRATED)
    stated, rain = overconfident(seed=1, windows=20)  # others than it was fitted on
    before = sums_of(stated, rain, 11)
    after = sums_of(torch.from_numpy(fitted.apply(stated.numpy(), CALIBRATED)), rain, 11)
    assert (brier_parts(after).reliability < 0.1 * brier_parts(before).reliability).all()
    assert (brier(after) < brier(before)).all()


def test_it_is_the_isotonic_regression_of_the_pixels():
    """With few distinct probabilities the bins lose nothing: as scipy's regression of every pixel."""
    stated, rain = overconfident()
    stated = (20 * stated).round() / 20
    fitted = Calibration.fit(sums_of(stated, rain), CALIBRATED)
    result = fitted.apply(stated.numpy(), CALIBRATED[:1])[:, 1, 0].ravel()
    p, event = stated[:, 1, 0].numpy().ravel(), rain[:, 1, 0].numpy().ravel() >= 1
    _, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    theirs = isotonic_regression(np.bincount(inverse, event) / counts, weights=counts).x[inverse]
    np.testing.assert_allclose(result, theirs, atol=1e-6)


def test_a_rate_without_probabilities_becomes_how_often_it_was_right():
    _, rain = overconfident()
    says = rain.roll(3, -1)  # some shift of the truth
    yes = torch.cat([says >= t for t in CALIBRATED], dim=2).float()
    fitted = Calibration.fit(sums_of(yes, rain), CALIBRATED)
    result = fitted.apply(yes.numpy(), CALIBRATED)
    for k, threshold in enumerate(CALIBRATED):
        hit = (rain >= threshold)[:, 0, 0][yes[:, 0, k] == 1].double().mean()
        np.testing.assert_allclose(result[:, 0, k][yes[:, 0, k].numpy() == 1].max(), hit, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_results_are_probabilities_rise_with_what_is_stated_and_never_with_the_threshold(seed):
    rng = np.random.default_rng(seed)
    forecasts = rng.integers(0, 50, (2, 3, NUM_BINS))
    events = (forecasts * rng.uniform(size=forecasts.shape)).astype(np.int64)
    centres = np.arange(NUM_BINS) / (NUM_BINS - 1)
    sums = BinSums(*map(torch.from_numpy, (forecasts, events, forecasts * centres, forecasts * 0.0)))
    fitted = Calibration.fit(sums, CALIBRATED)
    stated = np.sort(rng.uniform(size=(1, 5, 2, 1, 40)).astype(np.float32), axis=-1)
    result = fitted.apply(stated, CALIBRATED)  # two leads more than were fitted
    assert (result >= 0).all() and (result <= 1).all()
    assert (np.diff(result, axis=-1) >= 0).all()
    assert (np.diff(result, axis=2) <= 0).all()
    one = stated[:, :1].repeat(5, axis=1)
    np.testing.assert_array_equal(fitted.apply(one, CALIBRATED)[:, 2], fitted.apply(one, CALIBRATED)[:, 4])
    again = Calibration.from_plain(fitted.to_plain())
    np.testing.assert_array_equal(again.apply(stated, CALIBRATED), result)
    assert again.thresholds == fitted.thresholds and again.num_leads == 3


def test_with_too_little_rain_the_probabilities_stay():
    stated, rain = overconfident(windows=1)
    rain = torch.zeros_like(rain)
    rain.view(1, 2, -1)[:, 0, : MIN_EVENTS - 1] = 3.0
    rain.view(1, 2, -1)[:, 1, :MIN_EVENTS] = 3.0
    fitted = Calibration.fit(sums_of(stated, rain), CALIBRATED)
    assert [[knots is None for knots in row] for row in fitted.knots] == [[True, False], [True, True]]
    result = fitted.apply(stated.numpy(), (1.0,))
    np.testing.assert_array_equal(result[:, 0, 0], stated[:, 0, 0])
    assert not np.array_equal(result[:, 1, 0], stated[:, 1, 0])


def test_other_thresholds_are_refused():
    fitted = Calibration.fit(sums_of(*overconfident()), CALIBRATED)
    stated = np.zeros((1, 1, 1, 2, 2), np.float32)
    with pytest.raises(ValueError, match=r"no calibration at 2 mm/h; it was fitted at 1, 5\. .*calibrated=false"):
        fitted.apply(stated, [2.0])
    with pytest.raises(ValueError, match="Sums of .* for 1 thresholds"):
        Calibration.fit(sums_of(*overconfident()), CALIBRATED[:1])
