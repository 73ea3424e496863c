"""Readers: one file a format, each with one class that keeps the `Reader` protocol.

A new format is a file here, a `conf/source/NAME.yaml` that names its class and lists its arguments, and a
line in `conf/source/auto.yaml`.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.absurd import find_absurd, name_absurd
from raincast.archive.limits import DEFAULT_MEGAPIXELS, limited
from raincast.schema import Grid, Meaning
from raincast.system.faults import raise_if_handles, reason_of

log = logging.getLogger(__name__)

ALL = slice(None)
_OWN_KEY = re.compile(r"\bsource\.(?!readers\.)(?=[a-z_]+\b)")
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
    None where the file does not state the time between frames. `meaning` is what its rates are over time: None
    where the reader does not say it before a frame is read. Of frames with the same time in several files that of
    the highest `quality` is taken; 0 where nothing is stated.
    """

    times: npt.NDArray[np.datetime64]
    grid: Grid
    step_minutes: float | None
    meaning: Meaning | None = None
    quality: float = 0.0


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
        name, reader = self._reader_of(path)
        with _in_keys_of(name):
            return reader.scan(path)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """As the reader that recognises `path`."""
        name, reader = self._reader_of(path)
        with _in_keys_of(name):
            return reader.read(path, frames, step_minutes=step_minutes)

    def _reader_of(self, path: Path) -> tuple[str, Reader]:
        for name, reader in self.readers.items():
            if reader.recognises(path):
                return name, reader
        raise_if_handles()  # what cannot be opened is not recognised
        raise ValueError(
            f"{path} ({_content(path)}) is none of the formats raincast knows: {', '.join(self.readers)}. "
            "If it should be one of them, ask that one for its reason, e.g. source=cf."
        )


@contextmanager
def _in_keys_of(name: str) -> Iterator[None]:
    """Give the keys in errors of the reader `name` as they are typed with source=auto.

    source.variable=R is then source.readers.cf.variable=R, unless the message changes the source as well.
    """
    try:
        yield
    except ValueError as error:
        text = str(error)
        if "source=" in text or _OWN_KEY.search(text) is None:
            raise
        raise type(error)(_OWN_KEY.sub(f"source.readers.{name}.", text)) from error


def key_of(reader: Reader, path: Path, name: str) -> str:
    """The key that sets the argument `name` of the reader that reads `path`, as a user types it."""
    while (inner := getattr(reader, "reader", None)) is not None:  # limits and quality stand around it
        reader = inner
    readers = reader.readers if isinstance(reader, Auto) else {}
    own = next((own for own, each in readers.items() if each.recognises(path)), "NAME")
    return f"source.readers.{own}.{name}" if readers else f"source.{name}"


def check_period(
    reader: Reader, path: Path, meaning: Meaning | None, times: npt.NDArray[np.datetime64], step_minutes: float
) -> None:
    """Take a depth's period, where the source does not state it, for the step; with a warning.

    ValueError where frames are missing from `times` (ascending): then the step is no evidence of the period.
    """
    if meaning is None or not meaning.lacks_period:
        return
    key = key_of(reader, path, "accumulation_minutes")
    num_missing = schema.missing_times(times, schema.step_timedelta(step_minutes)).size
    if num_missing:
        raise ValueError(
            f"{path} holds depths and does not state their period. {num_missing} frames of the step of "
            f"{step_minutes:g} min are missing, so the step may not be the period. Set {key}=MINUTES, for example "
            f"{key}={step_minutes:g}."
        )
    log.warning(
        "%s holds depths and does not state their period: taken as the step, %g min. If that is wrong, set %s.",
        *(path, step_minutes, key),
    )


@dataclass(frozen=True)
class Limited:
    """The files of `reader`, none with an image of more than `max_megapixels` (`archive.limits`).

    Values that cannot be rain (`archive.absurd`) are missing, and named.
    """

    reader: Reader
    max_megapixels: float = DEFAULT_MEGAPIXELS

    def __post_init__(self) -> None:
        """Refuse a limit that no image keeps."""
        if not self.max_megapixels > 0:
            raise ValueError(f"max_megapixels={self.max_megapixels} must be above 0: million pixels of an image.")

    def recognises(self, path: Path) -> bool:
        """As the reader does."""
        with limited(self.max_megapixels):
            return self.reader.recognises(path)

    def scan(self, path: Path) -> Head:
        """As the reader does, within the limit."""
        with limited(self.max_megapixels):
            return self.reader.scan(path)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """As the reader does, within the limit."""
        with limited(self.max_megapixels):
            dataset = self.reader.read(path, frames, step_minutes=step_minutes)
        rates = dataset[schema.RAIN].values
        absurd = find_absurd(rates)
        if absurd.any():
            name_absurd(path, dataset[schema.TIME].values, absurd, rates)
            rates[absurd] = np.nan
        return dataset


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
        raise_if_handles(error)
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        reason = reason_of(error) or str(error) or type(error).__name__
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
