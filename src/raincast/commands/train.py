"""`python train.py`: archive → trained network, checkpoints, scores and a picture."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from raincast import assembly
from raincast.commands import report, resuming
from raincast.commands.references import as_tensors, reference_scores

if TYPE_CHECKING:
    import lightning as L
    import xarray as xr
    from torch import nn

    from raincast.data.datamodule import RadarDataModule

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrainResult:
    """The result of a run: checkpoints, metrics of the last validation, scores of the best checkpoint."""

    best: Path
    last: Path
    metrics: dict[str, float]
    scores: "xr.Dataset | None"


def run(cfg: DictConfig) -> float:
    """Train, and return the goal score of the best checkpoint; with `sweep=…`, run as a worker of that sweep."""
    if "sweep" in cfg:
        from raincast.sweeps import worker as sweep

        return sweep.run(cfg)
    return train(cfg).metrics.get(cfg.metrics.goal, math.nan)


def train(cfg: DictConfig) -> TrainResult:
    """Train on `cfg`.

    On processes other than the first, and for a run that is already finished, without scores.
    """
    with resuming.alone(cfg):
        done = resuming.finished(cfg)
        if done is not None:
            return TrainResult(Path(done["best"]), Path(done["last"]), done["metrics"], scores=None)
        return _train(cfg)


def _train(cfg: DictConfig) -> TrainResult:
    import lightning as L

    from raincast.training import execution
    from raincast.training.callbacks.record import RunRecord

    report.silence_libraries()
    assembly.check_machine(cfg)
    resumed_from = resuming.find(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)

    head = assembly.head(cfg)
    with report.Bar("building the archive") as bar:
        archive = assembly.archive_path(cfg, progress=bar.update)
    data = assembly.datamodule(cfg, archive)
    info = assembly.metadata(cfg, data)
    model: Any = OmegaConf.to_container(cfg.model, resolve=True)
    net = assembly.network(model, num_channels=head.num_channels, inputs=assembly.inputs_of(info["channels"]))
    if cfg.warm_start is not None and resumed_from is None:
        resuming.warm_start(cfg, net, info)
    execution.prepare(net, compile=cfg.compile, recompute=cfg.recompute, tf32=cfg.tf32)
    _check(cfg, data, net, info)
    resuming.check(cfg, info, resumed_from)
    _read_data(data)

    references = reference_scores(cfg, data)
    module = assembly.module(cfg, net, head, info, as_tensors(references))
    ids = resuming.logger_ids(cfg, resumed_from)
    loggers = assembly.loggers(cfg, ids, resumed_from.step if resumed_from else 0)
    info["loggers"] |= report.logger_ids(loggers)
    resuming.note_logger_ids(cfg, info["loggers"])
    record = RunRecord(assembly.last_checkpoint(cfg).parents[1] / "run.json")
    trainer = assembly.trainer(cfg, loggers, [*assembly.callbacks(cfg), record])
    record.facts = report.facts(cfg, trainer, net, data, info)
    report.log_facts(trainer, loggers, record.facts)

    # Lightning does this only after it has read a checkpoint: 64-true would be rounded to float32
    trainer.precision_plugin.convert_module(module)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=cfg.checkpoint, weights_only=True)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning ends with 1 on Ctrl-C
            raise SystemExit(130) from None  # the shell's exit code for Ctrl-C
        raise
    return _finish(cfg, trainer, data, loggers, references)


def _check(cfg: DictConfig, data: "RadarDataModule", net: "nn.Module", info: dict[str, Any]) -> None:
    """Raise ValueError for settings that would fail after hours: crops, the goal, baselines and scores."""
    from raincast.training.skill import check_goal

    for key in ("max_epochs", "max_steps", "limit_train_batches"):
        if cfg.trainer.get(key) == 0:
            raise ValueError(
                f"trainer.{key}=0 trains nothing. To score a network: python evaluate.py checkpoint=…"
            )
    assembly.check_crop(data, net, cfg.data.crop)
    assembly.check_baselines(cfg, list(cfg.baselines))
    assembly.metrics(cfg, data)
    check_goal(
        cfg.metrics.goal,
        cfg.metrics.goal_mode,
        baselines=list(cfg.baselines),
        thresholds=[float(threshold) for threshold in cfg.metrics.thresholds],
        lead_steps=info["lead_steps"],
        step_minutes=info["step_minutes"],
    )


def _read_data(data: "RadarDataModule") -> None:
    """Find the training crops, and log what there is to train on."""
    with report.Bar("reading the training frames") as bar:
        data.progress = bar.update
        data.setup("fit")
        data.progress = None
    archive = data.archive
    log.info("Archive %s: %d frames of %d×%d pixels", archive.path, archive.num_times, *archive.grid.shape)
    log.info("%s", data.windows.describe())
    for source, windows in zip(data.sources[1:], data.more_windows, strict=True):
        log.info("and to train on, from %s: %d windows", source.archive.path, windows.starts["train"].size)


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
            artifact=any(OmegaConf.select(cfg, f"logger.{name}.log_model") for name in ("wandb", "mlflow")),
        )  # fmt: skip
        report.next_command(best, cfg.data.archive)
        resuming.note_finished(cfg, metrics, best=best, last=last)
    for logger in loggers:
        report.close_logger(logger)
    return TrainResult(best=best, last=last, metrics=metrics, scores=scores)
