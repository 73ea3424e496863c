"""`python train.py`: archive → trained network, checkpoints, scores and a picture."""

import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from raincast import assembly
from raincast.commands import report, resuming
from raincast.commands.references import as_tensors, reference_scores
from raincast.system import provenance

if TYPE_CHECKING:
    import lightning as L
    import xarray as xr

    from raincast.data.datamodule import RadarDataModule

log = logging.getLogger(__name__)


NOTHING_TO_MEND = (
    r".*LeafSpec.* is deprecated",  # Lightning's own use of a torch function
    r".*sync_dist=True.* when logging on epoch level",  # scores are pooled before they are logged
    r".*Grad strides do not match bucket view strides",  # of 1×1 kernels: a copy of a few numbers
    r"Checkpoint directory .* exists and is not empty",  # of a run that goes on
    r".*FSDP2-wrapped module .* returned a view tensor",  # nothing changes them in place
)
"""Warnings of libraries that a user can do nothing about."""


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What a run leaves: checkpoints, the last validation's metrics, the validation scores of the best."""

    best: Path
    last: Path
    metrics: dict[str, float]
    scores: "xr.Dataset | None"


def run(cfg: DictConfig) -> float:
    """Train, and return the goal score of the best checkpoint; with `sweep=…`, be a worker of that sweep."""
    if "sweep" in cfg:
        from raincast.sweeps import worker as sweep

        return sweep.run(cfg)
    return train(cfg).metrics.get(cfg.metrics.goal, math.nan)


def train(cfg: DictConfig) -> TrainResult:
    """Train on `cfg`; on all processes but the first, and of a run finished before, the result has no scores."""
    with resuming.alone(cfg):
        done = resuming.finished(cfg)
        if done is not None:
            return TrainResult(Path(done["best"]), Path(done["last"]), done["metrics"], scores=None)
        return _train(cfg)


def _train(cfg: DictConfig) -> TrainResult:
    import lightning as L
    from lightning.pytorch.utilities import rank_zero_only

    from raincast.training import execution
    from raincast.training.callbacks.record import RunRecord

    for message in NOTHING_TO_MEND:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # its greetings, not its warnings
    if getattr(rank_zero_only, "rank", 0):
        logging.getLogger("raincast").setLevel(logging.WARNING)  # the first process says it for all
    resumed_from = resuming.find(cfg)
    head = assembly.head(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    with report.Bar("building the archive") as bar:
        archive = assembly.archive_path(cfg, progress=bar.update)
    data = assembly.datamodule(cfg, archive)
    model: Any = OmegaConf.to_container(cfg.model, resolve=True)
    info = assembly.metadata(cfg, data)
    net = assembly.network(model, num_channels=head.num_channels, inputs=assembly.inputs_of(info["channels"]))
    if cfg.warm_start is not None and resumed_from is None:
        resuming.warm_start(cfg, net, info)
    execution.prepare(net, compile=cfg.compile, recompute=cfg.recompute, tf32=cfg.tf32)
    assembly.check_crop(data, net, cfg.data.crop)
    _check_goal(cfg, info)
    resuming.check(cfg, info, resumed_from)
    assembly.metrics(cfg, data)  # what cannot be scored is known now, and not after training
    with report.Bar("reading the training frames") as bar:
        data.progress = bar.update
        data.setup("fit")
        data.progress = None
    log.info("Archive %s: %d frames of %d×%d", archive, data.archive.num_times, *data.archive.grid.shape)
    log.info("%s", data.windows.describe())
    for source, windows in zip(data.sources[1:], data.more_windows, strict=True):
        log.info("and to train on, of %s: %d windows", source.archive.path, windows.starts["train"].size)

    references = reference_scores(cfg, data)
    module = assembly.module(cfg, net, head, info, as_tensors(references))
    facts: dict[str, Any] = {}
    ids = resuming.logger_ids(cfg, resumed_from)
    loggers = assembly.loggers(cfg, ids, resumed_from.step if resumed_from else 0)
    trainer = assembly.trainer(
        cfg,
        loggers,
        [*assembly.callbacks(cfg), RunRecord(assembly.last_checkpoint(cfg).parents[1] / "run.json", facts)],
    )
    _note_loggers(info, loggers)
    resuming.note_logger_ids(cfg, info["loggers"])
    facts |= _what_runs(cfg, trainer, net, data, info)
    _log_what_runs(trainer, loggers, facts)
    # Lightning itself does this after it has read a checkpoint into it: 64-true would be rounded to float32
    trainer.precision_plugin.convert_module(module)
    trainer.fit(module, datamodule=data, ckpt_path=cfg.checkpoint, weights_only=True)
    return _finish(cfg, trainer, data, loggers, references)


def _check_goal(cfg: DictConfig, info: dict[str, Any]) -> None:
    """The best checkpoint is chosen by a score that validation logs, in the direction in which it gets better."""
    from raincast.training.skill import better, score_names

    assembly.check_baselines(cfg, list(cfg.baselines))
    thresholds = [float(threshold) for threshold in cfg.metrics.thresholds]
    names = score_names(
        list(cfg.baselines),
        thresholds=thresholds,
        lead_steps=info["lead_steps"],
        step_minutes=info["step_minutes"],
    )
    goal, mode = cfg.metrics.goal, cfg.metrics.goal_mode
    if goal not in names:
        raise ValueError(
            f"metrics.goal={goal} is not logged; with metrics.thresholds={list(cfg.metrics.thresholds)} and "
            f"baselines={list(cfg.baselines)} there are {', '.join(names)}."
        )
    if (direction := better(goal)) is None:
        raise ValueError(
            f"metrics.goal={goal} orders nothing, it is best at 1: take {goal.replace('bias', 'bias_error')}."
        )
    if mode != direction:
        raise ValueError(f"metrics.goal={goal} is better at its {direction}: set metrics.goal_mode={direction}.")


def _note_loggers(info: dict[str, Any], loggers: "list[Any]") -> None:
    from lightning.pytorch.loggers import WandbLogger

    for logger in loggers:
        if isinstance(logger, WandbLogger):
            run_id = getattr(logger.experiment, "id", None)  # on ranks but the first there is no run
            if isinstance(run_id, str):
                info["loggers"]["wandb"] = run_id


def _what_runs(
    cfg: DictConfig, trainer: "L.Trainer", net: Any, data: "RadarDataModule", info: dict[str, Any]
) -> dict[str, Any]:
    """What the run really is: read back from the trainer, the data and the machine, not from the config."""
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


def _log_what_runs(trainer: "L.Trainer", loggers: "list[Any]", facts: dict[str, Any]) -> None:
    used = {key: value for key, value in facts["used"].items() if value is not None}
    log.info("%s", ", ".join(f"{key} {value}" for key, value in used.items()))
    if not trainer.is_global_zero:
        return
    flat = {key: facts[key] for key in ("used", "split_hash", "commit", "versions", "machine")}
    for logger in loggers:
        logger.log_hyperparams({**facts["config"], **flat})


def _finish(
    cfg: DictConfig,
    trainer: "L.Trainer",
    data: "RadarDataModule",
    loggers: "list[Any]",
    references: "xr.Dataset | None",
) -> TrainResult:
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    keeper: Any = trainer.checkpoint_callback
    last = assembly.last_checkpoint(cfg)
    # a run that ends before its first validation (trainer.max_steps) has no best
    best = Path(keeper.best_model_path) if keeper.best_model_path else last
    if keeper.best_model_score is not None and math.isfinite(keeper.best_model_score):
        metrics[cfg.metrics.goal] = float(keeper.best_model_score)
    scores = None
    if trainer.is_global_zero:
        data.trainer = None  # its loaders now serve this process alone
        scores = report.after_training(
            best, data, Path(cfg.paths.run_dir), assembly.metrics(cfg, data), loggers, references,
            artifact=bool(OmegaConf.select(cfg, "logger.wandb.log_model")),
        )  # fmt: skip
        report.next_command(best, cfg.data.archive)
        resuming.note_finished(cfg, metrics, best=best, last=last)
    for logger in loggers:
        report.close_logger(logger)
    return TrainResult(best=best, last=last, metrics=metrics, scores=scores)
