"""A network as a forecaster: mm/h in, mm/h out, whatever comes."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from checking import query, rates_of
from torch import nn

from raincast.forecaster import ThresholdError
from raincast.forecasting.network import NetworkForecaster
from raincast.models import PyramidEncoderForecaster
from raincast.models.heads import ClassHead, QuantileHead, RateHead
from raincast.models.inputs import Inputs, predict_rates, to_network_scale
from raincast.transforms import DbzScaling, LinearScaling, LogScaling

STAGES = [{"conv_channels": 3, "hidden_channels": 4, "stride": 2}]
TRANSFORMS = [DbzScaling(a=58.53, b=1.56), LogScaling()]

HEADS = [RateHead(), ClassHead((0.5, 2.0, 10.0)), QuantileHead((0.1, 0.5, 0.9))]

any_head = pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
any_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)


def network(scale: float = 30.0, out_channels: int = 1) -> nn.Module:
    """Untrained, with outputs on both sides of the scale's ends."""
    torch.manual_seed(0)
    made = PyramidEncoderForecaster(out_channels=out_channels, stages=STAGES)
    with torch.no_grad():
        for parameter in made.head.parameters():
            parameter.mul_(scale)
    return made


def forecaster(transform=TRANSFORMS[0], head=HEADS[0], **kwargs) -> NetworkForecaster:
    given = {"name": "net", "input_steps": 3, "lead_steps": 4, "step_minutes": 5.0} | kwargs
    return NetworkForecaster(network(out_channels=head.num_channels), head, transform, **given)


def rain(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.4, 5.0, shape).astype(np.float32)


def test_a_missing_pixel_reaches_no_other_and_may_be_told_from_a_dry_one():
    torch.manual_seed(0)
    made = PyramidEncoderForecaster(in_channels=2, stages=STAGES)
    given = torch.from_numpy(rain(1, 3, 1, 8, 8))
    given[0, 1, 0, 2, 3] = 0.0
    missing = given.clone()
    missing[0, 1, 0, 2, 3] = torch.nan
    inputs = Inputs(observed=True)
    read = inputs.frames(TRANSFORMS[0], missing, {})
    difference = read - inputs.frames(TRANSFORMS[0], given, {})
    expected = torch.zeros(1, 3, 2, 8, 8)
    expected[0, 1, 1, 2, 3] = -1.0  # no longer observed; the rain is 0 in both, and nothing else differs
    assert torch.equal(difference, expected)
    forecast = predict_rates(made, HEADS[0], TRANSFORMS[0], missing, 4, inputs=inputs)
    assert forecast.isfinite().all()
    assert not torch.equal(forecast, predict_rates(made, HEADS[0], TRANSFORMS[0], given, 4, inputs=inputs))


@any_transform
def test_missing_pixels_are_taken_for_no_rain(transform):
    """On the network's scale 0 is no rain: filling mm/h or the scale is the same."""
    given = rain(2, 3, 1, 8, 8)
    given[:, 1, 0, 2:4] = 0.0
    missing = given.copy()
    missing[:, 1, 0, 2:4] = np.nan
    assert not to_network_scale(transform, torch.from_numpy(missing))[:, 1, 0, 2:4].any()
    made = forecaster(transform)
    out = rates_of(made, missing, 4)
    np.testing.assert_array_equal(out, rates_of(made, given, 4))
    given[:, 1, 0, 2:4] = 20.0
    assert (out != rates_of(made, given, 4)).any()


@any_transform
@any_head
def test_finite_and_not_negative_whatever_comes(transform, head):
    for hw, value in itertools.product([(1, 1), (1, 7), (5, 9), (8, 8)], [0.0, np.nan, 1e-6, 400.0, np.inf]):
        given = rain(2, 3, 1, *hw)
        given[1] = value
        out = rates_of(forecaster(transform, head), given, 5)
        assert out.shape == (2, 5, 1, *hw) and out.dtype == np.float32
        assert np.isfinite(out).all() and (out >= 0).all(), (hw, value)


@any_transform
def test_rates_lie_within_the_scale_and_below_it_are_exactly_zero(transform):
    out = rates_of(forecaster(transform), rain(4, 3, 1, 8, 8), 4)
    highest = transform.inverse(torch.ones(1)).item()
    assert (out == 0).any() and (out > 0).any() and out.max() <= highest


def test_network_sees_the_scaled_rain_and_its_answer_is_unscaled():
    class Last(nn.Module):
        def forward(self, x, num_steps):
            assert x.min() >= 0 and x.max() <= 1
            return x[:, -1:].expand(-1, num_steps, -1, -1, -1).bfloat16().to(x.dtype)

    given = torch.from_numpy(rain(2, 3, 1, 6, 6)).clamp(0.2, 100)
    out = predict_rates(Last(), RateHead(), TRANSFORMS[1], given, 2)
    assert out.dtype == torch.float32
    # bfloat16 has 8 bits: half a step of 2^-8 on a scale of ln(1501) = 7.3
    torch.testing.assert_close(out, given[:, -1:].expand(-1, 2, -1, -1, -1), rtol=0.03, atol=1e-3)


def test_network_output_in_half_precision_comes_as_float32():
    class Half(nn.Module):
        def forward(self, x, num_steps):
            return torch.full((len(x), num_steps, 1, *x.shape[-2:]), 0.5, dtype=torch.bfloat16)

    out = predict_rates(Half(), RateHead(), TRANSFORMS[0], torch.zeros(1, 2, 1, 3, 3), 2)
    # p = 0.5 is 25 dBZ: 10^((25 − 17.674) / 15.6) = 2.948 mm/h
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.full_like(out, 2.948), rtol=1e-3, atol=0)


@pytest.mark.parametrize("shape", [(1, 2, 1, 8, 8), (1, 4, 1, 8, 8), (1, 3, 2, 8, 8)], ids=str)
def test_other_frames_or_channels_are_refused(shape):
    with pytest.raises(ValueError, match=r"net takes \(batch, 3 frames, 1 channels, y, x\), found"):
        rates_of(forecaster(), np.zeros(shape, np.float32), 4)


@any_head
def test_probabilities_go_with_the_rates_where_the_head_has_them(head):
    made, given, thresholds = forecaster(head=head), rain(2, 3, 1, 7, 9), (0.5, 1.0, 10.0)
    given[0, :, 0, :3] = np.nan
    both = made.predict(query(given, 4, thresholds=thresholds, uncalibrated=True))
    np.testing.assert_array_equal(rates_of(made, given, 4), both.rates)
    assert both.done == ("network", "network") and both.uncalibrated is None and both.members is None
    assert made.gives.probabilities == head.probabilistic == (both.probabilities is not None)
    if both.probabilities is not None:
        assert both.thresholds == thresholds
        assert both.probabilities.shape == (2, 4, 3, 7, 9) and both.probabilities.dtype == np.float32
        assert (both.probabilities >= 0).all() and (both.probabilities <= 1).all()
        assert (np.diff(both.probabilities, axis=2) <= 0).all() and (both.probabilities > 0).any()
    assert made.predict(query(given, 4)).probabilities is None


def test_a_threshold_beyond_the_scale_has_no_probability_but_rates():
    made, given = forecaster(TRANSFORMS[1], HEADS[2]), rain(1, 3, 1, 7, 9)
    with pytest.raises(ThresholdError, match="outside the range"):
        made.predict(query(given, 4, thresholds=[1e6]))
    assert made.predict(query(given, 4)).rates.shape == (1, 4, 1, 7, 9)


def test_lead_times_are_steps_of_the_same_forecast():
    made, given = forecaster(head=HEADS[1]), rain(1, 3, 1, 7, 9)
    whole = made.predict(query(given, 4, thresholds=[1.0]))
    some = made.predict(dataclasses.replace(query(given, 4, thresholds=[1.0]), lead_minutes=[10.0, 20.0]))
    np.testing.assert_array_equal(some.rates, whole.rates[:, [1, 3]])
    np.testing.assert_array_equal(some.probabilities, whole.probabilities[:, [1, 3]])
    with pytest.raises(ValueError, match="has a step of 5 min"):
        made.predict(dataclasses.replace(query(given, 4), lead_minutes=[7.0]))


def test_frames_of_another_step_are_refused():
    with pytest.raises(ValueError, match="trained on steps of 5 min, the query has 10 min"):
        rates_of(forecaster(), rain(1, 3, 1, 7, 9), 4, step_minutes=10.0)


def test_a_network_of_another_head_is_refused():
    made = NetworkForecaster(
        network(), HEADS[1], TRANSFORMS[0], name="net", input_steps=3, lead_steps=4, step_minutes=5.0
    )
    with pytest.raises(ValueError, match=r"\(B, T, 4, H, W\), found \(1, 4, 1, 8, 8\).*out_channels=4"):
        rates_of(made, rain(1, 3, 1, 8, 8), 4)


def test_forecasts_are_repeatable_and_leave_no_trace():
    made = forecaster()
    given = rain(2, 3, 1, 7, 5)
    before = given.copy()
    first = rates_of(made, given, 4)
    np.testing.assert_array_equal(rates_of(made, given, 4), first)
    np.testing.assert_array_equal(given, before)
    assert not made.network.training
    assert all(parameter.grad is None for parameter in made.network.parameters())


def test_strided_and_float64_rain_is_taken():
    given = rain(2, 3, 1, 8, 6)
    expected = rates_of(forecaster(), given, 2)
    turned = np.ascontiguousarray(given.transpose(0, 1, 2, 4, 3)).transpose(0, 1, 2, 4, 3)
    np.testing.assert_array_equal(rates_of(forecaster(), turned.astype(np.float64), 2), expected)
    np.testing.assert_array_equal(rates_of(forecaster(), given[:, :, :, ::-1], 2).shape, expected.shape)


def test_windows_of_a_batch_do_not_mix():
    given = rain(3, 3, 1, 8, 8)
    together = rates_of(forecaster(), given, 4)
    for window, own in zip(given, together, strict=True):
        np.testing.assert_allclose(rates_of(forecaster(), window[None], 4)[0], own, rtol=1e-3, atol=1e-5)


COVARIATES = Inputs(observed=True, past=(("cape", LinearScaling(1000.0, 500.0)), ("lightning", LogScaling())))


def test_channels_are_scaled_and_what_is_missing_reaches_no_other():
    given = torch.from_numpy(rain(1, 3, 1, 4, 4))
    past = torch.from_numpy(rain(1, 3, 2, 4, 4, seed=1))
    seen = COVARIATES.frames(TRANSFORMS[0], given, {"past": past})
    assert seen.shape == (1, 3, COVARIATES.num_channels, 4, 4)
    torch.testing.assert_close(seen[:, :, 2], (past[:, :, 0] - 1000) / 500)
    torch.testing.assert_close(seen[:, :, 3], LogScaling().forward(past[:, :, 1]))
    past[0, 1, 0, 2, 3] = torch.nan
    difference = COVARIATES.frames(TRANSFORMS[0], given, {"past": past}) - seen
    # the mean stands for it, and nothing else differs
    assert difference.nonzero().tolist() == [[0, 1, 2, 2, 3]]
    assert COVARIATES.frames(TRANSFORMS[0], given, {"past": past})[0, 1, 2, 2, 3] == 0


def test_channels_that_are_not_given_are_named():
    with pytest.raises(
        ValueError, match=r"takes 2 channels of past besides the rain \(cape, lightning\), found none"
    ):
        COVARIATES.frames(TRANSFORMS[0], torch.zeros(1, 3, 1, 4, 4), {})
    with pytest.raises(ValueError, match="found 1: give the covariates past"):
        COVARIATES.frames(TRANSFORMS[0], torch.zeros(1, 3, 1, 4, 4), {"past": torch.zeros(1, 3, 1, 4, 4)})
    ahead = Inputs(past=(("nwp", LogScaling()),), future=(("nwp", LogScaling()),))
    with pytest.raises(ValueError, match="known in advance have 3 steps, the forecast 4"):
        ahead.ahead({"future": torch.zeros(1, 3, 1, 4, 4)}, 4)


def test_bf16_is_near_float32_and_an_unknown_precision_is_refused():
    given = rain(1, 3, 1, 12, 14)
    exact = rates_of(forecaster(), given, 4)
    reduced = rates_of(forecaster(precision="bf16"), given, 4)
    assert reduced.dtype == np.float32 and np.isfinite(reduced).all() and (reduced >= 0).all()
    assert 0 < np.abs(reduced - exact).mean() < 0.05 * exact.mean()
    with pytest.raises(ValueError, match="precision=fp8: choose one of float32, bf16"):
        forecaster(precision="fp8")
