"""How the tests of the watcher pass time and deliver files."""

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import xarray as xr

from raincast import schema
from raincast.archive import Archive
from raincast.live.settings import seconds_of

MINUTE = 60.0


class ManualClock:
    """Time that passes when somebody waits; `events` happen as it does."""

    def __init__(self, start: float, events: list[tuple[float, Callable[[], Any]]] | None = None) -> None:
        self.time = start
        self.events = sorted(events or [], key=lambda event: event[0])

    def now(self) -> float:
        return self.time

    def wait(self, seconds: float, stop: Event) -> None:
        self.time += seconds
        while self.events and self.events[0][0] <= self.time:
            self.events.pop(0)[1]()


def frames_of(archive: Path, num_frames: int) -> xr.Dataset:
    """The first frames of an archive that lie a step apart."""
    opened = Archive.open(archive)
    gaps = np.diff(opened.times) != opened.step
    first = next(n for n in range(gaps.size) if not gaps[n : n + num_frames - 1].any())
    return opened.to_dataset(first, num_frames)


def write_frame(folder: Path, frames: xr.Dataset, number: int, name: str | None = None) -> Path:
    """Frame `number` as a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = frames.isel(time=[number]).drop_vars(schema.MISSING_TIMES, errors="ignore")
    path = folder / (name or f"{np.datetime_as_string(frame['time'].values[0], unit='m').replace(':', '')}.nc")
    frame.to_netcdf(path, engine="netcdf4", encoding={"rain_rate": {"zlib": True, "fletcher32": True}})
    return path


def time_in_seconds(frames: xr.Dataset, number: int) -> float:
    """The time of a frame in seconds since 1970."""
    return seconds_of(frames["time"].values[number])
