"""Config → a training run: the objects that Lightning trains with, and the metadata of its checkpoints."""

import importlib.util
import logging
import netrc
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from raincast.assembly.parts import make, mapping
from raincast.checkpoint import describe, inputs_of

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.loggers import Logger
    from torch import nn

    from raincast.data.radar import RadarData
    from raincast.models.heads import Head
    from raincast.training.skill import Scores

log = logging.getLogger(__name__)

EXTRAS = ("tensorboard", "mlflow")
"""Loggers that need a package of the same name, which an extra of that name installs."""


def metadata(cfg: DictConfig, data: "RadarData") -> dict[str, Any]:
    """Return the metadata of a checkpoint, as plain data."""
    return describe(config_text(cfg), data)


def config_text(cfg: DictConfig) -> str:
    """Return the whole resolved config as YAML."""
    container = mapping(OmegaConf.to_container(cfg, resolve=True))
    container.pop("hydra", None)
    return OmegaConf.to_yaml(OmegaConf.create(container))


def module(
    cfg: DictConfig,
    net: "nn.Module",
    net_head: "Head",
    info: dict[str, Any],
    references: "Mapping[str, Scores] | None" = None,
) -> "L.LightningModule":
    """Build the LightningModule of a run; `references` are baselines' scores on the validation windows."""
    from raincast.training.execution import ShardedModule
    from raincast.training.module import NowcastModule

    transform = make(cfg.transform)
    return (ShardedModule if is_sharded(cfg) else NowcastModule)(
        net,
        net_head,
        transform,
        # partial, or Hydra would turn the transform (a dataclass) into a config
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
    """Return True if the processes of a run share its weights (trainer=fsdp); raises ValueError if they cannot."""
    target = OmegaConf.select(cfg, "trainer.strategy._target_")
    sharded = bool(target == "raincast.training.execution.Sharded")
    if sharded and cfg.ema is not None:
        raise ValueError(
            f"ema={cfg.ema} averages whole weights, which trainer=fsdp does not have: leave one of them out."
        )
    if sharded and OmegaConf.select(cfg, "curriculum.sampling") is not None:
        raise ValueError(
            "curriculum.sampling unrolls the network step by step, for which sharded weights (fsdp) are not "
            "gathered. Use trainer=ddp, or curriculum.sampling=null."
        )
    return sharded


def check_machine(cfg: DictConfig) -> None:
    """Raise ValueError if the run needs an accelerator or a logger that this machine does not have."""
    for name in EXTRAS:
        if name in cfg.logger and importlib.util.find_spec(name) is None:
            raise ValueError(
                f'logger={name} needs the package {name}: pip install -e ".[{name}]", or use logger=csv or '
                "logger=wandb."
            )
    from lightning.pytorch.accelerators import AcceleratorRegistry

    wanted = cfg.trainer.accelerator
    known = AcceleratorRegistry.available_accelerators()
    here = [name for name in known if AcceleratorRegistry[name]["accelerator"].is_available()]
    if wanted not in ("auto", *here) and not (wanted == "gpu" and {"cuda", "mps"}.intersection(here)):
        raise ValueError(f"trainer.accelerator={wanted}: this machine has {', '.join(here)}. Use one, or auto.")


def trainer(cfg: DictConfig, loggers: "list[Logger]", callbacks: "list[L.Callback]") -> "L.Trainer":
    """Build the Trainer of `cfg.trainer`; raises ValueError if Lightning rejects the hardware settings."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from raincast.training.durable.continuing import DurableCheckpointIO

    # partial, or Hydra would search the loggers and callbacks for configs
    prepared = make(cfg.trainer, _partial_=True)
    try:
        built: L.Trainer = prepared(
            logger=loggers,
            callbacks=callbacks,
            default_root_dir=cfg.paths.run_dir,
            plugins=[*prepared.keywords.get("plugins", []), DurableCheckpointIO()],
        )
    except MisconfigurationException as error:
        hardware = ("accelerator", "devices", "strategy", "precision")
        given = ", ".join(f"trainer.{key}={cfg.trainer.get(key)}" for key in hardware)
        raise ValueError(f"Lightning cannot train with {given}: {error}") from error
    # With max_steps, Lightning takes an epoch that a checkpoint ends for an interrupted one: the epoch after a
    # resume would train nothing.
    built.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    return built


def callbacks(cfg: DictConfig) -> "list[L.Callback]":
    """Build the callbacks of `cfg.callbacks`, the averaged weights if requested, and the notice on Ctrl-C."""
    from raincast.training.callbacks.progress import InterruptNotice
    from raincast.training.execution import AveragedWeights

    built = [make(node) for node in cfg.callbacks.values() if node is not None]
    if cfg.ema is not None:
        built.append(AveragedWeights(cfg.ema))
    return [*built, InterruptNotice(last_checkpoint(cfg))]


def last_checkpoint(cfg: DictConfig) -> Path:
    """Return the path at which a run keeps its state after the newest epoch."""
    return Path(cfg.callbacks.last.dirpath) / f"{cfg.callbacks.last.filename}.ckpt"


def loggers(cfg: DictConfig, resumed: Mapping[str, str], step: int) -> "list[Logger]":
    """Build the CSV logger and those of `cfg.logger`.

    `resumed` holds the wandb and MLflow ids of the resumed run; its CSV file continues after `step` steps.
    """
    from raincast.training.durable.continuing import ContinuedCSVLogger

    built: list[Logger] = [ContinuedCSVLogger(cfg.paths.run_dir, name="csv", step=step)]
    for name, node in cfg.logger.items():
        if name == "wandb":
            node = _wandb_node(node, resumed.get("wandb"))
        elif name == "mlflow":
            node = _mlflow_node(node, resumed.get("mlflow"))
        built.append(make(node))
        if name == "wandb":
            # wandb would warn of a setting that Lightning passes and that has no effect
            built[-1]._wandb_init.pop("anonymous", None)  # type: ignore[attr-defined]
    return built


def _wandb_node(node: DictConfig, run_id: str | None) -> dict[str, Any]:
    os.environ.setdefault("WANDB_SILENT", "true")
    values = mapping(OmegaConf.to_container(node, resolve=True))
    values["log_model"] = False  # Lightning would add every checkpoint, and none offline; the best goes last
    if not values.get("offline") and (reason := _wandb_unreachable()):
        log.warning("wandb logs offline: %s. Upload later with: wandb sync", reason)
        values["offline"] = True
    Path(str(values["save_dir"])).mkdir(parents=True, exist_ok=True)
    return values | ({"id": run_id, "resume": "allow"} if run_id else {})


def _mlflow_node(node: DictConfig, run_id: str | None) -> dict[str, Any]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # it reports each table that it creates
    values = mapping(OmegaConf.to_container(node, resolve=True))
    values["log_model"] = False  # Lightning would add what it considers best; ours is added at the end
    uri = str(values["tracking_uri"])
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return values | ({"run_id": run_id} if run_id else {})


def _wandb_unreachable() -> str | None:
    """Return why wandb cannot go online, or None; checked here because wandb itself waits more than a minute."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    name, _, port = host.partition(":")
    if "WANDB_API_KEY" not in os.environ and not _in_netrc(name):
        return "there is no API key (wandb login, or WANDB_API_KEY)"
    try:
        with socket.create_connection((name, int(port or 443)), timeout=3):
            return None
    except OSError as error:
        return f"{host} is unreachable ({error})"


def _in_netrc(host: str) -> bool:
    """Return True if `wandb login` has stored a key for `host`."""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
