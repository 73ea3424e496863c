"""Reports of commands to the user: progress, tables, pictures, the next command, log and records of a run."""

import logging
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from raincast import assembly
from raincast.system import provenance
from raincast.system.lock import is_first_process
from raincast.system.progress import Bar as Bar
from raincast.system.progress import short as short

if TYPE_CHECKING:
    import lightning as L
    import xarray as xr
    from lightning.pytorch.loggers import Logger

    from raincast.data.radar import RadarData
    from raincast.evaluation import Metrics
    from raincast.forecaster import Forecaster

log = logging.getLogger(__name__)

NOTHING_TO_MEND = (
    r".*LeafSpec.* is deprecated",  # Lightning's own use of a torch function
    r".*sync_dist=True.* when logging on epoch level",  # scores are pooled before they are logged
    r".*Grad strides do not match bucket view strides",  # kernels of 1×1: a copy of a few numbers
    r"Checkpoint directory .* exists and is not empty",  # of a resumed run
    r".*FSDP2-wrapped module .* returned a view tensor",  # nothing changes them in place
)
"""Warnings of libraries about which a user can do nothing."""


def score(forecasters: "list[Forecaster]", data: "RadarData", split: str, metrics: "Metrics") -> "xr.Dataset":
    """Score all forecasters on the windows of `split`, with a progress bar."""
    from raincast.evaluation import evaluate

    with Bar(f"scoring {', '.join(f.name for f in forecasters)}") as bar:
        return evaluate(
            forecasters,
            data.eval_batches(split),
            metrics,
            lead_steps=data.lead_steps,
            step_minutes=data.archive.step_minutes,
            pixel_km=data.archive.grid.pixel_km,
            grid=data.archive.grid,
            progress=bar.advance_of(len(data.eval_places(split))),
        ).assign_attrs(split=split, split_hash=data.windows.hash, archive=str(data.archive.path))


def write_scores(scores: "xr.Dataset", path: Path) -> Path:
    """Write scores.nc, netCDF that any program can read."""
    encoding = {str(name): {"zlib": True} for name in scores.data_vars if scores[name].ndim}
    scores.to_netcdf(path, engine="netcdf4", encoding=encoding)
    return path


def goal_threshold(thresholds: Sequence[float]) -> float:
    """Return the threshold of the table by lead time: 1 mm/h, or the nearest."""
    return min(thresholds, key=lambda t: abs(t - 1.0))


def after_training(
    best: Path,
    data: "RadarData",
    run_dir: Path,
    metrics: "Metrics",
    loggers: list[Any],
    references: "xr.Dataset | None" = None,
    *,
    artifact: bool = False,
) -> "xr.Dataset":
    """Score the best checkpoint on the validation windows; write a table, scores.nc and a picture.

    `references` are the scores of baselines on the same windows. With `artifact` the checkpoint also goes to
    wandb.
    """
    import xarray as xr

    from raincast.baselines import Persistence
    from raincast.evaluation import Resampling, blocks, with_intervals
    from raincast.evaluation.intervals import sentence
    from raincast.evaluation.report.tables import difference_table, score_table, table_text

    network = assembly.forecaster_of(assembly.read_checkpoint(best))
    scores = score([network], data, "val", metrics)
    if references is not None:
        both = [scores, references]
        scores = xr.concat(
            both, "forecaster", data_vars="minimal", coords="minimal", compat="override", combine_attrs="override"
        )
        if metrics.event_hours is None:
            scores = blocks.automatic(scores)
        scores = with_intervals(scores, Resampling())
    write_scores(scores, run_dir / "scores.nc")
    table = table_text(score_table(scores, threshold=goal_threshold(metrics.thresholds)))
    log.info("\nValidation windows (%d), best checkpoint:\n%s", scores.attrs["num_windows"], table)
    if references is not None:
        log.info("%s\n%s", table_text(difference_table(scores)), sentence(scores))
    picture = example_picture([network, Persistence()], data, "val", run_dir / "forecast.png")
    for logger in loggers:
        log_results(logger, scores, picture, best if artifact else None)
    log.info("checkpoint  %s\npicture     %s\nscores      %s", *map(short, (best, picture, run_dir / "scores.nc")))
    return scores


def example_picture(forecasters: "list[Forecaster]", data: "RadarData", split: str, path: Path) -> Path:
    """Draw the window of `split` with the most rain in the lead frames: the observation and each forecast."""
    from raincast.evaluation import rates_by_name
    from raincast.plotting.pictures import forecast_picture
    from raincast.plotting.rain_image import credit

    (place,) = data.wettest(data.eval_places(split))
    sample = data.dataset.sample(place)
    grid, step_minutes = data.archive.grid, data.archive.step_minutes
    forecasts = rates_by_name(
        forecasters, sample, lead_steps=data.lead_steps, step_minutes=step_minutes, grid=grid
    )
    return forecast_picture(
        sample["target"].numpy()[:, 0],
        forecasts,
        grid=grid.crop(place.y, place.x, place.height, place.width),
        init_time=np.datetime64(sample["time"], "s"),
        step_minutes=step_minutes,
        path=path,
        title=f"{split} window of {data.archive.path.name}",
        credit=credit(data.archive.attrs),
    )


def log_results(logger: Any, scores: "xr.Dataset", picture: Path, checkpoint: Path | None) -> None:
    """Log the picture, scores and, if given, the checkpoint to wandb and MLflow.

    Other loggers hold only scalars.
    """
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    if isinstance(logger, MLFlowLogger):
        for path in (picture, picture.with_name("scores.nc"), *([checkpoint] if checkpoint else [])):
            logger.experiment.log_artifact(logger.run_id, str(path))
    if not isinstance(logger, WandbLogger):
        return
    columns = ["forecaster", "threshold_mm_h", "lead_minutes", "csi", "pod", "far", "frequency_bias", "hss"]
    frame = scores[columns[3:]].to_dataframe().reset_index()
    rows = frame[["forecaster", "threshold", "lead_time", *columns[3:]]].values.tolist()
    logger.log_table("val/scores", columns=columns, data=rows)
    logger.log_image("val/forecast", images=[str(picture)])
    if checkpoint:
        import wandb

        artifact = wandb.Artifact(f"network-{logger.experiment.id}", type="model")
        artifact.add_file(str(checkpoint))
        logger.experiment.log_artifact(artifact, aliases=["best"])


def close_logger(logger: Any) -> None:
    """End a wandb run, so that the next trial of a sweep begins its own."""
    from lightning.pytorch.loggers import WandbLogger

    if isinstance(logger, WandbLogger):
        logger.experiment.finish()


def next_command(best: Path, archive: str | None) -> None:
    """Log the next command to type."""
    given = [f"checkpoint={short(best)}", *([f"data.archive={archive}"] if archive else [])]
    log.info(
        "\nNext, compare it with optical flow on the test windows:\n  python evaluate.py %s", shlex.join(given)
    )


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
