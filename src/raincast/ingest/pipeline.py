"""Files → archive: one netCDF file a UTC day, resumable, with a report of what was left out and why."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

import raincast
from raincast import schema
from raincast.archive import Archive
from raincast.ingest.clutter import Clutter
from raincast.ingest.day import DayResult, DayTask, write_day
from raincast.ingest.files import find_files
from raincast.ingest.layout import Layout
from raincast.ingest.offers import Offers, Times
from raincast.ingest.quality import Quality
from raincast.ingest.readers import Reader, check_period, key_of
from raincast.ingest.region import Region
from raincast.ingest.report import IngestReport, missing_times
from raincast.ingest.scan import BadFileError, Found, place, scan
from raincast.ingest.settings import ATTR, check_attrs, check_same, describe
from raincast.schema import Grid
from raincast.system.dask_pool import Cluster
from raincast.system.lock import locked
from raincast.system.pool import Pool

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
    speck_pixels: int = 0,
    clutter_maps: str | Path | None = None,
    clutter_share: float = 0.9,
    crop: tuple[int, int, int, int] | None = None,
    coarsen: int = 1,
    reproject: str | None = None,
    spacing: float | None = None,
    bounds: tuple[float, float, float, float] | None = None,
    format: Literal["netcdf", "zarr"] = "netcdf",
    attrs: Mapping[str, Any] | None = None,
    workers: int | None = 1,
    scheduler: str | None = None,
    on_bad_file: Literal["report", "raise"] = "report",
    progress: Progress | None = None,
    scan_progress: Progress | None = None,
) -> IngestReport:
    """Add the frames of `files` (patterns or paths) to the folder `archive`, a part a day as `Layout` says.

    Frames that are there already stay; an interrupted ingest is continued by running it again, and ends with the
    same bytes of data as if it had not been. Of frames with the same time the first wins, in the order of `files`
    and by name within a pattern. `max_rate` and `min_rate` are in mm/h, see `Quality`; `clutter_maps` and
    `clutter_share` say which pixels never count, see `Clutter`; `crop` to `bounds` choose the grid, see `Region`;
    `attrs` are attributes of all parts, instead of the source's; `workers` processes write a day each, see `Pool`,
    or as many of the dask cluster at `scheduler`, see `Cluster`.
    `progress` is called with the frames done and to do, `scan_progress` with the files. ValueError, with the
    archive untouched, for other settings, grid or step than the archive's, where another process writes it, and
    where no frame at all can be used.
    """
    started = time.monotonic()
    if on_bad_file not in ("report", "raise"):
        raise ValueError(f"on_bad_file={on_bad_file} is neither report nor raise.")
    # workers elsewhere stand in other folders
    place_of = Path.absolute if scheduler else Path
    clutter = Clutter(place_of(Path(clutter_maps)), clutter_share) if clutter_maps else None
    quality = Quality(max_rate, min_rate, speck_pixels, clutter)
    region = Region(crop, coarsen, reproject, spacing, bounds)
    archive, raise_bad = place_of(Path(archive)), on_bad_file == "raise"
    pool = Cluster(scheduler, archive, workers) if scheduler else Pool(workers)
    layout = Layout(archive, format)
    attrs = check_attrs(attrs or {})
    settings = describe(reader, quality, region, attrs)
    paths = [place_of(path) for path in find_files(files)]
    with locked(archive), pool:
        existing = layout.open()
        if existing:
            check_same(existing, settings)
        found = scan(reader, paths, pool, raise_bad=raise_bad, progress=scan_progress)
        for why in found.bad_files.values():
            log.warning("Skipped: %s", why)
        job = _Job(layout, reader, quality, region, settings, paths, raise_bad)
        job.attrs |= attrs
        job.fit(found, existing)
        report = job.run(found, existing, pool, progress, started)
        if not report.num_written and not report.num_present:
            raise ValueError(f"Not one frame of {len(paths)} files could be used. {report.reasons()}")
        if report.num_written or report.problems or not report.path.exists():
            report.save()
    log.info("%s", report)
    return report


class _Job:
    """One ingest: what is the same for all its days."""

    def __init__(
        self,
        layout: Layout,
        reader: Reader,
        quality: Quality,
        region: Region,
        settings: dict[str, Any],
        paths: list[Path],
        raise_bad: bool,
    ) -> None:
        self.layout, self.reader, self.quality, self.region = layout, reader, quality, region
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
            raise ValueError(f"The step is unknown: one or two frames do not show it. Set {self._step_key()}=5")
        self.step_minutes = step
        self._check_period(found)
        if self.quality.clutter:
            self.quality.clutter.check(found.grid)
        self.grid = self.region.grid(found.grid)
        if existing is None:
            return
        if step != existing.step_minutes:
            remedy = f", or set {self._step_key()}={existing.step_minutes:g} if these are gaps"
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

    def _step_key(self) -> str:
        """The key that states the step; among several readers that of the one that reads the first file."""
        return key_of(self.reader, self.paths[0], "step_minutes")

    def _check_period(self, found: Found) -> None:
        """Ask for the period of depths that state none, where the step does not show it."""
        unstated = [number for number, meaning in found.meanings.items() if meaning.lacks_period]
        if unstated:
            number = min(unstated)
            times = np.unique(found.offers.times)
            check_period(self.reader, self.paths[number], found.meanings[number], times, self.step_minutes)

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
            part=self.layout.part(day),
            reader=self.reader,
            quality=self.quality,
            region=self.region,
            source=found.grid,
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
        step = schema.step_timedelta(self.step_minutes)
        num_missing, missing = missing_times(offered[0], offered[-1], kept, step)
        bad_files = found.bad_files | {path: why for day in days for path, why in day.bad_files.items()}
        return IngestReport(
            archive=self.layout.archive,
            num_written=written.size,
            num_present=int(np.isin(offered, present).sum()),
            num_capped=sum(day.num_capped for day in days),
            duplicates=tuple(self._duplicates(offers)),
            off_step=tuple(self._text(off_step, number) for number in range(len(off_step))),
            bad_files=bad_files,
            failed_days=failed,
            empty_times=_texts(np.setdiff1d(empty, kept)),
            num_missing=num_missing,
            missing_times=_texts(missing),
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
