"""Readers: one file a format, each with one class that keeps the `Reader` protocol.

A new format is a file here, a `conf/source/NAME.yaml` that names its class and lists its arguments, and a
line in `conf/source/auto.yaml`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast.schema import Grid

ALL = slice(None)
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# what libraries throw at damaged files; sizes out of a spoilt header ask for any amount of memory
_DAMAGE = (
    OSError,
    LookupError,
    RuntimeError,
    TypeError,
    AttributeError,
    ValueError,
    EOFError,
    ArithmeticError,
    MemoryError,
    SyntaxError,
)


@dataclass(frozen=True, eq=False)
class Head:
    """What a file says before its frames are read.

    `times` are the valid times (UTC) in the order of the file, not necessarily ascending; `step_minutes` is
    None where the file does not state the time between frames.
    """

    times: npt.NDArray[np.datetime64]
    grid: Grid
    step_minutes: float | None


class Reader(Protocol):
    """A format. Damaged or unsuitable files end in a ValueError that names the file and the reason."""

    def recognises(self, path: Path) -> bool:
        """Whether the content of `path`, not its name, is of this format; cheap, and never an error."""
        ...

    def scan(self, path: Path) -> Head:
        """Times, grid and step, without the frames."""
        ...

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """The frames numbered `frames` in mm/h, as `schema.rain_dataset` makes them.

        `step_minutes` helps where the file itself does not state its step.
        """
        ...


@dataclass(frozen=True)
class Auto:
    """Any of `readers` (by name of the format): the first that recognises the content of a file reads it."""

    readers: Mapping[str, Reader]

    def recognises(self, path: Path) -> bool:
        """Whether any of the formats is recognised."""
        return any(reader.recognises(path) for reader in self.readers.values())

    def scan(self, path: Path) -> Head:
        """As the reader that recognises `path`."""
        return self._reader_of(path).scan(path)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """As the reader that recognises `path`."""
        return self._reader_of(path).read(path, frames, step_minutes=step_minutes)

    def _reader_of(self, path: Path) -> Reader:
        for reader in self.readers.values():
            if reader.recognises(path):
                return reader
        raise ValueError(
            f"{path} ({_content(path)}) is none of the formats raincast knows: {', '.join(self.readers)}. "
            "If it should be one of them, ask that one for its reason, e.g. source=cf."
        )


def starts_with(path: Path, *signatures: bytes) -> bool:
    """Whether the first bytes of the file `path` are one of `signatures`; False where it cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(max(map(len, signatures))).startswith(signatures)
    except OSError:
        return False


@contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a library throws at a damaged file into a ValueError that names `path`."""
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read as {what}: {reason}") from error


def _content(path: Path) -> str:
    """A few words on what a file that nobody recognises looks like."""
    if path.is_dir():
        return "a folder"
    size = path.stat().st_size if path.exists() else 0
    if size == 0:
        return "absent or empty"
    if starts_with(path, HDF5_SIGNATURE):
        return f"{size} bytes of {_hdf5_state(path)}"
    if packed := _packed_in(path):
        return f"{size} bytes of {packed}: unpack it first"
    with path.open("rb") as file:
        return f"{size} bytes that begin with {file.read(8)!r}"


def _packed_in(path: Path) -> str:
    """Which packing a file is of, as KNMI's and BoM's days and years of files are; '' for none."""
    import tarfile
    import zipfile

    try:
        if zipfile.is_zipfile(path):
            return "a zip"
        return "a tar" if tarfile.is_tarfile(path) else ""
    except (OSError, EOFError, ValueError):
        return ""


def _hdf5_state(path: Path) -> str:
    import h5py

    try:
        with h5py.File(path) as file:
            return f"HDF5 with {', '.join(list(file)[:6]) or 'nothing'} at its root"
    except OSError as error:
        return f"damaged HDF5: {error}"
