"""Checkpoint → forecaster and pipeline, and the output files of `python forecast.py`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from raincast.assembly.parts import _with_channels, make
from raincast.assembly.run import config_text
from raincast.checkpoint import BOX, Checkpoint, read_checkpoint
from raincast.plain import construct, known_class
from raincast.system.provenance import commit
from raincast.version import __version__

if TYPE_CHECKING:
    from torch import nn

    from raincast.data.channels.declared import Channels
    from raincast.forecasting import ForecastPipeline, Outputs
    from raincast.forecasting.network import NetworkForecaster
    from raincast.models.heads import Head
    from raincast.transforms import Transform

log = logging.getLogger(__name__)

MEMBERS_TO_BLEND = 20
"""With a weather model, unless `members` says otherwise."""


def forecaster_of(
    checkpoint: Checkpoint, *, device: str = "auto", precision: str = "float32"
) -> "NetworkForecaster":
    """Build the network of a checkpoint; `precision` is one of `forecasting.network.PRECISIONS`."""
    from raincast.forecasting.network import NetworkForecaster
    from raincast.metrics.probabilistic import Calibration

    config = checkpoint.config
    net_head: Head = construct(config["head"])
    inputs = checkpoint.inputs
    model = config["model"] | {"weights": None} if "weights" in config["model"] else config["model"]
    net = _network(checkpoint, _with_channels(model, net_head.num_channels, inputs, known_class))
    transform: Transform = construct(config["transform"])
    info = checkpoint.info
    plain = info.get("calibration")
    return NetworkForecaster(
        net,
        net_head,
        transform,
        name="network",
        input_steps=info["input_steps"],
        lead_steps=info["lead_steps"],
        step_minutes=info["step_minutes"],
        inputs=inputs,
        device=_usable(device),
        calibration=None if plain is None else Calibration.from_plain(plain),
        precision=precision,
    )


def _usable(device: str) -> str:
    """Return the name of a device, chosen if it is "auto"; raises ValueError if torch has no such device here."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"device={device}: {reason}. Give auto, cpu or cuda.") from error
    return device


def _network(checkpoint: Checkpoint, model: Mapping[str, Any]) -> "nn.Module":
    """Build `model` with the weights of a checkpoint; raises ValueError if they do not fit, or are not finite."""
    import torch

    prefix = "network."
    weights = {key.removeprefix(prefix): w for key, w in checkpoint.state.items() if key.startswith(prefix)}
    if bad := [name for name, weight in weights.items() if not torch.isfinite(weight).all()]:
        raise ValueError(
            f"{checkpoint.path}: {len(bad)} of its {len(weights)} weights, {bad[0]} first, are not finite. "
            "Use a checkpoint of an earlier epoch, or train with a lower optimizer.lr."
        )
    try:
        if not checkpoint.in_box:
            with torch.device("meta"):  # on the meta device: a config may ask for more memory than there is
                construct(model).load_state_dict(weights, assign=True)
        net: nn.Module = construct(model)
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint.path}: its weights do not fit its network: {error}") from error
    return net


def pipeline(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    precision: str = "float32",
    thresholds: Sequence[float] | None = None,
    calibrated: bool = True,
    rates_by: str | None = None,
    members: int | None = None,
    seed: int = 0,
    attrs: Mapping[str, Any] | None = None,
    channels: Mapping[str, Any] | None = None,
    **settings: Any,
) -> "ForecastPipeline":
    """Return the pipeline that makes forecast files with a checkpoint.

    `attrs` and its provenance go into each file. `thresholds` (mm/h, increasing) are those of the probabilities;
    None means those of its calibration or, if its head gives probabilities, those that training scored.
    `calibrated=False` ignores its calibration. `rates_by` is a rule of its head (`models.distribution.DECISIONS`);
    None means the one it was trained with. `members` is the number of quantiles of the distribution to write, in
    an order that `seed` determines. `channels` says where the covariates are, if elsewhere than in training:
    {NAME: {path: …}}. `settings` are those of `ForecastPipeline`.
    """
    from raincast.forecasting import ForecastPipeline
    from raincast.forecasting.fit import Trained
    from raincast.forecasting.memory import Footprint
    from raincast.models.distribution import DistributionHead
    from raincast.models.frames import PhysicalNetwork

    forecaster = forecaster_of(checkpoint, device=device, precision=precision)
    if rates_by is not None:
        forecaster = forecaster.by_rule(rates_by)
    if members is not None:
        forecaster = forecaster.with_members(members, seed)
    if not calibrated:
        forecaster.calibration = None
    if members is not None and forecaster.calibration is not None:
        log.warning("Members come from the network's own distribution: only probabilities are calibrated.")
    if thresholds is None and forecaster.calibration is not None:
        thresholds = forecaster.calibration.thresholds
    elif thresholds is None:
        scored = checkpoint.config["metrics"]["thresholds"]
        thresholds = [float(t) for t in scored] if forecaster.gives.probabilities else []
    decided = {"rates_by": forecaster.head.rates_by} if isinstance(forecaster.head, DistributionHead) else {}
    on = forecaster.calibration.fitted_on if forecaster.calibration is not None else None
    max_missing = int(checkpoint.config["data"].get("max_missing", 0))
    trained = Trained.of(checkpoint.info, max_missing, physical=forecaster.physical)
    if isinstance(forecaster.network, PhysicalNetwork):  # older frames are not required
        trained = replace(trained, input_steps=min(trained.input_steps, forecaster.network.most_frames))
    return ForecastPipeline(
        forecaster,
        trained,
        thresholds=[float(t) for t in thresholds],
        attrs=provenance(checkpoint) | decided | dict(attrs or {}),
        channels=_channels(declared_channels(checkpoint), channels or {}),
        footprint=(Footprint.of_box if checkpoint.in_box else Footprint.of_network)(forecaster),
        members=members,
        calibrated_on=f"{on['num_windows']} validation windows of {on['archive']}" if on else None,
        **settings,
    )


def load_forecaster(
    path: str | Path = BOX,
    *,
    device: str = "auto",
    thresholds: Sequence[float] | None = None,
    attrs: Mapping[str, Any] | None = None,
    channels: Mapping[str, Any] | None = None,
    **settings: Any,
) -> "ForecastPipeline":
    """Load a pipeline (see `pipeline`) from a checkpoint or from a file that `export.py` wrote (.onnx, .pt2).

    Without `path` it is the bundled forecaster, trained on several radar networks. Raises ValueError for settings
    that an exported file does not support.
    """
    from raincast.forecasting import ForecastPipeline
    from raincast.forecasting.exported import SUFFIXES, ExportedForecaster
    from raincast.forecasting.memory import Footprint

    if Path(path).suffix not in SUFFIXES:
        return pipeline(
            read_checkpoint(path),
            device=device,
            thresholds=thresholds,
            attrs=attrs,
            channels=channels,
            **settings,
        )
    if device not in ("auto", "cpu"):
        raise ValueError(f"device={device}: exported networks run on the CPU. Use a checkpoint, or device=cpu.")
    exported = ExportedForecaster(path)
    if settings.pop("precision", "float32") != "float32":
        raise ValueError(f"precision: {path} computes in float32. Use a checkpoint, or precision=float32.")
    if settings.pop("rates_by", None) is not None:
        raise ValueError(f"rates_by: {path} was exported with one rule. Use a checkpoint, or leave rates_by out.")
    if settings.pop("members", None) is not None:
        raise ValueError(f"members: {path} gives none. Use a checkpoint, or leave members out.")
    settings.pop("seed", None)
    settings.pop("calibrated", None)
    own = {"title": "Precipitation nowcast", "source": f"raincast {__version__}, {Path(path).name}"}
    return ForecastPipeline(
        exported,
        exported.trained,
        thresholds=[float(t) for t in thresholds or ()],
        attrs=own | exported.provenance | {"raincast_commit": commit()} | dict(attrs or {}),
        channels=_channels(exported.channels, channels or {}),
        footprint=Footprint(exported.input_steps, stride=exported.stride),
        **settings,
    )


def pipeline_of(cfg: DictConfig, device: str | None = None, memory_gib: float | None = None) -> "ForecastPipeline":
    """Build the pipeline of `conf/forecast.yaml`'s settings, optionally for another device and other memory."""
    from raincast.forecasting import Blending, WeatherModel
    from raincast.forecasting.memory import Memory

    members, blending = cfg.members, None
    if cfg.nwp is not None:
        members = MEMBERS_TO_BLEND if members is None else members
        settings = make(cfg.blending)
        blending = Blending(
            WeatherModel(cfg.nwp if isinstance(cfg.nwp, str) else list(cfg.nwp), settings), seed=cfg.seed
        )
        if str(cfg.init_time) != "latest" and not settings.delay_minutes:
            log.warning(
                "Runs of the model count as there at their run time. To forecast the past as it was, say with "
                "blending.delay_minutes=… how much later they come."
            )
    return load_forecaster(
        cfg.checkpoint,
        device=device or cfg.device,
        precision=cfg.precision,
        thresholds=cfg.exceedance,
        calibrated=cfg.calibrated,
        rates_by=cfg.rates_by,
        members=members,
        blending=blending,
        seed=cfg.seed,
        channels=cfg.channels,
        lead_steps=cfg.lead_steps,
        max_missing=cfg.max_missing,
        other_grid=cfg.other_grid,
        reach=cfg.reach,
        products=make(cfg.products),
        memory=Memory(memory_gib or cfg.memory_gib, overlap=cfg.tile_overlap),
        attrs={"input": str(cfg.watch or cfg.input), "forecast_config": config_text(cfg)},
    )


def outputs(cfg: DictConfig) -> "Outputs":
    """Return the output files that `conf/forecast.yaml`'s settings request."""
    from raincast.forecasting import Outputs

    return Outputs(
        formats=list(cfg.formats),
        for_pysteps=cfg.for_pysteps,
        animation=cfg.animation,
        pictures=cfg.pictures,
        time_zone=cfg.time_zone,
        coastlines=cfg.coastlines,
        places=cfg.places,
    )


def declared_channels(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the channels that a network was trained with, as in its config; raises ValueError if malformed."""
    declared = checkpoint.config["data"].get("channels") or {}
    if not (isinstance(declared, dict) and all(isinstance(node, dict) for node in declared.values())):
        raise ValueError(f"{checkpoint.path}: data.channels={declared} is not a mapping of channels.")
    return declared


def _channels(trained: Mapping[str, Any], others: Mapping[str, Any]) -> "Channels":
    """Return the channels that a network was trained with, with the changes in `others`."""
    from raincast.data.channels.declared import Channels

    if unknown := [name for name in others if name not in trained]:
        raise ValueError(
            f"channels.{unknown[0]}: the network was trained with the channels {', '.join(trained) or 'nothing'}."
        )
    nodes = {name: {**node, **others.get(name, {})} for name, node in trained.items()}
    return Channels(construct(nodes))


def provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the provenance of a network's forecasts as global attributes."""
    version = __version__
    return {
        "title": "Precipitation nowcast",
        "source": f"raincast {version}, {checkpoint.network}",
        "raincast_version": version,
        "raincast_commit": commit(),
        "checkpoint": str(checkpoint.path),
        "checkpoint_sha256": checkpoint.sha256,
        "training_data": checkpoint.info["archive"]["identity"],
        "split_hash": checkpoint.info["split_hash"],
        "config": checkpoint.info["config"],
    }
