"""`ingest.py`, `evaluate.py` and `forecast.py` on small files, checked by outside programs."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from running import TINY, compose_config, run_forked

from raincast import schema
from raincast.archive import Archive
from raincast.baselines import ForecastFiles, Persistence
from raincast.commands.evaluate import keep_common
from raincast.commands.evaluate import run as evaluate
from raincast.commands.forecast import run as forecast
from raincast.commands.ingest import run as ingest
from raincast.commands.train import train
from raincast.data.datamodule import RadarDataModule
from raincast.data.windows import BlockSplit
from raincast.forecasting import Outputs
from raincast.forecasting.files.dataset import forecast_dataset
from raincast.forecasting.files.netcdf import write_forecast


def foreign_file(path: Path, num_times: int = 12) -> Path:
    """A CF file of another service: kg m-2 s-1, float, no step stated."""
    frames = schema.mock_archive(num_times, 20, 14).drop_vars("missing_times")
    frames.attrs.clear()
    frames["rain_rate"] = frames["rain_rate"] / 3600.0
    frames["rain_rate"].attrs = {
        "units": "kg m-2 s-1", "standard_name": "rainfall_flux", "grid_mapping": "crs", "cell_methods": "time: mean"
    }  # fmt: skip
    frames.rename(rain_rate="pr").to_netcdf(path)
    return path


@pytest.mark.usefixtures("undrawn")
def test_ingest_makes_an_archive_that_trains(tmp_path: Path) -> None:
    foreign_file(tmp_path / "rain.nc", 40)
    ingest(compose_config("ingest", tmp_path / "i", f"files={tmp_path}/*.nc", f"archive={tmp_path}/archive"))
    archive = Archive.open(tmp_path / "archive")
    assert archive.num_times == 40 and archive.step_minutes == 5.0
    np.testing.assert_allclose(
        archive.read(0, 40), schema.mock_archive(40, 20, 14)["rain_rate"].values, atol=0.00501
    )
    config = compose_config(
        "train", tmp_path / "t", *TINY, f"data.archive={tmp_path}/archive", "data.split.embargo_minutes=0",
        "data.crop=16", "trainer.max_epochs=1",
    )  # fmt: skip
    assert train(config).last.is_file()


def test_ingest_leaves_a_bad_file_out_and_says_so(tmp_path: Path) -> None:
    foreign_file(tmp_path / "a.nc")
    (tmp_path / "b.nc").write_bytes(b"\x89HDF\r\n\x1a\n damaged")
    with pytest.raises(SystemExit) as stop:
        ingest(compose_config("ingest", tmp_path / "i", f"files={tmp_path}/*.nc", f"archive={tmp_path}/archive"))
    assert stop.value.code == 1
    assert Archive.open(tmp_path / "archive").num_times == 12
    assert "b.nc" in (tmp_path / "archive" / "ingest_report.json").read_text()


def test_evaluate_writes_table_plot_and_scores(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the page has tests of its own
    monkeypatch.setattr("raincast.commands.evaluate.write_page", lambda *args: args[4])
    checkpoint = f"checkpoint={tiny_run}/checkpoints/best.ckpt"
    evaluate(compose_config("evaluate", tmp_path, checkpoint, "data.eval_stride=6", "device=cpu"))
    with xr.open_dataset(tmp_path / "scores.nc") as scores:
        assert list(scores["forecaster"].values) == ["network", "persistence", "extrapolation", "sprog"]
        hits, misses, false = (scores[f"sum_{name}"].sum("event") for name in ("hits", "misses", "false_alarms"))
        xr.testing.assert_allclose(scores["csi"], (hits / (hits + misses + false)).rename("csi"))
        assert scores.attrs["split"] == "test"
        # the mask is the target's: all forecasters are scored on the same pixels
        assert (scores["sum_count"] == scores["sum_count"].isel(forecaster=0)).all()
    for name in ("csi.png", "forecast.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "scores.txt").read_text()
    assert all(name in text for name in ("network", "persistence", "extrapolation", "30 mm/h"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("baselines=[persistance]", "persistance unknown; there are persistence, extrapolation"),
        ("split=tset", "choose one of train, val, test"),
    ],
)
def test_evaluate_refuses_what_it_does_not_know(
    override: str, message: str, tiny_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(compose_config("evaluate", tmp_path, f"checkpoint={tiny_run}/checkpoints/best.ckpt", override))


def test_all_are_scored_on_the_windows_that_a_party_s_files_have(
    tiny_archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """evaluate.py lists what is wanted; of the forecasts of every second init time it scores those windows."""
    few = [
        "checkpoint=null",
        f"data.archive={tiny_archive}",
        "data.eval_stride=4",
        f"list_windows={tmp_path}/wanted.csv",
    ]
    evaluate(compose_config("evaluate", tmp_path, *few, "baselines=[file]"))
    wanted = pd.read_csv(tmp_path / "wanted.csv", parse_dates=["init_time"])
    assert list(wanted.columns) == ["init_time", "first_lead_minutes", "last_lead_minutes", "y0", "y1", "x0", "x1"]
    assert len(wanted) > 2 and set(wanted["last_lead_minutes"]) == {60.0} and set(wanted["y1"]) == {32}
    grid = Archive.open(tiny_archive).grid

    def write(time: np.datetime64, path: Path, num_leads: int = 12) -> None:
        ones, means = np.ones((num_leads, 32, 32), np.float32), "time: point"
        write_forecast(
            forecast_dataset(ones, init_time=time, step_minutes=5, grid=grid, cell_methods=means, attrs={}), path
        )

    for number, time in enumerate(wanted["init_time"].values[::2]):
        write(time, tmp_path / "theirs" / f"{number}.nc")
    data = RadarDataModule(
        tiny_archive, split=BlockSplit(), input_steps=6, lead_steps=12, eval_stride=4, num_workers=0
    )
    theirs = ForecastFiles(tmp_path / "theirs")
    with caplog.at_level("INFO"):
        keep_common(data, "test", [Persistence(), theirs])
    kept = [data.newest(place.start) for place in data.eval_places("test")]
    assert kept == list(wanted["init_time"].values[::2].astype("datetime64[ns]"))
    assert f"file has forecasts for {len(kept)} of the {len(wanted)} init times of split=test" in caplog.text
    write(wanted["init_time"].values[0] + np.timedelta64(1, "m"), tmp_path / "other" / "a.nc")
    data.common_times = None
    with pytest.raises(ValueError, match=r"No init time of split=all .* has a forecast of every forecaster"):
        keep_common(data, "test", [ForecastFiles(tmp_path / "other")], asked="all")
    # of forecasts that do not reach as far as the windows the whole ones count
    times = wanted["init_time"].values
    write(times[0], tmp_path / "short" / "a.nc")
    write(times[1], tmp_path / "short" / "b.nc", num_leads=6)
    keep_common(data, "test", [ForecastFiles(tmp_path / "short")])
    assert {data.newest(place.start) for place in data.eval_places("test")} == {times[0].astype("datetime64[ns]")}
    (tmp_path / "short" / "a.nc").unlink()
    data.common_times = None
    lacking = r"1 forecasts of file lack some of the 12 lead times up to 60 min: data\.lead_steps=N asks for fewer"
    with pytest.raises(ValueError, match=lacking):
        keep_common(data, "test", [ForecastFiles(tmp_path / "short")])
    evaluate(compose_config("evaluate", tmp_path, *few, "data.lead_steps=6"))
    assert set(pd.read_csv(tmp_path / "wanted.csv")["last_lead_minutes"]) == {30.0}


def test_forecast_of_an_archive_is_where_it_belongs(tiny_run: Path, tiny_archive: Path, tmp_path: Path) -> None:
    import rasterio
    from pyproj import CRS, Transformer

    checkpoint = tiny_run / "checkpoints" / "best.ckpt"
    written = forecast(
        compose_config("forecast", tmp_path, f"checkpoint={checkpoint}", f"input={tiny_archive}", "device=cpu")
    )
    archive = Archive.open(tiny_archive)
    with xr.open_dataset(written, decode_timedelta=True) as file:
        assert file["init_time"].values == archive.times[-1]
        assert (file["time"].values == archive.times[-1] + np.arange(1, 4) * archive.step).all()
        assert file["rain_rate"].attrs["units"] == "mm h-1"
        assert file.attrs["checkpoint_sha256"] and "EncoderForecaster" in file.attrs["source"]
        never = np.isnan(archive.read(archive.num_times - 3, 3)).all(axis=0)
        assert (np.isnan(file["rain_rate"].values) == never).all() and never.any()
    with rasterio.open(f"netcdf:{written}:rain_rate") as file:
        assert file.count == 3
        assert CRS.from_user_input(file.crs).equals(CRS.from_wkt(archive.grid.crs_wkt), ignore_axis_order=True)
        to_degrees = Transformer.from_crs(archive.grid.crs_wkt, 4326, always_xy=True)
        corner = to_degrees.transform(archive.grid.x[0], archive.grid.y[0])
        by_gdal = Transformer.from_crs(file.crs.to_wkt(), 4326, always_xy=True).transform(*file.xy(0, 0))
        assert by_gdal == pytest.approx(corner, abs=1e-6)
    assert written.with_suffix(".gif").read_bytes().startswith(b"GIF8")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("head", ["softmax", "ordinal", "quantiles"])
def test_every_head_trains_scores_and_forecasts(head: str, tiny_archive: Path, tmp_path: Path) -> None:
    """Of its checkpoint alone: rates, and probabilities at the thresholds that training scored, or others."""
    one_epoch = ["trainer.max_epochs=1", "data.samples_per_epoch=8", "data.eval_stride=8"]
    result = train(
        compose_config("train", tmp_path / "t", *TINY, f"head={head}", f"data.archive={tiny_archive}", *one_epoch)
    )
    # as evaluate.py scores it
    assert result.scores is not None and np.isfinite(result.scores["mae"].sel(forecaster="network")).all()
    checkpoint = f"checkpoint={result.last}"
    common = [checkpoint, f"input={tiny_archive}", "animation=false", "device=cpu"]
    with xr.open_dataset(forecast(compose_config("forecast", tmp_path / "a", *common))) as file:
        chance = file["rain_rate_exceedance"]
        assert file["threshold"].values.tolist() == [0.5, 1, 2, 5, 10, 30]
        assert chance.dims == ("lead_time", "threshold", "y", "x") and chance.attrs["units"] == "1"
        observed = file["rain_rate"].notnull()
        assert (chance.notnull() == observed).all() and observed.any() and not observed.all()
        assert float(chance.min()) >= 0 and float(chance.max()) <= 1
        assert (chance.diff("threshold").where(observed, 0) <= 0).all()
    asked = forecast(compose_config("forecast", tmp_path / "b", *common, "exceedance=[0.7,3]"))
    with xr.open_dataset(asked) as file:
        assert file["rain_rate_exceedance"].sizes["threshold"] == 2
    never = forecast(compose_config("forecast", tmp_path / "c", *common, "exceedance=[]"))
    with xr.open_dataset(never) as file:
        assert "rain_rate_exceedance" not in file


def test_a_forecast_of_rates_has_probabilities_if_asked(
    tiny_run: Path, tiny_archive: Path, tmp_path: Path
) -> None:
    checkpoint = f"checkpoint={tiny_run}/checkpoints/best.ckpt"
    common = [checkpoint, f"input={tiny_archive}", "animation=false", "device=cpu"]
    with xr.open_dataset(forecast(compose_config("forecast", tmp_path / "a", *common))) as file:
        assert "rain_rate_exceedance" not in file
        threshold = round(float(file["rain_rate"].max()) / 2, 3)
    asked = forecast(compose_config("forecast", tmp_path / "b", *common, f"exceedance=[{threshold}]"))
    with xr.open_dataset(asked) as file:
        chance = file["rain_rate_exceedance"][:, 0]
        wet = (file["rain_rate"] > threshold + 0.01).values  # files hold 0.01 mm/h
        # shares of pixels around, not 0 and 1: the file says so
        assert "share of pixels around" in chance.attrs["comment"] == file.attrs["exceedance_method"]
        assert wet.any() and ((chance > 0) & (chance < 1)).any()
        assert (chance.values[wet] > 0).all() and (chance.notnull() == file["rain_rate"].notnull()).all()
    with pytest.raises(ValueError, match=r"thresholds=\[5\.0, 1\.0\] must be .* increasing"):
        forecast(compose_config("forecast", tmp_path / "c", *common, "exceedance=[5,1]"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formats": ["netcdf", "geotiff"]}, "geotiff needs the package rasterio"),
        ({"time_zone": "Mars/Base"}, "Mars/Base"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_forecast(
    settings: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ValueError, match=message):
        Outputs(**settings)


def test_the_next_command_names_the_variable_that_is_there(
    tiny_run: Path, tiny_archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    common = [
        f"checkpoint={tiny_run}/checkpoints/last.ckpt",
        f"input={tiny_archive}",
        "animation=false",
        "device=cpu",
    ]
    with caplog.at_level("INFO"):
        written = forecast(compose_config("forecast", tmp_path, *common, "for_pysteps=true"))
    variable = caplog.text.rpartition("gdalinfo NETCDF:")[2].split()[0].rpartition(":")[2]
    with xr.open_dataset(written) as file:
        assert variable in file.data_vars


def test_forecast_of_radar_files_equals_that_of_their_archive(tiny_run: Path, tmp_path: Path) -> None:
    """The file of the service is read as ingest would read it; the archive rounds to 0.01 mm/h."""
    source = foreign_file(tmp_path / "rain.nc")
    ingest(compose_config("ingest", tmp_path / "i", f"files={source}", f"archive={tmp_path}/archive"))
    checkpoint = f"checkpoint={tiny_run}/checkpoints/best.ckpt"
    common = [checkpoint, "init_time=2026-01-01T00:30", "animation=false", "device=cpu"]
    files = forecast(compose_config("forecast", tmp_path / "a", *common, f"input={source}"))
    archived = forecast(compose_config("forecast", tmp_path / "b", *common, f"input={tmp_path}/archive"))
    with xr.open_dataset(files) as a, xr.open_dataset(archived) as b:
        assert str(a["init_time"].values)[:16] == "2026-01-01T00:30"
        np.testing.assert_allclose(a["rain_rate"].values, b["rain_rate"].values, atol=0.05)


def test_the_commands_run_one_after_the_other_as_scripts(tiny_archive: Path, tmp_path: Path) -> None:
    """train.py → evaluate.py → forecast.py, each with the command that the one before it printed."""
    few = ["trainer.max_epochs=1", "data.samples_per_epoch=8", "data.eval_stride=8"]
    less = {
        "evaluate": ["baselines=[persistence]", "metrics.thresholds=[1]", "resamples=40"],
        "forecast": ["animation=false"],
    }
    overrides = [*TINY, f"data.archive={tiny_archive}", *few]
    output = run_forked(tmp_path, "train", *overrides, drawn=False)
    for script in ("evaluate", "forecast"):
        assert output.returncode == 0, output.stderr[-3000:]
        line = next(line for line in output.stderr.splitlines() if f"python {script}.py" in line)
        output = run_forked(tmp_path, script, *line.split()[2:], *less[script], drawn=False)
    assert output.returncode == 0, output.stderr[-3000:]
    assert len(list(tmp_path.glob("outputs/forecast/*/*/forecast_*.nc"))) == 1
