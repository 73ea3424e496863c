import numpy as np
import pysteps.verification.spatialscores as pysteps_scores
import pytest
import scores.spatial
import torch
import xarray as xr

from raincast.metrics import contingency
from raincast.metrics.categorical import csi
from raincast.metrics.spatial import FractionSums, box_size, fraction_sums, fss, max_pool

THRESHOLDS = (0.1, 1.0, 5.0)
BOXES = (1, 2, 3, 4, 7, 12)


def fields(seed: int = 0, shape: tuple[int, ...] = (2, 3, 1, 17, 14)):
    """Rain rates on multiples of 0.1 mm/h, so that many pixels lie exactly at a threshold; NaN is masked."""
    g = torch.Generator().manual_seed(seed)
    pred, target = ((torch.rand(shape, generator=g) ** 4 * 80).round() / 10 for _ in range(2))
    target[torch.rand(shape, generator=g) < 0.2] = torch.nan
    return pred, target, target.isfinite()


def bump(x: int, size: int = 3) -> torch.Tensor:
    """A square of rain with its left edge at `x`, on a dry field far larger."""
    rain = torch.zeros(1, 1, 1, 60, 80)
    rain[..., 30 : 30 + size, x : x + size] = 2.0
    return rain


def test_box_by_box():
    pred, target, mask = fields()
    got = fraction_sums(pred, target, mask, THRESHOLDS, BOXES)
    assert all(part.shape == (2, 3, 6, 3) and part.dtype == torch.float64 for part in got)
    for b, k, s, t in np.ndindex(2, 3, 6, 3):
        n, seen = BOXES[s], mask[b, t, 0].numpy()
        p, o = ((rain[b, t, 0].numpy() >= np.float32(THRESHOLDS[k])) & seen for rain in (pred, target))
        difference = squares = 0.0
        for y, x in np.ndindex(seen.shape):
            top, left = y - n // 2, x - n // 2
            box = np.s_[max(top, 0) : max(top + n, 0), max(left, 0) : max(left + n, 0)]
            share = p[box].sum() / n**2, o[box].sum() / n**2
            difference += (share[0] - share[1]) ** 2
            squares += share[0] ** 2 + share[1] ** 2
        assert float(got.squared_difference[b, k, s, t]) == pytest.approx(difference, abs=1e-12)
        assert float(got.squares[b, k, s, t]) == pytest.approx(squares, abs=1e-12)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_agrees_with_pysteps_missing_pixels_included(box, threshold):
    pred, target, mask = fields()
    ours = fss(fraction_sums(pred, target, mask, [threshold], [box]))
    for b, t in np.ndindex(2, 3):
        rain = [r[b, t, 0].masked_fill(~mask[b, t, 0], torch.nan).numpy() for r in (pred, target)]
        theirs = pysteps_scores.fss_init(np.float32(threshold), box)
        pysteps_scores.fss_accum(theirs, *rain)
        assert float(ours[b, 0, 0, t]) == pytest.approx(pysteps_scores.fss_compute(theirs), abs=1e-6)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_agrees_with_the_package_scores_missing_pixels_included(box, threshold):
    pred, target, mask = fields()
    pred = pred.masked_fill(~mask, torch.nan)  # it takes NaN for no event, each side for itself
    sums = fraction_sums(pred, target, mask, [threshold], [box], boundary="inside")
    dims = ("b", "t", "y", "x")
    theirs = scores.spatial.fss_2d(
        *(xr.DataArray(rain[:, :, 0].numpy(), dims=dims) for rain in (pred, target)),
        event_threshold=np.float32(threshold),
        threshold_operator=np.greater_equal,
        window_size=(box, box),
        spatial_dims=("y", "x"),
        preserve_dims=("t",),
    )
    ours = fss(FractionSums(*(part.sum(0) for part in sums)))
    np.testing.assert_allclose(ours[0, 0], theirs, atol=1e-6)


@pytest.mark.parametrize("boundary", ["zero", "inside"])
def test_perfect_dry_and_undefined(boundary):
    pred, target, mask = fields()
    perfect = fss(fraction_sums(target, target, mask, THRESHOLDS, BOXES, boundary=boundary))
    assert (perfect == 1).all()
    assert (fss(fraction_sums(0 * pred, target, mask, THRESHOLDS, BOXES, boundary=boundary)) == 0).all()
    assert fss(fraction_sums(pred, target, mask, [1000.0], BOXES, boundary=boundary)).isnan().all()
    assert (
        fss(fraction_sums(pred, target, torch.zeros_like(mask), THRESHOLDS, BOXES, boundary=boundary))
        .isnan()
        .all()
    )


def test_a_box_of_one_pixel_is_f1():
    """Fractions are 0 or 1 then: 1 − (misses + false alarms) / (2 hits + misses + false alarms)."""
    pred, target, mask = fields()
    hits, misses, false_alarms, _ = contingency(pred, target, mask, THRESHOLDS)
    want = 2 * hits / (2 * hits + misses + false_alarms)
    torch.testing.assert_close(fss(fraction_sums(pred, target, mask, THRESHOLDS, [1]))[:, :, 0], want.double())


def test_a_shift_costs_less_the_wider_the_box():
    observed, everywhere = bump(20), torch.ones(1, 1, 1, 60, 80, dtype=torch.bool)
    boxes = [1, 3, 5, 9, 17]
    shifted = [
        fss(fraction_sums(bump(20 + by), observed, everywhere, [1.0], boxes))[0, 0, :, 0] for by in (1, 4, 8)
    ]
    for score in shifted:
        assert (score.diff() >= 0).all() and score[-1] > score[0]
    assert (shifted[0] > shifted[1]).all() and (shifted[1][1:] >= shifted[2][1:]).all()
    assert shifted[1][0] == 0  # squares of 3 pixels, 4 apart, share no pixel …
    assert shifted[2][2] == 0 and shifted[2][3] > 0  # … and 8 apart no box of 5, but boxes of 9


def test_a_bias_costs_at_every_scale():
    """Blur that triples the area: with boxes far larger than both, 2ab / (a² + b²) with areas a and b."""
    observed, everywhere = bump(30), torch.ones(1, 1, 1, 60, 80, dtype=torch.bool)
    blurred = bump(30, size=9)
    score = float(fss(fraction_sums(blurred, observed, everywhere, [1.0], [2000]))[0, 0, 0, 0])
    assert score == pytest.approx(2 * 9 * 81 / (9**2 + 81**2))


@pytest.mark.parametrize("rubbish", [0.0, 99.0, torch.nan, torch.inf])
def test_masked_pixels_count_nowhere(rubbish):
    pred, target, mask = fields()
    for boundary in ("zero", "inside"):
        clean = fraction_sums(pred, target, mask, THRESHOLDS, BOXES, boundary=boundary)
        dirt = pred.masked_fill(~mask, rubbish), target.masked_fill(~mask, rubbish)
        dirty = fraction_sums(*dirt, mask, THRESHOLDS, BOXES, boundary=boundary)
        assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


def test_outside_the_grid_is_as_masked():
    pred, target, mask = fields()
    wider = [torch.nn.functional.pad(part, (20, 20, 20, 20)) for part in (pred, target, mask)]
    sums, grown = (fraction_sums(*three, THRESHOLDS, [3]) for three in ((pred, target, mask), wider))
    # boxes around pixels outside reach into the grid: they alone are more
    assert (grown.squares >= sums.squares).all()
    inside = [fraction_sums(*three, THRESHOLDS, [1]) for three in ((pred, target, mask), wider)]
    assert all(torch.equal(a, b) for a, b in zip(*inside, strict=True))


def test_batches_and_ranks_add_up_to_the_whole():
    pred, target, mask = fields(shape=(5, 3, 1, 17, 14))
    whole = FractionSums(*(part.sum(0) for part in fraction_sums(pred, target, mask, THRESHOLDS, BOXES)))
    ranks = [fraction_sums(pred[s], target[s], mask[s], THRESHOLDS, BOXES) for s in (slice(2), slice(2, 5))]
    merged = FractionSums(*(a.sum(0) + b.sum(0) for a, b in zip(*ranks, strict=True)))
    torch.testing.assert_close(merged, whole, rtol=1e-13, atol=0)
    means = torch.stack([fss(FractionSums(*(part.mean(0) for part in rank))) for rank in ranks]).mean(0)
    assert not torch.allclose(means, fss(whole), atol=1e-6)  # ratios of batches do not average to it


def test_boxes_wider_than_the_grid():
    pred, target, mask = fields()
    assert fss(fraction_sums(pred, target, mask, [1.0], [15, 17, 18], boundary="inside")).isnan().all()
    total = fraction_sums(pred, target, mask, [1.0], [100])
    events = [(rain >= 1.0) & mask for rain in (pred, target)]
    p, o = (e.flatten(2).sum(-1).double() for e in events)
    torch.testing.assert_close(fss(total)[:, 0, 0], 2 * p * o / (p**2 + o**2))  # each box holds the whole grid


def test_wrong_boxes_and_nan_are_refused():
    pred, target, mask = fields()
    with pytest.raises(ValueError, match=r"boxes=\[0, 3\]"):
        fraction_sums(pred, target, mask, [1.0], [0, 3])
    with pytest.raises(ValueError, match="'zero' or 'inside'"):
        fraction_sums(pred, target, mask, [1.0], [3], boundary="reflect")
    with pytest.raises(ValueError, match="pred has NaN"):
        fraction_sums(pred * torch.nan, target, mask, [1.0], [3])


def test_scales_in_km_become_boxes():
    assert [box_size(km, 1.0) for km in (0.2, 1.0, 4.0, 16.4)] == [1, 1, 4, 16]
    assert [box_size(km, 2.5) for km in (1.0, 5.0, 20.0)] == [1, 2, 8]
    with pytest.raises(ValueError, match="scale of 0 km"):
        box_size(0.0, 1.0)


@pytest.mark.parametrize(("size", "stride"), [(4, 4), (4, 1), (3, 2), (1, 1), (14, 14)])
def test_pools_one_by_one(size, stride):
    pred, target, mask = fields()
    mask[0, 0, 0, :9, :9] = False  # some pools hold no observed pixel
    target = target.masked_fill(~mask, torch.nan)
    pools = max_pool(pred, target, mask, size=size, stride=stride)
    counts = contingency(*pools, THRESHOLDS)
    for b, k, t in np.ndindex(2, 3, 3):
        table = np.zeros((2, 2), int)
        for y in range(0, 17 - size + 1, stride):
            for x in range(0, 14 - size + 1, stride):
                box = np.s_[b, t, 0, y : y + size, x : x + size]
                seen = mask[box]
                if seen.any():
                    p, o = (bool((rain[box][seen] >= THRESHOLDS[k]).any()) for rain in (pred, target))
                    table[int(p), int(o)] += 1
        assert [int(c[b, k, t]) for c in counts] == [table[1, 1], table[0, 1], table[1, 0], table[0, 0]]


def test_pools_of_one_pixel_change_nothing_and_wider_ones_forgive_a_shift():
    pred, target, mask = fields()
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            contingency(*max_pool(pred, target, mask, size=1), THRESHOLDS),
            contingency(pred, target, mask, THRESHOLDS),
            strict=True,
        )
    )
    everywhere = torch.ones(1, 1, 1, 60, 80, dtype=torch.bool)
    by_size = [
        float(csi(contingency(*max_pool(bump(20), bump(24), everywhere, size=n), [1.0]))) for n in (1, 4, 16)
    ]
    assert by_size[0] == 0 and by_size[2] == 1


@pytest.mark.parametrize("rubbish", [99.0, torch.nan, torch.inf])
def test_masked_pixels_enter_no_pool(rubbish):
    pred, target, mask = fields()
    dirt = pred.masked_fill(~mask, rubbish), target.masked_fill(~mask, rubbish)
    clean, dirty = (max_pool(*two, mask, size=4) for two in ((pred, target), dirt))
    assert all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(clean, dirty, strict=True))


def test_impossible_pools_are_refused():
    for size, stride in ((0, 1), (15, 1), (4, 0)):
        with pytest.raises(ValueError, match="choose 1 to 14"):
            max_pool(*fields(), size=size, stride=stride)
