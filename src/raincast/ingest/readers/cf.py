"""CF netCDF and Zarr: any file with rain on (time, y, x) and 1-D coordinates, as rate, depth or dBZ."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.head import open_packed, open_plain
from raincast.archive.limits import check_image, check_unpacking
from raincast.archive.packing import ATTRS, FILLS, Packing, warn_dry_fill, warn_once
from raincast.archive.rates import bands
from raincast.archive.times import stated_minutes, valid_times
from raincast.ingest.readers import ALL, Head, hdf5_has, naming, starts_with
from raincast.ingest.readers.common.axes import find_grid, find_roles, in_our_words
from raincast.ingest.readers.common.unpack import check_whole
from raincast.ingest.readers.common.values import choose_zr, rate_of_dbz
from raincast.schema import TIME, Meaning, X, Y
from raincast.transforms import accumulation_to_rate
from raincast.units import ACCUMULATION, EXAMPLES, RATE, REFLECTIVITY, Unit, parse_unit, unit_of

FORMAT = "CF netCDF or Zarr"
NETCDF3_SIGNATURES = (b"CDF\x01", b"CDF\x02", b"CDF\x05")
ZARR_METADATA = ("zarr.json", ".zgroup")
ToRate = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
"""A function from values in a file's unit to mm/h."""

STANDARD_NAMES: dict[str, tuple[str, ...]] = {
    RATE: schema.RAIN_STANDARD_NAMES,
    ACCUMULATION: (
        "precipitation_amount",
        "rainfall_amount",
        "thickness_of_rainfall_amount",
        "lwe_thickness_of_precipitation_amount",
    ),
    REFLECTIVITY: ("equivalent_reflectivity_factor",),
}
RAIN_WORDS = re.compile(r"rain|prec|pcp|qpe|acc|rr|\btp\b")
OTHER_WORDS = re.compile(
    r"\bvil\b|liquid|evap|vapou?r|precipitable|soil|runoff|wind|height|canopy|irrigat|(?<![a-z])(dew|drop|mesh|posh)"
)
FROZEN_WORDS = re.compile(r"snow|hail|graupel|sleet|solid|(?<![a-z])ice(?![a-z])")
ALL_WATER, LIQUID = (
    re.compile(r"(?<![a-z])rain|precip(?!itable)|pcp|qpe"),
    re.compile(r"(?<![a-z])rain|total.precip"),
)
"""Words that make a variable rain although its name has one of the words before."""
NOT_REFLECTIVITY = re.compile(r"differential|error|uncertain")
NOT_RATE = re.compile(r"maxim|minim|(?<![a-z0-9])max|quality|error|uncertain|spread|std|prob|flag|index|diameter")
"""Words in the name of a variable that is not rain, although its unit could be one of rain."""

_KEPT_ATTRS = ("title", "institution", "source", "license", "licence", "references", "doi", "comment")


@dataclass(frozen=True)
class CF:
    """Reads any CF netCDF or Zarr in mm/h; conf/source/cf.yaml documents the arguments."""

    variable: str | None = None
    quantity: str = "auto"
    step_minutes: float | None = None
    accumulation_minutes: float | None = None
    units: str | None = None
    zr_a: float | None = None
    zr_b: float | None = None
    missing_is_dry: bool = False
    crs: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown quantity or unit."""
        if self.quantity not in ("auto", *STANDARD_NAMES):
            raise ValueError(f"source.quantity={self.quantity} is none of auto, {', '.join(STANDARD_NAMES)}.")
        if self.units is not None and parse_unit(self.units) is None:
            raise ValueError(f"source.units={self.units} is not a unit of rain: {_known_units()}.")

    def recognises(self, path: Path) -> bool:
        """Return True for a Zarr folder, netCDF-3, or HDF5 with netCDF-4 dimension scales at its root."""
        if path.is_dir():
            return any((path / name).exists() for name in ZARR_METADATA)
        return starts_with(path, *NETCDF3_SIGNATURES) or hdf5_has(path, _has_dimension_scales)

    def scan(self, path: Path) -> Head:
        """Return the times, grid and step of the file."""
        with self._open(path) as (dataset, field, quantity):
            packing = Packing.of(field)  # raises ValueError for invalid packing attributes
            if packing.has_dry_fill and quantity != REFLECTIVITY and not self.missing_is_dry:
                warn_dry_fill(str(field.name))
            times = _valid_times(dataset, field, quantity)[0]
            if _are_forecasts(dataset, times):
                warn_once(
                    f"{field.name} holds forecasts, by its forecast reference time or period, not observed rain"
                )
            return Head(
                times,
                find_grid(dataset, field, self.crs),
                self._step(dataset),
                self._meaning(dataset, field, quantity),
            )

    def read(self, path: Path, frames: slice = ALL, *, step_minutes: float | None = None) -> xr.Dataset:
        """Read the frames numbered `frames`; only these are loaded."""
        with self._open(path) as (dataset, field, quantity):
            times = _valid_times(dataset, field, quantity)[0][frames]
            step = self._step(dataset) or step_minutes or _step_of(dataset, field)
            unit = unit_of(self.unit_text(field), quantity)
            assert unit is not None
            meaning = self._meaning(dataset, field, quantity).over(step)
            to_rate, attrs = self._to_rate(dataset, field, unit, meaning.minutes or step)
            return schema.rain_dataset(
                self._rates(path, field, frames, to_rate),
                times,
                find_grid(dataset, field, self.crs),
                step_minutes=step,
                cell_methods=meaning.cell_methods,
                attrs=self._attrs(dataset, field) | attrs | meaning.attrs(step),
            )

    @contextmanager
    def _open(self, path: Path) -> Iterator[tuple[xr.Dataset, xr.DataArray, str]]:
        """Yield the dataset, its rain as a lazy array (time, y, x), and the rain's quantity."""
        with naming(path, FORMAT):
            check_whole(path)
            check_unpacking(path)
        with naming(path, FORMAT), ExitStack() as stack:
            opened = stack.enter_context(open_plain(path, mask_and_scale=False))
            name, quantity = self.choose(opened)
            if any(_is_packed(array) for other, array in opened.variables.items() if other != name):
                stack.close()
                opened = stack.enter_context(open_packed(path, name))
            dataset = schema.regular_part(opened)
            field = in_our_words(dataset[name])
            check_image(field.sizes[Y], field.sizes[X])
            yield dataset, field, quantity

    def choose(self, dataset: xr.Dataset) -> tuple[str, str]:
        """Return the rain variable and its quantity: as configured, by standard_name, or by units alone."""
        if self.variable is not None:
            if self.variable not in dataset.data_vars:
                raise ValueError(f"no variable {self.variable}; found: {_listing(dataset)}")
            return self.variable, self._quantity_of(dataset[self.variable])
        for by_name in (True, False):
            for quantity in STANDARD_NAMES if self.quantity == "auto" else (self.quantity,):
                found = [
                    str(name)
                    for name, array in dataset.data_vars.items()
                    if self._fits(array, quantity, by_name=by_name) and find_roles(array) is not None
                ]
                if len(found) == 1:
                    return found[0], quantity
                if found:
                    raise ValueError(
                        f"{len(found)} variables are a {quantity} of rain: {', '.join(found)}. "
                        "Choose one with source.variable=NAME"
                    )
        without = [
            str(name)
            for name, array in dataset.data_vars.items()
            if not self.unit_text(array) and array.ndim > 1 and find_roles(array) is not None
        ]
        if without:
            raise _no_units(without)
        raise ValueError(
            f"no variable on (time, y, x) is rain by its standard_name, or by its units and name; found: "
            f"{_listing(dataset)}. Name it with source.variable=NAME. If its unit is wrong in the file, also set "
            "source.units=mm/h"
        )

    def unit_text(self, array: xr.DataArray) -> str:
        """Return a variable's unit: the configured one if the file has none or the variable is configured."""
        stated = str(array.attrs.get("units", "")).strip()
        return stated if self.units is None or (stated and self.variable is None) else self.units

    def _fits(self, array: xr.DataArray, quantity: str, *, by_name: bool) -> bool:
        """Return True if a variable is rain by unit and standard_name (`by_name`), or by unit and names.

        Without `by_name`, words such as "snow" or "maximum" in its names exclude it.
        """
        unit = unit_of(self.unit_text(array), quantity)
        if unit is None:
            return False
        standard_name = str(array.attrs.get("standard_name", ""))
        if by_name:
            return standard_name in STANDARD_NAMES[quantity]
        if self.units is not None and not array.attrs.get("units"):
            return True
        if not unit.by_itself:
            return False
        said = f"{array.name} {array.attrs.get('long_name', '')} {standard_name}".lower()
        if quantity == REFLECTIVITY:
            return not OTHER_WORDS.search(said) and not NOT_REFLECTIVITY.search(said)
        needed = [
            words for words, others in ((ALL_WATER, OTHER_WORDS), (LIQUID, FROZEN_WORDS)) if others.search(said)
        ]
        if quantity == ACCUMULATION and "kg" in self.unit_text(array).lower():  # the unit of many quantities
            needed.append(RAIN_WORDS)
        return not NOT_RATE.search(said) and all(words.search(said) for words in needed)

    def _quantity_of(self, array: xr.DataArray) -> str:
        text = self.unit_text(array)
        if not text:
            raise _no_units([str(array.name)])
        unit = parse_unit(text)
        if unit is None:
            raise ValueError(
                f"{array.name} has units {text!r}, not a unit of rain: {_known_units()}. If the file is wrong, "
                "set source.units=mm/h"
            )
        if self.quantity not in ("auto", unit.quantity):
            raise ValueError(
                f"{array.name} in {text!r}: not a unit of {self.quantity} ({', '.join(EXAMPLES[self.quantity])}), "
                f"but of {unit.quantity}. Set source.quantity={unit.quantity}, or source.units if it is wrong"
            )
        stated = array.attrs.get("units")
        if stated and self.units is not None and parse_unit(stated) != unit:
            warn_once(f"{array.name} is read in {self.units}, as source.units states; the file states {stated}")
        return unit.quantity

    def _rates(self, path: Path, field: xr.DataArray, frames: slice, to_rate: ToRate) -> npt.NDArray[np.float32]:
        """Return the rates of `frames` in mm/h, computed in blocks of rows to limit float64 memory."""
        raw, packing = _stored(field, frames), Packing.of(field)
        rates = np.empty(raw.shape, np.float32)
        for frame, of_frame in zip(rates, raw, strict=True):
            for rows in bands(frame.shape):
                frame[rows] = to_rate(
                    packing.decode(of_frame[rows], f"{path.name}, {field.name}", keep_infinite=True)
                )
        if self.missing_is_dry:
            rates[np.isnan(rates)] = 0.0
        return rates

    def _to_rate(
        self, dataset: xr.Dataset, field: xr.DataArray, unit: Unit, minutes: float
    ) -> tuple[ToRate, dict[str, Any]]:
        """Return the conversion of a rate, a depth over `minutes` or dBZ to mm/h, and attributes about it."""
        if unit.quantity == REFLECTIVITY:
            zr, attrs = choose_zr({**dataset.attrs, **field.attrs}, self.zr_a, self.zr_b)
            return lambda dbz: rate_of_dbz(zr, dbz), attrs
        if unit.quantity == ACCUMULATION:
            return lambda values: accumulation_to_rate(values * unit.factor, minutes), {}
        return lambda values: values * unit.factor, {}

    def _meaning(self, dataset: xr.Dataset, field: xr.DataArray, quantity: str) -> Meaning:
        """Return what the rates are over time; the period is None if neither the file nor the user states it."""
        name = str(field.name)
        schema.check_cell_methods(field.attrs.get("cell_methods"), name)
        averaged = "mean" in schema.time_methods(field.attrs.get("cell_methods"))
        if quantity != ACCUMULATION and not averaged:
            return Meaning("momentary", quantity=name, from_reflectivity=quantity == REFLECTIVITY)
        stated = _valid_times(dataset, field, quantity)[1] or _period_minutes(dataset, field, quantity)
        if quantity == ACCUMULATION:
            return Meaning("depth", self.accumulation_minutes or stated, name)
        return Meaning("mean", stated, name)

    def _step(self, dataset: xr.Dataset) -> float | None:
        step = self.step_minutes or dataset.attrs.get(schema.STEP_MINUTES)
        return None if step is None else float(step)

    def _attrs(self, dataset: xr.Dataset, field: xr.DataArray) -> dict[str, Any]:
        attrs = {name: dataset.attrs[name] for name in _KEPT_ATTRS if name in dataset.attrs}
        if "comment" in field.attrs:  # often states the service's Z-R relation
            attrs["comment"] = field.attrs["comment"]
        return {"source": f"CF variable {field.name}"} | attrs


def _has_dimension_scales(file: Any) -> bool:
    members = [member for member in file.values() if member is not None]  # None: a damaged member
    return any(member.attrs.get("CLASS") == b"DIMENSION_SCALE" for member in members)


def _is_packed(array: xr.Variable) -> bool:
    """Return True if unpacking may change the values; a float that is NaN where missing stays as it is."""
    stated = {name: array.attrs[name] for name in ATTRS if name in array.attrs}
    fills = [stated.pop(name) for name in FILLS if name in stated]
    return bool(stated) or not all(array.dtype.kind == "f" and np.all(np.asarray(fill) != fill) for fill in fills)


def _known_units() -> str:
    return "raincast knows " + "; ".join(f"{quantity}: {', '.join(units)}" for quantity, units in EXAMPLES.items())


def _no_units(names: list[str]) -> ValueError:
    """Return the error for rain without a unit, with a remedy to copy."""
    which = "" if len(names) == 1 else " together with source.variable=NAME"
    return ValueError(
        f"{', '.join(names)} states no units: set source.units=mm/h for a rain rate, source.units=mm for a depth "
        f"or source.units=dBZ for a reflectivity{which}"
    )


def _valid_times(
    dataset: xr.Dataset, field: xr.DataArray, quantity: str
) -> tuple[npt.NDArray[np.datetime64], float | None]:
    """Return the valid times and the minutes that a value covers; depths always have a period."""
    return valid_times(dataset, field, is_depth=quantity == ACCUMULATION)


def _are_forecasts(dataset: xr.Dataset, times: npt.NDArray[np.datetime64]) -> bool:
    """Return True if the file states a run before its valid times, or lead times above 0."""
    for variable in dataset.variables.values():
        role = variable.attrs.get("standard_name")
        if role == "forecast_reference_time" and variable.dtype.kind == "M" and variable.size == 1:
            return bool((times > variable.values.ravel()[0]).any())
        if role == "forecast_period" and variable.dtype.kind in "miuf":
            return bool((variable.values.astype(np.float64) > 0).any())
    return False


def _period_minutes(dataset: xr.Dataset, field: xr.DataArray, quantity: str) -> float | None:
    try:
        return stated_minutes(field.attrs, dataset.attrs, is_depth=quantity == ACCUMULATION)
    except ValueError as error:
        raise ValueError(f"{error}. Set source.accumulation_minutes=60") from error


def _step_of(dataset: xr.Dataset, field: xr.DataArray) -> float:
    times = np.unique(field[TIME].values)
    if times.size < 2:
        raise ValueError("it holds one frame and states no step. Give it with source.step_minutes=5")
    return schema.find_step_minutes(xr.Dataset(coords={TIME: times}))


def _stored(field: xr.DataArray, frames: slice) -> npt.NDArray[Any]:
    """Return the stored numbers of `frames`, (time, y, x)."""
    if TIME in field.dims:
        values: npt.NDArray[Any] = field.isel({TIME: frames}).load().transpose(TIME, Y, X).values
        return values
    one: npt.NDArray[Any] = field.transpose(Y, X).values[None][frames]
    return one


def _listing(dataset: xr.Dataset) -> str:
    return "; ".join(
        f"{name}{tuple(map(str, array.dims))} in {array.attrs.get('units')!r}"
        for name, array in dataset.data_vars.items()
    )
