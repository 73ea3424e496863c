"""The frames of one UTC day on their way into the archive: the most that an ingest holds in memory."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive import CHUNKS, Archive, write_part
from raincast.ingest.quality import Quality
from raincast.ingest.readers import Reader
from raincast.schema import Grid

log = logging.getLogger(__name__)

CAPPED = "capped_pixels"
Times = npt.NDArray[np.datetime64]


@dataclass(frozen=True, slots=True)
class Offer:
    """A frame that a file offers: its valid time, its number in the file, and that of the file."""

    time: np.datetime64
    path: Path
    index: int
    rank: int


@dataclass(eq=False)
class Run:
    """What one ingest has found so far."""

    reader: Reader
    quality: Quality
    raise_bad: bool
    attrs: dict[str, Any]
    grid: Grid | None = None
    grid_path: Path | None = None
    step_minutes: float | None = None
    bad_files: dict[str, str] = field(default_factory=dict)
    empty: set[np.datetime64] = field(default_factory=set)
    written: list[np.datetime64] = field(default_factory=list)
    num_capped: int = 0

    def note_bad(self, path: Path, error: ValueError) -> None:
        """Record a bad file and go on, or stop, as the user wishes."""
        if self.raise_bad:
            raise error
        log.warning("Skipped: %s", error)
        self.bad_files[str(path)] = str(error)


def by_file(offers: Iterable[Offer]) -> Iterator[tuple[Path, list[Offer]]]:
    """Offers grouped by file, in the order of the files: where two have the same time the first wins."""
    groups: dict[Path, list[Offer]] = {}
    for offer in sorted(offers, key=lambda offer: offer.rank):
        groups.setdefault(offer.path, []).append(offer)
    yield from groups.items()


@dataclass(eq=False)
class Day:
    """The frames of one day while they gather.

    `rain` is (T, H, W) in mm/h, `filled` (T,) says which frames exist, `old` which times the archive had.
    """

    run: Run
    day: np.datetime64
    offers: list[Offer]
    times: Times
    rain: npt.NDArray[np.float32]
    filled: npt.NDArray[np.bool_]
    old: Times
    attrs: dict[str, Any] = field(default_factory=dict)
    cell_methods: str = "time: point"
    num_capped: int = 0

    @classmethod
    def start(cls, run: Run, existing: Archive | None, day: np.datetime64, offers: list[Offer]) -> "Day":
        """Room for a day's frames, with those of the archive in place."""
        assert run.grid is not None
        first, last = np.searchsorted(existing.times, [day, day + np.timedelta64(1, "D")]) if existing else (0, 0)
        old = existing.times[first:last] if existing else np.array([], "datetime64[ns]")
        times = np.union1d(old, np.array([offer.time for offer in offers]))
        rain = np.full((times.size, *run.grid.shape), np.nan, np.float32)
        self = cls(run, day, offers, times, rain, np.isin(times, old), old)
        if existing and old.size:
            self._take_old(existing, int(first))
        return self

    def _take_old(self, existing: Archive, first: int) -> None:
        places = np.flatnonzero(self.filled)
        for start in range(0, places.size, CHUNKS[0]):
            block = places[start : start + CHUNKS[0]]
            self.rain[block] = existing.read(first + start, block.size)
        part = next(part for part in existing.parts if part.first == first)
        with xr.open_dataset(part.path, engine="netcdf4") as dataset:
            self.num_capped = int(dataset.attrs.get(CAPPED, 0))

    def add_file(self, path: Path, offers: list[Offer]) -> None:
        """Fill the frames of one file that no earlier file has filled."""
        places = np.searchsorted(self.times, np.array([offer.time for offer in offers]))
        new = [(o.index, place) for o, place in zip(offers, places, strict=True) if not self.filled[place]]
        if not new:
            return
        low, high = min(new)[0], max(new)[0]
        try:
            dataset = self.run.reader.read(path, slice(low, high + 1), step_minutes=self.run.step_minutes)
        except ValueError as error:
            self.run.note_bad(path, error)
            return
        rain = dataset[schema.RAIN]
        self.attrs = self.attrs or {k: v for k, v in dataset.attrs.items() if k != schema.STEP_MINUTES}
        self.cell_methods = rain.attrs["cell_methods"]
        for index, place in new:
            self._fill(place, rain.values[index - low])

    def _fill(self, place: int, frame: npt.NDArray[np.float32]) -> None:
        clean, num_capped = self.run.quality.clean(frame)
        if np.isnan(clean).all():
            self.run.empty.add(self.times[place])
        elif not self.filled[place]:  # a file may hold a time twice
            self.rain[place], self.filled[place] = clean, True
            self.num_capped += num_capped
            self.run.num_capped += num_capped

    def write(self, archive: Path) -> None:
        """Write the day's file anew if there is a new frame."""
        new = np.setdiff1d(self.times[self.filled], self.old)
        if not new.size or self.run.grid is None or self.run.step_minutes is None:
            return
        for place, source in enumerate(np.flatnonzero(self.filled)):  # in place: a day may be gigabytes
            if place != source:
                self.rain[place] = self.rain[source]
        num_times = int(self.filled.sum())
        dataset = schema.rain_dataset(
            self.rain[:num_times],
            self.times[self.filled],
            self.run.grid,
            step_minutes=self.run.step_minutes,
            cell_methods=self.cell_methods,
            attrs=self.attrs | self.run.attrs | {CAPPED: self.num_capped},
        )
        write_part(dataset, archive / f"{self.day}.nc")
        self.run.written += list(new)
        log.info("%s: %d frames, %d of them new", self.day, num_times, new.size)
