"""Readers: one module per format, each with one class that implements the `Reader` protocol.

To add a format, add a module here, a `conf/source/NAME.yaml` with its class and arguments, and a line in
`conf/source/auto.yaml`.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.head import NETWORKS
from raincast.archive.limits import DEFAULT_MEGAPIXELS, limited
from raincast.archive.rates import drop_absurd
from raincast.schema import Grid, Meaning
from raincast.system.faults import raise_if_handles, reason_of
from raincast.system.remote import is_remote, local

log = logging.getLogger(__name__)

ALL = slice(None)
_OWN_KEY = re.compile(r"\bsource\.(?!readers\.)(?=[a-z_]+\b)")
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# errors that libraries raise for damaged files; a size in a damaged header may ask for any amount of memory
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
    """Metadata of a file, known before its frames are read.

    `times` are the valid times (UTC) in the order of the file, not necessarily ascending. `step_minutes` is None
    if the file does not state the time between frames. `meaning` is what the rates are over time, None if the
    reader knows it only after reading a frame. If several files have a frame of the same time, the one with the
    highest `quality` is taken; `quality` is 0 if none is stated.
    """

    times: npt.NDArray[np.datetime64]
    grid: Grid
    step_minutes: float | None
    meaning: Meaning | None = None
    quality: float = 0.0


class Reader(Protocol):
    """Reads one format. Raises ValueError with the file and the reason for damaged or unsuitable files."""

    def recognises(self, path: Path) -> bool:
        """Return True if the content of `path` is in this format, whatever its name. Cheap, and never raises."""
        ...

    def scan(self, path: Path) -> Head:
        """Return the times, grid and step without reading the frames."""
        ...

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read the frames numbered `frames` in mm/h, as a Dataset made by `schema.rain_dataset`.

        `step_minutes` is used if the file does not state its step.
        """
        ...


@dataclass(frozen=True)
class Auto:
    """A reader for all formats of `readers` (by name): the first that recognises a file's content reads it."""

    readers: Mapping[str, Reader]

    def recognises(self, path: Path) -> bool:
        """Return True if any of the readers recognises `path`."""
        return any(reader.recognises(path) for reader in self.readers.values())

    def scan(self, path: Path) -> Head:
        """Scan with the reader that recognises `path`. Raises ValueError if none does."""
        name, reader = self._reader_of(path)
        with _in_keys_of(name):
            return reader.scan(path)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read with the reader that recognises `path`. Raises ValueError if none does."""
        name, reader = self._reader_of(path)
        with _in_keys_of(name):
            return reader.read(path, frames, step_minutes=step_minutes)

    def _reader_of(self, path: Path) -> tuple[str, Reader]:
        for name, reader in self.readers.items():
            if reader.recognises(path):
                return name, reader
        raise_if_handles()  # without file handles no reader recognises anything
        raise ValueError(
            f"{path} ({_content(path)}) is none of the formats raincast knows: {', '.join(self.readers)}. "
            "If it should be one of them, select that reader to see its reason, e.g. source=cf."
        )


@contextmanager
def _in_keys_of(name: str) -> Iterator[None]:
    """Rewrite config keys in the errors of the reader `name` to those of source=auto.

    source.variable=R becomes source.readers.cf.variable=R, unless the message also sets another source.
    """
    try:
        yield
    except ValueError as error:
        text = str(error)
        if "source=" in text or _OWN_KEY.search(text) is None:
            raise
        raise type(error)(_OWN_KEY.sub(f"source.readers.{name}.", text)) from error


def key_of(reader: Reader, path: Path, name: str) -> str:
    """Return the config key that sets the argument `name` of the reader that reads `path`."""
    while (inner := getattr(reader, "reader", None)) is not None:  # unwrap Limited and Cleaned
        reader = inner
    readers = reader.readers if isinstance(reader, Auto) else {}
    own = next((own for own, each in readers.items() if each.recognises(local(path))), "NAME")
    return f"source.readers.{own}.{name}" if readers else f"source.{name}"


def check_period(
    reader: Reader, path: Path, meaning: Meaning | None, times: npt.NDArray[np.datetime64], step_minutes: float
) -> None:
    """Warn that a depth without a stated period is taken to cover the step.

    Raises ValueError if frames are missing from `times` (ascending), because then the step is no evidence of the
    period.
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
        "%s holds depths and does not state their period: taken as the step, %g min. If this is wrong, set %s.",
        *(path, step_minutes, key),
    )


@dataclass(frozen=True)
class Limited:
    """A reader that refuses images of more than `max_megapixels` (`archive.limits`).

    Values that cannot be rain (`archive.rates`) become missing, with a warning.
    """

    reader: Reader
    max_megapixels: float = DEFAULT_MEGAPIXELS

    def __post_init__(self) -> None:
        """Raise ValueError for a limit of 0 or less."""
        if not self.max_megapixels > 0:
            raise ValueError(f"max_megapixels={self.max_megapixels} must be above 0 (million pixels of an image).")

    def recognises(self, path: Path) -> bool:
        """Delegate to the reader."""
        with limited(self.max_megapixels):
            return self.reader.recognises(path)

    def scan(self, path: Path) -> Head:
        """Scan with the reader, within the limit."""
        with limited(self.max_megapixels):
            return self.reader.scan(path)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read with the reader, within the limit, and set absurd values to NaN."""
        with limited(self.max_megapixels):
            dataset = self.reader.read(path, frames, step_minutes=step_minutes)
        drop_absurd(dataset[schema.RAIN].values, path, dataset[schema.TIME].values)
        return dataset


@dataclass(frozen=True)
class Fetched:
    """Reads remote files with `reader`, after downloading each. Errors name the URL."""

    reader: Reader

    def recognises(self, path: Path) -> bool:
        """As `reader` does."""
        return self.reader.recognises(local(path))

    def scan(self, path: Path) -> Head:
        """As `reader` does."""
        with _by_address(path) as here:
            return self.reader.scan(here)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """As `reader` does."""
        with _by_address(path) as here:
            return self.reader.read(here, frames, step_minutes=step_minutes)


def fetching(reader: Reader, paths: Sequence[Path]) -> Reader:
    """Return `reader`, or `Fetched(reader)` if any of `paths` is remote."""
    return Fetched(reader) if any(map(is_remote, paths)) else reader


@contextmanager
def _by_address(path: Path) -> Iterator[Path]:
    here = local(path)
    try:
        yield here
    except ValueError as error:
        if here is path or str(here) not in str(error):
            raise
        raise type(error)(str(error).replace(str(here), str(path))) from error


def starts_with(path: Path, *signatures: bytes) -> bool:
    """Return True if the file begins with one of `signatures`; False if it cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(max(map(len, signatures))).startswith(signatures)
    except OSError:
        return False


def hdf5_has(path: Path, test: Callable[[Any], bool]) -> bool:
    """Return `test(file)` of an HDF5 file; False if it is damaged or no HDF5."""
    import h5py

    if not starts_with(path, HDF5_SIGNATURE):
        return False
    try:
        with h5py.File(path) as file:
            return test(file)
    except (OSError, RuntimeError, LookupError, TypeError, ValueError):
        return False


def known_step(*stated: float | None, example: int = 5) -> float:
    """Return the first step that is stated, in minutes. Raises ValueError if there is none."""
    for minutes in stated:
        if minutes:
            return minutes
    raise ValueError(f"it states no step. Give it with source.step_minutes={example}")


@contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """Turn any error that a library raises for a damaged file into a ValueError that names `path`."""
    try:
        yield
    except _DAMAGE as error:
        raise_if_handles(error)
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        reason = reason_of(error) or str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read as {what}: {reason}") from error


def _content(path: Path) -> str:
    """Describe the content of a file that no reader recognises."""
    if path.is_dir():
        return "a folder"
    size = path.stat().st_size if path.exists() else 0
    if size == 0:
        return "absent or empty"
    if path.suffix in NETWORKS:
        return "a network: give it as checkpoint=…"
    if starts_with(path, HDF5_SIGNATURE):
        return f"{size} bytes of {_hdf5_state(path)}"
    if packed := _packed_in(path):
        return f"{size} bytes of {packed}: unpack it first"
    with path.open("rb") as file:
        return f"{size} bytes that begin with {file.read(8)!r}"


def _packed_in(path: Path) -> str:
    """Return the container type of a file, such as KNMI's and BoM's bundles of a day or year; '' for none."""
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
