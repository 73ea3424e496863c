"""`raincast.load_forecaster`: a Dataset in, a Dataset out; from checkpoints and from exported networks."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from checking import check_encoded
from running import compose_config

import raincast
from raincast.archive import Archive
from raincast.commands.export import run as export
from raincast.commands.forecast import run as forecast
from raincast.evaluation import evaluate


@pytest.fixture(scope="module")
def checkpoint(tiny_run):
    return tiny_run / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def frames(tiny_archive):
    return Archive.open(tiny_archive).to_dataset(10, 8)


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "network.pt2"
    arguments = ["format=torch", f"path={path}", "size=[32,32]"]
    return export(compose_config("export", path.parent, f"checkpoint={checkpoint}", *arguments))


def test_three_lines_give_what_the_command_writes(checkpoint, tiny_archive, frames, tmp_path):
    forecaster = raincast.load_forecaster(checkpoint)
    found = forecaster(frames)
    assert isinstance(found, xr.Dataset) and found.attrs["forecast_method"] == "network"
    written = forecast(
        compose_config(
            "forecast",
            tmp_path,
            f"checkpoint={checkpoint}",
            f"input={tiny_archive}",
            "animation=false",
            f"init_time={found['init_time'].values.astype('M8[m]')}",
        )
    )
    with xr.open_dataset(written) as file:
        check_encoded(file["rain_rate"], found["rain_rate"])
        assert file.attrs["input_sha256"] == found.attrs["input_sha256"]
        assert "memory_gib" in file.attrs["forecast_config"]


def test_the_same_object_is_scored_as_any_forecaster(checkpoint, tiny_archive):
    from raincast import assembly
    from raincast.data.datamodule import RadarDataModule
    from raincast.data.windows import BlockSplit

    data = RadarDataModule(
        tiny_archive, split=BlockSplit(), input_steps=3, lead_steps=3, eval_stride=8, num_workers=0
    )
    forecasters = [
        raincast.load_forecaster(checkpoint),
        assembly.forecaster_of(assembly.read_checkpoint(checkpoint)),
    ]
    forecasters[1].name = "network again"
    scores = evaluate(forecasters, data.eval_batches("test"), thresholds=[0.5], lead_steps=3, step_minutes=5.0)
    first, second = (scores["mae"].isel(forecaster=k).values for k in range(2))
    np.testing.assert_array_equal(first, second)


def test_an_exported_network_forecasts_the_same(checkpoint, exported, frames):
    theirs, ours = (raincast.load_forecaster(path)(frames) for path in (exported, checkpoint))
    # on the transform's scale they agree to 1e-4, which is a share of the rate
    np.testing.assert_allclose(theirs["rain_rate"], ours["rain_rate"], rtol=2e-2, atol=0.02)
    assert theirs.attrs["checkpoint_sha256"] == ours.attrs["checkpoint_sha256"]
    assert theirs.attrs["exported_network_sha256"]
    np.testing.assert_array_equal(theirs["quality_flag"], ours["quality_flag"])
    chances = raincast.load_forecaster(exported, thresholds=[1.0])(frames)
    assert "share of pixels around" in chances.attrs["exceedance_method"]
    assert 0 <= float(chances["rain_rate_exceedance"].min()) <= float(chances["rain_rate_exceedance"].max()) <= 1


def test_the_command_forecasts_from_an_exported_network(exported, tiny_archive, tmp_path):
    common = [f"checkpoint={exported}", f"input={tiny_archive}", "animation=false"]
    with xr.open_dataset(forecast(compose_config("forecast", tmp_path, *common))) as file:
        assert file.attrs["exported_network"] == str(exported) and file.attrs["forecast_method"] == "network"
    with pytest.raises(ValueError, match="computes in float32"):
        forecast(compose_config("forecast", tmp_path, *common, "precision=bf16"))


def test_what_an_exported_network_is_not_for(exported, frames, tmp_path):
    with pytest.raises(ValueError, match=r"gives 3\. Ask for fewer, or export"):
        raincast.load_forecaster(exported, lead_steps=5)(frames)
    assert raincast.load_forecaster(exported, lead_steps=2)(frames).sizes["lead_time"] == 2
    with pytest.raises(ValueError, match="32 x 32 pixels only, the input has 24 x 32"):
        raincast.load_forecaster(exported)(frames.isel(y=slice(24)))
    with pytest.raises(FileNotFoundError, match="no exported network"):
        raincast.load_forecaster(tmp_path / "a.onnx")
    (tmp_path / "a.pt2").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not an exported network, or it is damaged"):
        raincast.load_forecaster(tmp_path / "a.pt2")
    with pytest.raises(ValueError, match="run on the CPU"):
        raincast.load_forecaster(exported, device="cuda")


def test_exported_networks_need_no_lightning_and_the_package_is_light(
    exported, checkpoint, tiny_archive, tmp_path
):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra export)")
    small = [f"path={tmp_path}/network.onnx", "size=[32,32]", "lead_steps=1"]
    onnx = export(compose_config("export", tmp_path, f"checkpoint={checkpoint}", *small))
    code = (
        "import sys, raincast\n"
        "heavy = {'torch', 'xarray', 'hydra', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
        "from raincast.archive import Archive\n"
        f"frames = Archive.open({str(tiny_archive)!r}).to_dataset(10, 3)\n"
        f"for path in ({str(exported)!r}, {str(onnx)!r}):\n"
        "    found = raincast.load_forecaster(path)(frames)\n"
        "    assert found.attrs['forecast_method'] == 'network' and float(found['rain_rate'].max()) > 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
