"""CF netCDF and Zarr: any file with rain on (time, y, x) and 1-D coordinates, as rate, depth or dBZ."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.codes import bands
from raincast.archive.head import open_plain
from raincast.ingest.readers import ALL, HDF5_SIGNATURE, Head, naming, starts_with
from raincast.ingest.readers.common.axes import find_grid, find_roles, in_our_words
from raincast.ingest.readers.common.unpack import check_whole
from raincast.schema import TIME, Meaning, X, Y
from raincast.transforms import ZR, accumulation_to_rate

FORMAT = "CF netCDF or Zarr"
NETCDF3_SIGNATURES = (b"CDF\x01", b"CDF\x02", b"CDF\x05")
ZARR_METADATA = ("zarr.json", ".zgroup")

RATE, ACCUMULATION, REFLECTIVITY = "rate", "accumulation", "reflectivity"
UNITS: dict[str, dict[str, float]] = {
    RATE: schema.MM_H_PER_UNIT | {"mm d-1": 1 / 24, "cm h-1": 10.0},
    ACCUMULATION: {"mm": 1.0, "kg m-2": 1.0, "cm": 10.0, "m": 1000.0},
    REFLECTIVITY: {"dbz": 1.0},
}
"""How many mm/h, mm or dBZ one of each unit is, by quantity; spellings are evened out by `_unit`."""
STANDARD_NAMES = {
    RATE: schema.RAIN_STANDARD_NAMES,
    ACCUMULATION: (
        "precipitation_amount",
        "rainfall_amount",
        "thickness_of_rainfall_amount",
        "lwe_thickness_of_precipitation_amount",
    ),
    REFLECTIVITY: ("equivalent_reflectivity_factor",),
}
WIND_OR_HEIGHT = ("m s-1", "mm s-1", "m", "cm")  # units that say nothing of rain without a standard_name

PERIOD_ATTRS = {"accum_time_h": 60.0, "accutime": 1.0, "accumulation_minutes": 1.0}
"""Attributes that state the period of a mean or a depth, and how many minutes one of their unit is."""
MINUTES_PER = {"second": 1 / 60, "sec": 1 / 60, "s": 1 / 60, "minute": 1.0, "min": 1.0}
MINUTES_PER |= {"hour": 60.0, "hr": 60.0, "h": 60.0, "day": 1440.0, "d": 1440.0}

_KEPT_ATTRS = ("title", "institution", "source", "license", "licence", "references", "doi", "comment")


@dataclass(frozen=True)
class CF:
    """Any CF netCDF or Zarr → mm/h; conf/source/cf.yaml says what the arguments do."""

    variable: str | None = None
    quantity: str = "auto"
    step_minutes: float | None = None
    accumulation_minutes: float | None = None
    zr_a: float = 200.0
    zr_b: float = 1.6
    missing_is_dry: bool = False
    crs: str | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown quantity."""
        if self.quantity not in ("auto", *UNITS):
            raise ValueError(f"source.quantity={self.quantity} is none of auto, {', '.join(UNITS)}.")

    def recognises(self, path: Path) -> bool:
        """A Zarr folder, netCDF-3, or HDF5 with the dimension scales of netCDF-4 at its root."""
        if path.is_dir():
            return any((path / name).exists() for name in ZARR_METADATA)
        if starts_with(path, HDF5_SIGNATURE):
            return _has_dimension_scales(path)
        return starts_with(path, *NETCDF3_SIGNATURES)

    def scan(self, path: Path) -> Head:
        """Times, grid and step of a file."""
        with self._open(path) as (dataset, field, quantity):
            return Head(
                _valid_times(dataset, field, quantity, ALL)[0],
                find_grid(dataset, field, self.crs),
                self._step(dataset),
                self._meaning(dataset, field, quantity),
            )

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """The frames numbered `frames`: only they are loaded."""
        with self._open(path) as (dataset, field, quantity):
            times, _ = _valid_times(dataset, field, quantity, frames)
            step = self._step(dataset) or step_minutes or _step_of(dataset, field)
            factor = UNITS[quantity][self._unit(field, quantity)]
            meaning = self._meaning(dataset, field, quantity).over(step)
            return schema.rain_dataset(
                self._rates(field, frames, quantity, factor, meaning.minutes or step),
                times,
                find_grid(dataset, field, self.crs),
                step_minutes=step,
                cell_methods=meaning.cell_methods,
                attrs=self._attrs(dataset, field, quantity) | meaning.attrs(step),
            )

    @contextmanager
    def _open(self, path: Path) -> Iterator[tuple[xr.Dataset, xr.DataArray, str]]:
        """The dataset, its rain as lazy (time, y, x), and the quantity that this is."""
        with naming(path, FORMAT):
            check_whole(path)
        with naming(path, FORMAT), open_plain(path) as opened:
            dataset = schema.regular_part(opened)
            name, quantity = self._choose(dataset)
            yield dataset, in_our_words(dataset[name]), quantity

    def _choose(self, dataset: xr.Dataset) -> tuple[str, str]:
        """The rain variable and its quantity: as told, else by standard_name, else by units alone."""
        if self.variable is not None:
            if self.variable not in dataset.data_vars:
                raise ValueError(f"no variable {self.variable}; found: {_listing(dataset)}")
            return self.variable, self._quantity_of(dataset[self.variable])
        for by_name in (True, False):
            for quantity in UNITS if self.quantity == "auto" else (self.quantity,):
                found = [
                    str(name)
                    for name, array in dataset.data_vars.items()
                    if _fits(array, quantity, by_name=by_name) and find_roles(array) is not None
                ]
                if len(found) == 1:
                    return found[0], quantity
                if found:
                    raise ValueError(
                        f"{len(found)} variables are a {quantity} of rain: {', '.join(found)}. "
                        "Choose with source.variable=NAME"
                    )
        raise ValueError(
            f"no variable on (time, y, x) is rain by its standard_name or units; found: {_listing(dataset)}. "
            "Name it with source.variable=NAME and source.quantity=rate|accumulation|reflectivity"
        )

    def _quantity_of(self, array: xr.DataArray) -> str:
        if self.quantity != "auto":
            self._unit(array, self.quantity)
            return self.quantity
        for quantity, units in UNITS.items():
            if _unit(array) in units:
                return quantity
        known = "; ".join(f"{quantity}: {', '.join(units)}" for quantity, units in UNITS.items())
        raise ValueError(f"{array.name} has units {array.attrs.get('units')!r}; known are {known}")

    def _unit(self, array: xr.DataArray, quantity: str) -> str:
        unit = _unit(array)
        if unit not in UNITS[quantity]:
            raise ValueError(
                f"{array.name} in {array.attrs.get('units')!r} is no {quantity}, which is in "
                f"{', '.join(UNITS[quantity])}. Set source.quantity, or mend the units attribute"
            )
        return unit

    def _rates(
        self, field: xr.DataArray, frames: slice, quantity: str, factor: float, interval: float
    ) -> npt.NDArray[np.float32]:
        """The rates of `frames` in mm/h, a few rows at a time: in float64 a large image takes much room."""
        values = _values(field, frames)
        low, high = _valid_limits(field)
        rates = np.empty(values.shape, np.float32)
        for frame, of_frame in zip(rates, values, strict=True):
            for rows in bands(frame.shape):
                part = of_frame[rows].astype(np.float64)
                part[(part < low) | (part > high)] = np.nan
                frame[rows] = self._to_rate(part * factor, quantity, interval)
        if self.missing_is_dry:
            rates[np.isnan(rates)] = 0.0
        return rates

    def _to_rate(self, values: npt.NDArray[np.float64], quantity: str, interval: float) -> npt.NDArray[np.float32]:
        """mm/h from mm/h, from mm over `interval` minutes, or from dBZ."""
        if quantity == REFLECTIVITY:
            values = ZR(self.zr_a, self.zr_b).to_rate(values)
        elif quantity == ACCUMULATION:
            values = accumulation_to_rate(values, interval)
        return values.astype(np.float32)

    def _meaning(self, dataset: xr.Dataset, field: xr.DataArray, quantity: str) -> Meaning:
        """What its rates are over time; the period is None where neither the file nor the user states it."""
        name = str(field.name)
        averaged = "time: mean" in str(field.attrs.get("cell_methods"))
        if quantity != ACCUMULATION and not averaged:
            return Meaning("momentary", quantity=name)
        stated = _valid_times(dataset, field, quantity, ALL)[1] or _period_minutes(dataset, field)
        if quantity == ACCUMULATION:
            return Meaning("depth", self.accumulation_minutes or stated, name)
        return Meaning("mean", stated, name)

    def _step(self, dataset: xr.Dataset) -> float | None:
        step = self.step_minutes or dataset.attrs.get(schema.STEP_MINUTES)
        return None if step is None else float(step)

    def _attrs(self, dataset: xr.Dataset, field: xr.DataArray, quantity: str) -> dict[str, Any]:
        attrs = {name: dataset.attrs[name] for name in _KEPT_ATTRS if name in dataset.attrs}
        if "comment" in field.attrs:  # often the Z-R relation of the service
            attrs["comment"] = field.attrs["comment"]
        if quantity == REFLECTIVITY:
            attrs |= {"zr_a": self.zr_a, "zr_b": self.zr_b}
        return {"source": f"CF variable {field.name}"} | attrs


def _has_dimension_scales(path: Path) -> bool:
    import h5py

    try:
        with h5py.File(path) as file:
            members = [member for member in file.values() if member is not None]  # None is a damaged one
            return any(member.attrs.get("CLASS") == b"DIMENSION_SCALE" for member in members)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError):
        return False


def _unit(array: xr.DataArray) -> str:
    """The units attribute in one spelling: 'kg/m^2/s', 'kg m**-2 s**-1' → 'kg m-2 s-1'."""
    text = str(array.attrs.get("units", "")).strip().lower()
    numerator, *denominators = text.replace("**", "").replace("^", "").split("/")
    for word in denominators:
        base, power = re.fullmatch(r"\s*(.*?)(\d*)\s*", word).groups()  # type: ignore[union-attr]
        numerator += f" {base}-{power or 1}"
    words = {"hr": "h", "hour": "h", "sec": "s", "day": "d", "hr-1": "h-1", "hour-1": "h-1", "day-1": "d-1"}
    return " ".join(words.get(word, word) for word in numerator.split())


def _fits(array: xr.DataArray, quantity: str, *, by_name: bool) -> bool:
    unit = _unit(array)
    if unit not in UNITS[quantity]:
        return False
    if by_name:
        return array.attrs.get("standard_name") in STANDARD_NAMES[quantity]
    return unit not in WIND_OR_HEIGHT


def _valid_times(
    dataset: xr.Dataset, field: xr.DataArray, quantity: str, frames: slice
) -> tuple[npt.NDArray[np.datetime64], float | None]:
    """Valid times, and the minutes that a value covers: both from the time bounds where there are any.

    `cell_methods` of "time: point" makes bounds meaningless, but not for a depth, which has a period.
    """
    times = np.atleast_1d(field[TIME].values).astype("datetime64[ns]")[frames]
    bounds = dataset.variables.get(field[TIME].attrs.get("bounds", ""))
    is_point = quantity != ACCUMULATION and "time: point" in field.attrs.get("cell_methods", "")
    if bounds is None or bounds.size != 2 * field[TIME].size or is_point:
        return times, None
    start, end = bounds.values.reshape(-1, 2).astype("datetime64[ns]")[frames].T
    intervals = (end - start) / np.timedelta64(1, "m")
    if intervals.size and (intervals.min() <= 0 or np.ptp(intervals) > 0.1 * intervals.max()):
        raise ValueError(
            f"the bounds of its times cover {intervals.min():g} to {intervals.max():g} min: frames of one file "
            "need one period over 0. Split the file, or remove the bounds"
        )
    return end, round(float(np.median(intervals)), 2) if intervals.size else None


def _period_minutes(dataset: xr.Dataset, field: xr.DataArray) -> float | None:
    """The period of a mean or a depth from the attributes of the variable or the file; None where none states it.

    accumulation_period is PT1H in RMI's RADCLIM of the mlcast community; accum_time_h and accutime are pysteps'.
    """
    for attrs in (field.attrs, dataset.attrs):
        text = str(attrs.get("accumulation_period", ""))
        if match := re.fullmatch(r"PT(?=\d)(?:(\d+)H)?(?:(\d+)M)?", text):
            return _positive("accumulation_period", text, 60.0 * int(match[1] or 0) + int(match[2] or 0))
        for name, factor in PERIOD_ATTRS.items():
            if name in attrs:
                return _positive(name, attrs[name], factor * float(np.ravel(attrs[name])[0]))
    # CF has the interval of the original samples there; files with depths state the period
    interval = r"time: *(?:sum|mean|accumulated) *\((?:interval:)? *([\d.]+) *([a-z]+)\)"
    if match := re.search(interval, str(field.attrs.get("cell_methods", "")).lower()):
        unit = MINUTES_PER.get(match[2]) or MINUTES_PER.get(match[2].removesuffix("s"))
        if unit is not None:
            return _positive("cell_methods", match[0], unit * float(match[1]))
    return None


def _positive(name: str, said: Any, minutes: float) -> float:
    if not 0 < minutes < np.inf:
        raise ValueError(f"its {name} is {said}: no period over 0 min. Set source.accumulation_minutes=60")
    return minutes


def _step_of(dataset: xr.Dataset, field: xr.DataArray) -> float:
    times = np.unique(field[TIME].values)
    if times.size < 2:
        raise ValueError("it holds one frame and states no step. Give it with source.step_minutes=5")
    return schema.find_step_minutes(xr.Dataset(coords={TIME: times}))


def _values(field: xr.DataArray, frames: slice) -> npt.NDArray[np.floating]:
    """The decoded values of `frames`, (time, y, x)."""
    if TIME in field.dims:
        values: npt.NDArray[np.floating] = field.isel({TIME: frames}).load().transpose(TIME, Y, X).values
        return values
    one: npt.NDArray[np.floating] = field.transpose(Y, X).values[None][frames]
    return one


def _valid_limits(field: xr.DataArray) -> tuple[float, float]:
    """What valid_min, valid_max and valid_range leave: values beyond are missing."""
    scale, offset = (field.encoding.get(n, d) for n, d in (("scale_factor", 1.0), ("add_offset", 0.0)))
    low, high = field.attrs.get("valid_range", (-np.inf, np.inf))
    # the limits are in the units of the packed codes (CF 2.5.1); half a code allows for rounding
    low, high = (
        float(v) * scale + offset for v in (field.attrs.get("valid_min", low), field.attrs.get("valid_max", high))
    )
    slack = 0.5 * abs(scale) if "scale_factor" in field.encoding else 0.0
    return low - slack, high + slack


def _listing(dataset: xr.Dataset) -> str:
    return "; ".join(
        f"{name}{tuple(map(str, array.dims))} in {array.attrs.get('units')!r}"
        for name, array in dataset.data_vars.items()
    )
