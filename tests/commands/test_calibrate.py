"""`evaluate.py calibrate=true`: a checkpoint with calibrated probabilities, which `forecast.py` writes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from running import compose_config, undrawn

from raincast import assembly
from raincast.commands.evaluate import run as evaluate
from raincast.commands.forecast import run as forecast
from raincast.forecasting.pipeline import NEIGHBOURHOOD


@pytest.fixture(scope="module")
def calibrated(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("calibrated")
    few = ["baselines=[]", "metrics.thresholds=[0.5,1,30]", "data.eval_stride=2", "device=cpu"]
    checkpoint = f"checkpoint={tiny_run}/checkpoints/best.ckpt"
    with undrawn():
        evaluate(compose_config("evaluate", run_dir, checkpoint, "calibrate=true", *few))
    return run_dir / "calibrated.ckpt"


def test_the_copy_is_the_checkpoint_with_a_calibration_more(calibrated: Path, tiny_run: Path) -> None:
    copy, original = (
        torch.load(path, weights_only=True) for path in (calibrated, tiny_run / "checkpoints" / "best.ckpt")
    )
    fitted = copy["raincast"].pop("calibration")
    assert copy["raincast"] == original["raincast"]
    assert all(torch.equal(copy["state_dict"][key], weights) for key, weights in original["state_dict"].items())
    assert fitted["thresholds"] == [0.5, 1, 30] and fitted["fitted_on"]["split"] == "val"
    assert fitted["fitted_on"]["split_hash"] == original["raincast"]["split_hash"]
    assert fitted["fitted_on"]["num_windows"] > 0 and np.shape(fitted["fitted_on"]["events"]) == (3, 3)


def test_forecasts_take_the_calibrated_probabilities(calibrated: Path, tiny_archive: Path, tmp_path: Path) -> None:
    common = [f"checkpoint={calibrated}", f"input={tiny_archive}", "animation=false", "device=cpu"]
    with xr.open_dataset(forecast(compose_config("forecast", tmp_path / "a", *common))) as file:
        chance, rain = file["rain_rate_exceedance"].load(), file["rain_rate"].load()
    assert chance["threshold"].values.tolist() == [0.5, 1, 30]
    assert "isotonic regression on" in chance.attrs["comment"]
    network = assembly.forecaster_of(assembly.read_checkpoint(calibrated), device="cpu")
    assert network.calibration is not None and network.gives.probabilities
    found = network.calibration.knots[0][0]
    assert found is not None
    seen = chance[0, 0].values[rain[0].notnull()]
    # of a rate: two probabilities, which the file rounds
    assert {round(float(p), 3) for p in np.unique(seen)} <= {round(float(p), 3) for p in found[1]}
    own = forecast(compose_config("forecast", tmp_path / "b", *common, "calibrated=false", "exceedance=[0.5,7]"))
    with xr.open_dataset(own) as file:
        assert file["rain_rate_exceedance"].attrs["comment"] == NEIGHBOURHOOD
        assert file["threshold"].values.tolist() == [0.5, 7]
    with pytest.raises(ValueError, match="no calibration at 7 mm/h"):
        forecast(compose_config("forecast", tmp_path / "c", *common, "exceedance=[0.5,7]"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("split=val", "calibrate=true fits on the validation windows"),
        ("data.archive={other}", "not those that .* was split by"),
    ],
)
def test_nothing_but_the_validation_windows_is_fitted_on(
    override: str, message: str, tiny_run: Path, tmp_path: Path
) -> None:
    from raincast.synthetic import build_builtin_archive

    other = tmp_path / "other"
    if "other" in override:
        build_builtin_archive(other, num_days=3, frames_per_day=24, size=32)
    overrides = [f"checkpoint={tiny_run}/checkpoints/best.ckpt", "calibrate=true", "device=cpu"]
    with pytest.raises(ValueError, match=message):
        evaluate(compose_config("evaluate", tmp_path / "run", *overrides, override.format(other=other)))
    assert not (tmp_path / "run" / "calibrated.ckpt").exists()
