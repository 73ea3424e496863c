"""Accumulations and the onset of rain, against loops over pixels."""

import pytest
import torch

from raincast.metrics.users import OnsetSums, accumulate, onset_csi, onset_far, onset_pod, onset_sums


def fields(seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    pred, target = (torch.rand(2, 7, 1, 12, 10, generator=rng).mul(4).sub(3).clamp_min(0) for _ in range(2))
    return pred, target, torch.rand(2, 7, 1, 12, 10, generator=rng) > 0.05


def test_accumulations_are_means_times_hours_where_all_steps_count():
    pred, target, mask = fields()
    amount, observed, counted = accumulate(
        pred, target.masked_fill(~mask, torch.nan), mask, num_steps=3, step_minutes=5.0
    )
    assert amount.shape == (2, 2, 1, 12, 10)  # the seventh step belongs to no whole period
    assert (counted == mask[:, :6].view(2, 2, 3, 1, 12, 10).all(2)).all()
    for own, field in ((amount, pred), (observed, target)):
        expected = field[:, :6].view(2, 2, 3, 1, 12, 10).sum(2) / 12
        torch.testing.assert_close(own[counted], expected[counted])
    with pytest.raises(ValueError, match="pred has NaN"):
        accumulate(pred * torch.nan, target, mask, num_steps=3, step_minutes=5.0)


@pytest.mark.parametrize("tolerance", [0, 1, 2])
def test_onset_against_a_loop(tolerance):
    pred, target, mask = fields()
    newest = fields(1)[1][:, 0].masked_fill(~fields(1)[2][:, 0], torch.nan)
    thresholds = (0.2, 0.8)
    expected = OnsetSums(*(torch.zeros(2, 2, 7, dtype=torch.int64) for _ in range(3)))
    for b in range(2):
        for k, threshold in enumerate(thresholds):
            for y in range(12):
                for x in range(10):
                    if not (newest[b, 0, y, x] < threshold) or not mask[b, :, 0, y, x].all():
                        continue
                    first = [
                        next((t for t in range(7) if rain[b, t, 0, y, x] >= threshold), None)
                        for rain in (pred, target)
                    ]
                    if None not in first and abs(first[0] - first[1]) <= tolerance:
                        expected.hits[b, k, first[1]] += 1
                        continue
                    if first[1] is not None:
                        expected.misses[b, k, first[1]] += 1
                    if first[0] is not None:
                        expected.false_alarms[b, k, first[0]] += 1
    found = onset_sums(pred, target.masked_fill(~mask, torch.nan), mask, newest, thresholds, tolerance=tolerance)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert found.hits.sum() > 0 and found.misses.sum() > 0 and found.false_alarms.sum() > 0


def test_perfect_late_and_dry_forecasts_of_the_onset():
    _, target, mask = fields()
    mask, dry = torch.ones_like(mask), torch.zeros(2, 1, 12, 10)

    def pooled(pred):
        sums = onset_sums(pred, target, mask, dry, (0.5,))
        return OnsetSums(*(part.sum((0, 2)) for part in sums))

    perfect = pooled(target)
    assert onset_csi(perfect) == onset_pod(perfect) == 1 and onset_far(perfect) == 0
    late = torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], 1)
    assert pooled(late).false_alarms == 0 and onset_pod(pooled(late)) > 0.8  # what begins at the end is missed
    later = torch.cat([torch.zeros_like(target[:, :3]), target[:, :-3]], 1)
    assert pooled(later).hits == 0 and onset_far(pooled(later)) == 1
    nothing = pooled(torch.zeros_like(target))
    assert onset_pod(nothing) == 0 and onset_far(nothing).isnan()
