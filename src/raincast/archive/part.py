"""Write a part of an archive (a day), frame by frame. Only this module defines the encoding of rain in netCDF."""

import contextlib
import glob
import io
import os
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.rates import CHUNKS, CODE_MM_H, MISSING_CODE, TIME_UNITS, encode
from raincast.archive.series import Archive
from raincast.schema import (
    BOUNDS,
    CONVENTIONS,
    COVERAGE,
    CRS,
    RAIN,
    STEP_MINUTES,
    TIME,
    TIME_BOUNDS,
    Grid,
    X,
    Y,
)
from raincast.system.faults import naming_disk
from raincast.system.files import flush, remove

BLOCK_IN_MEMORY = 2**27
"""Bytes. A larger block of frames (above 8 million pixels) is buffered in an unnamed file instead."""
ENCODINGS = ("zstd", "zlib")
"""Compression of chunks: zstd is smaller and faster, zlib can be read by every HDF5 program."""
TIME_CODES = {"units": TIME_UNITS, "calendar": "proleptic_gregorian"}
COVERAGE_ATTRS: dict[str, Any] = {
    "standard_name": "status_flag",
    "long_name": "whether any frame of this file observed the pixel",
    "flag_values": np.array([0, 1], np.int8),
    "flag_meanings": "never_observed observed",
    "grid_mapping": CRS,
}


class PartWriter:
    """Writes a part of an archive atomically.

    Append frames in order of time with `add` and `copy`. They are buffered in one block of 8 frames, the length of
    a chunk. `attrs` and `cell_methods` may be set until the end. Leaving the `with` block writes the rest and
    replaces the file at `path`; after an error, or without a frame, `path` stays unchanged. `encoding` is one of
    `ENCODINGS`. The same frames and attributes always give the same bytes. Of two writers of one path the later
    one wins, and the earlier one raises OSError.
    """

    def __init__(
        self,
        path: Path,
        grid: Grid,
        *,
        step_minutes: float,
        cell_methods: str = "time: point",
        attrs: dict[str, Any] | None = None,
        encoding: str = "zstd",
    ) -> None:
        self.path = path
        self.grid = grid
        self.step_minutes = step_minutes
        self.cell_methods = cell_methods
        self.attrs = dict(attrs or {})
        self._packed: dict[str, Any] = {"compression": encoding, "complevel": 3}  # netCDF4 shuffles only for zlib
        self.times: list[np.datetime64] = []
        # named by process, so that two writers of the same part have separate files
        self._partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
        self._file: Any = None
        self._num_in_block = 0

    def __enter__(self) -> "PartWriter":
        """Return the writer; the file is created with the first frame."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file, or remove it after an error."""
        if self._file is None:
            return
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _discard(self) -> None:
        """Close and remove all temporary files."""
        self._block.close()
        with contextlib.suppress(OSError, RuntimeError):  # on a full disk closing fails too
            if self._file.isopen():
                self._file.close()
        self._partial.unlink(missing_ok=True)

    def add(self, time: np.datetime64, rain: npt.NDArray[np.floating]) -> None:
        """Append a frame (H, W) in mm/h, NaN for missing. Raises ValueError for rates that have no code."""
        assert rain.shape == self.grid.shape, f"{rain.shape} is not {self.grid.shape}"
        self._append(time, encode(rain))

    def _append(self, time: np.datetime64, codes: npt.NDArray[np.int16]) -> None:
        self._begin()
        self._observed |= codes != MISSING_CODE
        self._put(self._num_in_block, 0, codes)
        self._count([time])

    def copy(self, part: Archive, first: int, stop: int) -> None:
        """Append the frames `first` to `stop` of another part as codes, in bands of rows."""
        self._begin()
        while first < stop:
            # stay within one chunk of both files, so that each chunk is unpacked and packed only once
            num = min(stop - first, CHUNKS[0] - first % CHUNKS[0], CHUNKS[0] - self._num_in_block)
            for rows in self._chunk_rows():
                codes = part.read_codes(first, num, y=rows)
                self._observed[rows] |= (codes != MISSING_CODE).any(axis=0)
                for number, frame in enumerate(codes):
                    self._put(self._num_in_block + number, rows.start, frame)
            self._count(list(part.times[first : first + num]))
            first += num

    def _count(self, times: list[np.datetime64]) -> None:
        assert not self.times or times[0] > self.times[-1], "frames come in the order of time"
        self.times += times
        self._num_in_block += len(times)
        if self._num_in_block == CHUNKS[0]:
            self._flush()

    def _put(self, place: int, row: int, codes: npt.NDArray[np.int16]) -> None:
        """Write rows of one frame, from `row` on, into the block."""
        height, width = self.grid.shape
        self._block.seek((place * height + row) * width * codes.itemsize)
        self._block.write(np.ascontiguousarray(codes).data)

    def _flush(self) -> None:
        """Write the block in whole chunks, so that each is packed only once."""
        height, width = self.grid.shape
        last = len(self.times)
        for rows in self._chunk_rows():
            codes = np.empty((self._num_in_block, rows.stop - rows.start, width), np.int16)
            for place, frame in enumerate(codes):
                self._block.seek((place * height + rows.start) * width * codes.itemsize)
                self._block.readinto(frame)  # type: ignore[attr-defined]
            self._rain[last - self._num_in_block : last, rows] = codes
        self._num_in_block = 0

    def _chunk_rows(self) -> list[slice]:
        height = self.grid.shape[0]
        return [slice(row, min(row + CHUNKS[1], height)) for row in range(0, height, CHUNKS[1])]

    def _begin(self) -> None:
        if self._file is not None:
            return
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f".{glob.escape(self.path.name)}.*.partial"):  # left by killed writers
            remove(stale)
        self._observed = np.zeros(self.grid.shape, np.bool_)
        self._create()

    def _create(self) -> None:
        """Create dimensions, coordinates and the empty rain variable; the number of frames is not known yet."""
        import netCDF4

        height, width = self.grid.shape
        in_memory = CHUNKS[0] * height * width * 2 <= BLOCK_IN_MEMORY
        self._block: IO[bytes] = (
            io.BytesIO() if in_memory else tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115
        )
        file = self._file = netCDF4.Dataset(self._partial, "w")
        for name, size in ((TIME, None), (Y, height), (X, width)):
            file.createDimension(name, size)
        chunks = (CHUNKS[0], min(CHUNKS[1], height), min(CHUNKS[2], width))
        self._rain = file.createVariable(
            RAIN, "i2", (TIME, Y, X), chunksizes=chunks, fill_value=np.int16(MISSING_CODE), **self._packed
        )
        self._rain.set_auto_maskandscale(False)
        for name, (dims, values, attrs) in self.grid.to_coords().items():
            variable = file.createVariable(name, values.dtype, dims)
            variable.setncatts(attrs)
            variable[...] = values

    def _finish(self) -> None:
        """Write the last block and the remaining metadata, then move the file to `path`."""
        if self._num_in_block:
            self._flush()
        rain_attrs = {"grid_mapping": CRS, "cell_methods": self.cell_methods, "coordinates": CRS}
        self._rain.setncatts(schema.RAIN_ATTRS | rain_attrs | {"scale_factor": CODE_MM_H})
        self._write_times()
        self._write_coverage()
        own = {"Conventions": CONVENTIONS, STEP_MINUTES: float(self.step_minutes)}
        self._file.setncatts(own | self.attrs)
        self._file.close()
        flush(self._partial)  # otherwise a power cut could leave the name without the content
        self._partial.replace(self.path)

    def _write_times(self) -> None:
        file = self._file
        times = np.array(self.times, "datetime64[ns]")
        # time is unlimited and therefore chunked: one chunk holds a day of any radar
        frames = file.createVariable(TIME, "i8", (TIME,), chunksizes=(1024,))
        frames.setncatts(schema.TIME_ATTRS | TIME_CODES)
        frames[:] = in_seconds(times)
        if (bounds := self._time_bounds(times)) is not None:
            frames.bounds = TIME_BOUNDS
            file.createDimension(BOUNDS, 2)
            file.createVariable(TIME_BOUNDS, "i8", (TIME, BOUNDS), chunksizes=(1024, 2))[:] = bounds

    def _time_bounds(self, times: npt.NDArray[np.datetime64]) -> npt.NDArray[np.int64] | None:
        """Return start and end of each frame's mean, (T, 2) in units of `TIME_CODES`; None for momentary rates."""
        minutes = schema.meaning_of(self.cell_methods, self.attrs, self.step_minutes).minutes
        if minutes is None:
            return None
        return np.stack([in_seconds(times - schema.step_timedelta(minutes)), in_seconds(times)], axis=1)

    def _write_coverage(self) -> None:
        height, width = self.grid.shape
        chunks = (min(CHUNKS[1], height), min(CHUNKS[2], width))
        coverage = self._file.createVariable(COVERAGE, "i1", (Y, X), chunksizes=chunks, **self._packed)
        coverage.setncatts(COVERAGE_ATTRS)
        coverage[:] = self._observed.view(np.int8)


def in_seconds(times: npt.NDArray[np.datetime64]) -> npt.NDArray[np.int64]:
    """Return times as integers in the units of `TIME_CODES`."""
    return times.astype("datetime64[s]").astype(np.int64)


def write_part(dataset: xr.Dataset, path: Path) -> None:
    """Write one part of an archive (a day) atomically in the archive's encoding.

    `dataset` must fulfil the contract (`schema.check_archive`), with rain in mm/h. Raises ValueError if it does
    not, or if rates are negative or above `MAX_RATE` mm/h: clean them first.
    """
    schema.check_archive(dataset, path.name)
    rain = dataset[RAIN]
    grid = Grid(
        y=dataset[Y].values.astype(np.float64),
        x=dataset[X].values.astype(np.float64),
        crs_wkt=str(schema.find_crs_wkt(dataset, RAIN)),
    )
    with (
        naming_disk(path.parent),
        PartWriter(
            path,
            grid,
            step_minutes=schema.find_step_minutes(dataset),
            cell_methods=str(rain.attrs.get("cell_methods", "time: point")),
            attrs={
                name: value for name, value in dataset.attrs.items() if name not in ("Conventions", STEP_MINUTES)
            },
        ) as part,
    ):
        for number, time in enumerate(dataset[TIME].values):
            part.add(time, rain[number].values)
