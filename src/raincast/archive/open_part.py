"""The frames of one file of an archive, read by window."""

import contextlib
import functools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.backends import CachingFileManager
from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK

from raincast import schema
from raincast.archive.chunks import MOST_OPEN, UNREADABLE, ChunkedCodes, Unpacked, most_open, open_files
from raincast.archive.head import engine_of, naming, open_dataset
from raincast.archive.packing import Packing
from raincast.archive.rates import CODE_MM_H, CODES, MISSING_CODE, encode, find_absurd, name_absurd

UNPACKED_BYTES = 2**29
"""Limit on unpacked chunks that a process caches for all files of an archive together."""
UNPACKED_BYTES_OF_FILE = 2**26  # HDF5's default; for the 128 files that xarray keeps open it would be 8 GiB
CHUNK_SLOTS = 10007  # a prime, ten times the 64 KiB chunks in 64 MiB: two chunks in one slot evict each other


@dataclass(frozen=True, eq=False)
class OpenPart:
    """An open file and the meaning of its numbers.

    A netCDF file with the codes of `archive.rates` is read chunk by chunk (`chunks`), or with netCDF4 (`codes`) if
    it is compressed in another way. Other files are read with xarray (`array`).
    """

    path: Path
    array: xr.Variable | None
    codes: "RawVariable | None"
    chunks: ChunkedCodes | None
    packing: Packing
    to_mm_h: float
    times: npt.NDArray[np.datetime64]

    @classmethod
    def open(
        cls,
        path: Path,
        variable: str,
        unpacked: Unpacked,
        *,
        times: npt.NDArray[np.datetime64],
        num_parts: int = 1,
    ) -> "OpenPart":
        """Open the rain `variable` of a file, one of `num_parts` of its archive.

        `unpacked` caches its chunks, `times` are those of its frames.
        """
        dataset = open_dataset(path, mask_and_scale=False)
        array = dataset[variable].variable
        packing, to_mm_h = Packing.of(array), schema.mm_h_per(array.attrs["units"])
        part = cls(path, array, None, None, packing, to_mm_h, times)
        if not part.is_coded or engine_of(path) == "zarr" or schema.REGULAR_START in dataset.attrs:
            _keep_few_open()
            return part
        if engine_of(path) != "netcdf4":  # elsewhere: what is packed in another way is read by xarray
            return cls(path, array, None, ChunkedCodes.of(path, variable, unpacked), packing, to_mm_h, times)
        dataset.close()
        codes = RawVariable.of(path, variable, num_parts)
        chunks = ChunkedCodes.of(path, variable, unpacked)
        return cls(path, None, codes, chunks, packing, to_mm_h, times)

    @property
    def is_coded(self) -> bool:
        """Return True if the stored numbers are the codes of `archive.rates`."""
        return self.packing == CODES and self.to_mm_h == 1

    def read(self, time: slice, y: slice, x: slice) -> npt.NDArray[np.float32]:
        """Return rain rates (T, H, W) in mm/h, NaN for missing."""
        raw = self._read(time, y, x)
        if self._table is None:
            rates = self._decode(raw)
        else:
            rates = self._table[self.packing.numbers(raw).astype(np.intp) - np.iinfo(self.packing.dtype).min]
        absurd = find_absurd(rates)
        if absurd.any():
            self._name(absurd, rates, time, y, x)
            rates[absurd] = np.nan
        return rates

    def read_codes(self, time: slice, y: slice, x: slice, *, out: npt.NDArray[np.int16]) -> None:
        """Read codes (T, H, W) into `out`, a view with any strides."""
        if self.is_coded:
            self._read(time, y, x, out=out)
            if self.chunks is not None and not self.chunks.has_negative:
                return
            # finds negative codes except MISSING_CODE, without a copy
            absurd = out.view(np.uint16) > np.uint16(2**15)
            if absurd.any():
                self._name(absurd, out * CODE_MM_H, time, y, x)
                out[absurd] = MISSING_CODE
            return
        for codes, rain in zip(out, self.read(time, y, x), strict=True):
            codes[...] = encode(rain)

    def _name(
        self, absurd: npt.NDArray[np.bool_], rates: npt.NDArray[np.floating], time: slice, y: slice, x: slice
    ) -> None:
        name_absurd(self.path, self.times[time], absurd, rates, first_pixel=(y.start or 0, x.start or 0))

    def _read(
        self, time: slice, y: slice, x: slice, *, out: npt.NDArray[np.int16] | None = None
    ) -> npt.NDArray[Any]:
        """Return the stored numbers, in `out` if given. Raises ValueError with the file's name on failure."""
        if self.chunks is not None:
            with contextlib.suppress(*UNREADABLE):
                return self.chunks.read(time, y, x, out=out)
            self.chunks.has_negative = True  # not known of what netCDF4 reads
        with naming(self.path):
            if self.codes is not None:
                raw = self.codes.read(time, y, x)
            else:
                assert self.array is not None
                raw = self.array[time, y, x].values
        if out is None:
            return raw
        out[...] = raw
        return out

    @cached_property
    def _table(self) -> npt.NDArray[np.float32] | None:
        """Return a lookup table of all codes; None for types over 16 bits, or if a valid range must be checked."""
        dtype = self.packing.dtype
        if dtype.kind not in "iu" or dtype.itemsize > 2 or self.packing.has_limits:
            return None
        # in float64, 50 × 0.01 rounds to the float32 nearest 0.5, so that a rate equal to a threshold reaches it
        info = np.iinfo(dtype)
        return self._decode(np.arange(info.min, info.max + 1).astype(dtype))

    def _decode(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        rates = self.packing.decode(raw, str(self.path), keep_infinite=True) * self.to_mm_h
        with np.errstate(over="ignore"):  # values too large for float32 become infinite, which is absurd
            return rates.astype(np.float32)


@dataclass(frozen=True, eq=False)
class RawVariable:
    """A variable of a netCDF file, undecoded; xarray's file manager closes the least recently used file."""

    files: CachingFileManager[Any]
    variable: str

    @classmethod
    def of(cls, path: Path, variable: str, num_parts: int) -> "RawVariable":
        """Open a variable of one of `num_parts` files, whose chunk caches share `UNPACKED_BYTES`."""
        most = unpacked_bytes_of_file(num_parts)
        files: CachingFileManager[Any] = CachingFileManager(
            _open_raw, str(path), variable, most, lock=NETCDF4_PYTHON_LOCK, cache=open_files()
        )
        return cls(files, variable)

    def read(self, *index: slice | int) -> npt.NDArray[Any]:
        """Return the values at `index`, one slice or number per axis of the variable."""
        with NETCDF4_PYTHON_LOCK:  # xarray's lock: the library is not thread-safe
            file = self.files.acquire(needs_lock=False)
            found: npt.NDArray[Any] = file.variables[self.variable][index]
        return found


def unpacked_bytes_of_file(num_parts: int) -> int:
    """Return the cache size for unpacked chunks of one of `num_parts` files of an archive."""
    return min(UNPACKED_BYTES_OF_FILE, UNPACKED_BYTES // min(num_parts, MOST_OPEN))


@functools.cache
def _keep_few_open() -> None:
    """Lower the number of files that xarray keeps open if the process may open only few."""
    if most_open() < xr.get_options()["file_cache_maxsize"]:  # type: ignore[no-untyped-call]
        xr.set_options(file_cache_maxsize=most_open())  # type: ignore[no-untyped-call]


def _open_raw(path: str, variable: str, most: int) -> Any:
    """Open a netCDF4.Dataset that caches at most `most` bytes of unpacked chunks."""
    import netCDF4

    file = netCDF4.Dataset(path)
    file.set_auto_maskandscale(False)
    if file.data_model.startswith("NETCDF4"):  # classic formats have no chunks
        file.variables[variable].set_var_chunk_cache(most, CHUNK_SLOTS, 0.75)
    return file
