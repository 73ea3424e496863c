"""Read arriving files into frames in memory: each frame once, none that is damaged or on another grid."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raincast import schema
from raincast.ingest.readers import Head, Reader, check_period
from raincast.live.folder import OLD, OTHER, TAKEN, Folder
from raincast.live.recent import Frame, RecentFrames
from raincast.live.settings import seconds_of, time_of
from raincast.live.status import Record
from raincast.schema import Grid, Meaning
from raincast.system.faults import MachineError

log = logging.getLogger(__name__)

CHUNK = 12
"""Largest number of frames read before the forecasts they make due, so that a long backlog is never in memory."""
FIRST_LOOK = 64
"""On the first look, the number of consecutive useless files after which older ones are not opened."""
FUTURE_STEPS = 2
"""Steps ahead of the clock beyond which either a frame's time or the clock must be wrong."""
REMEMBERED_FILES = 5000


@dataclass(frozen=True)
class Offer:
    """Frame number `number` of the file `path`, of `time`; `arrived` is in seconds since 1970."""

    time: np.datetime64
    path: Path
    number: int
    arrived: float
    quality: float = 0.0


class Intake:
    """Read the files of `folder` into `recent`.

    A frame is fresh if it is no older than `max_age_minutes` (None: always). Frames of the last `kept_minutes`
    stay in memory, and as many more as forecasts need. `seen` maps the times taken in the last `seen_hours` to
    their files.
    """

    def __init__(
        self,
        folder: Folder,
        reader: Reader,
        record: Record,
        *,
        step_minutes: float,
        input_steps: int,
        max_age_minutes: float | None,
        seen_hours: float,
        kept_minutes: float = 0.0,
    ) -> None:
        self.folder, self.reader, self.record = folder, reader, record
        self.max_age_minutes = max_age_minutes
        # the input of the oldest frame that may still start a forecast, and a margin for late frames
        fresh = CHUNK if max_age_minutes is None else math.ceil(max_age_minutes / step_minutes)
        kept = math.floor(kept_minutes / step_minutes) + 1
        self.recent = RecentFrames(step_minutes, max(input_steps + fresh + 1, kept))
        # short enough that the first frame of a chunk, with its input, is still in memory at its end
        self.chunk_span = (fresh + 1) * schema.step_timedelta(step_minutes)
        self.seen: dict[np.datetime64, str] = {}
        self.seen_s = max(3600.0 * seen_hours, 60.0 * step_minutes * self.recent.most)
        self.arrived: dict[np.datetime64, float] = {}
        self.num_bad = 0
        self.grid: Grid | None = None
        """The grid of the frames so far."""
        self.meaning: Meaning | None = None
        self.num_grids = 1
        self._first = True
        self._period_checked = False
        self._looked = False
        """True once this run or an earlier one has looked through the whole folder."""

    def is_fresh(self, time: np.datetime64, now: float) -> bool:
        """Return True if a frame is new enough to start a forecast, by the clock and by the newest frame.

        The newest frame counts in case the clock is slow.
        """
        newest = self.recent.newest
        now = now if newest is None else max(now, seconds_of(newest))
        return self.max_age_minutes is None or now - seconds_of(time) <= 60.0 * self.max_age_minutes

    def chunks(self, now: float, stopped: Callable[[], bool]) -> Iterator[int]:
        """Take the arrived frames in the order of time, a few at once, and yield the number of new ones.

        After each chunk `to_state` records the progress, so that a run that resumes from it repeats nothing.
        """
        ready = self.folder.look(now)
        if self.recent.newest is None:
            self.grid = self.meaning = None  # the newest file determines them
        offers, fresh_files = self._offers(ready, now, stopped)
        used = dict.fromkeys(fresh_files, 0)
        broken: set[Path] = set()
        offers.sort(key=lambda offer: (offer.time, -offer.quality, offer.arrived))
        newest = max((offer.time for offer in offers if not self._is_future(offer.time, now)), default=None)
        for chunk in self._cut(offers):
            new = 0
            for offer in chunk:
                if self.folder.has_handled(offer.path, offer.number):
                    used[offer.path] += self.seen.get(offer.time) == str(offer.path)
                    continue
                if self._is_useful(offer, newest, now):
                    taken = self._take(offer, now, broken)
                    used[offer.path] += taken
                    new += taken
                if not self._is_future(offer.time, now) and offer.path not in broken:
                    self.folder.handle(offer.path, offer.number)
            yield new
            if stopped():
                return  # these files remain undecided: the next run begins with them
        for path in fresh_files:
            if path not in broken:
                self._decide(path, used[path], offers, now)
        self._first, self._looked = False, True
        self._forget()

    def _cut(self, offers: list[Offer]) -> Iterator[list[Offer]]:
        """Yield chunks of frames, each short enough that all its frames are in memory together."""
        chunk: list[Offer] = []
        for offer in offers:
            if chunk and (len(chunk) == CHUNK or offer.time - chunk[0].time >= self.chunk_span):
                yield chunk
                chunk = []
            chunk.append(offer)
        if chunk:
            yield chunk

    def refill(self) -> None:
        """After a restart, read the frames of files that were taken before, as far back as frames are kept."""
        if not self.seen:
            return
        first = seconds_of(max(self.seen)) - 60.0 * self.recent.step_minutes * (self.recent.most - 1)
        for path in self.folder.taken_since(first):
            if self.folder.changed(path):
                continue
            try:
                head = self.reader.scan(path)
                for number, time in enumerate(head.times.astype("datetime64[ns]")):
                    if self.seen.get(time) == str(path) and seconds_of(time) >= first:
                        frame = self._read_as_it_is(path, number)
                        if self.grid is not None and frame.grid.turn_to(self.grid) is None:
                            self.recent.clear()  # the later grid counts
                            self.grid = None
                        self.grid = self.grid or frame.grid
                        self.meaning = head.meaning and head.meaning.over(self.recent.step_minutes)
                        self.recent.add(time, frame.turned_to(self.grid))
                        self.arrived[time] = self.folder.arrived(path)
            except Exception as error:  # a library may raise anything: the file was good once, and is no longer
                log.warning("%s was read before and cannot be any more: %s", path, error)

    def to_state(self) -> dict[str, Any]:
        """Return the record of taken frames as plain data."""
        return {
            "looked": self._looked,
            "files": self.folder.to_state(REMEMBERED_FILES),
            "seen": {str(round(seconds_of(time) * 1000)): path for time, path in self.seen.items()},
        }

    def from_state(self, state: dict[str, Any]) -> None:
        """Restore the record of an earlier run."""
        self._looked = bool(state["looked"])
        self.folder.from_state(state["files"])
        self.seen = {time_of(int(ms) / 1000): path for ms, path in state["seen"].items()}

    def _offers(
        self, ready: list[Path], now: float, stopped: Callable[[], bool]
    ) -> tuple[list[Offer], list[Path]]:
        """Return the frames of the files that can be scanned, and those files; the newest is scanned first."""
        offers: list[Offer] = []
        files: list[Path] = []
        useless = 0
        for path in reversed(ready):
            if stopped():
                break
            if self._first and self.max_age_minutes is not None and useless >= FIRST_LOOK:
                self.folder.decide(path, OLD)
                continue
            head = self._scan(path, now)
            if head is None:
                continue
            arrived = self.folder.arrived(path)
            times = head.times.astype("datetime64[ns]")
            own = [Offer(time, path, number, arrived, head.quality) for number, time in enumerate(times)]
            newest = max((offer.time for offer in offers), default=None)
            useless = 0 if any(self._is_near(offer.time, newest) for offer in own) else useless + 1
            offers += own
            files.append(path)
        return offers, files

    def _scan(self, path: Path, now: float) -> Head | None:
        try:
            head = self.reader.scan(path)
        except MachineError as error:
            self._wait(path, error, now)
            return None
        except Exception as error:  # a library may raise anything; other files are not affected
            self._fail(path, str(error), now)
            return None
        if self.folder.changed(path):
            return None
        if head.meaning and head.meaning.lacks_period and not self._period_checked:
            self._period_checked = True  # only the network's own step is known here
            check_period(self.reader, path, head.meaning, head.times[:0], self.recent.step_minutes)
        if head.step_minutes and head.step_minutes != self.recent.step_minutes:
            self._refuse(
                path,
                f"it has steps of {head.step_minutes:g} min, the network was trained on "
                f"{self.recent.step_minutes:g}",
                now,
            )
            return None
        meaning = head.meaning and head.meaning.over(self.recent.step_minutes)
        other = ""
        if self.grid is not None and head.grid.turn_to(self.grid) is None:
            other = f"its grid of {head.grid.shape} is not that of the frames before it"
        elif meaning and self.meaning and not meaning.same_as(self.meaning):
            other = f"it holds {meaning}, the frames before it {self.meaning}"
        if other and not self._takes_over(head, now):
            self._refuse(path, other, now)
            return None
        if other:
            self._begin_anew(path, other)
            self.grid = self.meaning = None
        self.meaning = self.meaning or meaning
        self.grid = self.grid or head.grid  # later frames are turned to the row order of the first
        return head

    def _takes_over(self, head: Head, now: float) -> bool:
        """Return True if no fresh frame of the current grid and meaning is left, and this file has one."""
        newest, ours = head.times.max().astype("datetime64[ns]"), self.recent.newest
        return (
            ours is not None
            and not self.is_fresh(ours, now)
            and self.is_fresh(newest, now)
            and not self._is_future(newest, now)
        )

    def _begin_anew(self, path: Path, other: str) -> None:
        log.warning("new grid   %s: %s, of which no fresh one is left", path, other)
        self.record.counts["new_grid"] += 1
        self.num_grids += 1
        self.recent.clear()

    def _is_near(self, time: np.datetime64, newest: np.datetime64 | None) -> bool:
        back = (self.recent.most - 1) * schema.step_timedelta(self.recent.step_minutes)
        return newest is None or bool(time >= newest - back)

    def _is_future(self, time: np.datetime64, now: float) -> bool:
        return seconds_of(time) > now + 60.0 * self.recent.step_minutes * FUTURE_STEPS

    def _is_useful(self, offer: Offer, newest: np.datetime64 | None, now: float) -> bool:
        """Return True if a frame is worth reading; others are counted, with the reason."""
        time = offer.time
        if time in self.seen and (time in self.recent or self.seen[time] != str(offer.path)):
            return False  # if it is not in memory, it could not be read again after a restart
        if self._is_future(time, now):
            if not self.folder.is_postponed(offer.path):
                self.record.counts["future"] += 1
                self.record.fail(str(offer.path), f"its time {time} lies ahead of the clock", now)
            return False
        if not self.is_fresh(time, now) and self._looked:
            self.record.counts["stale"] += 1
        horizon = self.recent.horizon
        if horizon is not None and time < horizon:
            if self.max_age_minutes is None:
                self.record.counts["stale"] += 1
            return False
        return self.max_age_minutes is None or self._is_near(time, newest)

    def _take(self, offer: Offer, now: float, broken: set[Path]) -> bool:
        """Read one frame and keep it; return False if something is wrong with it."""
        path, time = offer.path, offer.time
        try:
            frame = self._read(path, offer.number)
        except MachineError as error:
            self._wait(path, error, now)
            broken.add(path)
            return False
        except Exception as error:  # as above
            if path not in broken and not self.folder.changed(path):
                self._fail(path, str(error), now)
            broken.add(path)
            return False
        if self.folder.changed(path):
            broken.add(path)  # it is looked at again as a new file
            return False
        newest = self.recent.newest
        if newest is not None and (time - newest) % schema.step_timedelta(self.recent.step_minutes):
            broken.add(path)
            self._refuse(path, f"{time} is off the step of {self.recent.step_minutes:g} min", now)
            return False
        if not np.isfinite(frame.rain).any():
            self.record.counts["empty"] += 1
            return False
        if self.recent.is_frozen(time, frame):
            self.record.counts["frozen"] += 1
            self.record.fail(str(path), f"its image of {time} is that of the step before", now)
            return False
        self.recent.add(time, frame)
        self.seen[time] = str(path)
        self.arrived[time] = offer.arrived
        self.record.newest_frame = max(self.record.newest_frame or -math.inf, seconds_of(time))
        return True

    def _read(self, path: Path, number: int) -> Frame:
        frame = self._read_as_it_is(path, number)
        return frame if self.grid is None else frame.turned_to(self.grid)

    def _read_as_it_is(self, path: Path, number: int) -> Frame:
        frames = slice(number, number + 1)
        return Frame.of(self.reader.read(path, frames, step_minutes=self.recent.step_minutes))

    def _decide(self, path: Path, used: int, offers: list[Offer], now: float) -> None:
        own = [offer for offer in offers if offer.path == path]
        ahead = [seconds_of(offer.time) for offer in own if self._is_future(offer.time, now)]
        if ahead:
            self.folder.postpone(path, min(ahead) - 60.0 * self.recent.step_minutes * FUTURE_STEPS)
            return
        if used == 0 and own and all(offer.time in self.seen for offer in own):
            self.record.counts["repeated"] += 1
            log.info("repeated   %s: all of its frames came before", path)
        elif used:
            self.record.counts["taken"] += 1
        self.folder.decide(path, TAKEN, newest=max((seconds_of(offer.time) for offer in own), default=0.0))

    def _wait(self, path: Path, error: MachineError, now: float) -> None:
        """Record a fault of the machine, not of the file, which is tried again without limit."""
        self.record.fail(str(path), str(error), now)
        log.error("waiting    %s: %s", path, error)

    def _fail(self, path: Path, reason: str, now: float) -> None:
        """Record a file that cannot be read; after a few tries it counts as corrupt."""
        if self.folder.failed(path, now):
            self.num_bad += 1
            self.record.counts["corrupt"] += 1
            self.record.fail(str(path), reason, now)
            log.warning("corrupt    %s: %s", path, reason)

    def _refuse(self, path: Path, reason: str, now: float) -> None:
        self.num_bad += 1
        self.folder.decide(path, OTHER)
        self.record.counts["other"] += 1
        self.record.fail(str(path), reason, now)
        log.warning("other      %s: %s", path, reason)

    def _forget(self) -> None:
        newest = self.recent.newest
        if newest is None:
            return
        first = seconds_of(newest) - self.seen_s
        self.seen = {time: path for time, path in self.seen.items() if seconds_of(time) >= first}
        self.arrived = {time: at for time, at in self.arrived.items() if time in self.recent}
