"""`python forecast.py`: a checkpoint and the newest frames → a CF netCDF forecast and an animation."""

import logging
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from omegaconf import DictConfig

import raincast
from raincast import build, schema
from raincast.commands import report

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> Path:
    """Forecast from `cfg.input`, and write forecast_TIME.nc and .gif into the run folder."""
    from raincast.archive import Archive
    from raincast.output.animation import forecast_animation
    from raincast.output.forecast_file import forecast_dataset, with_exceedance, write_forecast

    checkpoint = build.read_checkpoint(cfg.checkpoint)
    if cfg.lead_steps is not None and cfg.lead_steps < 1:
        raise ValueError(f"lead_steps={cfg.lead_steps}: give a whole number from 1 up.")
    frames = newest_frames(
        cfg.input, cfg.init_time, num_frames=checkpoint.info["input_steps"], reader=build.make(cfg.source),
        step_minutes=checkpoint.info["step_minutes"], open_archive=Archive.open,
    )  # fmt: skip
    _warn_of_other_grid(checkpoint, frames)
    forecaster = build.forecaster_of(checkpoint, device=cfg.device)
    lead_steps = cfg.lead_steps or forecaster.lead_steps
    thresholds = _thresholds(cfg, checkpoint, probabilistic=forecaster.head.probabilistic)
    past = frames[schema.RAIN].values
    rates, probabilities = forecaster.forecast_with_exceedance(past[None, :, None], lead_steps, thresholds)
    rain, exceedance = rates[0, :, 0], probabilities[0]
    never = np.isnan(past).all(axis=0)  # nobody ever looked there
    rain[:, never] = exceedance[:, :, never] = np.nan
    init_time = frames[schema.TIME].values[-1]
    grid = _grid_of(frames)
    common: dict[str, Any] = {
        "init_time": init_time, "step_minutes": forecaster.step_minutes, "grid": grid
    }  # fmt: skip
    dataset = forecast_dataset(
        rain,
        cell_methods=str(frames[schema.RAIN].attrs["cell_methods"]),
        attrs=_provenance(checkpoint, cfg, frames),
        **common,
    )
    if thresholds:
        dataset = with_exceedance(dataset, exceedance, thresholds)
    name = f"forecast_{np.datetime_as_string(init_time, unit='m').replace('-', '').replace(':', '')}"
    written = write_forecast(dataset, Path(cfg.paths.run_dir) / f"{name}.nc")
    log.info("forecast   %s", report.short(written))
    if cfg.animation:
        path = forecast_animation(past, rain, path=written.with_suffix(".gif"), **common)
        log.info("animation  %s", report.short(path))
    log.info(
        "\n%s + %g to %g min, up to %.1f mm/h. Look at it:\n  gdalinfo %s",
        init_time.astype("datetime64[m]"),
        forecaster.step_minutes,
        forecaster.step_minutes * lead_steps,
        float(np.nan_to_num(rain).max()),
        f"NETCDF:{report.short(written)}:{schema.RAIN}" if thresholds else report.short(written),
    )
    return written


def _thresholds(cfg: DictConfig, checkpoint: build.Checkpoint, *, probabilistic: bool) -> list[float]:
    """Of the probabilities to write: those asked for; by default those that training scored, or none."""
    if cfg.exceedance is not None:
        return [float(threshold) for threshold in cfg.exceedance]
    return [float(threshold) for threshold in checkpoint.config.metrics.thresholds] if probabilistic else []


def newest_frames(
    source: str, init_time: str, *, num_frames: int, step_minutes: float, reader: Any, open_archive: Any
) -> xr.Dataset:
    """The `num_frames` frames up to `init_time` (or the newest) of an archive or of radar files.

    ValueError where the step is another, where one of the frames is absent, or where all are missing.
    """
    path = Path(source)
    try:
        series = _ArchiveSeries(open_archive(path))
    except (ValueError, FileNotFoundError):
        series = _FileSeries(source, reader)  # type: ignore[assignment]
    _check_step(series.step_minutes, step_minutes, source)
    wanted = _wanted_times(series.times, init_time, num_frames, step_minutes)
    absent = np.setdiff1d(wanted, series.times)
    if absent.size:
        raise ValueError(
            f"The network needs {num_frames} frames from {wanted[0]} to {wanted[-1]}; {source} lacks "
            f"{', '.join(str(t.astype('datetime64[m]')) for t in absent)}. It has {series.times.size} frames "
            f"from {series.times[0]} to {series.times[-1]}: give more files, or another init_time=…"
        )
    frames = series.read(wanted)
    if not np.isfinite(frames[schema.RAIN].values).any():
        raise ValueError(f"All pixels of the frames from {wanted[0]} to {wanted[-1]} of {source} are missing.")
    return frames


class _ArchiveSeries:
    def __init__(self, archive: Any) -> None:
        self.archive = archive
        self.times = archive.times
        self.step_minutes = archive.step_minutes

    def read(self, wanted: Any) -> xr.Dataset:
        first = int(np.searchsorted(self.times, wanted[0]))
        dataset: xr.Dataset = self.archive.to_dataset(first, wanted.size)
        return dataset


class _FileSeries:
    """Radar files as one series; only the frames asked for are read."""

    def __init__(self, source: str, reader: Any) -> None:
        from raincast.ingest.files import find_files

        path = Path(source)
        files = find_files(f"{source}/*" if path.is_dir() and path.suffix != ".zarr" else source)
        self.reader = reader
        heads = [(file, reader.scan(file)) for file in files]
        self.where = {
            time.astype("datetime64[ns]"): (file, number)
            for file, head in heads
            for number, time in enumerate(head.times)
        }
        self.times = np.array(sorted(self.where), dtype="datetime64[ns]")
        self.step_minutes = self._step(heads)

    def _step(self, heads: list[Any]) -> float:
        stated = {head.step_minutes for _, head in heads if head.step_minutes}
        if len(stated) == 1:
            return float(stated.pop())
        gaps, counts = np.unique(np.diff(self.times), return_counts=True)
        if gaps.size == 0:
            raise ValueError(f"One frame only, {self.times[0]}: give as many files as the network needs frames.")
        return float(gaps[counts.argmax()] / np.timedelta64(1, "m"))

    def read(self, wanted: Any) -> xr.Dataset:
        pieces = []
        for time in wanted:
            file, number = self.where[time]
            pieces.append(self.reader.read(file, slice(number, number + 1), step_minutes=self.step_minutes))
        rain = np.concatenate([piece[schema.RAIN].values for piece in pieces])
        attrs = pieces[-1].attrs
        return schema.rain_dataset(
            rain,
            wanted,
            _grid_of(pieces[-1]),
            step_minutes=self.step_minutes,
            cell_methods=str(pieces[-1][schema.RAIN].attrs["cell_methods"]),
            attrs={key: value for key, value in attrs.items() if key != schema.STEP_MINUTES},
        )


def _grid_of(frames: xr.Dataset) -> schema.Grid:
    wkt = schema.find_crs_wkt(frames, schema.RAIN)
    return schema.Grid(frames[schema.Y].values, frames[schema.X].values, str(wkt))


def _check_step(found: float, trained: float, source: str) -> None:
    if found != trained:
        raise ValueError(
            f"The network was trained on steps of {trained:g} min, {source} has {found:g} min. Take input of "
            f"{trained:g} min, or train a network on {found:g} min."
        )


def _wanted_times(times: Any, init_time: str, num_frames: int, step_minutes: float) -> Any:
    if init_time == "latest":
        last = times[-1]
    else:
        try:
            last = np.datetime64(str(init_time), "ns")
        except ValueError as error:
            raise ValueError(f"init_time={init_time}: write latest or 2010-08-26T06:00 (UTC).") from error
    return last - schema.step_timedelta(step_minutes) * np.arange(num_frames)[::-1]


def _warn_of_other_grid(checkpoint: build.Checkpoint, frames: xr.Dataset) -> None:
    trained = checkpoint.info["grid_spacing"]
    found = [
        float(abs(frames[a].values[1] - frames[a].values[0])) for a in (schema.Y, schema.X) if frames[a].size > 1
    ]
    if len(found) == 2 and not np.allclose(found, trained, rtol=0.01):
        log.warning("The network was trained on pixels of %s, the input has %s (y, x).", trained, found)


def _provenance(checkpoint: build.Checkpoint, cfg: DictConfig, frames: xr.Dataset) -> dict[str, Any]:
    kept = {key: frames.attrs[key] for key in ("license", "institution", "references") if key in frames.attrs}
    return kept | {
        "title": "Precipitation nowcast",
        "source": f"raincast {raincast.__version__}, {checkpoint.config.model._target_.rpartition('.')[2]}",
        "raincast_version": raincast.__version__,
        "raincast_commit": _commit(),
        "input": str(cfg.input),
        "input_source": str(frames.attrs.get("source", "unknown")),
        "checkpoint": str(checkpoint.path),
        "checkpoint_sha256": checkpoint.sha256,
        "split_hash": checkpoint.info["split_hash"],
        "config": checkpoint.info["config"],
    }


def _commit() -> str:
    """The commit of the checkout this runs from; "unknown" when installed from a wheel."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"
