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
from raincast.archive.absurd import find_absurd, name_absurd
from raincast.archive.chunks import MOST_OPEN, UNREADABLE, ChunkedCodes, Unpacked, most_open, open_files
from raincast.archive.codes import CODE_MM_H, CODES, MISSING_CODE, encode
from raincast.archive.head import engine_of, naming, open_dataset
from raincast.archive.packing import Packing

UNPACKED_BYTES = 2**29
"""What may be kept unpacked of all files of an archive together, in a process."""
UNPACKED_BYTES_OF_FILE = 2**26  # HDF5's default, which for the 128 files that xarray keeps open would be 8 GiB
CHUNK_SLOTS = 10007  # a prime, ten times the chunks of 64 KiB in 64 MiB: two in one slot drive each other out


@dataclass(frozen=True, eq=False)
class OpenPart:
    """An open file, and what its numbers mean.

    A netCDF file in our own codes is read chunk by chunk (`chunks`), or by netCDF4 itself (`codes`) what is packed
    in another way; `array`, xarray, reads the others.
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
        """The rain `variable` of the file, one of `num_parts` of its archive, of which `unpacked` keeps chunks.

        `times` are those of its frames.
        """
        dataset = open_dataset(path, mask_and_scale=False)
        array = dataset[variable].variable
        packing, to_mm_h = Packing.of(array), schema.mm_h_per(array.attrs["units"])
        part = cls(path, array, None, None, packing, to_mm_h, times)
        if not part.is_coded or engine_of(path) != "netcdf4" or schema.REGULAR_START in dataset.attrs:
            _keep_few_open()
            return part
        dataset.close()
        codes = RawVariable.of(path, variable, num_parts)
        chunks = ChunkedCodes.of(path, variable, unpacked)
        return cls(path, None, codes, chunks, packing, to_mm_h, times)

    @property
    def is_coded(self) -> bool:
        """Whether its numbers are the codes of `archive.codes`."""
        return self.packing == CODES and self.to_mm_h == 1

    def read(self, time: slice, y: slice, x: slice) -> npt.NDArray[np.float32]:
        """Rain rates in mm/h, NaN for missing: (T, H, W)."""
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
        """The same in codes, (T, H, W) → `out`, a view of any strides."""
        if self.is_coded:
            self._read(time, y, x, out=out)
            # negative codes, all but the one of missing, without a copy
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
        """As it is stored, in `out` if it is given; ValueError names the file where that fails."""
        if self.chunks is not None:
            with contextlib.suppress(*UNREADABLE):
                return self.chunks.read(time, y, x, out=out)
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
        """Every code decoded once, where they are few, and none has to be counted."""
        dtype = self.packing.dtype
        if dtype.kind not in "iu" or dtype.itemsize > 2 or self.packing.has_limits:
            return None
        # in float64: 50 × 0.01 is then exactly the float32 nearest 0.5, so a rate that stands at a threshold is at
        # the threshold
        info = np.iinfo(dtype)
        return self._decode(np.arange(info.min, info.max + 1).astype(dtype))

    def _decode(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        rates = self.packing.decode(raw, str(self.path), keep_infinite=True) * self.to_mm_h
        with np.errstate(over="ignore"):  # what is too large for float32 cannot be rain either
            return rates.astype(np.float32)


@dataclass(frozen=True, eq=False)
class RawVariable:
    """A variable of a netCDF file as it is stored; xarray's file manager closes the file longest unused."""

    files: CachingFileManager[Any]
    variable: str

    @classmethod
    def of(cls, path: Path, variable: str, num_parts: int) -> "RawVariable":
        """Of one of `num_parts` files, which together keep at most `UNPACKED_BYTES` unpacked."""
        most = unpacked_bytes_of_file(num_parts)
        files: CachingFileManager[Any] = CachingFileManager(
            _open_raw, str(path), variable, most, lock=NETCDF4_PYTHON_LOCK, cache=open_files()
        )
        return cls(files, variable)

    def read(self, *index: slice | int) -> npt.NDArray[Any]:
        """What lies at `index`, one of them for each axis of the variable."""
        with NETCDF4_PYTHON_LOCK:  # xarray's own, so that nobody else is within the library, which bears no two
            file = self.files.acquire(needs_lock=False)
            found: npt.NDArray[Any] = file.variables[self.variable][index]
        return found


def unpacked_bytes_of_file(num_parts: int) -> int:
    """What is kept unpacked of each file, one of `num_parts` of its archive."""
    return min(UNPACKED_BYTES_OF_FILE, UNPACKED_BYTES // min(num_parts, MOST_OPEN))


@functools.cache
def _keep_few_open() -> None:
    """Let xarray, which reads archives in other layouts, keep fewer files open where handles are few."""
    if most_open() < xr.get_options()["file_cache_maxsize"]:  # type: ignore[no-untyped-call]
        xr.set_options(file_cache_maxsize=most_open())  # type: ignore[no-untyped-call]


def _open_raw(path: str, variable: str, most: int) -> Any:
    """An open netCDF4.Dataset that keeps at most so many bytes of unpacked chunks."""
    import netCDF4

    file = netCDF4.Dataset(path)
    file.set_auto_maskandscale(False)
    if file.data_model.startswith("NETCDF4"):  # the classic formats have neither chunks nor a cache of them
        file.variables[variable].set_var_chunk_cache(most, CHUNK_SLOTS, 0.75)
    return file
