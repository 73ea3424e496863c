"""The log and the records of a training run."""

import logging
import warnings
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from raincast.system import provenance
from raincast.system.lock import is_first_process

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.loggers import Logger

    from raincast.data.radar import RadarData

log = logging.getLogger(__name__)

NOTHING_TO_MEND = (
    r".*LeafSpec.* is deprecated",  # Lightning's own use of a torch function
    r".*sync_dist=True.* when logging on epoch level",  # scores are pooled before they are logged
    r".*Grad strides do not match bucket view strides",  # kernels of 1×1: a copy of a few numbers
    r"Checkpoint directory .* exists and is not empty",  # of a resumed run
    r".*FSDP2-wrapped module .* returned a view tensor",  # nothing changes them in place
)
"""Warnings of libraries about which a user can do nothing."""


def silence_libraries() -> None:
    """Suppress warnings that nobody can act on, greetings, and repetitions by processes other than the first."""
    for message in NOTHING_TO_MEND:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not is_first_process():
        logging.getLogger("raincast").setLevel(logging.WARNING)


def logger_ids(loggers: "list[Logger]") -> dict[str, str]:
    """Return the ids by which a later process continues the runs of `loggers`.

    Those of wandb and MLflow have one.
    """
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    ids = {}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            run_id = getattr(logger.experiment, "id", None)  # ranks other than the first have no run
            if isinstance(run_id, str):
                ids["wandb"] = run_id
        elif isinstance(logger, MLFlowLogger) and logger.run_id is not None:
            ids["mlflow"] = logger.run_id
    return ids


def facts(
    cfg: DictConfig, trainer: "L.Trainer", net: Any, data: "RadarData", info: dict[str, Any]
) -> dict[str, Any]:
    """Return the actual facts of the run, read from the trainer, the data and the machine, not from the config."""
    from raincast.training import execution
    from raincast.training.callbacks.record import gpus

    used = {
        "parameters": sum(p.numel() for p in net.parameters()),
        **execution.used(trainer, net),
        "max_epochs": trainer.max_epochs,
        "resumed_from": cfg.checkpoint,
    }
    windows = {name: int(starts.size) for name, starts in data.windows.starts.items()}
    return {
        "used": used,
        "archive": str(data.archive.path),
        "archive_identity": data.archive.identity,
        "split_hash": info["split_hash"],
        "windows": windows,
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "machine": provenance.machine() | {"gpus": gpus()},
        "config": OmegaConf.to_container(cfg, resolve=True),
    }


def log_facts(trainer: "L.Trainer", loggers: "list[Logger]", facts: dict[str, Any]) -> None:
    """Log the settings in force on the terminal, and all facts as hyperparameters of the loggers."""
    used = {key: value for key, value in facts["used"].items() if value is not None}
    log.info("%s", ", ".join(f"{key} {value}" for key, value in used.items()))
    if not trainer.is_global_zero:
        return
    flat = {key: facts[key] for key in ("used", "split_hash", "commit", "versions", "machine")}
    for logger in loggers:
        logger.log_hyperparams({**facts["config"], **flat})
