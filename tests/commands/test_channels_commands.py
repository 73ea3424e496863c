"""Channels through the commands: train → evaluate → forecast, and what is refused on the way."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from checking import check_encoded, rates_of
from hydra.errors import InstantiationException
from running import TINY, compose_config, undrawn

import raincast
from raincast import assembly
from raincast.archive import Archive
from raincast.commands.evaluate import run as evaluate
from raincast.commands.export import run as export
from raincast.commands.forecast import run as forecast
from raincast.commands.train import train

pytestmark = pytest.mark.usefixtures("undrawn")

KNOWN = (
    "{{_target_: raincast.data.channels.field.Field, path: {path}, variable: rain_rate, role: future, transform: \
{{_target_: raincast.transforms.LogScaling}}}}"
)


@pytest.fixture(scope="module")
def run_dir(tiny_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that sees coverage, sun and season, and a weather model that knows the rain to come."""
    folder = tmp_path_factory.mktemp("channels")
    channels = [
        "data/channels=[observed,coverage,sun,season]",
        f"+data.channels.model={KNOWN.format(path=tiny_archive)}",
    ]
    short = ["data.samples_per_epoch=16", "trainer.max_epochs=2", "data.eval_stride=8"]
    with undrawn():
        train(compose_config("train", folder, *TINY, f"data.archive={tiny_archive}", *channels, *short))
    return folder


def test_the_checkpoint_says_what_the_network_sees(run_dir: Path) -> None:
    checkpoint = assembly.read_checkpoint(run_dir / "checkpoints" / "last.ckpt")
    listed = checkpoint.info["channels"]
    assert [(c["name"], c["role"]) for c in listed] == [
        ("rain", "target"), ("observed", "past"), ("sun", "time"), ("season_sin", "time"), ("season_cos", "time"),
        ("model", "future"), ("coverage", "static"),
    ]  # fmt: skip
    assert listed[5]["transform"] == {
        "_target_": "raincast.transforms.LogScaling", "offset": 0.1, "max_rate": 150.0,
    }  # fmt: skip
    forecaster = assembly.forecaster_of(checkpoint, device="cpu")
    network: Any = forecaster.network
    assert (network.in_channels, network.future_channels) == (7, 1)
    assert "in_channels" not in checkpoint.config["model"]


def test_evaluate_and_forecast_see_the_same_channels(run_dir: Path, tiny_archive: Path, tmp_path: Path) -> None:
    checkpoint = f"checkpoint={run_dir}/checkpoints/last.ckpt"
    scores = evaluate(
        compose_config("evaluate", tmp_path / "e", checkpoint, "device=cpu", "baselines=[persistence]")
    )
    assert np.isfinite(scores["mae"].sel(forecaster="network")).all()
    # a start within the archive: the model that knows has to reach to the last lead time
    archive = Archive.open(tiny_archive)
    start = archive.times[20]
    common = [checkpoint, f"input={tiny_archive}", "device=cpu", "animation=false"]
    written = forecast(compose_config("forecast", tmp_path / "f", *common, f"init_time={start}"))
    from raincast.data.sampler import Place

    config = assembly.read_checkpoint(run_dir / "checkpoints" / "last.ckpt").config
    data = assembly.data_of(config["data"], tiny_archive)
    sample: Any = data.dataset.sample(Place(18, 0, 0, 32, 32))  # frames 18 to 20, then three to come
    network = raincast.load_forecaster(run_dir / "checkpoints" / "last.ckpt", device="cpu")
    covariates = {name: sample[name].numpy()[None] for name in ("past", "future")}
    expected = rates_of(network, sample["input"].numpy()[None], 3, covariates=covariates)[0, :, 0]
    with xr.open_dataset(written) as file:
        rain = file["rain_rate"].values
        seen = np.isfinite(rain)
        check_encoded(rain[seen], expected[seen])
    # and they matter
    other = rates_of(
        network, sample["input"].numpy()[None], 3, covariates=covariates | {"future": covariates["future"] + 20}
    )
    assert np.abs(other[0, :, 0] - expected).max() > 0


@pytest.fixture(scope="module")
def raining(run_dir: Path) -> Path:
    """Its checkpoint with weights that forecast rain, which two epochs do not teach."""
    raw = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for weight in raw["state_dict"].values():
        if weight.is_floating_point():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    torch.save(raw, run_dir / "raining.ckpt")
    return run_dir / "raining.ckpt"


@pytest.mark.parametrize("file_format", ["torch", "onnx"])
def test_an_exported_network_reads_its_channels_from_where_training_did(
    file_format: str, raining: Path, tiny_archive: Path, tmp_path: Path
) -> None:
    small = [f"format={file_format}", "size=[32,32]", "lead_steps=2"]
    path = export(compose_config("export", tmp_path, f"checkpoint={raining}", *small))
    archive = Archive.open(tiny_archive)
    assert archive.coverage is not None
    frames = archive.to_dataset(18, 3).assign(coverage=(("y", "x"), archive.coverage))
    exported = raincast.load_forecaster(path, device="cpu")
    theirs, ours = exported(frames), raincast.load_forecaster(raining, device="cpu", lead_steps=2)(frames)
    assert float(ours["rain_rate"].max()) > 1, "a forecast of no rain shows nothing"
    # on the transform's scale they agree to 1e-4, which is a share of the rate
    np.testing.assert_allclose(theirs["rain_rate"], ours["rain_rate"], rtol=2e-3, atol=0.02)
    said = exported.forecaster.metadata  # type: ignore[attr-defined]
    assert said["channels"] == "rain, sun, season_sin, season_cos, model, coverage"
    assert said["past_channels"] == "sun, season_sin, season_cos, model, coverage"
    assert (said["future_channels"], said["input_future"][:19]) == ("model", "future (batch, 2, 1")
    # through the command, with fewer steps than it gives, from other files
    common = [f"checkpoint={path}", f"input={tiny_archive}", "device=cpu", "animation=false", "lead_steps=1"]
    start = f"init_time={archive.times[20]}"
    with xr.open_dataset(forecast(compose_config("forecast", tmp_path / "f", *common, start))) as file:
        np.testing.assert_allclose(file["rain_rate"], theirs["rain_rate"][:1], atol=0.011)
    gone = "+channels.model.path=gone.nc"
    with pytest.raises(ValueError, match=r"No file matches channels\.model\.path=gone\.nc"):
        forecast(compose_config("forecast", tmp_path / "g", *common, start, gone))
    rain = np.zeros((1, 3, 1, 32, 32), np.float32)
    with pytest.raises(
        ValueError, match=r"takes 5 channels of past besides the rain \(sun, .*coverage\), found none"
    ):
        rates_of(exported.forecaster, rain, 2)


def test_a_channel_that_is_not_there_is_refused_with_the_key_that_gives_it(
    run_dir: Path, tiny_archive: Path, tmp_path: Path
) -> None:
    common = [
        f"checkpoint={run_dir}/checkpoints/last.ckpt", f"input={tiny_archive}", "device=cpu", "animation=false",
    ]  # fmt: skip
    # the model's files end with the archive
    with pytest.raises(ValueError, match=r"The channel model, .*has no value at .*\+channels\.model\.path=…"):
        forecast(compose_config("forecast", tmp_path / "a", *common))
    gone = "+channels.model.path=gone.nc"
    with pytest.raises(ValueError, match=r"No file matches channels\.model\.path=gone\.nc.*\n.*\+channels"):
        forecast(compose_config("forecast", tmp_path / "b", *common, gone))
    with pytest.raises(
        ValueError, match=r"channels\.cape: .* trained with the channels observed, coverage, sun, "
    ):
        forecast(compose_config("forecast", tmp_path / "c", *common, "+channels.cape.path=gone.nc"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+model.in_channels=3"], r"model\.in_channels=3, but data\.channels and the rain are 2 channels"),
        (["+data.channels.cape.path=x.nc"], r"data\.channels\.cape=.* is not a channel: it needs a _target_"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    overrides: list[str], message: str, tiny_archive: Path, tmp_path: Path
) -> None:
    config = compose_config(
        "train", tmp_path, *TINY, f"data.archive={tiny_archive}", "data/channels=[sun]", *overrides
    )
    with pytest.raises((ValueError, InstantiationException), match=message):  # the command shows the cause
        train(config)


def test_a_network_that_cannot_take_what_is_known_in_advance_is_refused(tmp_path: Path) -> None:
    from raincast.models.inputs import Inputs
    from raincast.transforms import LinearScaling

    ahead = Inputs(past=(("nwp", LinearScaling()),), future=(("nwp", LinearScaling()),))
    model: Any = compose_config("train", tmp_path, "model=predrnn").model
    with pytest.raises(ValueError, match=r"PredRNN takes no channels that are known in advance; .* the role past"):
        assembly.network(model, inputs=ahead)


def test_a_checkpoint_whose_data_names_other_code_is_not_run(tiny_run: Path, tmp_path: Path) -> None:
    raw = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    raw["raincast"]["config"] = raw["raincast"]["config"].replace(
        "raincast.data.windows.BlockSplit", "os.makedirs"
    )
    torch.save(raw, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"names os\.makedirs, which is not loaded"):
        evaluate(compose_config("evaluate", tmp_path, f"checkpoint={tmp_path}/a.ckpt"))
