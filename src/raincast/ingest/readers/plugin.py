"""Readers of other packages, found through their entry points."""

import functools
import logging
import multiprocessing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from raincast import schema
from raincast.ingest.readers import ALL, Head, Reader, naming
from raincast.schema import Grid

log = logging.getLogger(__name__)

GROUP = "raincast.readers"
READER_ATTR = "reader"


@dataclass(frozen=True)
class Plugin:
    """The reader that another package declares as `name` in the entry-point group `raincast.readers`.

    With a name, the reader is created with `arguments`, and any failure raises ValueError. Without a name, all
    declared readers are created without arguments, and the first one (by name) that recognises a file reads it;
    readers that cannot be imported or created are left out with a warning. Results are checked, so a faulty reader
    fails for its own files and does not stop an ingest.
    """

    name: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError for a name that no package declares, or whose reader cannot be created."""
        if self.name is not None:
            assert self._readers
        elif self.arguments:
            raise ValueError(
                f"source.arguments={dict(self.arguments)} are for one reader: set source.name=… as well."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the readers out of the pickle: each process creates its own."""
        return {"name": self.name, "arguments": self.arguments}

    @functools.cached_property
    def _readers(self) -> tuple[tuple[EntryPoint, Reader], ...]:
        return _all() if self.name is None else (_named(self.name, **self.arguments),)

    def recognises(self, path: Path) -> bool:
        """Return True if the named reader, or any reader, recognises `path`."""
        return self._find(path) is not None

    def scan(self, path: Path) -> Head:
        """Scan `path` with its reader and check the result."""
        entry, reader = self._reader_of(path)
        with naming(path, _words(entry)):
            head = reader.scan(path)
            if not isinstance(head, Head) or not isinstance(head.grid, Grid):
                raise TypeError(
                    f"scan returned {type(head).__name__}, not a raincast.ingest.readers.Head on a Grid"
                )
            if not np.issubdtype(np.asarray(head.times).dtype, np.datetime64) or np.ndim(head.times) != 1:
                raise TypeError("the times of its head are not a 1-D array of datetime64")
            return head

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read frames with the reader of `path`; the attribute `reader` names it."""
        entry, reader = self._reader_of(path)
        with naming(path, _words(entry)):
            dataset = reader.read(path, frames, step_minutes=step_minutes)
            if not isinstance(dataset, xr.Dataset):
                raise TypeError(f"read returned {type(dataset).__name__}, not an xarray.Dataset")
            _check_rain(dataset)
            return dataset.assign_attrs({READER_ATTR: _words(entry)})

    def _reader_of(self, path: Path) -> tuple[EntryPoint, Reader]:
        if self.name is not None:
            return self._readers[0]
        found = self._find(path)
        if found is None:
            names = ", ".join(sorted(entry.name for entry in _entries())) or "none is installed"
            raise ValueError(f"{path} is recognised by no reader of another package ({names}). Use source=auto")
        return found

    def _find(self, path: Path) -> tuple[EntryPoint, Reader] | None:
        """Return the reader that recognises `path`, or None."""
        for entry, reader in self._readers:
            try:
                if reader.recognises(path):
                    return entry, reader
            except (Exception, SystemExit) as error:  # another package's fault; other readers may know the file
                _warn_once(entry, f"fails at recognising {path.name}: {type(error).__name__}: {error}")
        return None


def _check_rain(dataset: xr.Dataset) -> None:
    rain = dataset[schema.RAIN]
    units, dims = rain.attrs.get("units"), (schema.TIME, schema.Y, schema.X)
    if rain.dims != dims or units != schema.RAIN_ATTRS["units"] or "cell_methods" not in rain.attrs:
        raise TypeError(
            f"its {schema.RAIN} is {rain.dims} in {units}, with {', '.join(rain.attrs)}: make it with "
            "raincast.schema.rain_dataset"
        )


@functools.cache
def _entries() -> tuple[EntryPoint, ...]:
    """Return the declared entry points, sorted by name."""
    return tuple(sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)))


def _entry(name: str) -> EntryPoint:
    for entry in _entries():
        if entry.name == name:
            return entry
    names = ", ".join(entry.name for entry in _entries()) or "none"
    raise ValueError(
        f"source.name={name}: no installed package declares this reader in the entry-point group {GROUP} "
        f"(declared: {names}). Install its package into this environment."
    )


def _named(name: str, **arguments: Any) -> tuple[EntryPoint, Reader]:
    entry = _entry(name)
    try:
        return entry, _make(entry, **arguments)
    except (Exception, SystemExit) as error:  # another package's code may raise anything
        raise ValueError(
            f"source.name={name}: {_words(entry)} is broken: {type(error).__name__}: {error}"
        ) from error


@functools.cache
def _all() -> tuple[tuple[EntryPoint, Reader], ...]:
    """Return every reader that can be created, once per process."""
    readers = []
    for entry in _entries():
        try:
            readers.append((entry, _make(entry)))
        except (Exception, SystemExit) as error:  # another package's code may raise anything
            _warn_once(entry, f"is broken and left out: {type(error).__name__}: {error}")
    return tuple(readers)


def _make(entry: EntryPoint, **arguments: Any) -> Reader:
    reader: Reader = entry.load()(**arguments)
    absent = [method for method in ("recognises", "scan", "read") if not callable(getattr(reader, method, None))]
    if absent:
        raise TypeError(f"it has no method {' or '.join(absent)}: see raincast.ingest.readers.Reader")
    return reader


@functools.cache
def _warn_once(entry: EntryPoint, what: str) -> None:
    if multiprocessing.parent_process() is None:  # workers would repeat the warning
        log.warning("%s %s", _words(entry), what)


def _words(entry: EntryPoint) -> str:
    package = f" of {entry.dist.name} {entry.dist.version}" if entry.dist else ""
    return f"the reader {entry.name} = {entry.value}{package}"
