"""`python evaluate.py`: a network and baselines on the same windows and mask → table, plot, scores.nc."""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from raincast import assembly
from raincast.commands import compare, report, scoring
from raincast.commands.calibrate import calibrate
from raincast.commands.evaluation_outputs import write_page, write_tables
from raincast.data.windows import SPLITS

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> "xr.Dataset":
    """Score on `cfg.split`, and write report.html, scores.nc, scores.csv and pictures into the run folder."""
    if cfg.compare is not None:
        return compare.run(cfg)
    if cfg.checkpoint is None:
        raise ValueError(
            "Not given: checkpoint. Say, for example: checkpoint=…, or compare=[a/scores.nc,b/scores.nc]"
        )
    from raincast.evaluation import engine
    from raincast.evaluation.report.score_figures import csi_plot
    from raincast.evaluation.work import Cost

    began = time.monotonic()
    if cfg.split not in SPLITS:
        raise ValueError(f"split={cfg.split}: choose one of {', '.join(SPLITS)}.")
    checkpoint = assembly.read_checkpoint(cfg.checkpoint)
    others = assembly.baselines(cfg, list(cfg.baselines))
    trained = _trained_config(checkpoint, cfg)
    data = assembly.datamodule(trained, assembly.archive_path(trained))
    data.needed = (cfg.split, "val") if cfg.calibrate else (cfg.split,)
    _check_step(checkpoint, data.archive.step_minutes, trained.data.archive)
    if data.split_hash != checkpoint.info["split_hash"]:
        log.warning(
            "These windows are not those that %s was split by: if the archive or the dates overlap with its "
            "training, its scores are too good.",
            checkpoint.path,
        )
    network = assembly.forecaster_of(checkpoint, device=cfg.device)
    metrics = assembly.metrics(cfg, data)
    thresholds = [float(t) for t in metrics.thresholds]
    run_dir = Path(cfg.paths.run_dir)
    if cfg.calibrate:
        checkpoint = calibrate(checkpoint, network, data, thresholds, split=cfg.split, run_dir=run_dir)
    for other in others:
        if locate := getattr(other, "locate", None):  # some have to know where and how far apart the pixels lie
            locate(data.archive.grid, data.archive.step_minutes)
    work, cost = scoring.work_of(cfg, trained, checkpoint, network, data, metrics), Cost()
    here = (network.name,) if network.device.type == "cuda" else ()
    scores = scoring.score(cfg, work, data, here=here, cost=cost).assign_attrs(
        checkpoint=str(checkpoint.path), checkpoint_sha256=checkpoint.sha256, **cost.attrs()
    )
    text, files = write_tables(scores, run_dir)
    engine.clear(work)
    files += [
        write_page(scores, [network, *others], data, checkpoint, run_dir / "report.html"),
        csi_plot(scores, run_dir / "csi.png"),
        report.example_picture([network, *others], data, cfg.split, run_dir / "forecast.png"),
    ]
    log.info("\n%d windows of %s, %s:\n%s", scores.attrs["num_windows"], cfg.split, data.archive.path, text)
    log.info("%s", _cost(scores, time.monotonic() - began))
    log.info("written: %s", ", ".join(report.short(file) for file in files))
    log.info(
        "\nNext, make a forecast:\n  python forecast.py checkpoint=%s input=%s",
        report.short(checkpoint.path),
        data.archive.path,
    )
    return scores


def _cost(scores: "xr.Dataset", seconds: float) -> str:
    """For people: what the scores took, and how long all took until now."""
    of = scores.attrs
    return (
        f"{of['wall_seconds']:.0f} s for the scores, {seconds:.0f} s in all; "
        f"at most {of['peak_memory_gib']:.1f} GiB in {of['num_processes']} process(es); "
        f"processor seconds a window: {of['cpu_seconds_per_window']}"
    )


def _trained_config(checkpoint: assembly.Checkpoint, cfg: DictConfig) -> DictConfig:
    """The data config of the checkpoint, with what `cfg.data` states put over it."""
    assembly.check_data(checkpoint)
    stated = {key: value for key, value in cfg.data.items() if value is not None}
    config = checkpoint.config.copy()
    config.data = OmegaConf.merge(config.data, stated)
    if "split" in stated:
        config.data.split = stated["split"]
    return config


def _check_step(checkpoint: assembly.Checkpoint, step_minutes: float, archive: str) -> None:
    trained = checkpoint.info["step_minutes"]
    if trained != step_minutes:
        raise ValueError(
            f"{checkpoint.path} was trained on steps of {trained:g} min, {archive} has {step_minutes:g} min. "
            "Take an archive of the same step, or train on this one."
        )
