"""Config → objects; checkpoint → Forecaster. The only place, with the commands, that knows Hydra.

Heavy packages are imported inside the functions that need them, so that a mistyped key is answered at once.
"""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import logging
import netrc
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

import raincast
from raincast.provenance import commit

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.loggers import Logger
    from torch import nn

    from raincast.data.channels import Channels
    from raincast.data.datamodule import RadarDataModule
    from raincast.evaluation import Metrics
    from raincast.forecaster import Forecaster, Inputs, NetworkForecaster
    from raincast.ingest.readers import Reader
    from raincast.metrics.calibration import Calibration
    from raincast.models.heads import Head
    from raincast.nowcast import Nowcaster, Outputs
    from raincast.schema import Grid
    from raincast.training.skill import Scores
    from raincast.transforms import Transform

log = logging.getLogger(__name__)


def make(node: Any, **arguments: Any) -> Any:
    """The object that a config's `_target_` names; dataclasses stay what they are, lists are lists."""
    return instantiate(node, _convert_="object", **arguments)


CHECKPOINT_FORMAT = 2
SAFE_MODULES = ("raincast.models.", "raincast.transforms.", "torch.nn.")
"""Where the classes that a checkpoint may name have to live: they compute, and do nothing else."""
DATA_MODULES = ("raincast.data.", "raincast.transforms.")
"""The same of its data config, which evaluate.py builds: they read archives and the files of channels."""


def archive_path(cfg: DictConfig, progress: Callable[[int, int], None] | None = None) -> Path:
    """The archive to train on: the configured one, or the built-in one, which is built on first use."""
    if cfg.data.archive is not None:
        return Path(cfg.data.archive)
    from filelock import FileLock

    from raincast.synthetic import build_builtin_archive

    path = Path(cfg.paths.data_dir) / "builtin"
    log.warning(
        "No archive is configured, so this run uses the built-in archive of synthetic storms in %s.\n"
        "To train on radar instead: python ingest.py files='…' archive=data/NAME, then add data.archive=data/NAME",
        path,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # the other processes of a run, and other runs, wait here until the days are there
    with FileLock(path.with_name(".builtin.lock")):
        build_builtin_archive(path, progress=progress)
    return path


def datamodule(cfg: DictConfig, archive: Path) -> "RadarDataModule":
    """The datamodule of `cfg.data` on `archive`."""
    return datamodule_of(_mapping(OmegaConf.to_container(cfg.data, resolve=True)), archive)


def datamodule_of(data: Mapping[str, Any], archive: Path) -> "RadarDataModule":
    """The datamodule of plain settings, which may come from another process."""
    module: RadarDataModule = make({**data, "archive": str(archive)})
    return module


def head(cfg: DictConfig) -> "Head":
    """The head of `cfg.head`, once it is sure that `cfg.loss` finds in it what it needs."""
    try:
        OmegaConf.to_container(cfg.loss, resolve=True)
    except InterpolationKeyError as error:
        raise ValueError(
            f"{cfg.loss._target_} does not belong to {cfg.head._target_}: {str(error).splitlines()[0]}. "
            "Choose the head with head=… and leave loss=… out: each head brings its own."
        ) from error
    made: Head = make(cfg.head)
    return made


def network(model: Mapping[str, Any], *, num_channels: int = 1, inputs: "Inputs | None" = None) -> "nn.Module":
    """The network of a model config: the channels of `inputs` (rain, by default) in, those of its head out."""
    built: nn.Module = make(_with_channels(model, num_channels, inputs))
    return built


def _with_channels(model: Mapping[str, Any], num_channels: int, inputs: "Inputs | None") -> dict[str, Any]:
    """`model` with the numbers of its channels; ValueError where it states others, or cannot have them."""
    seen, known = (inputs.num_channels, len(inputs.future)) if inputs else (1, 0)
    for key, number, whose, source in (
        ("out_channels", num_channels, f"the head reads {num_channels}", "the head"),
        ("in_channels", seen, f"data.channels and the rain are {seen}", "data.channels"),
    ):
        if model.get(key, number) != number:
            raise ValueError(
                f"model.{key}={model[key]}, but {whose} channels. Leave model.{key} out (~model.{key}): it "
                f"follows from {source}."
            )
    numbers = {"out_channels": num_channels, "in_channels": seen}
    if known:
        target = str(model["_target_"])
        if "future_channels" not in inspect.signature(get_object(target)).parameters:
            raise ValueError(
                f"{target.rpartition('.')[2]} takes no channels that are known in advance; data.channels has "
                f"{known}. Give them the role past, or take another network, as model=convlstm."
            )
        numbers["future_channels"] = known
    return {**model, **numbers}


def channels(cfg: DictConfig) -> "Channels":
    """What `cfg.data.channels` declares; no file is opened."""
    from raincast.data.channels import Channels

    declared = OmegaConf.to_container(cfg.data.channels, resolve=True) if cfg.data.get("channels") else {}
    return Channels(make(declared))


def inputs_of(described: Sequence[Any]) -> "Inputs":
    """What a network sees, of the channels as a checkpoint lists them."""
    from raincast.forecaster import Inputs

    named = [
        channel for channel in described if isinstance(channel, Mapping)
    ]  # older checkpoints: their names alone
    scaled = [(c["name"], construct(c["transform"]), c["role"]) for c in named if "transform" in c]
    return Inputs(
        observed=any(channel["role"] == "past" and "transform" not in channel for channel in named),
        past=tuple((name, transform) for name, transform, _ in scaled),
        future=tuple((name, transform) for name, transform, role in scaled if role == "future"),
    )


def check_crop(data: "RadarDataModule", net: "nn.Module", crop: int | None) -> None:
    """A training crop must be a multiple of the network's stride; whole frames of any size are padded."""
    stride = int(getattr(net, "stride", 1))
    if crop is None or crop % stride == 0 or data.crop == data.archive.grid.shape:
        return
    below, above = crop // stride * stride, (crop // stride + 1) * stride
    better = f"{below} or {above}" if below else str(above)
    raise ValueError(
        f"data.crop={crop} is not a multiple of the network's stride {stride}: a part of every crop would be "
        f"padding. Take data.crop={better}."
    )


def metadata(cfg: DictConfig, data: "RadarDataModule") -> dict[str, Any]:
    """What a checkpoint says of itself, as plain data."""
    import torch

    y, x = data.archive.grid.y, data.archive.grid.x
    return {
        "format": CHECKPOINT_FORMAT,
        "raincast_version": raincast.__version__,
        "torch_version": str(torch.__version__),
        "config": config_text(cfg),
        "step_minutes": data.archive.step_minutes,
        "input_steps": data.input_steps,
        "lead_steps": data.lead_steps,
        "channels": data.channels.describe(),
        "grid_spacing": [float(abs(axis[1] - axis[0])) if axis.size > 1 else 0.0 for axis in (y, x)],
        "archive": {
            "identity": data.archive.identity,
            "more": [source.archive.identity for source in data.sources[1:]],
            "source": str(data.archive.attrs.get("source", "unknown")),
            "cell_methods": str(data.archive.rain_attrs.get("cell_methods", "unknown")),
        },
        "split_hash": data.split_hash,
        "loggers": {},
    }


def config_text(cfg: DictConfig) -> str:
    """The whole config as YAML, resolved."""
    container = _mapping(OmegaConf.to_container(cfg, resolve=True))
    container.pop("hydra", None)
    return OmegaConf.to_yaml(OmegaConf.create(container))


def metrics(cfg: DictConfig, data: "RadarDataModule") -> "Metrics":
    """What `cfg.metrics` scores, once it is sure that it can on these windows; its goal is training's alone."""
    from raincast.evaluation import Scoring

    settings = _mapping(OmegaConf.to_container(cfg.metrics, resolve=True))
    for key in ("goal", "goal_mode"):
        settings.pop(key, None)
    made: Metrics = make({"_target_": "raincast.evaluation.Metrics", **settings})
    grid = data.archive.grid
    Scoring(made, data.archive.step_minutes, grid.pixel_km).check(data.lead_steps, data.eval_crop)
    return made


def module(
    cfg: DictConfig,
    net: "nn.Module",
    net_head: "Head",
    info: dict[str, Any],
    references: "Mapping[str, Scores] | None" = None,
) -> "L.LightningModule":
    """The LightningModule of a run; `references` are baselines' scores of the validation windows."""
    from raincast.training.module import NowcastModule
    from raincast.training.parallel import ShardedModule

    transform = make(cfg.transform)
    return (ShardedModule if is_sharded(cfg) else NowcastModule)(
        net,
        net_head,
        transform,
        # partial, or Hydra would turn the transform, a dataclass, into a config
        make(cfg.loss, _partial_=True)(transform=transform),
        make(cfg.optimizer),
        thresholds=list(cfg.metrics.thresholds),
        lead_steps=int(info["lead_steps"]),
        step_minutes=float(info["step_minutes"]),
        curriculum=make(cfg.curriculum),
        metadata=info,
        references=references,
        inputs=inputs_of(info.get("channels", ())),
    )


def is_sharded(cfg: DictConfig) -> bool:
    """Whether the processes of a run share its weights (trainer=fsdp)."""
    target = OmegaConf.select(cfg, "trainer.strategy._target_")
    sharded = bool(target == "raincast.training.parallel.Sharded")
    if sharded and cfg.ema is not None:
        raise ValueError(
            f"ema={cfg.ema} averages whole weights, which trainer=fsdp has not: leave one of them out."
        )
    if sharded and OmegaConf.select(cfg, "curriculum.sampling") is not None:
        raise ValueError(
            "curriculum.sampling unrolls the network step by step, for which shared-out weights (fsdp) are "
            "not whole. Take trainer=ddp, or curriculum.sampling=null."
        )
    return sharded


def trainer(cfg: DictConfig, loggers: "list[Logger]", callbacks: "list[L.Callback]") -> "L.Trainer":
    """The Trainer of `cfg.trainer`."""
    from raincast.training.checkpoint_io import DurableCheckpointIO

    # partial, or Hydra would look for configs in the loggers and callbacks
    built: L.Trainer = make(cfg.trainer, _partial_=True)(
        logger=loggers, callbacks=callbacks, default_root_dir=cfg.paths.run_dir, plugins=[DurableCheckpointIO()]
    )
    return built


def callbacks(cfg: DictConfig) -> "list[L.Callback]":
    """The callbacks of `cfg.callbacks`, the averaged weights if asked for, and the notice on Ctrl-C."""
    from raincast.training.averaging import AveragedWeights
    from raincast.training.callbacks import InterruptNotice

    built = [make(node) for node in cfg.callbacks.values() if node is not None]
    if cfg.ema is not None:
        built.append(AveragedWeights(cfg.ema))
    return [*built, InterruptNotice(last_checkpoint(cfg))]


def last_checkpoint(cfg: DictConfig) -> Path:
    """Where a run keeps its state after the newest epoch."""
    return Path(cfg.callbacks.last.dirpath) / f"{cfg.callbacks.last.filename}.ckpt"


def loggers(cfg: DictConfig, resumed: Mapping[str, str], step: int) -> "list[Logger]":
    """CSV always, and those of `cfg.logger`.

    `resumed` holds the wandb run id of the run gone on with, after `step` steps of which its CSV file goes on.
    """
    from raincast.training.csv_log import ContinuedCSVLogger

    built: list[Logger] = [ContinuedCSVLogger(cfg.paths.run_dir, name="csv", step=step)]
    for name, node in cfg.logger.items():
        if name == "wandb":
            node = _wandb_node(node, resumed.get("wandb"))
        try:
            built.append(make(node))
        except Exception as error:
            if name == "tensorboard" and "tensorboard" in str(error).lower():
                raise ValueError(
                    'logger=tensorboard needs the package tensorboard: pip install -e ".[tensorboard]", or '
                    "take logger=csv or logger=wandb."
                ) from error
            raise
    return built


def _wandb_node(node: DictConfig, run_id: str | None) -> dict[str, Any]:
    os.environ.setdefault("WANDB_SILENT", "true")
    values = _mapping(OmegaConf.to_container(node, resolve=True))
    values["log_model"] = False  # Lightning would add every checkpoint, and none offline; the best goes at the end
    if not values.get("offline") and (reason := _wandb_unreachable()):
        log.warning("wandb logs offline: %s. Upload later with: wandb sync", reason)
        values["offline"] = True
    Path(str(values["save_dir"])).mkdir(parents=True, exist_ok=True)
    return values | ({"id": run_id, "resume": "allow"} if run_id else {})


def _wandb_unreachable() -> str | None:
    """Why wandb cannot go online, or None; asked here because wandb itself waits more than a minute."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    name, _, port = host.partition(":")
    if "WANDB_API_KEY" not in os.environ and not _in_netrc(name):
        return "there is no API key (wandb login, or WANDB_API_KEY)"
    try:
        with socket.create_connection((name, int(port or 443)), timeout=3):
            return None
    except OSError as error:
        return f"{host} is out of reach ({error})"


def _in_netrc(host: str) -> bool:
    """Whether `wandb login` left a key for `host`."""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def check_baselines(cfg: DictConfig, names: list[str]) -> None:
    """ValueError where `cfg.baseline` has not all of `names`."""
    unknown = [name for name in names if name not in cfg.baseline]
    if unknown:
        raise ValueError(f"baselines: {', '.join(unknown)} unknown; there are {', '.join(cfg.baseline)}.")


def baselines(cfg: DictConfig, names: list[str]) -> "list[Forecaster]":
    """The baselines of `cfg.baseline` called `names`."""
    check_baselines(cfg, names)
    return [make(cfg.baseline[name]) for name in names]


def located_baselines(cfg: DictConfig, data: "RadarDataModule") -> "list[Forecaster]":
    """Those of `cfg.baselines`, told where and how far apart the pixels of `data` lie if they have to know."""
    return [make_baseline() for make_baseline in baseline_makers(cfg, data).values()]


def baseline_makers(cfg: DictConfig, data: "RadarDataModule") -> "dict[str, Callable[[], Forecaster]]":
    """What makes each of `cfg.baselines`, in another process too; ValueError where one is unknown or wrong."""
    made = baselines(cfg, list(cfg.baselines))
    grid, step_minutes = data.archive.grid, data.archive.step_minutes
    nodes = [_mapping(OmegaConf.to_container(cfg.baseline[name], resolve=True)) for name in cfg.baselines]
    return {
        one.name: functools.partial(_located, node, grid, step_minutes)
        for one, node in zip(made, nodes, strict=True)
    }


def _located(node: Mapping[str, Any], grid: "Grid", step_minutes: float) -> "Forecaster":
    baseline: Forecaster = make(node)
    if locate := getattr(baseline, "locate", None):
        locate(grid, step_minutes)
    return baseline


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint's weights and what it says of itself."""

    path: Path
    info: dict[str, Any]
    config: DictConfig
    state: dict[str, Any]
    epoch: int
    step: int

    @property
    def inputs(self) -> "Inputs":
        """What its network sees."""
        inputs = inputs_of(self.info["channels"])
        # before channels could be declared, the network's own config asked for the mask
        if self.info["channels"] == ["rain"] and self.config.model.get("in_channels") == 2:
            return dataclasses.replace(inputs, observed=True)
        return inputs

    @property
    def sha256(self) -> str:
        """The hash of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint without running anything that stands in it; FileNotFoundError or ValueError else."""
    import pickle

    import torch

    path = Path(path)
    if not path.is_file():
        nearby = sorted(str(p) for p in Path("outputs").glob("**/*.ckpt"))[-4:]
        hint = f" There are: {', '.join(nearby)}." if nearby else " Train one with: python train.py"
        raise FileNotFoundError(f"There is no checkpoint {path}.{hint}")
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first_line = (str(error).splitlines() or ["no reason given"])[0]
        raise ValueError(f"{path} is damaged, or no checkpoint of plain data: {first_line}") from error
    if not isinstance(raw, dict) or "raincast" not in raw or "state_dict" not in raw:
        raise ValueError(f"{path} was not written by raincast. Train a network with: python train.py")
    info = raw["raincast"]
    if info["format"] != CHECKPOINT_FORMAT:
        raise ValueError(
            f"{path} has format {info['format']}; raincast {raincast.__version__} reads {CHECKPOINT_FORMAT}. "
            f"It was written by raincast {info['raincast_version']}."
        )
    return Checkpoint(
        path,
        info,
        DictConfig(OmegaConf.create(info["config"])),
        raw["state_dict"],
        raw["epoch"],
        raw["global_step"],
    )


def load_forecaster(path: str | Path, *, device: str = "auto") -> "NetworkForecaster":
    """The network in the checkpoint at `path`, ready to forecast on `device` (auto, cpu, cuda, cuda:1)."""
    return forecaster_of(read_checkpoint(path), device=device)


def forecaster_of(
    checkpoint: Checkpoint, *, device: str = "auto", precision: str = "float32"
) -> "NetworkForecaster":
    """The network of a checkpoint that was read already; `precision` is one of `forecaster.PRECISIONS`."""
    import torch

    from raincast.forecaster import NetworkForecaster
    from raincast.metrics.calibration import Calibration

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    config = _mapping(OmegaConf.to_container(checkpoint.config, resolve=False))
    # older checkpoints say nothing of a head: their networks gave the rate
    net_head: Head = construct(config.get("head", {"_target_": "raincast.models.heads.RateHead"}))
    inputs = checkpoint.inputs
    net: nn.Module = construct(_with_channels(config["model"], net_head.num_channels, inputs))
    transform: Transform = construct(config["transform"])
    prefix = "network."
    net.load_state_dict(
        {key.removeprefix(prefix): w for key, w in checkpoint.state.items() if key.startswith(prefix)}
    )
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
        device=device,
        calibration=None if plain is None else Calibration.from_plain(plain),
        precision=precision,
    )


def write_calibrated(checkpoint: Checkpoint, calibration: "Calibration", path: Path) -> Path:
    """A copy of `checkpoint`, which stays as it is, that also holds `calibration`; returns its path."""
    import torch

    raw = torch.load(checkpoint.path, map_location="cpu", weights_only=True)
    raw["raincast"]["calibration"] = calibration.to_plain()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    torch.save(raw, partial)
    partial.replace(path)
    return path


def nowcaster(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    precision: str = "float32",
    thresholds: Sequence[float] | None = None,
    calibrated: bool = True,
    attrs: Mapping[str, Any] | None = None,
    channels: Mapping[str, Any] | None = None,
    **settings: Any,
) -> "Nowcaster":
    """The network of a checkpoint as what makes forecast files, `attrs` and its own origin in each of them.

    `thresholds` (mm/h, increasing) are those of the probabilities; None: those it is calibrated at, or
    that training scored if its head gives probabilities. `calibrated=False` leaves its calibration aside.
    `channels` says where those beside the rain lie, if elsewhere than in training: {NAME: {path: …}}.
    `settings` are `Nowcaster`'s.
    """
    from raincast.nowcast import Nowcaster
    from raincast.nowcast.fit import Trained

    forecaster = forecaster_of(checkpoint, device=device, precision=precision)
    if not calibrated:
        forecaster.calibration = None
    if thresholds is None and forecaster.calibration is not None:
        thresholds = forecaster.calibration.thresholds
    elif thresholds is None:
        scored = checkpoint.config.metrics.thresholds
        thresholds = [float(t) for t in scored] if forecaster.probabilistic else []
    return Nowcaster(
        forecaster,
        # checkpoints from before gap budgets do not state one
        Trained.of(checkpoint.info, int(checkpoint.config.data.get("max_missing", 0))),
        thresholds=[float(t) for t in thresholds],
        attrs=provenance(checkpoint) | dict(attrs or {}),
        channels=_channels_of(checkpoint, channels or {}),
        **settings,
    )


def load_nowcaster(
    path: str | Path,
    *,
    device: str = "auto",
    thresholds: Sequence[float] | None = None,
    attrs: Mapping[str, Any] | None = None,
    **settings: Any,
) -> "Nowcaster":
    """As `nowcaster`, from a checkpoint or from a file that `export.py` wrote (.onnx, .pt2)."""
    from raincast.nowcast import Nowcaster
    from raincast.nowcast.exported import SUFFIXES, ExportedForecaster

    if Path(path).suffix not in SUFFIXES:
        return nowcaster(read_checkpoint(path), device=device, thresholds=thresholds, attrs=attrs, **settings)
    if device not in ("auto", "cpu"):
        raise ValueError(f"device={device}: exported networks run on the CPU. Take a checkpoint, or device=cpu.")
    exported = ExportedForecaster(path)
    if settings.pop("channels", None):
        raise ValueError(f"channels: {path} takes rain alone.")
    if settings.pop("precision", "float32") != "float32":
        raise ValueError(f"precision: {path} computes in float32. Take a checkpoint, or precision=float32.")
    settings.pop("calibrated", None)
    own = {"title": "Precipitation nowcast", "source": f"raincast {raincast.__version__}, {Path(path).name}"}
    return Nowcaster(
        exported,
        exported.trained,
        thresholds=[float(t) for t in thresholds or ()],
        attrs=own | exported.provenance | {"raincast_commit": commit()} | dict(attrs or {}),
        **settings,
    )


def nowcaster_of(cfg: DictConfig) -> "Nowcaster":
    """The nowcaster of `conf/forecast.yaml`'s settings."""
    from raincast.nowcast.memory import Memory

    return load_nowcaster(
        cfg.checkpoint,
        device=cfg.device,
        precision=cfg.precision,
        thresholds=cfg.exceedance,
        calibrated=cfg.calibrated,
        channels=cfg.channels,
        lead_steps=cfg.lead_steps,
        max_missing=cfg.max_missing,
        other_grid=cfg.other_grid,
        reach=cfg.reach,
        products=make(cfg.products),
        memory=Memory(cfg.memory_gib, overlap=cfg.tile_overlap),
        attrs={"input": str(cfg.watch or cfg.input), "forecast_config": config_text(cfg)},
    )


def reader(cfg: DictConfig) -> "Reader":
    """The reader of radar files of `cfg.source`, whose frames are within the limits of `cfg.quality`."""
    from raincast.ingest.cleaned import Cleaned

    made: Reader = Cleaned(make(cfg.source), make(cfg.quality))
    return made


def outputs(cfg: DictConfig) -> "Outputs":
    """The files that `conf/forecast.yaml`'s settings ask for."""
    from raincast.nowcast import Outputs

    return Outputs(
        formats=list(cfg.formats),
        for_pysteps=cfg.for_pysteps,
        animation=cfg.animation,
        pictures=cfg.pictures,
        time_zone=cfg.time_zone,
        coastlines=cfg.coastlines,
        places=cfg.places,
    )


def _channels_of(checkpoint: Checkpoint, others: Mapping[str, Any]) -> "Channels":
    """The channels that a network was trained with, and what is other now."""
    from raincast.data.channels import Channels

    trained = _mapping(OmegaConf.to_container(checkpoint.config.data, resolve=True)).get("channels") or {}
    if unknown := [name for name in others if name not in trained]:
        raise ValueError(
            f"channels.{unknown[0]}: beside rain the network was trained with {', '.join(trained) or 'nothing'}."
        )
    nodes = {name: {**node, **others.get(name, {})} for name, node in trained.items()}
    return Channels(construct(nodes, modules=DATA_MODULES))


def provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """Where a network's forecasts come from, as global attributes."""
    version = raincast.__version__
    return {
        "title": "Precipitation nowcast",
        "source": f"raincast {version}, {checkpoint.config.model._target_.rpartition('.')[2]}",
        "raincast_version": version,
        "raincast_commit": commit(),
        "checkpoint": str(checkpoint.path),
        "checkpoint_sha256": checkpoint.sha256,
        "training_data": checkpoint.info["archive"]["identity"],
        "split_hash": checkpoint.info["split_hash"],
        "config": checkpoint.info["config"],
    }


def construct(node: Any, *, modules: tuple[str, ...] = SAFE_MODULES) -> Any:
    """Build what a checkpoint's config names, from classes of `modules` alone.

    Hydra's `instantiate` would call any function that `_target_` names; this calls constructors of classes
    that are defined in raincast's models and transforms or in torch.nn, with plain arguments.
    """
    if isinstance(node, list):
        return [construct(item, modules=modules) for item in node]
    if not isinstance(node, dict):
        return node
    values = {
        key: construct(value, modules=modules)
        for key, value in node.items()
        if key not in ("_target_", "_partial_")
    }
    if "_target_" not in node:
        return values
    made = _safe_class(str(node["_target_"]), modules)
    return functools.partial(made, **values) if node.get("_partial_") else made(**values)


def _safe_class(target: str, modules: tuple[str, ...]) -> Callable[..., Any]:
    module_name, _, name = target.rpartition(".")
    if f"{module_name}.".startswith(modules):
        found = getattr(importlib.import_module(module_name), name, None)
        if inspect.isclass(found) and f"{found.__module__}.".startswith(modules):
            return found
    raise ValueError(
        f"The checkpoint names {target}, which is none of {', '.join(m[:-1] for m in modules)}: it is not loaded."
    )


def check_data(checkpoint: Checkpoint) -> None:
    """ValueError where the data config of a checkpoint names what is not raincast's own: Hydra would call it."""

    def walk(node: Any) -> None:
        if isinstance(node, dict) and "_target_" in node:
            _safe_class(str(node["_target_"]), DATA_MODULES)
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(child)

    walk(OmegaConf.to_container(checkpoint.config.data, resolve=True))


def _mapping(container: Any) -> dict[str, Any]:
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
