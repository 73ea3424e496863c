"""Files → archive: one netCDF file a UTC day, resumable, with a report of what was left out and why."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

import raincast
from raincast import schema
from raincast.archive import Archive
from raincast.ingest.day import DayResult, DayTask, write_day
from raincast.ingest.files import find_files
from raincast.ingest.lock import locked
from raincast.ingest.offers import Offers, Times
from raincast.ingest.quality import Quality
from raincast.ingest.readers import Reader
from raincast.ingest.region import Region
from raincast.ingest.report import IngestReport
from raincast.ingest.scan import BadFileError, Found, place, scan
from raincast.ingest.settings import ATTR, check_same, describe
from raincast.ingest.workers import Pool
from raincast.schema import Grid

log = logging.getLogger(__name__)

LARGE_PIXELS = 2 * 10**8  # about 10 s of work for one process: less is not worth starting others
Progress = Callable[[int, int], None]


def ingest(
    files: str | Path | Sequence[str | Path],
    archive: str | Path,
    reader: Reader,
    *,
    max_rate: float = 300.0,
    min_rate: float = 0.0,
    crop: tuple[int, int, int, int] | None = None,
    coarsen: int = 1,
    workers: int | None = 1,
    on_bad_file: Literal["report", "raise"] = "report",
    progress: Progress | None = None,
    scan_progress: Progress | None = None,
) -> IngestReport:
    """Add the frames of `files` (patterns or paths) to the folder `archive`, a file `YYYY-MM-DD.nc` a day.

    Frames that are there already stay; an interrupted ingest is continued by running it again, and ends with the
    same bytes of data as if it had not been. Of frames with the same time the first wins, in the order of `files`
    and by name within a pattern. `max_rate` and `min_rate` are in mm/h, see `Quality`; `crop` and `coarsen` choose
    the grid, see `Region`; `workers` processes write a day each, see `Pool`. `progress` is called with the frames
    done and to do, `scan_progress` with the files. ValueError, with the archive untouched, for other settings,
    grid or step than the archive's, where another process writes it, and where no frame at all can be used.
    """
    started = time.monotonic()
    if on_bad_file not in ("report", "raise"):
        raise ValueError(f"on_bad_file={on_bad_file} is neither report nor raise.")
    quality, region, pool = Quality(max_rate, min_rate), Region(crop, coarsen), Pool(workers)
    archive, raise_bad = Path(archive), on_bad_file == "raise"
    settings = describe(reader, quality, region)
    paths = find_files(files)
    _check_folder(archive)
    with locked(archive), pool:
        existing = Archive.open(archive) if any(archive.glob("*.nc")) else None
        if existing:
            check_same(existing, settings)
        found = scan(reader, paths, pool, raise_bad=raise_bad, progress=scan_progress)
        for why in found.bad_files.values():
            log.warning("Skipped: %s", why)
        job = _Job(archive, reader, quality, region, settings, paths, raise_bad)
        job.fit(found, existing)
        report = job.run(found, existing, pool, progress, started)
        if not report.num_written and not report.num_present:
            raise ValueError(f"Not one frame of {len(paths)} files could be used. {report.reasons()}")
        if report.num_written or report.problems or not report.path.exists():
            report.save()
    log.info("%s", report)
    return report


def _check_folder(archive: Path) -> None:
    """ValueError where the archive is not a folder of day files."""
    if archive.is_file() or archive.suffix in (".nc", ".zarr"):
        raise ValueError(f"archive={archive} must be a folder: ingest writes a file a day into it.")
    others = [path.stem for path in archive.glob("*.nc") if not _is_day(path.stem)]
    if others:
        raise ValueError(
            f"{archive} holds {others[0]}.nc, which is no day file (YYYY-MM-DD.nc). Choose another folder."
        )


def _is_day(name: str) -> bool:
    try:
        return str(np.datetime64(name, "D")) == name
    except ValueError:
        return False


class _Job:
    """One ingest: what is the same for all its days."""

    def __init__(
        self,
        archive: Path,
        reader: Reader,
        quality: Quality,
        region: Region,
        settings: dict[str, Any],
        paths: list[Path],
        raise_bad: bool,
    ) -> None:
        self.archive, self.reader, self.quality, self.region = archive, reader, quality, region
        self.paths, self.raise_bad = paths, raise_bad
        self.grid: Grid | None = None
        self.step_minutes = 0.0
        self.attrs = {
            "raincast_version": raincast.__version__,
            ATTR: json.dumps(settings),
            "max_rate_mm_h": quality.max_rate,
            "min_rate_mm_h": quality.min_rate,
        }

    def fit(self, found: Found, existing: Archive | None) -> None:
        """Settle step and grid, and refuse files that do not fit the archive that is there."""
        step = found.step_minutes or _most_frequent_gap(found.offers)
        if step is None and existing:
            step = existing.step_minutes
        if step is None:
            raise ValueError("The step is unknown: one or two frames do not show it. Set source.step_minutes=5")
        self.step_minutes = step
        self.grid = self.region.grid(found.grid)
        if existing is None:
            return
        if step != existing.step_minutes:
            remedy = f", or set source.step_minutes={existing.step_minutes:g} if these are gaps"
            raise ValueError(
                f"{existing.path} has a step of {existing.step_minutes:g} min, the files of {step:g} min. "
                f"Choose another archive{'' if found.step_minutes else remedy}."
            )
        if not existing.grid.same_as(self.grid):
            raise ValueError(
                f"{existing.path} has another grid ({place(existing.grid)}) than the files "
                f"({place(self.grid)}). Choose another archive."
            )
        self.grid = existing.grid

    def run(
        self, found: Found, existing: Archive | None, pool: Pool, progress: Progress | None, started: float
    ) -> IngestReport:
        """Write the days that have new frames."""
        start = existing.times[0] if existing else None
        offers, off_step = found.offers.split_by_step(self.step_minutes, start)
        present = existing.times if existing else np.array([], "datetime64[ns]")
        wanted = offers.take(~np.isin(offers.times, present))
        total = np.unique(wanted.times).size
        tasks = [self._task(day, of_day, found) for day, of_day in wanted.by_day()]
        tell = None if progress is None else lambda done: progress(min(done, total), total)
        large = total * found.grid.shape[0] * found.grid.shape[1] >= LARGE_PIXELS
        days, failed = [], {}
        for number, outcome in pool.run(write_day, tasks, large=large, progress=tell):
            day = tasks[number].part.stem
            if isinstance(outcome, BadFileError):
                raise outcome
            if isinstance(outcome, Exception):
                failed[day] = f"{type(outcome).__name__}: {outcome}"
                log.error("%s was not written: %s", day, failed[day])
                continue
            days.append(outcome)
            for why in outcome.bad_files.values():
                log.warning("Skipped: %s", why)
            if outcome.num_frames:
                log.info("%s: %d frames, %d of them new", day, outcome.num_frames, len(outcome.written))
        return self._report(found, offers, off_step, present, days, failed, time.monotonic() - started)

    def _task(self, day: np.datetime64, offers: Offers, found: Found) -> DayTask:
        assert self.grid is not None
        files, local = np.unique(offers.files, return_inverse=True)
        return DayTask(
            part=self.archive / f"{day}.nc",
            reader=self.reader,
            quality=self.quality,
            region=self.region,
            shape=found.grid.shape,
            grid=self.grid,
            step_minutes=self.step_minutes,
            attrs=self.attrs,
            paths=[self.paths[file] for file in files],
            offers=Offers(offers.times, local, offers.indices),
            raise_bad=self.raise_bad,
        )

    def _report(
        self,
        found: Found,
        offers: Offers,
        off_step: Offers,
        present: Times,
        days: list[DayResult],
        failed: dict[str, str],
        seconds: float,
    ) -> IngestReport:
        written = np.array([time for day in days for time in day.written], "datetime64[ns]")
        empty = np.unique(np.array([time for day in days for time in day.empty], "datetime64[ns]"))
        offered = np.unique(offers.times)
        kept = np.union1d(present, written)
        span = kept[(kept >= offered[0]) & (kept <= offered[-1])]
        step = schema.step_timedelta(self.step_minutes)
        gaps = schema.missing_times(np.union1d(span, offered[[0, -1]]), step)
        bad_files = found.bad_files | {path: why for day in days for path, why in day.bad_files.items()}
        return IngestReport(
            archive=self.archive,
            num_written=written.size,
            num_present=int(np.isin(offered, present).sum()),
            num_capped=sum(day.num_capped for day in days),
            duplicates=tuple(self._duplicates(offers)),
            off_step=tuple(self._text(off_step, number) for number in range(len(off_step))),
            bad_files=bad_files,
            failed_days=failed,
            empty_times=_texts(np.setdiff1d(empty, kept)),
            missing_times=_texts(np.union1d(gaps, np.setdiff1d(offered, kept))),
            seconds=round(seconds, 3),
        )

    def _duplicates(self, offers: Offers) -> list[str]:
        numbers = np.flatnonzero(offers.repeats())
        firsts = np.searchsorted(offers.times, offers.times[numbers])
        return [
            f"{self._text(offers, int(number))} (as {self.paths[offers.files[first]]})"
            for number, first in zip(numbers, firsts, strict=True)
        ]

    def _text(self, offers: Offers, number: int) -> str:
        return f"{offers.times[number].astype('datetime64[s]')} in {self.paths[offers.files[number]]}"


def _texts(times: Times) -> tuple[str, ...]:
    return tuple(map(str, times.astype("datetime64[s]")))


def _most_frequent_gap(offers: Offers) -> float | None:
    """The step in minutes as the times show it; None for fewer than three, where a gap would pass for it."""
    times = np.unique(offers.times)
    if times.size < 3:
        return None
    return schema.find_step_minutes(xr.Dataset(coords={schema.TIME: times}))
