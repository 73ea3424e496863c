"""Ingest radar files into an archive: one part per UTC day, resumable, with a report of all frames left out."""

import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive import Archive
from raincast.archive.find import find_files
from raincast.ingest.archive_folder import (
    ATTR,
    REPORT,
    IngestReport,
    PartLayout,
    check_attrs,
    check_same,
    describe,
    missing_times,
)
from raincast.ingest.day import DayResult, DayTask, write_day
from raincast.ingest.quality import Clutter, Quality, warn_capped
from raincast.ingest.readers import Reader, check_period, fetching, key_of
from raincast.ingest.region import Region
from raincast.ingest.scan import Found, Offers, Times, place, scan
from raincast.schema import Grid, Meaning
from raincast.system.dask_pool import Cluster
from raincast.system.lock import locked
from raincast.system.pool import Pool
from raincast.system.remote import is_remote
from raincast.version import __version__

log = logging.getLogger(__name__)

LARGE_PIXELS = 2 * 10**8  # about 10 s of work for one process; below this, more processes do not pay off
LEAST_FILLED = 0.5  # a step is plausible if at least this share of its times has a frame
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
    encoding: Literal["zstd", "zlib"] = "zstd",
    attrs: Mapping[str, Any] | None = None,
    replace: bool = False,
    max_off_step: float = 0.01,
    workers: int | None = 1,
    scheduler: str | None = None,
    progress: Progress | None = None,
    scan_progress: Progress | None = None,
) -> IngestReport:
    """Add the frames of `files` (patterns or paths) to the folder `archive`, one part per day (see `PartLayout`).

    Frames that are already in the archive stay. Run an interrupted ingest again to continue it: the result has the
    same bytes of data as an uninterrupted one. If several frames have the same time, the one with the highest
    quality is taken, then the first in the order of `files` (by name within a pattern). Files that changed since
    they were ingested are compared with the archive; with `replace`, frames that differ are replaced.
    `max_off_step` is the share of frames that may be left out because their times are off the step.

    `max_rate` and `min_rate` are in mm/h, see `Quality`. `clutter_maps` and `clutter_share` select the pixels that
    are always missing, see `Clutter`. `crop` to `bounds` define the grid, see `Region`. `encoding` is the
    compression of netCDF. `attrs` override the source's attributes in all parts. `workers` processes write one day
    each, see `Pool`; with `scheduler` they are workers of that dask cluster, see `Cluster`.
    `progress` is called with the numbers of frames done and in total, `scan_progress` with those of files.

    Raises ValueError and leaves the archive untouched if settings, grid or step differ from the archive's, if the
    step is unclear or too many frames are off it, if another process is writing the archive, or if no frame can
    be used.
    """
    started = time.monotonic()
    # workers on a cluster have other working directories
    place_of = Path.absolute if scheduler else Path
    if is_remote(archive):
        raise ValueError(
            f"archive={archive}: an archive is written to a folder of this machine. Copy it afterwards."
        )
    clutter = Clutter(place_of(Path(clutter_maps)), clutter_share) if clutter_maps else None
    quality = Quality(max_rate, min_rate, speck_pixels, clutter)
    region = Region(crop, coarsen, reproject, spacing, bounds)
    archive = place_of(Path(archive))
    pool = Cluster(scheduler, archive, workers) if scheduler else Pool(workers)
    layout = PartLayout(archive, format, encoding)
    attrs = check_attrs(attrs or {})
    settings = describe(reader, quality, region, attrs)
    paths = [path.absolute() if scheduler else path for path in find_files(files)]
    reader = fetching(reader, paths)
    with locked(archive), pool:
        existing = layout.open()
        if existing:
            check_same(existing, settings)
        found = scan(reader, paths, pool, progress=scan_progress)
        for why in found.bad_files.values():
            log.warning("Skipped: %s", why)
        job = _Job(layout, reader, quality, region, settings, paths, replace, max_off_step)
        job.attrs |= attrs
        job.fit(found, existing)
        report = job.run(found, existing, pool, progress, started)
        if not report.num_written and not report.num_present:
            raise ValueError(f"No frame of {len(paths)} files could be used. {report.reasons()}")
        if report.num_written or report.num_replaced or report.problems or not report.path.exists():
            report.save()
    log.info("%s", report)
    return report


class _Job:
    """One ingest: the state that all its days share."""

    def __init__(
        self,
        layout: PartLayout,
        reader: Reader,
        quality: Quality,
        region: Region,
        settings: dict[str, Any],
        paths: list[Path],
        replace: bool,
        max_off_step: float,
    ) -> None:
        self.layout, self.reader, self.quality, self.region = layout, reader, quality, region
        self.paths, self.replace, self.max_off_step = paths, replace, max_off_step
        self.source: Grid | None = None
        self.grid: Grid | None = None
        self.step_minutes = 0.0
        self.meaning: Meaning | None = None
        self.differing: list[str] = []
        self.attrs = {
            "raincast_version": __version__,
            ATTR: json.dumps(settings),
            "max_rate_mm_h": quality.max_rate,
            "min_rate_mm_h": quality.min_rate,
        }

    def fit(self, found: Found, existing: Archive | None) -> None:
        """Determine the step and the grid. Raises ValueError if the files do not fit the existing archive."""
        step = found.step_minutes or _most_frequent_gap(found.offers)
        if step is None and existing:
            step = existing.step_minutes
        if step is None:
            raise ValueError(f"The step is unknown: it takes three frames to find it. Set {self._step_key()}=5")
        if not found.step_minutes and not existing and (gaps := unclear_gaps(found.offers.times, step)):
            raise ValueError(
                f"The step is unclear: frames are {gaps} apart. State it, e.g. {self._step_key()}={step:g}"
            )
        self.step_minutes = step
        self._check_period(found)
        self.source = found.grid
        if self.quality.clutter:
            self.quality.clutter.check(found.grid)
        self.grid = self.region.grid(found.grid)
        self.meaning = self._find_meaning(found, existing)
        if existing is None:
            return
        if step != existing.step_minutes:
            is_momentary = self.meaning is not None and not self.meaning.is_averaged
            remedy = (
                f", or set {self._step_key()}={existing.step_minutes:g} if these are gaps" if is_momentary else ""
            )
            raise ValueError(
                f"{existing.path} has a step of {existing.step_minutes:g} min, the files of {step:g} min. "
                f"Choose another archive{'' if found.step_minutes else remedy}."
            )
        if not existing.grid.same_as(self.grid) and self.region.crop is None:
            self._turn_to(existing.grid)
        if not existing.grid.same_as(self.grid):
            raise ValueError(
                f"{existing.path} has another grid ({place(existing.grid)}) than the files "
                f"({place(self.grid)}). Choose another archive."
            )
        self.grid = existing.grid

    def _find_meaning(self, found: Found, existing: Archive | None) -> Meaning | None:
        """Return what the rates are over time, None if unknown. Raises ValueError if files or archive differ."""
        before, where = (existing.meaning, existing.path) if existing else (None, None)
        meanings = found.meanings or self._meaning_of_first(found)
        for file, meaning in sorted(meanings.items()):
            own = meaning.over(self.step_minutes)
            if before is not None and not own.same_as(before):
                guessed = own != meaning and found.step_minutes is None
                remedy = (
                    f" The file states no period, and {self.step_minutes:g} min are the spacing of the frames. If "
                    f"frames are missing, set the service's own step with {self._step_key()}=…"
                )
                raise ValueError(
                    f"{self.paths[file]} holds {own}, {where} holds {before}. They cannot be mixed: ingest each "
                    f"kind into its own archive.{remedy if guessed else ''}"
                )
            if before is None:
                before, where = own, self.paths[file]
        return before

    def _meaning_of_first(self, found: Found) -> dict[int, Meaning]:
        """Return the first file's meaning from its first frame, for readers whose heads do not state it."""
        file, index = int(found.offers.files[0]), int(found.offers.indices[0])
        try:
            dataset = self.reader.read(self.paths[file], slice(index, index + 1), step_minutes=self.step_minutes)
        except Exception:  # a library may raise anything; the error is reported when the file's day is read
            return {}
        methods = dataset[schema.RAIN].attrs.get("cell_methods")
        return {file: schema.meaning_of(methods, dataset.attrs, self.step_minutes)}

    def _turn_to(self, grid: Grid) -> None:
        """Flip the rows or columns of the source grid if that makes it match the archive's `grid`."""
        assert self.source is not None
        for rows, columns in itertools.product((schema.FORWARD, schema.BACKWARD), repeat=2):
            source = Grid(self.source.y[rows], self.source.x[columns], self.source.crs_wkt)
            if grid.same_as(turned := self.region.grid(source)):
                self.source, self.grid = source, turned
                return

    def _step_key(self) -> str:
        """Return the config key of the step, for the reader of the first file."""
        return key_of(self.reader, self.paths[0], "step_minutes")

    def _check_period(self, found: Found) -> None:
        """Raise ValueError if depths state no period and the step is no evidence of it (see `check_period`)."""
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
        self._check_off_step(found.offers, off_step, existing)
        present = existing.times if existing else np.array([], "datetime64[ns]")
        known = np.isin(offers.times, present)
        wanted, changed = offers.take(~known), offers.take(known & self._is_changed(offers, found.quality))
        total = np.unique(wanted.times).size
        days_wanted, days_changed = dict(wanted.by_day()), dict(changed.by_day())
        none = offers.take(slice(0))
        tasks = [
            self._task(day, days_wanted.get(day, none), days_changed.get(day, none))
            for day in sorted(days_wanted.keys() | days_changed.keys())
        ]
        tell = None if progress is None else lambda done: progress(min(done, total), total)
        large = total * found.grid.shape[0] * found.grid.shape[1] >= LARGE_PIXELS
        days, failed = [], {}
        for number, outcome in pool.run(write_day, tasks, large=large, progress=tell):
            day = tasks[number].part.stem
            if isinstance(outcome, Exception):
                failed[day] = f"{type(outcome).__name__}: {outcome}"
                log.error("%s was not written: %s", day, failed[day])
                continue
            days.append(outcome)
            self._tell_of_differing(tasks[number], outcome)
            for why in outcome.bad_files.values():
                log.warning("Skipped: %s", why)
            if outcome.num_frames:
                log.info("%s: %d frames, %d of them new", day, outcome.num_frames, len(outcome.written))
        return self._report(found, offers, off_step, present, days, failed, time.monotonic() - started)

    def _check_off_step(self, offers: Offers, off_step: Offers, existing: Archive | None) -> None:
        """Raise ValueError with the likely cause if too many frames are off the step."""
        if len(off_step) <= self.max_off_step * len(offers):
            return
        listed = ", ".join(self._text(off_step, number) for number in range(min(3, len(off_step))))
        cause = off_step_cause(
            offers.times, off_step.times, self.step_minutes, existing.times[0] if existing else None
        )
        counted = f", counted from the first frame of {existing.path}," if existing else ""
        raise ValueError(
            f"{len(off_step)} of {len(offers)} frames are off the step of {self.step_minutes:g} min{counted} and "
            f"would be lost, the first: {listed}. {cause} "
            "To leave them out, set max_off_step=1 (the share of frames that may be lost). Nothing was written."
        )

    def _is_changed(self, offers: Offers, quality: Mapping[int, float]) -> npt.NDArray[np.bool_]:
        """Return a mask of the frames that may differ from those in their day's part.

        Such a frame's file is newer than the part, and no other file has the frame at a higher quality. If files
        of several qualities exist, the best one may have arrived later with its old modification time; then the
        later of its modification and change times counts.
        """
        if not len(offers):
            return np.zeros(0, bool)
        files, of_file = np.unique(offers.files, return_inverse=True)
        days, of_day = np.unique(offers.times.astype("datetime64[D]"), return_inverse=True)
        made, came = np.array([_changed_ns(self.paths[file]) for file in files], np.int64).T
        part_times = np.array([_changed_ns(self.layout.part(day))[0] for day in days], np.int64)
        own = np.array([quality.get(int(file), 0.0) for file in files])[of_file]
        # offers are sorted: the best quality of each time comes first
        _, first, of_time, count = np.unique(
            offers.times, return_index=True, return_inverse=True, return_counts=True
        )
        best, worst = own[first][of_time], own[first + count - 1][of_time]
        date = np.where(own > worst, np.maximum(made, came)[of_file], made[of_file])
        newer: npt.NDArray[np.bool_] = (date > part_times[of_day]) & (own == best)
        return newer

    def _task(self, day: np.datetime64, offers: Offers, changed: Offers) -> DayTask:
        assert self.grid is not None and self.source is not None
        files, local = np.unique(np.concatenate([offers.files, changed.files]), return_inverse=True)
        return DayTask(
            part=self.layout.part(day),
            reader=self.reader,
            quality=self.quality,
            region=self.region,
            source=self.source,
            grid=self.grid,
            step_minutes=self.step_minutes,
            attrs=self.attrs,
            meaning=self.meaning,
            paths=[self.paths[file] for file in files],
            offers=Offers(offers.times, local[: len(offers)], offers.indices),
            changed=Offers(changed.times, local[len(offers) :], changed.indices),
            replace=self.replace,
            encoding=self.layout.encoding,
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
        num_missing, missing = missing_times(offered[0], offered[-1], kept, step) if offered.size else (0, offered)
        num_capped = sum(day.num_capped for day in days)
        num_pixels = written.size * found.grid.shape[0] * found.grid.shape[1]
        warn_capped(num_capped, num_pixels, self.quality.max_rate, str(self.layout.archive))
        if duplicates := tuple(self._duplicates(offers)):
            log.warning(
                "%d frames have the time of another one, used only if that is bad (all in %s). The first: %s",
                len(duplicates), REPORT, duplicates[0],
            )  # fmt: skip
        bad_files = found.bad_files | {path: why for day in days for path, why in day.bad_files.items()}
        return IngestReport(
            archive=self.layout.archive,
            num_written=written.size,
            num_present=int(np.isin(offered, present).sum()),
            num_capped=num_capped,
            duplicates=duplicates,
            off_step=tuple(self._text(off_step, number) for number in range(len(off_step))),
            bad_files=bad_files,
            failed_days=failed,
            empty_times=_texts(np.setdiff1d(empty, kept)),
            num_missing=num_missing,
            missing_times=_texts(missing),
            seconds=round(seconds, 3),
            differing=tuple(self.differing),
            num_replaced=sum(day.num_replaced for day in days),
            accompanying=found.accompanying,
        )

    def _tell_of_differing(self, task: DayTask, result: DayResult) -> None:
        texts = [f"{time.astype('datetime64[s]')} in {task.paths[file]}" for time, file in result.differing]
        self.differing += texts
        if texts:
            remedy = "and were replaced" if self.replace else "set replace=true to replace them"
            log.warning("%d frames differ from the archive, %s. The first: %s", len(texts), remedy, texts[0])

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


def _changed_ns(path: Path) -> tuple[int, int]:
    """Return the file's modification and change times in ns; a copy may keep the former. (0, 0) if unreadable."""
    try:
        status = path.stat()
    except OSError:  # on a cluster only the workers may see the files
        return 0, 0
    return status.st_mtime_ns, status.st_ctime_ns


def unclear_gaps(times: Times, step_minutes: float) -> str:
    """Describe the most frequent gaps if fewer than half of all gaps equal the step; '' if the step is clear."""
    gaps, counts = np.unique(np.diff(np.unique(times)), return_counts=True)
    if 2 * counts[gaps == schema.step_timedelta(step_minutes)].sum() >= counts.sum():
        return ""
    most = np.argsort(-counts, kind="stable")[:4]
    return ", ".join(f"{gaps[n] / np.timedelta64(1, 'm'):g} min ({counts[n] / counts.sum():.0%})" for n in most)


def off_step_cause(times: Times, off: Times, step_minutes: float, start: np.datetime64 | None = None) -> str:
    """Describe why the times `off`, a subset of `times`, are probably off the step, counted from `start`."""
    step = schema.step_timedelta(step_minutes)
    on = np.setdiff1d(times, off)
    first = on[0] if start is None else start
    distance = np.minimum((off - first) % step, (first - off) % step)
    if distance.max() < np.timedelta64(1, "m"):
        return (
            "They are less than a minute off it: these are times of scans, which begin and end at different "
            "seconds. Use nominal times (source=odim: source.valid_time=nominal)."
        )
    minutes = distance[0] / np.timedelta64(1, "m")
    if np.unique(distance).size == 1 and not on.size:
        return (
            f"All of them are {minutes:g} min off the archive's: they belong to another product, or the service "
            "changed the meaning of a file's time. Choose another archive for them."
        )
    if np.unique(distance).size == 1 and (off.max() < on.min() or off.min() > on.max()):
        return (
            f"All frames {'before' if off.max() < on.min() else 'after'} the others are {minutes:g} min off: the "
            "service changed the meaning of a file's time, for example from the start to the end of its interval."
        )
    different = np.unique(times)
    nearest = np.rint((different - first) / step)
    if np.unique(nearest).size == different.size:
        return (
            f"They are up to {distance.max() / np.timedelta64(1, 'm'):g} min off it, one near each time of the "
            "step: these are times of scans, which begin and end earlier or later each time. Use nominal times "
            "(source=odim: source.valid_time=nominal)."
        )
    common = np.gcd.reduce(np.diff(different).astype(np.int64)) / 60e9
    # frames of two products fill only a few times of the finer step that divides all gaps
    fills = different.size >= LEAST_FILLED * ((different[-1] - different[0]) / schema.step_timedelta(common) + 1)
    finer = f", or state the finer step: {common:g} min" if fills and 1 <= common < step_minutes else ""
    return f"Files of two products or two services may be mixed: give only those of one{finer}."


def _most_frequent_gap(offers: Offers) -> float | None:
    """Return the most frequent gap in minutes; None for fewer than three times, where a gap could pass for it."""
    times = np.unique(offers.times)
    if times.size < 3:
        return None
    return schema.find_step_minutes(xr.Dataset(coords={schema.TIME: times}))
