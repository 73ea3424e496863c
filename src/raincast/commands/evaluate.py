"""`python evaluate.py`: a network, baselines or both on the same windows and mask → table, plot, scores.nc."""

import logging
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from raincast import assembly, schema
from raincast.commands import compare, report, scoring
from raincast.commands.calibrate import calibrate
from raincast.commands.evaluation_outputs import write_page, write_tables
from raincast.data.windows import SPLITS

if TYPE_CHECKING:
    import xarray as xr

    from raincast.data.radar import RadarData
    from raincast.forecaster import Forecaster

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> "xr.Dataset":
    """Score on `cfg.split`, and write report.html, scores.nc, scores.csv and pictures into the run folder.

    Raises ValueError for settings that do not fit together.
    """
    if cfg.compare is not None:
        return compare.run(cfg)
    if cfg.checkpoint in (None, assembly.BOX) and cfg.data.archive is None:
        raise ValueError(
            "Not given: data.archive. Give data.archive=data/NAME to score the bundled weights on it, "
            "checkpoint=… to score a network on its own archive, or compare=[a/scores.nc,b/scores.nc]"
        )
    if cfg.checkpoint is None and (cfg.rates_by or cfg.members is not None):
        raise ValueError("Without checkpoint=… there is no network: rates_by=[…] and members=… need one.")
    if cfg.checkpoint is None and (cfg.calibrate or not cfg.baselines):
        raise ValueError("Without checkpoint=… there is no network: give baselines=[…] to score.")
    from raincast.evaluation import engine
    from raincast.evaluation.engine import Cost
    from raincast.evaluation.report.score_figures import csi_plot

    began = time.monotonic()
    asked = cfg.split
    if asked not in (*SPLITS, "all"):
        raise ValueError(f"split={asked}: choose one of {', '.join(SPLITS)}, all.")
    checkpoint = None if cfg.checkpoint is None else assembly.read_checkpoint(cfg.checkpoint)
    forecasters: list[Forecaster] = [] if cfg.list_windows else assembly.baselines(cfg, list(cfg.baselines))
    settings = _data_settings(checkpoint, cfg)
    if asked == "all":
        cfg.split, settings["split"] = "test", {"_target_": "raincast.data.windows.TestAll"}
    data = assembly.data_of(settings, assembly.archive_path(cfg, archive=settings["archive"]))
    data.needed = (cfg.split, "val") if cfg.calibrate else (cfg.split,)
    if cfg.list_windows:
        return _list_windows(data, cfg.split, Path(cfg.list_windows), asked=asked)
    metrics = assembly.metrics(cfg, data)
    run_dir = Path(cfg.paths.run_dir)
    here: tuple[str, ...] = ()
    if checkpoint is not None:
        _check_data(checkpoint, data)
        network = assembly.forecaster_of(checkpoint, device=cfg.device)
        if cfg.calibrate:
            thresholds = [float(t) for t in metrics.thresholds]
            checkpoint = calibrate(checkpoint, network, data, thresholds, split=cfg.split, run_dir=run_dir)
        networks = [scoring.variant(network, **how) for how in scoring.variants(cfg).values()]
        forecasters[:0] = networks
        here = tuple(one.name for one in networks) if network.device.type == "cuda" else ()
    keep_common(data, cfg.split, forecasters, asked=asked)
    work, cost = scoring.work_of(cfg, settings, checkpoint, data, metrics), Cost()
    scores = scoring.score(cfg, work, data, here=here, cost=cost).assign_attrs(cost.attrs(), split=asked)
    if checkpoint is not None:
        scores = scores.assign_attrs(checkpoint=str(checkpoint.path), checkpoint_sha256=checkpoint.sha256)
    text, files = write_tables(scores, run_dir)
    engine.clear(work)
    files += [
        write_page(scores, forecasters, data, checkpoint, run_dir / "report.html", settings),
        csi_plot(scores, run_dir / "csi.png"),
        report.example_picture(forecasters, data, cfg.split, run_dir / "forecast.png"),
    ]
    log.info("\n%d windows of %s, %s:\n%s", scores.attrs["num_windows"], asked, data.archive.path, text)
    log.info("%s", _cost(scores, time.monotonic() - began))
    log.info("written: %s", ", ".join(report.short(file) for file in files))
    if checkpoint is not None:
        given = [] if cfg.checkpoint == assembly.BOX else [f"checkpoint={report.short(checkpoint.path)}"]
        log.info(
            "\nNext, make a forecast:\n  python forecast.py %s", shlex.join([*given, f"input={data.archive.path}"])
        )
    return scores


def keep_common(data: "RadarData", split: str, forecasters: "list[Forecaster]", *, asked: str = "") -> None:
    """Restrict scoring to windows that every forecaster has a forecast of; raises ValueError if there are none.

    `asked` is what the user called `split`.
    """
    asked = asked or split
    wanted = {data.newest(place.start) for place in data.eval_places(split)}
    step = schema.step_timedelta(data.archive.step_minutes)
    leads = frozenset(number * step for number in range(1, data.lead_steps + 1))
    common, lacking = wanted, ""
    for forecaster in forecasters:
        if forecaster.gives.times is None:
            continue
        begun = wanted & forecaster.gives.times.keys()
        own = {time for time in begun if leads <= forecaster.gives.times[time]}
        common = common & own
        short = ""
        if len(own) < len(begun):
            last = data.lead_steps * data.archive.step_minutes
            short = (
                f" {len(begun) - len(own)} forecasts of {forecaster.name} lack some of the {data.lead_steps} lead "
                f"times up to {last:g} min: data.lead_steps=N asks for fewer."
            )
        lacking += short
        log.info(
            "%s has forecasts for %d of the %d init times of split=%s; all are scored on the common ones.%s",
            forecaster.name, len(own), len(wanted), asked, short,
        )  # fmt: skip
    if wanted and not common:
        first, last_time = min(wanted), max(wanted)
        raise ValueError(
            f"No init time of split={asked} ({_minute(first)} to {_minute(last_time)} UTC) has a forecast of "
            f"every forecaster.{lacking} list_windows=windows.csv writes the init times and areas to forecast."
        )
    if len(common) < len(wanted):
        data.common_times = frozenset(common)


def _minute(time: np.datetime64) -> str:
    return str(np.datetime_as_string(time, unit="m"))


def _list_windows(data: "RadarData", split: str, path: Path, *, asked: str) -> "xr.Dataset":
    """Write a CSV of the forecasts to make: init times (UTC), leads, and areas in pixels of the archive's grid."""
    import pandas as pd
    import xarray as xr

    step, last = data.archive.step_minutes, data.lead_steps * data.archive.step_minutes
    rows = [
        (data.newest(p.start).astype("datetime64[s]"), step, last, p.y, p.y + p.height, p.x, p.x + p.width)
        for p in data.eval_places(split)
    ]
    columns = ["init_time", "first_lead_minutes", "last_lead_minutes", "y0", "y1", "x0", "x1"]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    log.info("%d windows of split=%s of %s: %s", len(rows), asked, data.archive.path, report.short(path))
    return xr.Dataset()


def _cost(scores: "xr.Dataset", seconds: float) -> str:
    """Return the time and memory that the scores took, and the total time so far, for the log."""
    of = scores.attrs
    return (
        f"{of['wall_seconds']:.0f} s for the scores, {seconds:.0f} s in total; "
        f"at most {of['peak_memory_gib']:.1f} GiB in {of['num_processes']} process(es); "
        f"CPU seconds per window: {of['cpu_seconds_per_window']}"
    )


def _data_settings(checkpoint: assembly.Checkpoint | None, cfg: DictConfig) -> dict[str, Any]:
    """Return the settings of the checkpoint, or the defaults, overridden by `cfg.data`; plain data."""
    own: Any = OmegaConf.to_container(cfg.data, resolve=True)
    stated = {key: value for key, value in own.items() if value is not None}
    settings = {} if checkpoint is None else checkpoint.config["data"]
    if checkpoint is None or checkpoint.path.suffix == ".npz" or "_target_" not in settings:
        default: Any = OmegaConf.to_container(cfg.default_data, resolve=True)
        settings = assembly.merged(default, settings)
    settings = assembly.merged(settings, stated)
    return settings | ({"split": stated["split"]} if "split" in stated else {})


def _check_data(checkpoint: assembly.Checkpoint, data: "RadarData") -> None:
    """Raise ValueError if the step differs from training; warn if the windows do."""
    if checkpoint.path.suffix == ".npz":
        log.info("The weights were trained on the radar networks %s.", checkpoint.info["archive"]["identity"])
        return
    trained, step_minutes = checkpoint.info["step_minutes"], data.archive.step_minutes
    if trained != step_minutes:
        raise ValueError(
            f"{checkpoint.path} was trained on steps of {trained:g} min, {data.archive.path} has {step_minutes:g} "
            "min. Take an archive of the same step, or train on this one."
        )
    if data.split_hash != checkpoint.info["split_hash"]:
        log.warning(
            "These windows are not those that %s was split by: if the archive or the dates overlap with its "
            "training, its scores are too good.",
            checkpoint.path,
        )
