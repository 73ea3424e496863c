"""`python forecast.py`: a checkpoint and radar frames → forecasts as CF netCDF, pictures and tables.

Without input the bundled event is forecast and compared with the observation.
"""

import functools
import logging
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from omegaconf import DictConfig, OmegaConf

from raincast import assembly, schema
from raincast.archive.statistics import WET_MM_H
from raincast.checkpoint import BOX
from raincast.commands import report
from raincast.forecaster import NETWORK
from raincast.forecasting.files.netcdf import PYSTEPS_RAIN
from raincast.system.paths import sample_path

if TYPE_CHECKING:
    from raincast.archive import Archive
    from raincast.forecasting import ForecastPipeline, HindcastOutcome, HindcastWork, Series

log = logging.getLogger(__name__)

MOST_NAMED = 10
SOME_FAILED = 3
"""Exit code if some forecasts failed and the rest are done; the same as a watcher's."""
EVENT_PAST = 4
"""Number of frames of the bundled event that are input; the others are the verifying observation."""
SCORED_MINUTES = (15, 30, 45, 60)
SCORED_MM_H = 1.0


def run(cfg: DictConfig) -> Path:
    """Forecast from `cfg.input` at one init time or many; return the path of the last netCDF file."""
    if cfg.watch is not None:
        from raincast.commands import serve

        return serve.watch(cfg)
    if cfg.site is not None:
        raise ValueError(f"site={cfg.site} needs watch=FOLDER, which updates it: give watch, or leave site out.")
    in_the_box = cfg.input is None
    if in_the_box:
        cfg = _with_event(cfg)
    from raincast.forecasting import forecast_one, init_times

    outputs, pipeline = assembly.outputs(cfg), assembly.pipeline_of(cfg)
    series = _series(cfg)
    due = init_times(str(cfg.init_time), series.times, series.step_minutes, cfg.every)
    if due.size > 1 or "/" in str(cfg.init_time):
        return _many(cfg, pipeline, series, due)
    forecast, written = forecast_one(
        pipeline, series, due[0], Path(cfg.folder), outputs, source=str(cfg.input), overwrite=cfg.overwrite
    )
    for kind, path in written.items():
        log.info("%-10s %s", kind, report.short(path))
    _tell(forecast, written["forecast"], PYSTEPS_RAIN if cfg.for_pysteps else schema.RAIN)
    if cfg.checkpoint == BOX and not in_the_box and forecast.attrs["forecast_method"] == NETWORK:
        _tell_skill(forecast)
    if in_the_box:
        _compare_with_observation(forecast, Path(cfg.folder) / "observed.png")
    return written["forecast"]


def _many(cfg: DictConfig, pipeline: "ForecastPipeline", series: "Series", due: Any) -> Path:
    """Make a forecast from each time of `due`; existing forecasts are kept."""
    from raincast.forecasting import forecast_all, forecast_path

    work = _work(cfg, pipeline)
    try:
        with _ended_by_sigterm(), report.Bar("forecasting") as bar:
            outcome = forecast_all(work, due, pipeline, series, workers=cfg.workers, progress=bar.update)
    except KeyboardInterrupt:
        log.warning("Stopped. The finished forecasts are kept; the same command makes the others.")
        raise SystemExit(130) from None  # the shell's exit code for Ctrl-C
    _tell_of_many(outcome, work.folder, due.size)
    if outcome.failed:
        raise SystemExit(SOME_FAILED)
    return forecast_path(work.folder, due[-1])


def _work(cfg: DictConfig, pipeline: "ForecastPipeline") -> "HindcastWork":
    """Return the work for other processes; its config is plain, so that it needs no resolver."""
    from raincast.forecasting import HindcastWork, devices_of

    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    plain.pop("hydra", None)
    on_gpu = pipeline.footprint.device != "cpu"
    return HindcastWork(
        pipeline=functools.partial(_pipeline, plain),
        series=functools.partial(_series, plain),
        folder=Path(cfg.folder),
        outputs=assembly.outputs(cfg),
        source=str(cfg.input),
        devices=devices_of(cfg.device) if on_gpu else ("cpu",),
        gib=cfg.memory_gib,
        overwrite=cfg.overwrite,
    )


def _pipeline(plain: dict[str, Any], device: str, gib: float | None) -> "ForecastPipeline":
    return assembly.pipeline_of(OmegaConf.create(plain), device, gib)


def _series(settings: Any) -> "Series":
    from raincast.forecasting import open_series

    cfg = settings if isinstance(settings, DictConfig) else OmegaConf.create(settings)
    return open_series(cfg.input if isinstance(cfg.input, str) else list(cfg.input), assembly.reader(cfg))


def _tell_of_many(outcome: "HindcastOutcome", folder: Path, num_due: int) -> None:
    """Log how many forecasts were made, of which kind, and which failed.

    Raises ValueError if there is none at all.
    """
    kinds = ", ".join(f"{number} {kind}" for kind, number in Counter(outcome.methods.values()).most_common())
    if outcome.methods or outcome.num_kept:
        log.info(
            "%d forecasts in %s%s; %d existed already",
            len(outcome.methods), report.short(folder), f" ({kinds})" if kinds else "", outcome.num_kept,
        )  # fmt: skip
    elif outcome.without and not outcome.failed:
        raise ValueError(
            f"There is no forecast from any of {num_due} init times. The first: "
            f"{next(iter(outcome.without.values()))}"
        )
    if outcome.without:
        first = next(iter(outcome.without.values()))
        log.warning("No forecast from %d init times without input. The first: %s", len(outcome.without), first)
    for init_time, error in list(outcome.failed.items())[:MOST_NAMED]:
        log.error(
            "failed     %s UTC: %s: %s", np.datetime_as_string(init_time, unit="m"), type(error).__name__, error
        )
    if outcome.failed:
        log.error("%d init times failed. The same command tries them again.", len(outcome.failed))


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """End all processes on SIGTERM, as on Ctrl-C, with the shell's exit code for it."""

    def leave(*_: Any) -> None:
        log.warning("SIGTERM. The finished forecasts are kept; the same command makes the others.")
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell_skill(forecast: xr.Dataset) -> None:
    """Log which weights made a forecast, and their scores on the most similar data."""
    from raincast.models.weights import box, scores_like

    rain = forecast[schema.RAIN][0].values
    wet_share = float((rain[np.isfinite(rain)] >= WET_MM_H).mean())
    like = scores_like(schema.grid_of(forecast).pixel_km, wet_share)
    networks, csi = ", ".join(box()[1]["networks"]), ", ".join(f"{who} {csi:.2f}" for who, csi in like.csi.items())
    log.info(
        "\nBy the weights that come with raincast, trained on %s. CSI at 1 mm/h after 30 min on the data most "
        "like these that they have not seen, %s: %s.\n"
        "To score them on your radar: python evaluate.py data.archive=…",
        networks, like.data, csi,
    )  # fmt: skip


def _tell(forecast: xr.Dataset, path: Path, variable: str) -> None:
    step = float(forecast.attrs[schema.STEP_MINUTES])
    log.info(
        "\n%s UTC + %g to %g min (%s), up to %.1f mm/h. Look at it:\n  gdalinfo NETCDF:%s:%s",
        forecast[schema.INIT_TIME].values.astype("datetime64[m]"),
        step,
        step * forecast.sizes[schema.LEAD_TIME],
        forecast.attrs["forecast_method"],
        float(np.nan_to_num(forecast[schema.RAIN].values).max()),
        report.short(path),
        variable,
    )


def _with_event(cfg: DictConfig) -> DictConfig:
    """Return `cfg` with the bundled event as its input, and an init time that leaves frames for verification."""
    archive = _event()
    log.info(
        "No input is given: this is %s. Source: MeteoSwiss.\n"
        "To forecast from your own radar: python forecast.py input='radar/*.h5'\n",
        archive.attrs["title"],
    )
    given = {"input": str(archive.path), "init_time": str(archive.times[EVENT_PAST - 1])}
    return DictConfig(OmegaConf.merge(cfg, given))


def _compare_with_observation(made: xr.Dataset, picture: Path) -> None:
    """Draw the forecast next to extrapolation and the observation, and log their CSI."""
    archive = _event()
    from raincast.baselines import Extrapolation, Persistence
    from raincast.forecaster import Query
    from raincast.plotting.pictures import forecast_picture

    frames: Any = archive.read(0, archive.num_times).reshape(archive.num_times, *archive.grid.shape)
    past, observed = frames[:EVENT_PAST], frames[EVENT_PAST:]
    step = archive.step_minutes
    query = Query.for_steps(past[None, :, None], len(observed), step_minutes=step, grid=archive.grid)
    rates = {"raincast": made[schema.RAIN].values[: len(observed)]}
    for rival in (Extrapolation(), Persistence()):
        rates[rival.name] = rival.predict(query).rates[0, :, 0]
    forecast_picture(
        observed,
        {name: rates[name] for name in ("raincast", "extrapolation")},
        grid=archive.grid,
        init_time=archive.times[EVENT_PAST - 1],
        step_minutes=step,
        path=picture,
        leads_minutes=list(SCORED_MINUTES),
        credit="MeteoSwiss",
    )
    log.info("%-10s %s", "observed", report.short(picture))
    log.info("\nCSI at ≥ %g mm/h after %s min", SCORED_MM_H, ", ".join(map(str, SCORED_MINUTES)))
    for name, rate in rates.items():
        scores = [_csi(rate[round(m / step) - 1], observed[round(m / step) - 1]) for m in SCORED_MINUTES]
        log.info("  %-14s %s", name, "  ".join(f"{score:.2f}" for score in scores))


@functools.cache
def _event() -> "Archive":
    from raincast.archive import Archive

    return Archive.open(sample_path())


def _csi(rate: Any, observed: Any) -> float:
    seen = np.isfinite(observed) & np.isfinite(rate)
    said, wet = (rate >= SCORED_MM_H) & seen, (observed >= SCORED_MM_H) & seen
    return float((said & wet).sum() / max(1, (said | wet).sum()))
