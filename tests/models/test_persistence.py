"""Probabilities follow how long the rain of the past frames has persisted."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from raincast.models import persistence
from raincast.models.persistence import (
    HIGHEST,
    LOWEST,
    PRIOR_OF_A_RATE,
    PRIOR_PIXELS,
    WIDEST,
    observed_changes,
    observed_persistence,
    smoothed,
    smoothing_width,
)
from raincast.transforms import THRESHOLDS

FIVE = THRESHOLDS.index(5.0)
NUM = len(THRESHOLDS)
KM = torch.ones(1)
ONE_WINDOW = torch.full((1,), 1e-3)  # pixels so small that the window holds all


def frames(*shares: float, side: int = 40) -> torch.Tensor:
    """10 mm/h on the first rows; of them in the frame after each, all but the first `shares` of the columns."""
    rain = torch.zeros(len(shares), side, side)
    rain[:, :10] = 10.0
    for number, share in enumerate(shares):
        rain[number, :10, : round(share * side)] = 0.0
    return rain[None]


def logits(steps: int, chance: float, side: int = 40) -> torch.Tensor:
    return torch.full((1, steps, NUM, side, side), math.log(chance / (1 - chance)))


def test_rain_that_stayed_is_likely_to_stay_and_dry_pixels_to_stay_dry() -> None:
    past = frames(0.0, 0.0, 0.0, 0.0)
    made = observed_persistence(logits(3, 0.5), past, torch.ones_like(past), KM).sigmoid()
    wet, dry = made[0, :, FIVE, :10], made[0, :, FIVE, 10:]
    count = 400.0
    stayed = torch.tensor((count + 0.5 * PRIOR_OF_A_RATE) / (count + PRIOR_OF_A_RATE))
    expected = ((count + stayed * PRIOR_PIXELS) / (count + PRIOR_PIXELS)).clamp(max=HIGHEST)  # by rate, then all
    ends = [0, 2]  # between the first and the last, the logit is linear in the logarithm of the lead time
    torch.testing.assert_close(wet[ends], expected.expand_as(wet[ends]))
    assert (dry < 0.01).all()


def test_half_of_the_rain_that_vanishes_halves_the_probability() -> None:
    past = frames(0.0, 0.5, 0.75, 0.875)  # half of what rained rains a frame later, a quarter two frames later
    steps = 12
    made = observed_persistence(logits(steps, 0.95), past, torch.ones_like(past), ONE_WINDOW).sigmoid()
    wet = made[0, :, FIVE, :10, 36:].mean((-2, -1))
    torch.testing.assert_close(wet[:3], 0.5 ** torch.arange(1.0, 4.0), rtol=0.15, atol=0.0)


def test_the_past_counts_less_far_ahead() -> None:
    # after each number of steps half of what rained rains, and half of what did not
    patterns = torch.tensor(
        [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 0, 1, 0], [1, 0, 0, 1, 0, 1, 1, 0]]
    )
    past = (10.0 * patterns).repeat_interleave(20, dim=1)[None, :, None].expand(-1, -1, 160, -1).contiguous()
    made = observed_persistence(logits(12, 0.95, side=160), past, torch.ones_like(past), ONE_WINDOW)
    shift = math.log(0.95 / 0.05) - made[0, :, :, 0, 0]
    torch.testing.assert_close(
        made[0, :3, : FIVE + 1, 0, 0].sigmoid(), torch.full((3, FIVE + 1), 0.5), rtol=0.1, atol=0
    )
    light = THRESHOLDS.index(1.0)
    # with the root of the lead time; heavy rain is compared twice, in all blocks and around each
    torch.testing.assert_close(shift[11, light] / shift[2, light], torch.tensor(0.5), rtol=0.05, atol=0)
    torch.testing.assert_close(shift[11, FIVE] / shift[2, FIVE], torch.tensor(0.75), rtol=0.05, atol=0)
    assert (shift[2:].diff(dim=0)[:, :FIVE] < 0).all()


def test_rain_that_vanishes_on_one_side_is_likely_to_vanish_there() -> None:
    past = torch.zeros(1, 4, 40, 320)
    past[:, :, :20] = 10.0
    for number in range(4):  # in the east, a quarter of the rows less each time
        past[:, number, : 5 * number, 160:] = 0.0
    made = observed_persistence(logits(3, 0.5, side=320)[..., :40, :], past, torch.ones_like(past), KM).sigmoid()
    west, east = made[0, 0, FIVE, 16:19, 20], made[0, 0, FIVE, 16:19, 300]
    assert (west > 0.95).all() and (east < 0.8).all()
    # 600 km of 10 km pixels are many windows; of small pixels they are one
    made = observed_persistence(
        logits(3, 0.5, side=320)[..., :40, :], past, torch.ones_like(past), ONE_WINDOW
    ).sigmoid()
    torch.testing.assert_close(made[0, 0, FIVE, 16:19, 20], made[0, 0, FIVE, 16:19, 300], rtol=0.03, atol=0.0)


def test_the_second_window_shows_what_the_first_has_blurred(monkeypatch: pytest.MonkeyPatch) -> None:
    past = torch.zeros(1, 4, 40, 320)
    past[:, :, :20] = 10.0
    for number in range(4):
        past[:, number, : 5 * number, 160:] = 0.0

    def contrast() -> float:
        """Between 24 km west and 24 km east of the border, on the logarithmic scale of odds."""
        made = observed_persistence(logits(3, 0.5, side=320)[..., :40, :], past, torch.ones_like(past), KM)
        return float(made[0, 0, FIVE, 17, 136] - made[0, 0, FIVE, 17, 184])

    both = contrast()
    monkeypatch.setattr(persistence, "WINDOWS_KM", persistence.WINDOWS_KM[:1])
    assert both > 1.1 * contrast() > 0


def test_differences_between_pixels_stay_and_a_higher_threshold_is_not_reached_more_often() -> None:
    generator = torch.Generator().manual_seed(0)
    past = frames(0.0, 0.1, 0.2, 0.3)
    before = torch.randn(1, 4, NUM, 40, 40, generator=generator).cumsum(2).neg()
    before = before.sort(dim=2, descending=True).values
    made = observed_persistence(before, past, torch.ones_like(past), ONE_WINDOW)
    assert (made.diff(dim=2) <= 0).all()
    change = (made - before)[0, 0, NUM - 1, 10:]  # no other threshold changes the highest
    torch.testing.assert_close(change, change[:1, :1].expand_as(change), rtol=1e-4, atol=1e-4)


def test_what_was_not_observed_changes_nothing() -> None:
    past = frames(0.0, 0.0, 0.0, 0.0)
    before = logits(3, 0.3)
    seen = torch.ones_like(past)
    seen[:, :-1] = 0.0  # one frame alone says nothing
    torch.testing.assert_close(observed_persistence(before, past, seen, KM), before, rtol=1e-4, atol=1e-4)
    seen = torch.ones_like(past)
    seen[:, -1, :, :20] = 0.0
    made = observed_persistence(before, past, seen, KM)
    torch.testing.assert_close(made[..., :20], before[..., :20])
    assert (made[0, :, FIVE, :10, 20:] > before[0, :, FIVE, :10, 20:]).all()


def test_gradients_pass() -> None:
    past = frames(0.0, 0.1, 0.2, 0.3)
    leaf = logits(3, 0.3).requires_grad_()
    observed_persistence(leaf, past, torch.ones_like(past), KM).sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all() and leaf.grad.any()


def rising(side: int = 40) -> torch.Tensor:
    """In one step 3 mm/h become 6 on the first rows, and 1.2 stays on the next; the newest 3 mm/h are elsewhere."""
    rain = torch.zeros(2, side, side)
    rain[0, :10], rain[1, :10] = 3.0, 6.0
    rain[:, 10:20] = 1.2
    rain[1, 20:30] = 3.0
    return rain[None]


def changed(steps: int, past: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Logits of 30 % after the correction by rate alone, (steps, K, H, W)."""
    return torch.cat(list(observed_changes(list(logits(steps, 0.3).unbind(1)), past, seen)))


def test_rain_changes_as_rain_of_that_rate_has_changed() -> None:
    past = rising()
    made = changed(1, past, torch.ones_like(past)).sigmoid()[0, FIVE]
    count = 400.0
    grown = (count + 0.3 * PRIOR_OF_A_RATE) / (count + PRIOR_OF_A_RATE)
    torch.testing.assert_close(made[20:30], torch.full((10, 40), grown))
    assert (made[10:20] < 0.02).all() and (made[30:] < 0.02).all()
    torch.testing.assert_close(made[:10], torch.full((10, 40), 0.3))  # no such rate before: nothing is known


def test_light_rain_is_soon_forgotten_heavy_rain_beyond_the_past_and_nothing_is_learned_unseen() -> None:
    past = torch.cat([rising()[:, :1], rising()], dim=1)
    seen, start = torch.ones_like(past), math.log(0.3 / 0.7)
    near, far, beyond, end = changed(4, past, seen)[:, :, 20:30, 0].mean(2) - start
    light = THRESHOLDS.index(1.0)
    torch.testing.assert_close(far[light], near[light] / 2)
    torch.testing.assert_close(far[FIVE], near[FIVE])
    certain = 400.0 / (400.0 + PRIOR_OF_A_RATE)
    torch.testing.assert_close(beyond[FIVE], near[FIVE] * (2 / 3) ** 3 * certain)
    torch.testing.assert_close(end[FIVE], near[FIVE] / 8 * certain)
    assert not beyond[light].any()
    seen[:, :-1] = 0.0
    torch.testing.assert_close(changed(4, past, seen), logits(4, 0.3)[0], rtol=1e-5, atol=1e-5)
    seen[:] = 1.0
    seen[:, -1, :, :20] = 0.0
    made = changed(1, past, seen)
    torch.testing.assert_close(made[..., :20], logits(1, 0.3)[0, ..., :20])
    assert (made[0, FIVE, 20:30, 20:] > 2.5).all()


def test_sums_of_many_small_numbers_keep_their_digits() -> None:
    past = torch.zeros(1, 2, 1500, 1500)
    before = torch.full((1, NUM, 1500, 1500), math.log(1e-3 / (1 - 1e-3)))
    (made,) = observed_changes([before], past, torch.ones_like(past))
    torch.testing.assert_close(made.sigmoid(), torch.full_like(made, LOWEST), rtol=1e-3, atol=0)


def test_the_shorter_the_rain_lasts_the_wider_probabilities_are_smoothed() -> None:
    correlations = [
        [1.0] * 8,
        [0.5, 0.9, *[0.0] * 6],  # long bands that hold nothing say nothing
        [0.0, 0.25, *[0.9] * 6],
        [0.0, 0.0, 0.0, *[0.9] * 5],
        [0.0] * 8,
    ]
    width = smoothing_width(torch.tensor(correlations)[None])[0]
    # the shortest lasting wavelengths are 2, 2, 2^2.5 and 2^4 pixels
    torch.testing.assert_close(width, torch.tensor([0.0, 0.0, 0.2 * (2**2.5 - 2), 0.2 * 14, WIDEST]))


@pytest.mark.parametrize("width", [1.5, 4.0])
def test_smoothing_is_that_of_a_gaussian_over_observed_pixels(width: float) -> None:
    field = ndimage.gaussian_filter(np.random.default_rng(0).random((61, 80), np.float32), 2.0)
    seen = np.ones_like(field)
    seen[:, 50:60] = 0.0
    sums = [ndimage.gaussian_filter(values, width, mode="constant") for values in (field * seen, seen)]
    given = [torch.from_numpy(values.copy())[None, None] for values in (field, seen)]
    made = smoothed(*given, torch.tensor([width]))[0, 0].numpy()
    rough = np.abs(field - sums[0] / np.maximum(sums[1], 1e-6))[seen > 0].mean()
    assert np.abs(made - sums[0] / np.maximum(sums[1], 1e-6))[seen > 0].mean() < 0.15 * rough
    np.testing.assert_array_equal(made[seen == 0], field[seen == 0])


def test_nothing_is_smoothed_where_all_scales_last_and_uniform_fields_stay() -> None:
    field, seen = torch.rand(2, 3, 20, 33), torch.ones(2, 1, 20, 33)
    made = smoothed(field.clone(), seen, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(made[0], field[0])
    # half a pixel is a mixture of a quarter of a smoothing of one pixel
    full = smoothed(field.clone(), seen, torch.ones(2))
    torch.testing.assert_close(made[1], torch.lerp(field[1], full[1], 0.25))
    flat = torch.full_like(field, 0.3)
    torch.testing.assert_close(smoothed(flat.clone(), seen, torch.tensor([1.0, 6.0])), flat)
