"""`python forecast.py`: a checkpoint and the newest frames → a CF netCDF forecast and an animation."""

import logging
from pathlib import Path

import numpy as np
import xarray as xr
from omegaconf import DictConfig

from raincast import build, schema
from raincast.commands import report

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> Path:
    """Forecast from `cfg.input`, and write forecast_TIME.nc and .gif into the run folder."""
    if cfg.watch is not None:
        from raincast.commands import watch

        return watch.run(cfg)
    if cfg.input is None:
        raise ValueError("Not given: input. Say input=data/NAME or input='radar/*.h5', or watch=FOLDER to go on.")
    from raincast.nowcast import open_series, write_outputs

    nowcaster = build.nowcaster(
        build.read_checkpoint(cfg.checkpoint),
        device=cfg.device,
        lead_steps=cfg.lead_steps,
        thresholds=cfg.exceedance,
        calibrated=cfg.calibrated,
        attrs={"input": str(cfg.input)},
    )
    series = open_series(cfg.input, build.make(cfg.source))
    frames = nowcaster.frames(series, cfg.init_time, source=cfg.input)
    forecast = nowcaster(frames)
    written = write_outputs(forecast, frames, Path(cfg.paths.run_dir), animation=cfg.animation)
    for kind, path in written.items():
        log.info("%-10s %s", kind, report.short(path))
    _tell(forecast, written["forecast"])
    return written["forecast"]


def _tell(forecast: xr.Dataset, path: Path) -> None:
    step = float(forecast.attrs[schema.STEP_MINUTES])
    log.info(
        "\n%s + %g to %g min, up to %.1f mm/h. Look at it:\n  gdalinfo %s",
        forecast[schema.INIT_TIME].values.astype("datetime64[m]"),
        step,
        step * forecast.sizes[schema.LEAD_TIME],
        float(np.nan_to_num(forecast[schema.RAIN].values).max()),
        f"NETCDF:{report.short(path)}:{schema.RAIN}" if schema.EXCEEDANCE in forecast else report.short(path),
    )
