"""Heads against loops over single pixels, and what they promise of rates and probabilities."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raincast.models.heads import ClassHead, QuantileHead, RateHead
from raincast.transforms import DbzScaling, LogScaling

TRANSFORMS = [DbzScaling(a=58.53, b=1.56), LogScaling()]
BOUNDS = (0.5, 2.0, 10.0)
CLASSES = ClassHead(BOUNDS)
LEVELS = QuantileHead((0.1, 0.25, 0.5, 0.75, 0.9))
HEADS = [RateHead(), CLASSES, ClassHead((1.0,)), LEVELS, QuantileHead((0.3, 0.4), rate_level=0.3)]
THRESHOLDS = (0.1, 0.5, 1.0, 2.0, 3.0, 10.0, 30.0, 60.0)

any_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
any_head = pytest.mark.parametrize("head", HEADS, ids=str)


def outputs(head, *, scale: float = 1.0, seed: int = 0, dtype=torch.float64, hw=(6, 7)) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, 3, head.num_channels, *hw, generator=g, dtype=torch.float64).to(dtype)


def pixels(values: torch.Tensor) -> np.ndarray:
    """(B, T, C, H, W) → (pixels, C)."""
    return values.movedim(2, -1).flatten(0, -2).numpy()


@any_transform
@any_head
def test_rates_and_probabilities_keep_their_bounds(transform, head):
    for scale, dtype in itertools.product([0.0, 0.3, 3.0, 1e3], [torch.float32, torch.float64]):
        output = outputs(head, scale=scale, dtype=dtype)
        rates = head.rates(output, transform)
        assert rates.shape == (2, 3, 1, 6, 7) and rates.dtype == dtype
        assert rates.isfinite().all() and (rates >= 0).all(), (scale, dtype)
        chances = head.exceedance(output, THRESHOLDS, transform)
        assert chances.shape == (2, 3, len(THRESHOLDS), 6, 7) and chances.dtype == dtype
        assert ((chances >= 0) & (chances <= 1)).all(), (scale, dtype)
        assert (chances.diff(dim=2) <= 0).all(), (scale, dtype)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-40, 40, width=32), min_size=5, max_size=5),
    thresholds=st.lists(st.floats(0.05, 100), min_size=2, max_size=6, unique=True),
    head=st.sampled_from([RateHead(), ClassHead((0.5, 2.0, 5.0, 10.0)), LEVELS]),
    transform=st.sampled_from(TRANSFORMS),
)
def test_no_output_makes_a_higher_threshold_likelier(values, thresholds, head, transform):
    output = torch.tensor(values[: head.num_channels], dtype=torch.float32).view(1, 1, -1, 1, 1)
    chances = head.exceedance(output, sorted(thresholds), transform)
    assert (chances.diff(dim=2) <= 0).all() and chances.min() >= 0 and chances.max() <= 1


def test_the_rate_head_is_the_transforms_inverse():
    head, transform = RateHead(), TRANSFORMS[0]
    output = outputs(head, scale=0.5)
    rates = head.rates(output, transform)
    torch.testing.assert_close(rates, transform.inverse(output), rtol=0, atol=0)
    torch.testing.assert_close(head.prediction(output), output, rtol=0, atol=0)
    for k, threshold in enumerate(THRESHOLDS):
        reached = head.exceedance(output, THRESHOLDS, transform)[:, :, k : k + 1]
        assert torch.equal(reached, (rates >= threshold).double())
    assert 0 < reached.sum() < reached.numel()


def softmax(logits: np.ndarray) -> list[float]:
    powers = [math.exp(z - max(logits)) for z in logits]
    return [power / sum(powers) for power in powers]


def test_classes_equal_a_loop_over_pixels():
    output = outputs(CLASSES, scale=2.0)
    # (b − a) / ln(b/a) of 0.5-2 and 2-10, and 1.5 · 10
    mean = [0.0, 1.5 / math.log(4), 8 / math.log(5), 15.0]
    rates, chances = CLASSES.rates(output, TRANSFORMS[0]), CLASSES.exceedance(output, THRESHOLDS, TRANSFORMS[0])
    for logits, rate, chance in zip(*map(pixels, (output, rates, chances)), strict=True):
        p = softmax(logits)
        assert rate[0] == pytest.approx(sum(a * b for a, b in zip(p, mean, strict=True)))
        expected = {
            0.1: p[1] + p[2] + p[3],
            0.5: p[1] + p[2] + p[3],
            1.0: p[1] / 2 + p[2] + p[3],  # 1 is the geometric middle of 0.5 and 2
            2.0: p[2] + p[3],
            3.0: p[2] * math.log(10 / 3) / math.log(5) + p[3],
            10.0: p[3],
            30.0: p[3] / 27,  # (30/10)^−3
            60.0: p[3] / 216,
        }
        assert chance == pytest.approx([expected[t] for t in THRESHOLDS])


@pytest.mark.parametrize("number", range(4))
def test_a_sure_class_gives_its_rate_and_its_bounds(number):
    logits = torch.full((1, 1, 4, 1, 1), -1e4)
    logits[:, :, number] = 1e4
    head = ClassHead(BOUNDS, class_rates=(0.1, 1.0, 5.0, 20.0))
    assert head.rates(logits, TRANSFORMS[0]).item() == pytest.approx((0.1, 1.0, 5.0, 20.0)[number])
    assert head.exceedance(logits, BOUNDS, TRANSFORMS[0]).flatten().tolist() == [
        float(number > k) for k in range(3)
    ]


def test_the_mean_of_classes_is_the_area_under_the_probabilities():
    """E[R] = ∫ P(R >= r) dr: the rates and the shares within the classes are of one distribution."""
    output = outputs(CLASSES, hw=(2, 2))
    edges = np.geomspace(0.5, 1e4, 4001)
    chances = CLASSES.exceedance(output, edges.tolist(), TRANSFORMS[0])
    area = 0.5 * chances[:, :, 0] + torch.trapezoid(chances, torch.from_numpy(edges), dim=2)
    torch.testing.assert_close(CLASSES.rates(output, TRANSFORMS[0])[:, :, 0], area, rtol=1e-4, atol=0)


def quantile_function(quantiles: np.ndarray, levels: tuple[float, ...], u: float) -> float:
    """Linear between the levels, and on beyond them as in the outermost piece."""
    piece = min(max(sum(level <= u for level in levels) - 1, 0), len(levels) - 2)
    slope = (quantiles[piece + 1] - quantiles[piece]) / (levels[piece + 1] - levels[piece])
    return float(quantiles[piece] + slope * (u - levels[piece]))


@any_transform
def test_quantiles_equal_a_fine_loop_over_levels(transform):
    """Rates at very many levels: the one at a level, and how many reach a threshold."""
    output = outputs(LEVELS, scale=0.15, hw=(2, 3)) + 0.1
    thresholds = (0.5, 2.0, 10.0)
    rates = [
        QuantileHead(LEVELS.levels, rate_level=level).rates(output, transform) for level in (0.1, 0.4, 0.5, 0.9)
    ]
    chances = LEVELS.exceedance(output, thresholds, transform)
    levels = (np.arange(4000) + 0.5) / 4000
    for quantiles, rate, chance in zip(
        *map(pixels, (LEVELS.prediction(output), torch.cat(rates, 2), chances)), strict=True
    ):
        at = [quantile_function(quantiles, LEVELS.levels, u) for u in (0.1, 0.4, 0.5, 0.9)]
        assert rate == pytest.approx(transform.inverse(np.array(at)))
        drawn = transform.inverse(np.array([quantile_function(quantiles, LEVELS.levels, u) for u in levels]))
        assert chance == pytest.approx([(drawn >= t).mean() for t in thresholds], abs=1 / 4000)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_quantiles_never_cross(scale, dtype):
    quantiles = LEVELS.prediction(outputs(LEVELS, scale=scale, dtype=dtype))
    assert (quantiles.diff(dim=2) >= 0).all() and quantiles.isfinite().all()


def test_the_middle_channel_is_the_median_and_all_start_near_it():
    output = outputs(LEVELS)
    torch.testing.assert_close(LEVELS.prediction(output)[:, :, 2], output[:, :, 2], rtol=0, atol=0)
    # softplus(0) = ln 2, of sharpness 20
    start = LEVELS.prediction(torch.zeros(1, 1, 5, 1, 1, dtype=torch.float64)).flatten()
    torch.testing.assert_close(start, math.log(2) / 20 * torch.tensor([-2.0, -1, 0, 1, 2], dtype=torch.float64))


@any_transform
def test_sure_quantiles_are_a_rate(transform):
    """All levels at one rate: that rate is forecast, and reached with certainty; dry is exactly dry."""
    output = torch.full((1, 1, 5, 2, 1), -1e3, dtype=torch.float64)
    output[:, :, 2, 0] = transform.forward(torch.tensor(3.0, dtype=torch.float64))
    output[:, :, 2, 1] = 0.0
    torch.testing.assert_close(LEVELS.rates(output, transform).flatten(), output.new_tensor([3.0, 0.0]))
    chances = LEVELS.exceedance(output, (0.1, 2.99, 3.01), transform)
    assert chances[0, 0, :, :, 0].T.tolist() == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_probability_at_a_quantile_is_its_level():
    transform = TRANSFORMS[1]
    output = torch.full((1, 1, 5, 1, 1), 0.0, dtype=torch.float64)
    output[:, :, 2] = 0.5
    rates = transform.inverse(LEVELS.prediction(output).flatten()).tolist()
    chances = LEVELS.exceedance(output, rates, transform).flatten()
    torch.testing.assert_close(chances, 1 - torch.tensor(LEVELS.levels, dtype=torch.float64))


@any_head
def test_gradients_reach_every_channel(head):
    output = outputs(head, scale=0.1).requires_grad_()
    head.prediction(output).square().sum().backward()
    assert output.grad.isfinite().all() and output.grad.abs().amax((0, 1, 3, 4)).all()


@any_head
def test_other_channels_and_thresholds_are_refused(head):
    wrong = torch.zeros(1, 1, head.num_channels + 1, 2, 2)
    for call in (
        head.prediction,
        lambda o: head.rates(o, TRANSFORMS[0]),
        lambda o: head.exceedance(o, (1.0,), TRANSFORMS[0]),
    ):
        with pytest.raises(ValueError, match=rf"out_channels={head.num_channels}"):
            call(wrong)
    fitting = wrong[:, :, 1:]
    for thresholds in ((), (0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1.0, math.inf), (math.nan,)):
        with pytest.raises(ValueError, match="above 0 and increasing"):
            head.exceedance(fitting, thresholds, TRANSFORMS[0])


def test_quantiles_refuse_thresholds_beyond_the_scale():
    with pytest.raises(ValueError, match=r"thresholds=\[200\.0\] mm/h lie outside the range of LogScaling"):
        LEVELS.exceedance(torch.zeros(1, 1, 5, 1, 1), (1.0, 200.0), LogScaling(max_rate=150.0))
    with pytest.raises(ValueError, match=r"thresholds=\[0\.001\]"):
        LEVELS.exceedance(torch.zeros(1, 1, 5, 1, 1), (0.001, 1.0), DbzScaling())


@pytest.mark.parametrize("thresholds", [(), (0.0, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_classes_without_order_are_refused(thresholds):
    with pytest.raises(ValueError, match="above 0 and increasing"):
        ClassHead(thresholds)


@pytest.mark.parametrize(
    "rates",
    [
        (0.0, 1.0, 5.0),
        (0.0, 1.0, 5.0, 10.0),
        (0.0, 1.0, 20.0, 30.0),
        (-1.0, 1.0, 5.0, 20.0),
        (0.0, 0.4, 5.0, 20.0),
        (math.nan, 1.0, 5.0, 20.0),
    ],
)
def test_rates_outside_their_class_are_refused(rates):
    with pytest.raises(ValueError, match="must be 4, each within its class"):
        ClassHead(BOUNDS, class_rates=rates)


@pytest.mark.parametrize("levels", [(), (0.5,), (0.0, 0.5), (0.5, 1.0), (0.9, 0.1), (0.5, 0.5)])
def test_levels_that_are_no_probabilities_in_order_are_refused(levels):
    with pytest.raises(ValueError, match="at least two, between 0 and 1"):
        QuantileHead(levels)


@pytest.mark.parametrize("level", [0.05, 0.95, math.nan])
def test_a_rate_level_beyond_the_levels_is_refused(level):
    with pytest.raises(ValueError, match=r"rate_level=.* Choose one from 0\.1 to 0\.9"):
        QuantileHead((0.1, 0.5, 0.9), rate_level=level)
