"""Scores of DataArrays: those of the package scores, and refusals that say what to pass."""

import numpy as np
import pytest
import scores as other
import scores.spatial
import xarray as xr

from raincast import metrics


@pytest.fixture
def pair() -> tuple[xr.DataArray, xr.DataArray]:
    rng = np.random.default_rng(0)
    dims, coords = ("lead_time", "y", "x"), {"lead_time": [5, 10, 15], "y": np.arange(20), "x": np.arange(30)}
    observed = xr.DataArray(rng.gamma(0.4, 3.0, (3, 20, 30)), coords, dims)
    forecast = observed * rng.uniform(0.5, 1.5, observed.shape) + rng.gamma(0.2, 1.0, observed.shape)
    observed[0, :4] = np.nan
    forecast[2, 5] = np.nan
    return forecast, observed


def test_counts_give_the_scores_of_the_package_scores(pair) -> None:
    forecast, observed = pair
    events = other.categorical.ThresholdEventOperator(default_event_threshold=1.0)
    table = events.make_contingency_manager(forecast, observed).transform(preserve_dims="lead_time")
    expected = {
        "csi": table.critical_success_index(),
        "pod": table.probability_of_detection(),
        "far": table.false_alarm_ratio(),
        "frequency_bias": table.frequency_bias(),
        "hss": table.heidke_skill_score(),
        "ets": table.equitable_threat_score(),
    }
    for name, values in expected.items():
        found = getattr(metrics, name)(forecast, observed, threshold=1.0, keep="lead_time")
        np.testing.assert_allclose(found, values, rtol=1e-12, err_msg=name)
        assert found.dims == ("lead_time",) and found["lead_time"].values.tolist() == [5, 10, 15]
        assert found.attrs["long_name"] and found.attrs["units"] == "1"


def test_errors_are_those_of_the_package_scores(pair) -> None:
    forecast, observed = pair
    expected = {
        "mae": other.continuous.mae,
        "rmse": other.continuous.rmse,
        "mean_error": other.continuous.additive_bias,
        "correlation": other.continuous.correlation.pearsonr,
    }
    for name, function in expected.items():
        found = getattr(metrics, name)(forecast, observed)
        assert float(found) == pytest.approx(float(function(forecast, observed)), rel=1e-9), name
        assert found.dims == ()


def test_fractions_are_those_of_the_package_scores(pair) -> None:
    forecast, observed = (array.isel(lead_time=1) for array in pair)
    found = metrics.fss(forecast, observed, threshold=1.0, box=5, boundary="inside")
    expected = other.spatial.fss_2d_single_field(
        forecast.values, observed.values, event_threshold=1.0, window_size=(5, 5), zero_padding=False
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    both = metrics.fss(*pair, threshold=1.0, box=3, keep="lead_time")
    assert both.dims == ("lead_time",) and ((both > 0) & (both < 1)).all()


def test_the_order_of_dimensions_does_not_matter(pair) -> None:
    forecast, observed = pair
    turned = metrics.csi(forecast.transpose("x", "lead_time", "y"), observed, threshold=1.0)
    assert float(turned) == float(metrics.csi(forecast, observed, threshold=1.0))


def test_what_does_not_fit_is_refused_with_what_to_pass(pair) -> None:
    forecast, observed = pair
    for given, error, message in (
        ((forecast.values, observed), TypeError, "forecast is a ndarray: pass a DataArray"),
        (
            (forecast, observed.to_dataset(name="rain_rate")),
            TypeError,
            r"pass one variable .* dataset\['rain_rate'\]",
        ),
        ((forecast.isel(y=0), observed), ValueError, "they must be the same"),
        ((forecast.isel(y=slice(5)), observed), ValueError, "select the same times and pixels"),
    ):
        with pytest.raises(error, match=message):
            metrics.csi(*given, threshold=1.0)
    with pytest.raises(ValueError, match="'time'.* is none of the dimensions"):
        metrics.mae(forecast, observed, keep="time")
    with pytest.raises(ValueError, match="needs the dimensions y and x"):
        metrics.fss(forecast, observed, threshold=1, box=3, keep="y")
