"""BoM netCDF: Rainfields 3 of the Australian Bureau of Meteorology, single radars and the national composite.

The layout follows pysteps (`import_bom_rf3`) and public users of the archive at NCI: one image (y, x) per file;
`precipitation` in mm (prcp-c5, prcp-c10 and others) accumulated from `start_time` to `valid_time`, or `rain_rate`
in mm/h (prcp-crate); `x` and `y` in km of the Albers projection that the variable `proj` describes. Missing pixels
have the fill value or a negative value: the fill value is −1 in some products and −32768 in others.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema, units
from raincast.archive.head import open_plain
from raincast.archive.limits import check_image, check_unpacking
from raincast.archive.packing import Packing
from raincast.archive.rates import bands
from raincast.ingest.readers import ALL, HDF5_SIGNATURE, Head, known_step, naming, starts_with
from raincast.ingest.readers.cf import NETCDF3_SIGNATURES
from raincast.ingest.readers.common.axes import find_grid
from raincast.ingest.readers.common.unpack import check_whole
from raincast.projection import crs_in_metres
from raincast.schema import MOMENTARY, Grid, Meaning, X, Y
from raincast.transforms import accumulation_to_rate

FORMAT = "BoM netCDF"
DEPTH, RATE = "precipitation", "rain_rate"
QUANTITIES = {DEPTH: units.ACCUMULATION, RATE: units.RATE}
START, END = "start_time", "valid_time"
PROJECTIONS = ("proj", "albers_conical_equal_area")


@dataclass(frozen=True)
class BoM:
    """Reads one frame per file, depth or rate, in mm/h; conf/source/bom.yaml documents the arguments.

    A depth becomes the mean rate from its start time to its valid time.
    """

    step_minutes: float | None = None
    source: str = "Bureau of Meteorology"

    def recognises(self, path: Path) -> bool:
        """Return True for netCDF with rain, valid time and projection under Rainfields' names."""
        import netCDF4

        if not starts_with(path, HDF5_SIGNATURE, *NETCDF3_SIGNATURES):
            return False
        try:
            with netCDF4.Dataset(path) as file:
                names = file.variables.keys()
                return (
                    {X, Y, END} <= names and not names.isdisjoint(QUANTITIES) and not names.isdisjoint(PROJECTIONS)
                )
        except (OSError, RuntimeError, ValueError, AttributeError, UnicodeError):
            return False

    def scan(self, path: Path) -> Head:
        """Return the time, grid and step; files with rates do not state a step."""
        with self._open(path) as (dataset, field):
            meaning = _meaning(dataset, field)
            step = self.step_minutes or meaning.minutes
            return Head(np.array([_time(dataset, END)]), _grid(dataset, field), step, meaning)

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read the file's single frame, or none if `frames` is empty."""
        with self._open(path) as (dataset, field):
            meaning = _meaning(dataset, field)
            step = known_step(self.step_minutes, meaning.minutes, step_minutes)
            return schema.rain_dataset(
                _rates(field, meaning.minutes)[None][frames],
                np.array([_time(dataset, END)])[frames],
                _grid(dataset, field),
                step_minutes=step,
                cell_methods=meaning.cell_methods,
                attrs={"source": self.source, "title": f"Rainfields {field.name}"} | meaning.attrs(step),
            )

    @contextmanager
    def _open(self, path: Path) -> Iterator[tuple[xr.Dataset, xr.DataArray]]:
        """Yield the dataset with decoded times, and its rain (y, x), still packed and on disk."""
        with naming(path, FORMAT):
            check_whole(path)
            check_unpacking(path)
            with open_plain(path, mask_and_scale=False) as dataset:
                name = next((name for name in QUANTITIES if name in dataset.variables), None)
                if name is None:
                    raise ValueError(
                        f"it holds neither {' nor '.join(QUANTITIES)}, but {', '.join(map(str, dataset))}"
                    )
                sizes = dict(zip(dataset[name].dims, dataset[name].shape, strict=True))
                ones = [dim for dim in sizes if dim not in (Y, X)]
                if any(sizes[dim] != 1 for dim in ones) or not {Y, X} <= sizes.keys() & dataset.variables.keys():
                    raise ValueError(f"{name} is on {sizes}, not on (y, x) with the coordinates y and x")
                check_image(sizes[Y], sizes[X])
                yield dataset, dataset[name].squeeze(ones)


def _grid(dataset: xr.Dataset, field: xr.DataArray) -> Grid:
    name = next((name for name in PROJECTIONS if name in dataset.variables), None)
    if name is None:
        return find_grid(dataset, field)
    said = tuple((str(key), tuple(np.ravel(value).tolist())) for key, value in dataset[name].attrs.items())
    return find_grid(dataset, field, _projection(said))


@lru_cache(maxsize=16)
def _projection(said: tuple[tuple[str, tuple[Any, ...]], ...]) -> str:
    """Return the WKT of a projection's CF attributes; cached because pyproj takes a quarter of a second."""
    return crs_in_metres({key: values[0] if len(values) == 1 else list(values) for key, values in said})[0]


def _time(dataset: xr.Dataset, name: str) -> np.datetime64:
    if name not in dataset.variables:
        raise ValueError(f"it has no {name}")
    times = np.ravel(dataset[name].values)
    if times.size != 1 or not np.issubdtype(times.dtype, np.datetime64) or np.isnat(times[0]):
        raise ValueError(f"{name} is {times[:3]} in {dataset[name].attrs.get('units')!r}: not one time")
    time: np.datetime64 = times[0].astype("datetime64[ns]")
    return time


def _meaning(dataset: xr.Dataset, field: xr.DataArray) -> Meaning:
    """Return momentary for rates, or depth over the minutes from start time to valid time."""
    if field.name != DEPTH:
        return MOMENTARY
    start, end = _time(dataset, START), _time(dataset, END)
    if start >= end:
        raise ValueError(f"it starts at {start} and ends at {end}: not a valid accumulation period")
    return Meaning("depth", float((end - start) / np.timedelta64(1, "m")))


def _rates(field: xr.DataArray, interval: float | None) -> npt.NDArray[np.float32]:
    """Return the rates (H, W) in mm/h, NaN for missing, computed in blocks of rows to limit float64 memory."""
    quantity, said = QUANTITIES[str(field.name)], field.attrs.get("units")
    unit = units.unit_of(said, quantity)
    if unit is None:
        known = ", ".join(units.EXAMPLES[quantity])
        raise ValueError(f"{field.name} is in {said or 'no unit'}: raincast knows {known} and similar units")
    codes = field.load().transpose(Y, X).values
    if codes.dtype.kind not in "iuf":
        raise ValueError(f"{field.name} is {codes.dtype}, not integers or floats")
    packing = Packing.of(field)
    rates = np.empty(codes.shape, np.float32)
    for rows in bands(codes.shape):
        values = packing.decode(codes[rows], f"{FORMAT} {field.name}") * unit.factor
        values[values < 0] = np.nan
        rates[rows] = values if interval is None else accumulation_to_rate(values, interval)
    return rates
