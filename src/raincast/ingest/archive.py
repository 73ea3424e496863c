"""Files → archive: one netCDF file a UTC day, resumable, with a report of what was left out and why."""

import logging
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr

import raincast
from raincast import schema
from raincast.archive import Archive
from raincast.ingest.day import Day, Offer, Run, Times, by_file
from raincast.ingest.files import find_files
from raincast.ingest.quality import Quality
from raincast.ingest.readers import Reader
from raincast.ingest.report import IngestReport
from raincast.schema import Grid

log = logging.getLogger(__name__)


def ingest(
    files: str | Path | Sequence[str | Path],
    archive: str | Path,
    reader: Reader,
    *,
    max_rate: float = 300.0,
    min_rate: float = 0.0,
    on_bad_file: Literal["report", "raise"] = "report",
    progress: Callable[[int, int], None] | None = None,
    config_text: str = "",
) -> IngestReport:
    """Add the frames of `files` (patterns or paths) to the folder `archive`, a file `YYYY-MM-DD.nc` a day.

    Frames that are there already stay; an interrupted ingest is continued by running it again. Of frames
    with the same time the first wins. `max_rate` and `min_rate` are in mm/h, see `Quality`; `progress` is
    called with the frames done and the frames to do; `config_text` goes into the files. ValueError, with the
    archive untouched, for another grid or step than the archive's, and where no frame at all can be used.
    """
    started = time.monotonic()
    if on_bad_file not in ("report", "raise"):
        raise ValueError(f"on_bad_file={on_bad_file} is neither report nor raise.")
    attrs = {
        "raincast_version": raincast.__version__,
        "raincast_config": config_text,
        "max_rate_mm_h": max_rate,
        "min_rate_mm_h": min_rate,
    }
    run = Run(reader, Quality(max_rate, min_rate), on_bad_file == "raise", attrs)
    archive = Path(archive)
    paths = find_files(files)
    existing = _open_existing(archive)
    offers = _scan(paths, run)
    _fit(run, offers, existing)
    offers, off_step = _split_by_step(run, offers, existing)
    present = existing.times if existing else np.array([], "datetime64[ns]")
    _take_over(run, offers, archive, existing, present, progress)
    report = _report(run, offers, off_step, archive, present, time.monotonic() - started)
    if not report.num_written and not report.num_present:
        raise ValueError(f"Not one frame of {len(paths)} files could be used. {report.reasons()}")
    if report.num_written or not report.path.exists():
        report.save()
    log.info("%s", report)
    return report


def _open_existing(archive: Path) -> Archive | None:
    """The archive to add to, or None; ValueError where it is not a folder of day files."""
    if archive.is_file() or archive.suffix in (".nc", ".zarr"):
        raise ValueError(f"archive={archive} must be a folder: ingest writes a file a day into it.")
    names = [path.stem for path in archive.glob("*.nc")]
    if not names:
        return None
    others = [name for name in names if not _is_day(name)]
    if others:
        raise ValueError(
            f"{archive} holds {others[0]}.nc, which is no day file (YYYY-MM-DD.nc). Choose another folder."
        )
    return Archive.open(archive)


def _is_day(name: str) -> bool:
    try:
        return str(np.datetime64(name, "D")) == name
    except ValueError:
        return False


def _scan(paths: Sequence[Path], run: Run) -> list[Offer]:
    """All frames that the files offer, in the order of the files; sets the grid and the step of the run."""
    offers: list[Offer] = []
    for rank, path in enumerate(paths):
        try:
            head = run.reader.scan(path)
        except ValueError as error:
            run.note_bad(path, error)
            continue
        _check_head(run, path, head.grid, head.step_minutes)
        offers += [Offer(t, path, i, rank) for i, t in enumerate(head.times.astype("datetime64[ns]"))]
    if not offers:
        reasons = "; ".join(list(run.bad_files.values())[:3])
        raise ValueError(f"Not one of {len(paths)} files could be read: {reasons or 'they hold no frames'}")
    return offers


def _check_head(run: Run, path: Path, grid: Grid, step_minutes: float | None) -> None:
    """Refuse files of two grids or steps: no single archive can hold them."""
    if run.grid is None or run.grid_path is None:
        run.grid, run.grid_path, run.step_minutes = grid, path, step_minutes
    elif grid is not run.grid and not run.grid.same_as(grid):
        raise ValueError(
            f"The files are of two grids: {run.grid_path} is {_place(run.grid)}, {path} is {_place(grid)}. "
            "Ingest each into its own archive."
        )
    elif step_minutes != run.step_minutes:
        raise ValueError(
            f"The files are of two steps: {run.step_minutes} min in {run.grid_path}, {step_minutes} min in "
            f"{path}. Ingest each into its own archive."
        )


def _place(grid: Grid) -> str:
    return f"{grid.shape[0]} × {grid.shape[1]} pixels from y={grid.y[0]:g}, x={grid.x[0]:g}"


def _fit(run: Run, offers: list[Offer], existing: Archive | None) -> None:
    """Settle the step, and refuse files that do not fit the archive that is there."""
    stated = run.step_minutes
    if run.step_minutes is None:
        run.step_minutes = _most_frequent_gap(offers) or (existing.step_minutes if existing else None)
    if run.step_minutes is None:
        raise ValueError("The step is unknown: one or two frames do not show it. Set source.step_minutes=5")
    if existing is None or run.grid is None:
        return
    if run.step_minutes != existing.step_minutes:
        remedy = "" if stated else f", or set source.step_minutes={existing.step_minutes:g} if these are gaps"
        raise ValueError(
            f"{existing.path} has a step of {existing.step_minutes:g} min, the files of "
            f"{run.step_minutes:g} min. Choose another archive{remedy}."
        )
    if not existing.grid.same_as(run.grid):
        raise ValueError(
            f"{existing.path} has another grid ({_place(existing.grid)}) than the files "
            f"({_place(run.grid)}). Choose another archive."
        )
    run.grid = existing.grid


def _most_frequent_gap(offers: list[Offer]) -> float | None:
    """The step in minutes as the times show it; None for fewer than three, where a gap would pass for it."""
    times = np.unique(np.array([offer.time for offer in offers]))
    if times.size < 3:
        return None
    return schema.find_step_minutes(xr.Dataset(coords={schema.TIME: times}))


def _split_by_step(run: Run, offers: list[Offer], existing: Archive | None) -> tuple[list[Offer], list[Offer]]:
    """The offers on the step, by time, and those off it: the archive's phase counts, else the commonest."""
    step = schema.step_timedelta(run.step_minutes or 0.0)
    phases = np.array([offer.time for offer in offers]).astype(np.int64) % step.astype(np.int64)
    if existing:
        phase = existing.times[0].astype("datetime64[ns]").astype(np.int64) % step.astype(np.int64)
    else:
        values, counts = np.unique(phases, return_counts=True)
        phase = values[counts.argmax()]
    on = [offer for offer, p in zip(offers, phases, strict=True) if p == phase]
    off = [offer for offer, p in zip(offers, phases, strict=True) if p != phase]
    return sorted(on, key=lambda offer: offer.time), off


def _take_over(
    run: Run,
    offers: list[Offer],
    archive: Path,
    existing: Archive | None,
    present: Times,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the days that have new frames, one after the other: no more than a day is in memory."""
    known = set(present.astype(np.int64).tolist())
    wanted = [offer for offer in offers if offer.time.astype(np.int64) not in known]
    done = 0
    for day, group in groupby(wanted, key=lambda offer: offer.time.astype("datetime64[D]")):
        frames = Day.start(run, existing, day, list(group))
        for path, of_file in by_file(frames.offers):
            frames.add_file(path, of_file)
            done += len(of_file)
            if progress:
                progress(done, len(wanted))
        frames.write(archive)


def _report(
    run: Run, offers: list[Offer], off_step: list[Offer], archive: Path, present: Times, seconds: float
) -> IngestReport:
    offered = np.unique(np.array([offer.time for offer in offers]))
    kept = np.union1d(present, np.array(run.written, "datetime64[ns]"))
    span = kept[(kept >= offered[0]) & (kept <= offered[-1])]
    gaps = schema.missing_times(np.union1d(span, offered[[0, -1]]), schema.step_timedelta(run.step_minutes or 0))
    missing = np.union1d(gaps, np.setdiff1d(offered, kept))
    first: dict[np.datetime64, Offer] = {}
    repeats = [offer for offer in offers if first.setdefault(offer.time, offer) is not offer]
    return IngestReport(
        archive=archive,
        num_written=len(run.written),
        num_present=int(np.isin(offered, present).sum()),
        num_capped=run.num_capped,
        duplicates=tuple(f"{_text(o)} (kept: {first[o.time].path})" for o in repeats),
        off_step=tuple(map(_text, off_step)),
        bad_files=dict(run.bad_files),
        empty_times=tuple(str(t.astype("datetime64[s]")) for t in sorted(run.empty) if t not in kept),
        missing_times=tuple(str(t.astype("datetime64[s]")) for t in missing),
        seconds=round(seconds, 3),
    )


def _text(offer: Offer) -> str:
    return f"{offer.time.astype('datetime64[s]')} in {offer.path}"
