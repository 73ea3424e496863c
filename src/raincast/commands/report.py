"""Reports of commands to the user: progress, tables, pictures, the next command."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raincast import assembly
from raincast.system.progress import Bar as Bar
from raincast.system.progress import short as short

if TYPE_CHECKING:
    import xarray as xr

    from raincast.data.radar import RadarData
    from raincast.evaluation import Metrics
    from raincast.forecaster import Forecaster

log = logging.getLogger(__name__)


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
