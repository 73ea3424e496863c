"""Published protocols: thresholds, masks, order of pooling and averaging, against plain numpy; nothing else by their name."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from checking import rates_of
from running import compose_config

from raincast import assembly
from raincast.evaluation import Metrics, describe_protocol, evaluate
from raincast.evaluation.groups import HKO7_NOISE, PROTOCOLS, SEVIR_THRESHOLDS
from raincast.forecaster import Gives, Prediction
from raincast.ingest.readers.sevir import SEVIR
from raincast.metrics.continuous import HKO7_PIXEL, HKO7_THRESHOLDS, HKO7_WEIGHTS

LEADS, SIZE = 3, 32


class Half:
    """Half of the first input, shifted."""

    name = "half"
    gives = Gives()

    def predict(self, query):
        halved = 0.5 * np.roll(np.nan_to_num(query.rain[:, :1]), 2, -1)
        return Prediction(np.repeat(halved, query.num_steps, axis=1))


@pytest.fixture(scope="module")
def batches():
    rng = torch.Generator().manual_seed(0)
    rain = torch.rand(6, 2 + LEADS, 1, SIZE // 4, SIZE // 4, generator=rng).mul(8).sub(2).clamp_min(0).exp() - 1
    rain = torch.nn.functional.interpolate(rain.flatten(1, 2), scale_factor=4, mode="bilinear").unsqueeze(2)
    rain[:, :, :, :3] = torch.nan
    target = rain[:, 2:]
    times = np.datetime64("2026-01-01", "s").astype(np.int64) + 3600 * 7 * torch.arange(6)
    whole = {"input": rain[:, :2], "target": target, "target_mask": target.isfinite(), "time": times,
             "y": torch.zeros(6), "x": torch.zeros(6)}  # fmt: skip
    return [{key: values[part] for key, values in whole.items()} for part in (slice(0, 1), slice(1, 6))]


def metrics(name: str) -> Metrics:
    cfg = compose_config("evaluate", Path(tempfile.gettempdir()), f"metrics={name}")
    settings = {key: value for key, value in cfg.metrics.items() if key not in ("goal", "goal_mode")}
    return assembly.make({"_target_": "raincast.evaluation.Metrics", **settings})


def scored(name: str, batches):
    own = evaluate([Half()], batches, metrics(name), lead_steps=LEADS, step_minutes=6.0)
    return own.isel(forecaster=0)


def fields(batches) -> tuple[np.ndarray, np.ndarray]:
    target = torch.cat([batch["target"] for batch in batches])[:, :, 0].double().numpy()
    forecast = np.concatenate([rates_of(Half(), batch["input"].numpy(), LEADS) for batch in batches])[:, :, 0]
    return forecast.astype(np.float64), target


def csi(forecast, target, threshold, axes) -> np.ndarray:
    p, o, seen = forecast >= threshold, target >= threshold, np.isfinite(target)
    return (p & o & seen).sum(axes) / ((p | o) & seen).sum(axes)


def test_hko7_pools_by_lead_then_averages_and_leaves_noise_out(batches):
    found = scored("hko7", batches)
    forecast, target = fields(batches)
    np.testing.assert_allclose(HKO7_NOISE, HKO7_PIXEL.inverse(np.array([1e-12, 0.28])), rtol=1e-6)
    target = np.where((target > HKO7_NOISE[0]) & (target < HKO7_NOISE[1]), np.nan, target)
    expected = [csi(forecast, target, t, (0, 2, 3)).mean() for t in HKO7_THRESHOLDS]
    np.testing.assert_allclose(found["hko7_csi"], expected, rtol=1e-12)
    weight = np.asarray(HKO7_WEIGHTS)[np.digitize(np.nan_to_num(target), HKO7_THRESHOLDS)]
    pixels = [HKO7_PIXEL.forward(np.nan_to_num(rain)) for rain in (forecast, target)]
    error = np.where(np.isfinite(target), pixels[0] - pixels[1], 0)
    # summed over the pixels of a frame, averaged over frames: the mean of frames, as each has some pixels
    np.testing.assert_allclose(found["hko7_b_mse"], (weight * error**2).sum((2, 3)).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["hko7_b_mae"], (weight * abs(error)).sum((2, 3)).mean(), rtol=1e-5)


def test_sevir_pools_over_all_lead_times_and_maxima_side_by_side(batches):
    found = scored("sevir", batches)
    forecast, target = fields(batches)
    for t, own in zip(SEVIR_THRESHOLDS[:4], found["sevir_csi"].values, strict=False):
        np.testing.assert_allclose(own, csi(forecast, target, t, None), rtol=1e-12)
    assert float(found["sevir_csi_m"]) == pytest.approx(float(found["sevir_csi"].mean(skipna=False)), nan_ok=True)

    def pooled(rain, size):
        blocks = np.where(np.isfinite(target), rain, -1).reshape(6, LEADS, SIZE // size, size, SIZE // size, size)
        highest = blocks.max((3, 5))
        return np.where(highest < 0, np.nan, highest)

    for size in (4, 16):
        expected = csi(pooled(forecast, size), pooled(target, size), SEVIR_THRESHOLDS[0], None)
        np.testing.assert_allclose(found["sevir_pooled_csi"].sel(pool=size)[0], expected, rtol=1e-12)


def test_sevir_thresholds_are_what_the_reader_makes_of_its_codes():
    rates = SEVIR()._rate_of_codes().astype(np.float64)
    codes = np.array([16, 74, 133, 160, 181, 219])
    stored = np.round(rates[:247], 2)  # as an archive holds them
    for code, threshold in zip(codes, SEVIR_THRESHOLDS, strict=True):
        assert (stored[np.arange(247) >= code] >= threshold).all() and (stored[6:code] < threshold).all()
    np.testing.assert_allclose(SEVIR_THRESHOLDS, rates[codes], rtol=0.01)


def test_shi2015_has_its_uncentred_correlation(batches):
    found = scored("shi2015", batches)
    forecast, target = fields(batches)
    seen = np.isfinite(target)
    p, t = np.where(seen, forecast, 0), np.where(seen, target, 0)
    axes = (0, 2, 3)
    expected = (p * t).sum(axes) / np.sqrt((p**2).sum(axes) * (t**2).sum(axes))
    assert float(found["shi2015_correlation"]) == pytest.approx(expected.mean(), rel=1e-9)
    assert float(found["shi2015_rainfall_mse"]) == pytest.approx(
        (((p - t) ** 2).sum(axes) / seen.sum(axes)).mean()
    )
    assert float(found["shi2015_csi"]) == pytest.approx(csi(forecast, target, 0.5, axes).mean())
    assert "half shi2015_csi: 0." in describe_protocol(found.expand_dims("forecaster"))


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_other_settings_are_refused_under_a_published_name(name):
    with pytest.raises(
        ValueError, match=rf"metrics.thresholds=\[1.0, 2.0\] differs from {name}'s .*take metrics=rain"
    ):
        Metrics(**{**PROTOCOLS[name].settings, "thresholds": (1.0, 2.0)}, protocol=name)
    Metrics(**PROTOCOLS[name].settings, protocol=name)
    with pytest.raises(ValueError, match="metrics.protocol=kho7 is unknown; there are hko7"):
        Metrics((1.0,), protocol="kho7")


def test_no_score_of_our_own_has_a_published_name(batches):
    own = evaluate([Half()], batches, Metrics((0.5,)), lead_steps=LEADS, step_minutes=6.0)
    assert not [name for name in own if str(name).startswith(tuple(PROTOCOLS))] and describe_protocol(own) == ""
