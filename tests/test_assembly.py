"""Config → objects, checkpoint → forecaster: what a checkpoint can never do, and when wandb stays offline."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from running import compose_config

from raincast import assembly
from raincast.assembly import run
from raincast.commands import report
from raincast.data.datamodule import RadarDataModule
from raincast.models.layers.convlstm import ConvLSTM
from raincast.transforms import DbzScaling


def test_construct_builds_classes_of_raincast() -> None:
    layer = assembly.construct(
        {"_target_": "raincast.models.layers.convlstm.ConvLSTM", "in_channels": 1, "hidden_channels": 2}
    )
    assert isinstance(layer, ConvLSTM)
    assert assembly.construct({"_target_": "raincast.transforms.DbzScaling", "a": 256.0}) == DbzScaling(a=256.0)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "torch.hub.load",
        "torch.load",
        "raincast.assembly.read_checkpoint",
        "raincast.models.encoder_forecaster.math.prod",  # by way of a module that one of ours imports
        "raincast.models.layers.convlstm.Tensor",  # a class, but defined elsewhere
        "torch.nn.init.normal_",  # a function, not a class
    ],
)
def test_a_checkpoint_cannot_name_anything_else(target: str) -> None:
    with pytest.raises(ValueError, match="is not loaded"):
        assembly.construct({"_target_": target, "x": 1})


def test_a_checkpoint_with_code_in_its_config_or_its_pickle_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    raw = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    raw["raincast"]["config"] = "{}"
    torch.save(raw, tmp_path / "config.ckpt")
    with pytest.raises(ValueError, match="config has no model, head"):
        assembly.read_checkpoint(tmp_path / "config.ckpt")
    torch.save({"raincast": {}, "state_dict": {}, "code": Path("x")}, tmp_path / "pickle.ckpt")
    with pytest.raises(ValueError, match=r"pickle\.ckpt is damaged, or not a checkpoint of plain data"):
        assembly.read_checkpoint(tmp_path / "pickle.ckpt")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut short"])
def test_a_damaged_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.ckpt is damaged"):
        assembly.read_checkpoint(tmp_path / "a.ckpt")


class OwnData(RadarDataModule):
    """A subclass as a user may write it."""


def own_data(**settings: Any) -> OwnData:
    return OwnData(**settings)


def test_training_takes_data_of_ones_own_and_refuses_what_lightning_cannot_use(
    tiny_archive: Path, tmp_path: Path
) -> None:
    config = compose_config("train", tmp_path)
    assert type(assembly.datamodule(config, tiny_archive)) is RadarDataModule
    for own in ("OwnData", "own_data"):
        config.data._target_ = f"{__name__}.{own}"
        assert type(assembly.datamodule(config, tiny_archive)) is OwnData
    config.data._target_ = "raincast.data.windows.BlockSplit"
    with pytest.raises(ValueError, match=r"data\._target_=raincast\.data\.windows\.BlockSplit: training needs"):
        assembly.datamodule(config, tiny_archive)


def test_wandb_stays_offline_without_a_key_or_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    config = compose_config("train", tmp_path, "logger=wandb", "logger.wandb.offline=false")
    assert run._wandb_node(config.logger.wandb, None)["offline"] is True
    assert "no API key" in caplog.text

    def no_network(*_: object, **__: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(socket, "create_connection", no_network)
    assert run._wandb_node(config.logger.wandb, None)["offline"] is True
    assert "unreachable" in caplog.text


def test_a_resumed_run_keeps_its_wandb_id(tmp_path: Path) -> None:
    config = compose_config("train", tmp_path, "logger=wandb")
    node = run._wandb_node(config.logger.wandb, "abc123")
    assert (node["id"], node["resume"]) == ("abc123", "allow")


def test_a_logger_whose_package_is_not_there_is_refused_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    for name in ("mlflow", "tensorboard"):
        with pytest.raises(ValueError, match=rf'needs the package {name}: pip install -e "\.\[{name}\]", or use'):
            assembly.check_machine(compose_config("train", tmp_path, f"logger={name}"))


def test_mlflow_keeps_what_a_run_logs_and_a_resumed_run_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = compose_config("train", tmp_path / "run", "logger=mlflow", f"paths.output_dir={tmp_path}/outputs")
    _, logger = assembly.loggers(config, {}, 0)
    logger.log_metrics({"val/csi_1mm": 0.5}, 1)
    ids = report.logger_ids([logger])
    _, again = assembly.loggers(config, ids, 1)
    again.log_metrics({"val/csi_1mm": 0.6}, 2)
    (tmp_path / "forecast.png").write_bytes(b"a picture")
    (tmp_path / "scores.nc").write_bytes(b"scores")
    report.log_results(again, xr.Dataset(), tmp_path / "forecast.png", None)
    (found,) = again.experiment.search_runs([again.experiment_id])
    assert found.info.run_id == ids["mlflow"] and found.data.metrics["val/csi_1mm"] == 0.6
    kept = {file.path for file in again.experiment.list_artifacts(found.info.run_id)}
    assert kept == {"forecast.png", "scores.nc"} and (tmp_path / "outputs" / "mlflow.db").is_file()
