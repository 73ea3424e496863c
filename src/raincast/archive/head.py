"""List the files of an archive and read their metadata without reading frames."""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.limits import check_file
from raincast.archive.packing import Packing, warn_dry_fill
from raincast.archive.rates import CODES
from raincast.archive.times import exact_times, stated_minutes, valid_times
from raincast.schema import Grid, Meaning
from raincast.system.faults import raise_if_handles, reason_of
from raincast.system.files import sight_of
from raincast.system.remote import NO_PACKAGE, RemotePath, is_remote, zarr_store

log = logging.getLogger(__name__)

DAMAGE = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
NETWORKS = (".ckpt", ".onnx", ".pt2")
IF_DAMAGED = "If it is damaged, remove it and ingest its frames again."


@dataclass(frozen=True, eq=False)
class Head:
    """Metadata of a file, known without reading its frames."""

    path: Path
    times: npt.NDArray[np.datetime64]
    grid: Grid
    step_minutes: float
    variable: str
    attrs: dict[str, Any]
    rain_attrs: dict[str, Any]
    coded: bool
    sight: int

    @property
    def meaning(self) -> Meaning:
        """Return what the rates are over time."""
        return schema.meaning_of(self.rain_attrs.get("cell_methods"), self.attrs, self.step_minutes)


def archive_files(path: Path) -> list[Path]:
    """Return the sorted files of the archive at `path`. Raises FileNotFoundError, with a remedy, for none."""
    if path.suffix in NETWORKS and path.is_file():
        raise ValueError(f"{path} is a network (checkpoint=…), not an archive.")
    if path.is_file() or path.suffix == ".zarr" or is_zarr(path):
        files = [path] if path.exists() else []
    else:
        files = sorted(path.glob("*.nc")) or sorted(path.glob("*.zarr"))
    if not files and is_remote(path):
        raise FileNotFoundError(
            f"{path}: there is no such file, or the server lists no .nc or .zarr there. Give the address of a "
            "file or a Zarr store, or of a folder that the server lists."
        )
    if not files:
        what = "holds no .nc or .zarr file" if path.is_dir() else "does not exist"
        # a folder of other files may be that of the radar files
        full = path.is_dir() and any(path.iterdir())
        made = f"files='{path}/**/*' archive=data/{path.name}" if full else f"files='…' archive={path}"
        near = sorted(p.name for p in path.parent.glob("*") if p.is_dir()) if path.parent.is_dir() else []
        beside = f" Beside it: {', '.join(near[:8])}." if near else ""
        raise FileNotFoundError(
            f"The archive {path} {what}.{beside} Create one from radar files with: python ingest.py {made}"
        )
    return files


def engine_of(path: Path) -> str:
    """Return the xarray engine for the file or store."""
    if isinstance(path, RemotePath) and path.suffix != ".zarr":
        return "h5netcdf"
    return "zarr" if path.suffix == ".zarr" or path.is_dir() else "netcdf4"


def open_plain(path: Path, **options: Any) -> xr.Dataset:
    """Open a file or store without dask, within `limits`; `options` are passed to `xarray.open_dataset`."""
    if isinstance(path, RemotePath):
        return _open_remote(path, **options)
    check_file(path)
    engine = engine_of(path)
    if engine == "zarr":
        options["consolidated"] = False
    try:
        opened = xr.open_dataset(path, engine=engine, chunks=None, **options)
    except ValueError as error:  # an interrupted write may leave times without bounds
        if not any(schema.TIME_BOUNDS in note for note in getattr(error, "__notes__", ())):  # xarray's
            raise
        log.warning("%s: its %s cannot be read and are left out.", path, schema.TIME_BOUNDS)
        opened = xr.open_dataset(path, engine=engine, chunks=None, drop_variables=schema.TIME_BOUNDS, **options)
    return exact_times(opened)


def _open_remote(path: RemotePath, **options: Any) -> xr.Dataset:
    """Open a remote file or store: netCDF-4 and Zarr chunk by chunk, netCDF-3 after a download."""
    if engine_of(path) == "zarr":
        check_file(path)
        store = zarr_store(path)
        try:  # not every server lists the files of a store
            opened = xr.open_dataset(store, engine="zarr", chunks=None, consolidated=True, **options)
        except (KeyError, ValueError):
            opened = xr.open_dataset(store, engine="zarr", chunks=None, consolidated=False, **options)
        return exact_times(opened)
    with path.open() as content:
        if content.read(3) == b"CDF":
            return open_plain(path.local(), **options)
    for package in ("h5netcdf", "hdf5plugin"):  # the second unpacks zstd, once it is imported
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(NO_PACKAGE.format(url=path, package=package)) from error
    check_file(path)
    return exact_times(xr.open_dataset(path.open(), engine="h5netcdf", chunks=None, **options))


def open_packed(path: Path, *variables: str, **options: Any) -> xr.Dataset:
    """Open like `open_plain`, but leave `variables` packed, for `Packing` to decode."""
    return open_plain(path, mask_and_scale=dict.fromkeys(variables, False), **options)


def open_dataset(path: Path, *, mask_and_scale: bool = True) -> xr.Dataset:
    """Open without dask, from where the step is regular. Raises ValueError if the file cannot be opened."""
    try:
        return schema.continuous_longitudes(schema.regular_part(open_plain(path, mask_and_scale=mask_and_scale)))
    except (OSError, KeyError, ValueError) as error:
        raise_if_handles(error)
        raise ValueError(f"{path} cannot be opened as {engine_of(path)}: {error}. {IF_DAMAGED}") from error


def is_zarr(path: Path) -> bool:
    """Return True if a folder is a Zarr store."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn any error that libraries raise for a damaged file into a ValueError that names it."""
    try:
        yield
    except (*DAMAGE, OSError) as error:
        raise_if_handles(error)
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        if machine := reason_of(error):
            raise ValueError(f"{path} cannot be read: {machine}") from error
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}. {IF_DAMAGED}") from error


def read_head(path: Path) -> Head:
    """Read and check the metadata of a file. Raises ValueError with a list of all violations."""
    with naming(path):
        while True:
            sight = sight_of(path)
            head = _read_head(path, sight)
            if sight_of(path) == sight:  # else the file was replaced meanwhile
                return head


def _read_head(path: Path, sight: int) -> Head:
    with open_dataset(path) as dataset:
        schema.check_archive(dataset, str(path))
        variable = schema.find_rain_variable(dataset)
        grid = schema.grid_of(dataset, variable)
        packing = Packing.of(dataset[variable])
        if packing.has_dry_fill:
            warn_dry_fill(variable)
        rain_attrs, step_minutes = dict(dataset[variable].attrs), schema.find_step_minutes(dataset)
        times, minutes = valid_times(dataset, dataset[variable])
        if (times != dataset[schema.TIME].values).any():
            schema.check_archive(dataset.assign_coords({schema.TIME: (schema.TIME, times)}), str(path))
        if (meaning := schema.meaning_of(rain_attrs.get("cell_methods"), {}, step_minutes)).is_averaged:
            minutes = minutes or stated_minutes(rain_attrs, dataset.attrs)
            meaning = replace(meaning, minutes=minutes or step_minutes)
        return Head(
            path=path,
            times=times,
            grid=grid,
            step_minutes=step_minutes,
            variable=variable,
            attrs=meaning.attrs(step_minutes) | dataset.attrs,
            rain_attrs=rain_attrs,
            coded=packing == CODES and schema.mm_h_per(dataset[variable].attrs["units"]) == 1,
            sight=sight,
        )


def read_coverage(path: Path) -> npt.NDArray[np.bool_] | None:
    """Return the mask of pixels that any frame observed, (H, W); None if the file does not state it."""
    with naming(path), open_dataset(path, mask_and_scale=False) as dataset:
        if schema.COVERAGE not in dataset:
            return None
        return np.asarray(dataset[schema.COVERAGE].values, np.bool_)


def check_fits(first: Head, other: Head, path: Path) -> None:
    """Raise ValueError if two files of the archive `path` do not belong to one series."""
    if not first.grid.same_as(other.grid):
        raise ValueError(
            f"{path} mixes grids: {first.path.name} is {first.grid.shape}, {other.path.name} is "
            f"{other.grid.shape}, or their coordinates differ. Ingest each grid into its own archive."
        )
    if first.variable != other.variable:
        raise ValueError(
            f"{path} mixes variables: {first.variable} in {first.path.name}, {other.variable} in "
            f"{other.path.name}. Rename one of them, or ingest the files into one archive."
        )
    if first.step_minutes != other.step_minutes:
        raise ValueError(
            f"{path} mixes steps: {first.step_minutes} min in {first.path.name}, "
            f"{other.step_minutes} min in {other.path.name}."
        )
    if not first.meaning.same_as(other.meaning):
        raise ValueError(
            f"{path} mixes {first.meaning} in {first.path.name} and {other.meaning} in {other.path.name}. Ingest "
            "each kind into its own archive."
        )
    if (other.times[0] - first.times[0]) % schema.step_timedelta(first.step_minutes):
        raise ValueError(f"{other.path.name} is off the step of {first.step_minutes} min of {path}.")
