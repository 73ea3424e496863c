import math

import numpy as np
import pytest
import scores.categorical
import torch
import xarray as xr

from raincast.metrics import Contingency, contingency
from raincast.metrics.categorical import csi, ets, f1, far, frequency_bias, hss, pod

THRESHOLDS = (0.1, 1.0, 5.0)
FORMULAS = (csi, pod, far, frequency_bias, hss, ets, f1)


def fields(seed: int = 0, shape: tuple[int, ...] = (2, 3, 2, 9, 7)):
    """Rain rates on multiples of 0.1 mm/h, so that many pixels lie exactly at a threshold; NaN is masked."""
    g = torch.Generator().manual_seed(seed)
    pred, target = ((torch.rand(shape, generator=g) ** 4 * 80).round() / 10 for _ in range(2))
    pred = (pred + target) / 2
    target[torch.rand(shape, generator=g) < 0.2] = torch.nan
    return pred, target, target.isfinite()


def one(hits: int, misses: int, false_alarms: int, correct_negatives: int) -> Contingency:
    return Contingency(*(torch.tensor(n) for n in (hits, misses, false_alarms, correct_negatives)))


def test_equals_counting_pixel_by_pixel():
    pred, target, mask = fields()
    got = contingency(pred, target, mask, THRESHOLDS)
    for b, k, t in np.ndindex(2, 3, 3):
        m = mask[b, t]
        p, o = pred[b, t][m] >= THRESHOLDS[k], target[b, t][m] >= THRESHOLDS[k]
        want = [int((p & o).sum()), int((~p & o).sum()), int((p & ~o).sum()), int((~p & ~o).sum())]
        assert [int(count[b, k, t]) for count in got] == want


def test_shape_dtype_and_total():
    pred, target, mask = fields()
    got = contingency(pred, target, mask, THRESHOLDS)
    assert all(count.shape == (2, 3, 3) and count.dtype == torch.int64 for count in got)
    total = torch.stack(list(got)).sum(0)
    assert (total == mask.flatten(2).sum(-1)[:, None]).all()


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_agrees_with_the_package_scores(threshold):
    pred, target, mask = fields(seed=3)
    counts = Contingency(*(n.sum() for n in contingency(pred, target, mask, [threshold])))
    dims = ("b", "t", "c", "h", "w")
    manager = scores.categorical.ThresholdEventOperator(
        default_event_threshold=np.float32(threshold)
    ).make_contingency_manager(xr.DataArray(pred.numpy(), dims=dims), xr.DataArray(target.numpy(), dims=dims))
    theirs = {
        csi: manager.critical_success_index(),
        pod: manager.probability_of_detection(),
        far: manager.false_alarm_ratio(),
        frequency_bias: manager.frequency_bias(),
        hss: manager.heidke_skill_score(),
        ets: manager.gilberts_skill_score(),
        f1: manager.f1_score(),
    }
    for formula, value in theirs.items():
        assert float(formula(counts)) == pytest.approx(float(value), rel=1e-12), formula.__name__


def test_masked_pixels_count_nowhere():
    pred, target, mask = fields()
    clean = contingency(pred, target, mask, THRESHOLDS)
    for rubbish in (99.0, torch.nan, torch.inf):
        dirty = contingency(pred.masked_fill(~mask, rubbish), target.masked_fill(~mask, rubbish), mask, THRESHOLDS)
        assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


def test_a_rate_at_the_threshold_is_an_event():
    at = torch.full((1, 1, 1, 1, 1), 0.1)
    hits = contingency(at, at, at > 0, [0.1]).hits
    assert int(hits) == 1


def test_perfect_forecast():
    _, target, mask = fields()
    counts = contingency(target, target, mask, THRESHOLDS)
    for formula, perfect in [(csi, 1), (pod, 1), (far, 0), (frequency_bias, 1), (hss, 1), (ets, 1), (f1, 1)]:
        assert (formula(counts) == perfect).all()


def test_formulas_by_hand():
    # Finley's tornado forecasts (1884): 28 hits, 23 misses, 72 false alarms, 2680 correct negatives
    counts = one(28, 23, 72, 2680)
    assert float(csi(counts)) == pytest.approx(28 / 123)
    assert float(pod(counts)) == pytest.approx(28 / 51)
    assert float(far(counts)) == pytest.approx(72 / 100)
    assert float(frequency_bias(counts)) == pytest.approx(100 / 51)
    assert float(hss(counts)) == pytest.approx(0.355, abs=5e-4)
    assert float(ets(counts)) == pytest.approx(
        (28 - 1.8195) / (123 - 1.8195), abs=1e-4
    )  # 100 · 51 / 2803 by chance
    assert float(f1(counts)) == pytest.approx(56 / 151)


@pytest.mark.parametrize("formula", FORMULAS)
def test_undefined_is_nan(formula):
    assert math.isnan(formula(one(0, 0, 0, 0)))
    assert formula(one(1, 1, 1, 1)).dtype == torch.float64


def test_each_score_is_undefined_for_its_own_reason():
    no_events_observed = one(0, 0, 5, 5)
    assert math.isnan(pod(no_events_observed)) and math.isnan(frequency_bias(no_events_observed))
    assert csi(no_events_observed) == 0 and far(no_events_observed) == 1
    assert math.isnan(far(one(0, 5, 0, 5)))
    assert math.isnan(csi(one(0, 0, 0, 5))) and math.isnan(hss(one(0, 0, 0, 5)))


def test_counts_of_a_whole_archive_do_not_overflow():
    n = 3 * 10**12  # products of two such counts exceed int64
    assert float(hss(one(n, 0, 0, n))) == float(ets(one(n, 0, 0, n))) == 1.0


def test_chance_has_no_skill_and_a_dry_forecast_hits_nothing():
    independent = one(2, 6, 3, 9)  # a/c = b/d
    assert ets(independent) == 0 and hss(independent) == 0 and f1(independent) > 0
    dry = one(0, 5, 0, 5)
    assert ets(dry) == 0 and f1(dry) == 0
    assert -1 / 3 <= float(ets(one(0, 5, 5, 0))) < 0  # the lower limit, always wrong


def test_nan_inside_the_mask_is_refused():
    pred, target, mask = fields()
    bad = pred.clone()
    bad.view(-1)[mask.view(-1).nonzero()[0]] = torch.nan
    with pytest.raises(ValueError, match="pred has NaN in 1 of"):
        contingency(bad, target, mask, THRESHOLDS)
    with pytest.raises(ValueError, match="target has NaN"):
        contingency(pred, target, torch.ones_like(mask), THRESHOLDS)


@pytest.mark.parametrize("thresholds", [[], [1.0, 1.0], [2.0, 1.0]])
def test_thresholds_must_increase(thresholds):
    with pytest.raises(ValueError, match="increasing"):
        contingency(*fields(), thresholds)
