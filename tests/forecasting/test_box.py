"""The forecaster that comes with raincast: any step and pixels, without training."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from running import compose_config
from standing import moving

import raincast
from raincast import assembly, schema
from raincast.commands import evaluate, forecast
from raincast.commands.train import train
from raincast.forecaster import Query
from raincast.forecasting.files.netcdf import write_forecast
from raincast.forecasting.memory import Footprint
from raincast.forecasting.network import box_forecaster
from raincast.models.weights import Scored, box, scores_like


@pytest.fixture(scope="module")
def pipeline() -> "assembly.ForecastPipeline":  # type: ignore[name-defined]
    return raincast.load_forecaster(thresholds=[0.5, 1, 5])


def retimed(frames: xr.Dataset, minutes: float) -> xr.Dataset:
    """The same frames, so many minutes apart."""
    times = frames["time"].values[0] + np.arange(frames.sizes["time"]) * np.timedelta64(int(minutes * 60), "s")
    grid = schema.mock_grid(*frames[schema.RAIN].shape[1:])
    return schema.rain_dataset(
        frames[schema.RAIN].values, times, grid, step_minutes=minutes, cell_methods="time: point"
    )


@pytest.mark.parametrize(("minutes", "leads"), [(5, 12), (10, 6), (15, 4)])
def test_it_forecasts_an_hour_at_any_step(
    pipeline: raincast.forecasting.ForecastPipeline, minutes: int, leads: int
) -> None:
    made = pipeline(retimed(moving(5), minutes))
    assert made.attrs["forecast_method"] == "network"
    assert made.sizes["lead_time"] == leads
    assert made["lead_time"].values[-1] == np.timedelta64(60, "m")
    probability = made["rain_rate_exceedance"].values
    assert np.nanmin(probability) >= 0 and np.nanmax(probability) <= 1
    assert (np.diff(probability, axis=1) <= 1e-6)[np.isfinite(probability[:, 1:])].all()
    assert "knmi" in made.attrs["training_data"]


def test_moving_rain_is_found_where_it_goes(pipeline: raincast.forecasting.ForecastPipeline) -> None:
    """Better than persistence by far, on rain that moves by 24 km/h."""
    frames = moving(10, 64, 96)
    made = pipeline(frames.isel(time=slice(0, 4)))[schema.RAIN].values
    truth = frames[schema.RAIN].values[4:]
    inner = (slice(8, -8), slice(24, -8))

    def csi(rain: np.ndarray, step: int) -> float:
        said, wet = rain[inner] >= 1, truth[step][inner] >= 1
        return float((said & wet).sum() / (said | wet).sum())

    for step in (1, 3, 5):
        assert csi(made[step], step) > csi(frames[schema.RAIN].values[3], step) + 0.15


def test_only_what_was_observed_is_computed_and_the_rest_is_dry() -> None:
    network, rain = box_forecaster(), moving(4, 40, 40)[schema.RAIN].values[None, :, None]
    rain[..., -2:, :] = np.random.default_rng(0).gamma(0.5, 2.0, (1, 4, 1, 2, 40))
    wide = np.full((1, 4, 1, 60, 70), np.nan, np.float32)
    wide[..., 10:50, 20:60] = rain

    def ask(rain: np.ndarray) -> np.ndarray:
        query = Query.for_steps(rain, 3, step_minutes=5.0, pixel_km=1.0, thresholds=[1.0])
        return network.predict(query).rates

    inner, outer = ask(rain), ask(wide)
    np.testing.assert_array_equal(outer[..., 10:50, 20:60], inner)
    assert not outer[..., :10, :].any() and not outer[..., 60:].any()


def test_rules_decide_the_rates() -> None:
    network, rain = box_forecaster(), moving(4)[schema.RAIN].values[None, :, None]

    def area(rule: str | None) -> float:
        query = Query.for_steps(rain, 6, step_minutes=5.0, pixel_km=1.0, rule=rule)
        return float((network.predict(query).rates[0, -1] >= 1).sum())

    assert network.gives.rules == ("area", "csi", "mean", "matched")
    assert area(None) == area("area")
    assert len({area(rule) for rule in network.gives.rules}) > 2
    with pytest.raises(ValueError, match="rates_by=best: box knows area"):
        area("best")
    with pytest.raises(ValueError, match="pixel_km"):
        network.predict(Query.for_steps(rain, 2, step_minutes=5.0))


def test_forecast_needs_no_checkpoint_and_says_how_good_its_weights_were(
    tiny_archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        path = forecast.run(compose_config("forecast", tmp_path, f"input={tiny_archive}", "animation=false"))
    assert "By the weights that come with raincast, trained on knmi, mch, fmi, opera, mrms." in caplog.text
    assert "CSI at 1 mm/h after 30 min on the data most like these" in caplog.text
    with xr.open_dataset(path) as made:
        assert made.attrs["forecast_method"] == "network"
        assert "rain_rate_exceedance" in made
        assert made.attrs["source"].endswith("LagrangianForecaster")


@pytest.mark.usefixtures("undrawn")
def test_evaluate_scores_the_box_its_rules_and_members(tiny_archive: Path, tmp_path: Path) -> None:
    given = [f"data.archive={tiny_archive}", "data.eval_stride=20", "baselines=[persistence]", "workers=1"]
    given += [f"paths.output_dir={tmp_path}", "default_data.lead_steps=4"]
    scores = evaluate.run(compose_config("evaluate", tmp_path / "a", *given, "rates_by=[csi]", "members=4"))
    assert list(scores["forecaster"].values) == ["network", "network_csi", "network_members", "persistence"]
    csi = scores["csi"].sel(threshold=1).isel(lead_time=0)  # later rain comes from outside 32 km
    assert float(csi.sel(forecaster="network")) > float(csi.sel(forecaster="persistence"))
    bias = scores["frequency_bias"].sel(threshold=1).mean("lead_time")
    assert len(np.unique(bias)) == 4, "each has its own area"
    brier = scores["brier"].sel(threshold=1).mean("lead_time").values
    assert brier[1] == brier[0], "the probabilities are the same"
    assert brier[2] == pytest.approx(brier[0], rel=0.2)
    assert float(scores["crps"].sel(forecaster="network_members").min()) > 0
    for rule in ("[best]", "best"):  # a list, or one alone
        with pytest.raises(ValueError, match="rates_by=best: network knows area, csi, mean, matched"):
            evaluate.run(compose_config("evaluate", tmp_path / "b", *given, f"rates_by={rule}"))


def test_a_file_of_weights_is_a_checkpoint() -> None:
    box = assembly.read_checkpoint("box")
    named = assembly.read_checkpoint(Path(raincast.__file__).parent / "weights" / "lagrangian.npz")
    assert named.sha256 == box.sha256 and named.config == box.config
    query = Query.for_steps(np.ones((1, 4, 1, 16, 16), np.float32), 2, step_minutes=5.0, pixel_km=1.0)
    rates = [assembly.forecaster_of(each, device="cpu").predict(query).rates for each in (box, named)]
    np.testing.assert_array_equal(*rates)
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"device={device}: .*Give auto, cpu or cuda"):
            assembly.forecaster_of(box, device=device)


def test_a_forecast_takes_other_rules_and_members(tmp_path: Path) -> None:
    frames = moving(6)
    by_area = raincast.load_forecaster(members=3, lead_steps=3)(frames)
    by_mean = raincast.load_forecaster(rates_by="mean", lead_steps=3)(frames)
    assert (by_area.attrs["rates_by"], by_mean.attrs["rates_by"]) == ("area", "mean")
    # the mean spreads light rain over more pixels
    assert float((by_mean["rain_rate"] > 0.1).mean()) > float((by_area["rain_rate"] > 0.1).mean())
    xr.testing.assert_equal(by_mean["rain_rate_exceedance"], by_area["rain_rate_exceedance"])
    members = by_area["rain_rate_members"]
    assert members.dims == ("lead_time", "member", "y", "x") and members.member.values.tolist() == [1, 2, 3]
    assert "rain_rate_members" not in by_mean
    assert float(members.mean()) == pytest.approx(float(by_mean["rain_rate"].mean()), rel=0.5)
    again = raincast.load_forecaster(members=3, lead_steps=3, seed=1)(frames)["rain_rate_members"]
    assert not members.equals(again)
    written = write_forecast(by_area, tmp_path / "a.nc")
    with xr.open_dataset(written) as file:
        np.testing.assert_allclose(file["rain_rate_members"], members, atol=0.0101)
    with pytest.raises(ValueError, match="members=1: an ensemble has at least 2"):
        raincast.load_forecaster(members=1)


def test_members_beside_calibrated_probabilities_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = box_forecaster()
    network.calibration = SimpleNamespace(thresholds=(1.0,), fitted_on=None)  # type: ignore[assignment]
    monkeypatch.setattr("raincast.assembly.forecasts.forecaster_of", lambda *_, **__: network)
    raincast.load_forecaster(members=2, calibrated=False)
    assert "Members come from the network's own distribution" not in caplog.text
    network.calibration = SimpleNamespace(thresholds=(1.0,), fitted_on=None)  # type: ignore[assignment]
    raincast.load_forecaster(members=2)
    assert "Members come from the network's own distribution" in caplog.text


@pytest.mark.usefixtures("undrawn")
def test_training_begins_with_the_box_and_the_checkpoint_forecasts(tiny_archive: Path, tmp_path: Path) -> None:
    given = [
        "experiment=radar", "logger=csv", f"data.archive={tiny_archive}", "data.crop=32", "data.samples_per_epoch=4",
        "data.batch_size=2", "data.eval_stride=20", "data.lead_steps=3", "data.num_workers=0", "trainer.max_epochs=1",
        "baselines=[persistence,box]", "trainer.accelerator=cpu", "optimizer.lr=1e-5",
    ]  # fmt: skip
    result = train(compose_config("train", tmp_path, *given))
    assert result.scores is not None
    csi = result.scores["csi"].sel(threshold=1).mean("lead_time")
    assert float(csi.sel(forecaster="network")) == pytest.approx(float(csi.sel(forecaster="box")), abs=0.02)
    assert assembly.read_checkpoint(result.best).info["input_steps"] == 6
    made = raincast.load_forecaster(result.best)(moving(4))  # it reads no more than four
    assert made.attrs["forecast_method"] == "network"
    nothing = compose_config("train", tmp_path / "none", *given, "model.weights=null")
    assert assembly.head(nothing).num_channels == 14


def test_the_memory_of_the_box_is_that_of_its_network() -> None:
    """What is written down to save the seconds of an estimate is no less than it, and not much more."""
    estimated, known = Footprint.of_network(box_forecaster()), Footprint.of_box(box_forecaster())
    for leads in (1, 3, 20):  # the first is on the constant part, the second just beyond it
        found = estimated.bytes_per_pixel(leads)
        assert found <= known.bytes_per_pixel(leads) <= 1.35 * found, leads
    assert estimated.whole_bytes_per_pixel is not None and known.whole_bytes_per_pixel is not None
    for leads in (1, 6):
        found = estimated.whole_bytes_per_pixel(leads)
        assert found <= known.whole_bytes_per_pixel(leads) <= 1.35 * found, leads


def test_a_forecast_by_the_box_imports_only_what_it_needs(tmp_path: Path) -> None:
    """The others take seconds of each `python forecast.py`."""
    moving(5).to_netcdf(tmp_path / "in.nc")
    others = ["lightning", "pysteps", "scipy.stats", "scipy.optimize", "distributed", "torch._dynamo", "sympy"]
    code = (
        "import sys; from raincast.cli import forecast; "
        "sys.argv = ['forecast.py', 'input=in.nc', 'folder=out', 'exceedance=[1,5]']; forecast(); "
        f"print([name for name in {others} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert len([*(tmp_path / "out").glob("*.nc")]) == len([*(tmp_path / "out").glob("*.gif")]) == 1


def rescaled(frames: xr.Dataset, pixel_km: float) -> xr.Dataset:
    """The same frames with pixels of another size."""
    grid = schema.grid_of(frames)
    other = schema.Grid(grid.y * pixel_km, grid.x * pixel_km, grid.crs_wkt)
    return schema.rain_dataset(
        frames[schema.RAIN].values, frames["time"].values, other, step_minutes=5.0, cell_methods="time: point"
    )


def test_beyond_what_it_was_trained_on_it_forecasts_warns_and_says_so_in_the_file(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipeline = raincast.load_forecaster(thresholds=[])
    assert "outside_trained_range" not in pipeline(moving(4)).attrs and not caplog.text
    coarse = pipeline(rescaled(moving(4), 5.0))
    assert coarse.attrs["forecast_method"] == "network"
    assert coarse.attrs["outside_trained_range"] == "pixels of 5 km (1 to 2 km)"
    assert "Outside of what the network was trained on: pixels of 5 km (1 to 2 km)" in caplog.text
    long = raincast.load_forecaster(lead_steps=30, thresholds=[])(moving(4))
    assert long.attrs["outside_trained_range"] == "a lead time of 150 min (2 to 90 min)"


def test_absurd_lead_times_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"lead_steps=100000 of 5 min are 8,333 hours: ask for at most 24 hours"):
        raincast.load_forecaster(lead_steps=100_000)(moving(4))


def test_the_scores_most_like_the_data_are_named() -> None:
    """By pixel size and share of wet pixels; all are of data that the weights have not seen."""
    for one in (Scored(**found) for found in box()[1]["scores"]):
        assert scores_like(one.pixel_km, one.wet_share) == one
        assert 0 < one.csi["extrapolation"] < one.csi["raincast"] < 1
    assert scores_like(1.0, 0.0) in [Scored(**found) for found in box()[1]["scores"]]
