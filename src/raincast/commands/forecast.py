"""`python forecast.py`: a checkpoint and radar frames → forecasts as CF netCDF, pictures and tables."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from omegaconf import DictConfig

from raincast import build, schema
from raincast.commands import report

if TYPE_CHECKING:
    from raincast.nowcast import Nowcaster, Outputs, Series

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> Path:
    """Forecast from `cfg.input` at one init time or many; the path of the last netCDF file."""
    if cfg.watch is not None:
        from raincast.commands import watch

        return watch.run(cfg)
    if cfg.input is None:
        raise ValueError("Not given: input. Say input=data/NAME or input='radar/*.h5', or watch=FOLDER to go on.")
    from raincast.nowcast import init_times, open_series

    nowcaster, outputs = build.nowcaster_of(cfg), build.outputs(cfg)
    series = open_series(cfg.input, build.reader(cfg))
    due = init_times(str(cfg.init_time), series.times, series.step_minutes, cfg.every)
    if due.size > 1 or "/" in str(cfg.init_time):
        return _many(cfg, nowcaster, outputs, series, due)
    forecast, written = _one(cfg, nowcaster, outputs, series, due[0])
    for kind, path in written.items():
        log.info("%-10s %s", kind, report.short(path))
    _tell(forecast, written["forecast"])
    return written["forecast"]


def _one(
    cfg: DictConfig, nowcaster: "Nowcaster", outputs: "Outputs", series: "Series", init_time: Any
) -> tuple[xr.Dataset, dict[str, Path]]:
    from raincast.nowcast import what_came, write_outputs

    frames = nowcaster.frames(series, init_time, source=cfg.input)
    forecast = nowcaster(frames)
    observed = what_came(series, forecast) if outputs.shows_observed else None
    return forecast, write_outputs(
        forecast, frames, Path(cfg.folder), outputs, observed=observed, overwrite=cfg.overwrite
    )


def _many(cfg: DictConfig, nowcaster: "Nowcaster", outputs: "Outputs", series: "Series", due: Any) -> Path:
    """A forecast from each time of `due`; those that are there already are left as they are."""
    from raincast.nowcast import NoInput, forecast_path, is_complete

    folder = Path(cfg.folder)
    digest = nowcaster.attrs.get("checkpoint_sha256")
    made: list[Path] = []
    failed: list[str] = []
    kept = 0
    with report.Bar("forecasting") as bar:
        for number, init_time in enumerate(due, start=1):
            path = forecast_path(folder, init_time)
            if not cfg.overwrite and is_complete(path, digest, nowcaster.lead_steps):
                kept += 1
            else:
                try:
                    _one(cfg, nowcaster, outputs, series, init_time)
                    made.append(path)
                except NoInput as error:
                    failed.append(str(error))
            bar.update(number, due.size)
    log.info("%d forecasts in %s, and %d that were there", len(made), report.short(folder), kept)
    if failed:
        log.warning("None from %d init times. Of the first: %s", len(failed), failed[0])
    if not made and not kept:
        raise ValueError(f"There is no forecast from any of {due.size} init times. Of the first: {failed[0]}")
    return forecast_path(folder, due[-1])


def _tell(forecast: xr.Dataset, path: Path) -> None:
    step = float(forecast.attrs[schema.STEP_MINUTES])
    log.info(
        "\n%s + %g to %g min (%s), up to %.1f mm/h. Look at it:\n  gdalinfo NETCDF:%s:%s",
        forecast[schema.INIT_TIME].values.astype("datetime64[m]"),
        step,
        step * forecast.sizes[schema.LEAD_TIME],
        forecast.attrs["forecast_method"],
        float(np.nan_to_num(forecast[schema.RAIN].values).max()),
        report.short(path),
        schema.RAIN,
    )
