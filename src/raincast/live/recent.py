"""The newest frames in memory, as a series for forecasts."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.schema import Grid

Times = npt.NDArray[np.datetime64]
FROZEN_PIXELS = 10
"""Fewest wet pixels for which two equal images count as the same image sent twice."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame (H, W) in mm/h, NaN for missing, with the attributes of its file."""

    rain: npt.NDArray[np.float32]
    grid: Grid
    cell_methods: str
    attrs: dict[str, Any]

    @classmethod
    def of(cls, dataset: xr.Dataset) -> "Frame":
        """Return the only frame of a reader's Dataset."""
        rain = dataset[schema.RAIN]
        attrs = {key: value for key, value in dataset.attrs.items() if key != schema.STEP_MINUTES}
        return cls(rain.values[0], schema.grid_of(dataset), str(rain.attrs["cell_methods"]), attrs)

    def turned_to(self, grid: Grid) -> "Frame":
        """Return the frame with rows and columns in the order of `grid`; ValueError if the pixels differ."""
        turn = self.grid.turn_to(grid)
        if turn is None:
            raise ValueError(f"its grid of {self.grid.shape} is not that of the frames before it")
        return dataclasses.replace(self, rain=self.rain[turn], grid=grid)


class RecentFrames:
    """The `most` newest frames, one per time: a `forecasting.Series` with steps of `step_minutes`."""

    kept_bytes = 0

    def __init__(self, step_minutes: float, most: int) -> None:
        self.step_minutes = step_minutes
        self.most = most
        self.version = 0
        self._frames: dict[np.datetime64, Frame] = {}

    @property
    def times(self) -> Times:
        """Times of the frames, ascending."""
        return np.array(sorted(self._frames), dtype="datetime64[ns]")

    @property
    def newest(self) -> np.datetime64 | None:
        """Time of the newest frame; None if there is none."""
        return max(self._frames, default=None)

    @property
    def horizon(self) -> np.datetime64 | None:
        """Time before which frames are not kept."""
        newest = self.newest
        return None if newest is None else newest - (self.most - 1) * schema.step_timedelta(self.step_minutes)

    def __contains__(self, time: np.datetime64) -> bool:
        """Return True if there is a frame at `time`."""
        return time in self._frames

    def frame(self, time: np.datetime64) -> Frame:
        """Return the frame at `time`, which must exist."""
        return self._frames[time]

    def add(self, time: np.datetime64, frame: Frame) -> None:
        """Add a frame, and drop those before the horizon."""
        self._frames[time] = frame
        self.version += 1
        horizon = self.horizon
        self._frames = {t: f for t, f in self._frames.items() if horizon is None or t >= horizon}

    def clear(self) -> None:
        """Forget all frames."""
        self._frames = {}
        self.version += 1

    def is_frozen(self, time: np.datetime64, frame: Frame) -> bool:
        """Return True if `frame` repeats the image of the step before."""
        before = self._frames.get(time - schema.step_timedelta(self.step_minutes))
        if before is None or before.rain.shape != frame.rain.shape or (frame.rain > 0).sum() < FROZEN_PIXELS:
            return False
        return np.array_equal(before.rain, frame.rain, equal_nan=True)

    def read(self, wanted: Times) -> xr.Dataset:
        """Return the frames at `wanted`, which must all exist, as a Dataset."""
        frames = [self._frames[time] for time in wanted.astype("datetime64[ns]")]
        newest = frames[-1]
        return schema.rain_dataset(
            np.stack([frame.rain for frame in frames]),
            wanted,
            newest.grid,
            step_minutes=self.step_minutes,
            cell_methods=newest.cell_methods,
            attrs=newest.attrs,
        )
