"""Isotonic calibration of probabilities: against brute force, and what it promises whatever it was fitted on."""

import numpy as np
import pytest
import torch
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
)

THRESHOLDS = (1.0, 5.0)


def overconfident(seed: int = 0, windows: int = 6, leads: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T, 2, H, W) stated probabilities and (B, T, 1, H, W) rates that come less often than stated."""
    rng = np.random.default_rng(seed)
    stated = np.sort(rng.beta(0.4, 0.6, (windows, leads, 2, 24, 24)), axis=2)[:, :, ::-1].copy()
    drawn = rng.uniform(size=(windows, leads, 24, 24))
    true = 0.7 * stated**2
    rain = np.where(drawn < true[:, :, 1], 7.0, np.where(drawn < true[:, :, 0], 2.0, 0.0))
    return torch.from_numpy(stated.astype(np.float32)), torch.from_numpy(rain.astype(np.float32))[:, :, None]


def sums_of(stated: torch.Tensor, rain: torch.Tensor, num_bins: int = NUM_BINS) -> BinSums:
    return pool(bin_sums(stated, rain, torch.ones_like(rain, dtype=torch.bool), THRESHOLDS, num_bins=num_bins))


def test_of_what_it_calls_p_as_much_comes():
    fitted = Calibration.fit(sums_of(*overconfident()), THRESHOLDS)
    stated, rain = overconfident(seed=1, windows=20)  # others than it was fitted on
    before = sums_of(stated, rain, 11)
    after = sums_of(torch.from_numpy(fitted.apply(stated.numpy(), THRESHOLDS)), rain, 11)
    assert (brier_parts(after).reliability < 0.1 * brier_parts(before).reliability).all()
    assert (brier(after) < brier(before)).all()


def test_it_is_the_isotonic_regression_of_the_pixels():
    """With few distinct probabilities the bins lose nothing: as scipy's regression of every pixel."""
    stated, rain = overconfident()
    stated = (20 * stated).round() / 20
    fitted = Calibration.fit(sums_of(stated, rain), THRESHOLDS)
    result = fitted.apply(stated.numpy(), THRESHOLDS[:1])[:, 1, 0].ravel()
    p, event = stated[:, 1, 0].numpy().ravel(), rain[:, 1, 0].numpy().ravel() >= 1
    _, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    theirs = isotonic_regression(np.bincount(inverse, event) / counts, weights=counts).x[inverse]
    np.testing.assert_allclose(result, theirs, atol=1e-6)


def test_a_rate_without_probabilities_becomes_how_often_it_was_right():
    _, rain = overconfident()
    says = rain.roll(3, -1)  # some shift of the truth
    yes = torch.cat([says >= t for t in THRESHOLDS], dim=2).float()
    fitted = Calibration.fit(sums_of(yes, rain), THRESHOLDS)
    result = fitted.apply(yes.numpy(), THRESHOLDS)
    for k, threshold in enumerate(THRESHOLDS):
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
    fitted = Calibration.fit(sums, THRESHOLDS)
    stated = np.sort(rng.uniform(size=(1, 5, 2, 1, 40)).astype(np.float32), axis=-1)
    result = fitted.apply(stated, THRESHOLDS)  # two leads more than were fitted
    assert (result >= 0).all() and (result <= 1).all()
    assert (np.diff(result, axis=-1) >= 0).all()
    assert (np.diff(result, axis=2) <= 0).all()
    one = stated[:, :1].repeat(5, axis=1)
    np.testing.assert_array_equal(fitted.apply(one, THRESHOLDS)[:, 2], fitted.apply(one, THRESHOLDS)[:, 4])
    again = Calibration.from_plain(fitted.to_plain())
    np.testing.assert_array_equal(again.apply(stated, THRESHOLDS), result)
    assert again.thresholds == fitted.thresholds and again.num_leads == 3


def test_with_too_little_rain_the_probabilities_stay():
    stated, rain = overconfident(windows=1)
    rain = torch.zeros_like(rain)
    rain.view(1, 2, -1)[:, 0, : MIN_EVENTS - 1] = 3.0
    rain.view(1, 2, -1)[:, 1, :MIN_EVENTS] = 3.0
    fitted = Calibration.fit(sums_of(stated, rain), THRESHOLDS)
    assert [[knots is None for knots in row] for row in fitted.knots] == [[True, False], [True, True]]
    result = fitted.apply(stated.numpy(), (1.0,))
    np.testing.assert_array_equal(result[:, 0, 0], stated[:, 0, 0])
    assert not np.array_equal(result[:, 1, 0], stated[:, 1, 0])


def test_other_thresholds_are_refused():
    fitted = Calibration.fit(sums_of(*overconfident()), THRESHOLDS)
    stated = np.zeros((1, 1, 1, 2, 2), np.float32)
    with pytest.raises(ValueError, match=r"no calibration at 2 mm/h; it was fitted at 1, 5\. .*calibrated=false"):
        fitted.apply(stated, [2.0])
    with pytest.raises(ValueError, match="Sums of .* for 1 thresholds"):
        Calibration.fit(sums_of(*overconfident()), THRESHOLDS[:1])
