"""Write one UTC day of an archive: merge frames from files with those of the existing part, block by block."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raincast import schema
from raincast.archive import Archive, PartWriter, encode
from raincast.ingest.archive_folder import writer_of
from raincast.ingest.quality import Quality
from raincast.ingest.readers import Reader
from raincast.ingest.region import Region
from raincast.ingest.scan import Offers, reason
from raincast.schema import Grid, Meaning
from raincast.system.faults import MachineError, naming_disk
from raincast.system.pool import Tick
from raincast.version import __version__

CAPPED = schema.CAPPED_PIXELS
READ_BYTES = 2**25
"""Bytes of float32 read from a file at once, at least one frame: opening a file costs more than small frames."""


@dataclass(frozen=True, eq=False)
class DayTask:
    """All that a process needs to write a day. `source` is the service's grid; the files of offers index `paths`.

    `changed` are frames that the part already has, from files that changed since. With `replace`, those that
    differ replace the part's frames.
    """

    part: Path
    reader: Reader
    quality: Quality
    region: Region
    source: Grid
    grid: Grid
    step_minutes: float
    attrs: Mapping[str, Any]
    meaning: Meaning | None
    paths: list[Path]
    offers: Offers
    changed: Offers
    replace: bool = False
    encoding: str = "zstd"

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the service's images."""
        return self.source.shape


@dataclass(eq=False)
class DayResult:
    """The outcome of a day. `num_frames` is 0 if no frame was new and the part was left unchanged."""

    written: list[np.datetime64] = field(default_factory=list)
    empty: list[np.datetime64] = field(default_factory=list)
    bad_files: dict[str, str] = field(default_factory=dict)
    differing: list[tuple[np.datetime64, int]] = field(default_factory=list)
    """Time and file of each frame that differs from the part's."""
    num_replaced: int = 0
    num_capped: int = 0
    num_frames: int = 0


@dataclass(frozen=True, eq=False)
class _Frame:
    """One frame as read, (H, W) in mm/h."""

    rain: npt.NDArray[np.float32]
    attrs: dict[str, Any]
    cell_methods: str


def write_day(task: DayTask, tick: Tick) -> DayResult:
    """Rewrite the day's part if any offered frame is new and valid. Calls `tick` once per offered time."""
    old = Archive.open(task.part) if task.part.exists() else None
    writer = writer_of(task.part)
    with (
        naming_disk(task.part.parent),
        writer(task.part, task.grid, step_minutes=task.step_minutes, encoding=task.encoding) as part,
    ):
        return _Day(task, tick, old, part).write()


class _Day:
    """A day being written: new frames and those of the old part, merged in order of time."""

    def __init__(self, task: DayTask, tick: Tick, old: Archive | None, part: PartWriter) -> None:
        self.task, self.tick, self.old, self.part = task, tick, old, part
        self.result = DayResult()
        self.num_copied = 0
        self.replaced: set[np.datetime64] = set()
        self.attrs: dict[str, Any] | None = None
        self.meaning = old.meaning if old else task.meaning
        self.cell_methods = str(old.rain_attrs["cell_methods"]) if old else None

    def write(self) -> DayResult:
        result, old, part = self.result, self.old, self.part
        known = old.times if old else np.array([], "datetime64[ns]")
        there = np.isin(self.task.offers.times, known)
        # frames that a worker wrote before it died without reporting them; they count as written
        result.written = list(np.unique(self.task.offers.times[there]))
        self.tick(len(result.written))
        offers = self.task.offers.take(~there)
        if old:
            self._compare(old)
            if self.task.replace and result.differing:
                self.replaced = {time for time, _ in result.differing}
                again = np.isin(self.task.changed.times, list(self.replaced))
                offers = Offers.joined(offers, self.task.changed.take(again))
        for batch in self._batches(offers):
            self._add_batch(offers, batch)
        if part.times:
            if old:
                self._copy_old(old.num_times)
            capped = result.num_capped + int(old.attrs.get(CAPPED, 0) if old else 0)
            part.attrs = {**with_history(self.attrs or {}), **self.task.attrs, CAPPED: capped}
            part.cell_methods = self.cell_methods or part.cell_methods
            result.num_frames = len(part.times)
        return result

    def _batches(self, offers: Offers) -> Iterator[list[range]]:
        """Yield batches of times, each as its range of candidates, whose first candidates one read can cover."""
        most = max(1, READ_BYTES // (4 * self.task.shape[0] * self.task.shape[1]))
        firsts = np.flatnonzero(~offers.repeats())
        batch: list[range] = []
        low = high = 0
        stops = np.append(firsts[1:], len(offers))[: firsts.size]
        for first, stop in zip(firsts, stops, strict=True):
            index = offers.indices[first]
            low, high = min(low, index), max(high, index)
            if batch and (offers.files[first] != offers.files[batch[0].start] or high - low >= most):
                yield batch
                batch = []
            if not batch:
                low = high = index
            batch.append(range(first, stop))
        if batch:
            yield batch

    def _add_batch(self, offers: Offers, batch: list[range]) -> None:
        firsts = [candidates.start for candidates in batch]
        file = int(offers.files[firsts[0]])
        read = self._read(file, offers.take(np.isin(np.arange(len(offers)), firsts)))
        for candidates in batch:
            self._add_time(offers, candidates, read)
            self.tick(1)

    def _add_time(self, offers: Offers, candidates: range, read: dict[int, _Frame | None]) -> None:
        """Add the first candidate that can be read and is not entirely missing."""
        time = offers.times[candidates.start]
        for number in candidates:
            index = int(offers.indices[number])
            if number == candidates.start:
                frame = read.pop(index, None)
            else:
                frame = self._read(int(offers.files[number]), offers.take(slice(number, number + 1)))[index]
            if frame is None:
                continue
            rain, num_capped = self._on_our_grid(frame)
            if not np.isnan(rain).all():
                self._add(time, rain, frame)
                self.result.num_capped += num_capped
                return
            self.result.empty.append(time)

    def _on_our_grid(self, frame: _Frame) -> tuple[npt.NDArray[np.float32], int]:
        """Return the cleaned rain on the archive's grid and the number of capped pixels."""
        window = self.task.region.window(self.task.shape)
        clean, num_capped = self.task.quality.clean(frame.rain[window], window)
        return self.task.region.rain(clean, self.task.source, self.task.grid), num_capped

    def _compare(self, old: Archive) -> None:
        """Record which of the `changed` frames differ from the old part."""
        changed = self.task.changed
        for number in np.flatnonzero(~changed.repeats()):
            time, file = changed.times[number], int(changed.files[number])
            frame = self._read(file, changed.take(slice(number, number + 1)))[int(changed.indices[number])]
            if frame is None:
                continue
            rain, _ = self._on_our_grid(frame)
            before = old.read_codes(int(np.searchsorted(old.times, time)), 1)[0]
            if not np.isnan(rain).all() and not np.array_equal(encode(rain), before):
                self.result.differing.append((time, file))

    def _add(self, time: np.datetime64, rain: npt.NDArray[np.float32], frame: _Frame) -> None:
        if self.old:
            self._copy_old(int(np.searchsorted(self.old.times, time)))
        if self.attrs is None:  # attributes come from the day's earliest frame, new or old
            self.attrs = {name: v for name, v in frame.attrs.items() if name != schema.STEP_MINUTES}
        self.cell_methods = frame.cell_methods
        self.part.add(time, rain)
        if time in self.replaced:
            self.result.num_replaced += 1
        else:
            self.result.written.append(time)

    def _copy_old(self, stop: int) -> None:
        """Copy the old frames up to `stop`. This waits for a new frame, so a day without one is not rewritten."""
        assert self.old is not None
        first = self.num_copied
        for number in range(first, stop + 1):  # copy the runs between replaced frames
            if number == stop or self.old.times[number] in self.replaced:
                if number > first:
                    if self.attrs is None:
                        self.attrs = dict(self.old.attrs)
                    self.part.copy(self.old, first, number)
                first = number + 1
        self.num_copied = max(self.num_copied, stop)

    def _read(self, file: int, offers: Offers) -> dict[int, _Frame | None]:
        """Return frames of one file by their index, None for bad ones, and record a bad file."""
        path = self.task.paths[file]
        try:
            return self._try(path, offers)
        except MachineError:
            raise
        except Exception as error:  # a library may raise anything; the other files continue
            if len(offers) == 1:
                self.result.bad_files.setdefault(str(path), reason(path, error))
                return {int(offers.indices[0]): None}
        # read frame by frame, so that a damaged frame does not lose its neighbours
        frames: dict[int, _Frame | None] = {}
        for number in range(len(offers)):
            frames |= self._read(file, offers.take(slice(number, number + 1)))
        return frames

    def _try(self, path: Path, offers: Offers) -> dict[int, _Frame | None]:
        task = self.task
        low, high = int(offers.indices.min()), int(offers.indices.max())
        dataset = task.reader.read(path, slice(low, high + 1), step_minutes=task.step_minutes)
        rain = dataset[schema.RAIN]
        cell_methods = str(rain.attrs["cell_methods"])
        if rain.shape != (high - low + 1, *task.shape):
            raise ValueError(f"{path} holds {rain.shape}, not {(high - low + 1, *task.shape)} (time, y, x)")
        if (dataset[schema.TIME].values[offers.indices - low] != offers.times).any():
            raise ValueError(f"{path} changed during the ingest: its times are different now")
        meaning = schema.meaning_of(cell_methods, dataset.attrs, task.step_minutes)
        if self.meaning is None:
            self.meaning = meaning
        elif not meaning.same_as(self.meaning):
            raise ValueError(
                f"{path} holds {meaning}, the others {self.meaning}. Ingest each into its own archive"
            )
        turn = schema.grid_of(dataset).turn_to(task.source)
        if turn is None:
            raise ValueError(f"{path} changed during the ingest: it is on another grid now")
        values = rain.values[:, *turn]
        return {int(i): _Frame(values[i - low], dict(dataset.attrs), cell_methods) for i in offers.indices}


def with_history(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """`attrs` with this ingest as the last line of its history.

    Without the time of day, which CF recommends: the same frames give the same bytes.
    """
    line = f"raincast {__version__} ingest: radar frames to an archive of rain rates, as {schema.SETTINGS} says"
    before = str(attrs.get("history", "")).splitlines()
    return {**attrs, "history": "\n".join([*before, line] if before[-1:] != [line] else before)}
