"""Frames as a Dataset whose rain is read on access."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.backends import BackendArray
from xarray.backends.locks import SerializableLock
from xarray.core import indexing

from raincast import schema
from raincast.schema import RAIN, TIME, Grid, X, Y

ReadFrames = Callable[[slice, slice, slice], npt.NDArray[np.float32]]
"""A function from frames, rows and columns, each a slice of step 1, to (T, H, W) in mm/h."""

_LOCK = SerializableLock()  # the HDF5 library is not thread-safe


class _Frames(BackendArray):
    """The rain (time, y, x) as an xarray backend array."""

    def __init__(self, read: ReadFrames, shape: tuple[int, int, int]) -> None:
        self.read = read
        self.shape = shape
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Return the values that an xarray indexer selects."""
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._selected)

    def _selected(self, key: tuple[int | slice, ...]) -> npt.NDArray[np.float32]:
        spans: list[slice] = []
        within: list[int | slice] = []
        for part, size in zip(key, self.shape, strict=True):
            if isinstance(part, slice):
                places = range(size)[part]
                low, high = (min(places[0], places[-1]), max(places[0], places[-1])) if places else (0, -1)
                spans.append(slice(low, high + 1))
                within.append(slice(None, None, part.step) if places else slice(0, 0))
            else:
                place = range(size)[part]
                spans.append(slice(place, place + 1))
                within.append(0)
        if any(span.start == span.stop for span in spans):
            shape = tuple(span.stop - span.start for span in spans)
            return np.empty(shape, np.float32)[tuple(within)]
        with _LOCK:
            frames = self.read(*spans)
        return frames[tuple(within)]


def lazy_dataset(
    read: ReadFrames,
    times: npt.NDArray[np.datetime64],
    grid: Grid,
    *,
    step_minutes: float,
    cell_methods: str,
    attrs: dict[str, Any],
) -> xr.Dataset:
    """Return a Dataset like `schema.rain_dataset` whose rain is read by `read` on access."""
    frames = _Frames(read, (times.size, *grid.shape))
    like = schema.rain_dataset(
        np.empty((0, *grid.shape), np.float32),
        times[:0],
        grid,
        step_minutes=step_minutes,
        cell_methods=cell_methods,
        attrs=attrs,
    )
    times = times.astype("datetime64[ns]")
    missing = schema.missing_times(times, schema.step_timedelta(step_minutes))
    rain = xr.Variable((TIME, Y, X), indexing.LazilyIndexedArray(frames), like[RAIN].attrs)
    return (
        like.drop_dims([TIME, schema.MISSING_TIMES])
        .assign_coords(
            {
                TIME: (TIME, times, schema.TIME_ATTRS),
                schema.MISSING_TIMES: (schema.MISSING_TIMES, missing, like[schema.MISSING_TIMES].attrs),
            }
        )
        .assign({RAIN: rain})
    )
