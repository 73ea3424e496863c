"""`python forecast.py` without input: a forecast of the bundled event, compared with the observation."""

import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from raincast import schema
from raincast.commands import report
from raincast.system.paths import sample_path

if TYPE_CHECKING:
    import xarray as xr

    from raincast.archive import Archive

log = logging.getLogger(__name__)

PAST = 4
"""Number of frames of the event that are input; the others are the verifying observation."""

SCORED_MINUTES = (15, 30, 45, 60)
SCORED_MM_H = 1.0


def with_input(cfg: DictConfig) -> DictConfig:
    """Return `cfg` with the bundled event as its input, and an init time that leaves frames for verification."""
    archive = _event()
    log.info(
        "No input is given: this is %s. Source: MeteoSwiss.\n"
        "To forecast from your own radar: python forecast.py input='radar/*.h5'\n",
        archive.attrs["title"],
    )
    given = {"input": str(archive.path), "init_time": str(archive.times[PAST - 1])}
    return DictConfig(OmegaConf.merge(cfg, given))


def compare(made: "xr.Dataset", picture: Path) -> None:
    """Draw the forecast next to extrapolation and the observation, and log their CSI."""
    archive = _event()
    from raincast.baselines import Extrapolation, Persistence
    from raincast.forecaster import Query
    from raincast.plotting.pictures import forecast_picture

    frames: Any = archive.read(0, archive.num_times).reshape(archive.num_times, *archive.grid.shape)
    past, observed = frames[:PAST], frames[PAST:]
    step = archive.step_minutes
    query = Query.for_steps(past[None, :, None], len(observed), step_minutes=step, grid=archive.grid)
    rates = {"raincast": made[schema.RAIN].values[: len(observed)]}
    for rival in (Extrapolation(), Persistence()):
        rates[rival.name] = rival.predict(query).rates[0, :, 0]
    forecast_picture(
        observed,
        {name: rates[name] for name in ("raincast", "extrapolation")},
        grid=archive.grid,
        init_time=archive.times[PAST - 1],
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
