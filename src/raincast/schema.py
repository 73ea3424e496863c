"""Vocabulary of archives and forecasts: dimensions, units, attributes and CF names, with their checks.

All other modules take these names from here. `check_archive` defines the archive contract; `mock_archive` creates
a small Dataset that fulfils it.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast.projection import METRES, axis_attrs, crs_in_metres, is_geographic, mapping_attrs
from raincast.units import EXAMPLES, RATE, unit_of

TIME, Y, X = "time", "y", "x"
INIT_TIME, LEAD_TIME = "init_time", "lead_time"
RAIN, CRS, MISSING_TIMES, COVERAGE = "rain_rate", "crs", "missing_times", "coverage"
EXCEEDANCE, THRESHOLD = "rain_rate_exceedance", "threshold"
STEP_MINUTES = "step_minutes"
TIME_BOUNDS, BOUNDS = "time_bounds", "bounds"  # a variable (time, bounds), for mean rates
REGULAR_START = "consistent_timestep_start"  # of the mlcast specification: frames before it have another step
CAPPED_PIXELS, SETTINGS, WET_SHARE = "capped_pixels", "raincast_config", "wet_share"
ZR_FROM = "zr_from"  # of rates from reflectivity: the origin of their Z-R relation
ACCUMULATION_MINUTES = "accumulation_minutes"  # for means over a period other than the step
CONVENTIONS = "CF-1.11"

RAIN_STANDARD_NAMES = (
    "rainfall_rate",
    "rainfall_flux",
    "precipitation_flux",
    "lwe_precipitation_rate",
)
RAIN_ATTRS = {"standard_name": "rainfall_rate", "long_name": "rain rate", "units": "mm h-1"}
TIME_ATTRS = {"standard_name": "time", "long_name": "valid time (UTC)", "axis": "T"}


@dataclass(frozen=True)
class Meaning:
    """The period of rates in mm/h: instantaneous, or averages over a number of minutes.

    `kind` is "momentary" for instantaneous rates, "mean" for mean rates and "depth" for rates computed from
    depths. Means and depths cover the `minutes` that end at the valid time; None if the source does not state the
    period. `quantity` is the source's own name (RATE, ACRR, RW) and is ignored in comparisons. `from_reflectivity`
    is True for rates by a Z-R relation.
    """

    kind: Literal["momentary", "mean", "depth"]
    minutes: float | None = None
    quantity: str = field(default="", compare=False)
    from_reflectivity: bool = False

    @property
    def is_averaged(self) -> bool:
        """True for means and depths."""
        return self.kind != "momentary"

    @property
    def lacks_period(self) -> bool:
        """True for depths whose source does not state the period: their rate cannot be known."""
        return self.kind == "depth" and self.minutes is None

    @property
    def cell_methods(self) -> str:
        """CF's `cell_methods`; a depth over N minutes is the mean rate over them."""
        return "time: mean" if self.is_averaged else "time: point"

    def over(self, step_minutes: float) -> "Meaning":
        """Return the same meaning, with the step as the period if none is stated."""
        return replace(self, minutes=step_minutes) if self.is_averaged and self.minutes is None else self

    def same_as(self, other: "Meaning") -> bool:
        """True if frames of both fit into one series: one origin, or averages over the same, known period.

        A service's rates and those of its reflectivity differ by its own processing, even at the same times.
        """
        if not (self.is_averaged and other.is_averaged):
            one, another = ((m.is_averaged, m.from_reflectivity) for m in (self, other))
            return one == another
        assert self.minutes is not None and other.minutes is not None, "call over(step_minutes) first"
        return abs(self.minutes - other.minutes) < 1e-3

    def attrs(self, step_minutes: float) -> dict[str, Any]:
        """Return attributes for a file whose period is not its step, like MeteoSwiss' hourly sums every 10 min."""
        if not self.is_averaged or self.minutes in (None, step_minutes):
            return {}
        assert self.minutes is not None
        attrs: dict[str, Any] = {ACCUMULATION_MINUTES: self.minutes}
        if step_minutes < self.minutes:
            attrs["comment"] = f"running means: each rate is that of {self.minutes:g} min, not of the step"
        return attrs

    def __str__(self) -> str:
        """Return the meaning in words, for messages."""
        period = "an unknown period" if self.minutes is None else f"{self.minutes:g} min"
        by = " from reflectivity" if self.from_reflectivity else ""
        words = {
            "momentary": f"momentary rates{by}",
            "mean": f"means over {period}",
            "depth": f"depths over {period}",
        }
        return words[self.kind] + (f" ({self.quantity})" if self.quantity else "")


MOMENTARY = Meaning("momentary")
_OVER_TIME = re.compile(r"(?<!\w)\w*time\w* *: *(?:\w+ *: *)*(\w+)")
_EXTREMES = {"maximum", "minimum", "median", "range", "standard_deviation", "variance", "mode"}


def time_methods(cell_methods: Any) -> list[str]:
    """Return the statistics over time in CF's `cell_methods`; several axes may share one: "time: y: x: mean"."""
    return _OVER_TIME.findall(str(cell_methods).lower())


def check_cell_methods(cell_methods: Any, name: str) -> None:
    """Raise ValueError for a statistic over time that is neither mean nor sum, such as the maximum of an hour."""
    for method in _EXTREMES.intersection(time_methods(cell_methods)):
        raise ValueError(
            f"{name} is a {method} over time (cell_methods: {cell_methods}). raincast reads momentary rates, "
            "means over time and depths: use such a product"
        )


def meaning_of(cell_methods: Any, attrs: Mapping[str, Any], step_minutes: float) -> Meaning:
    """Return the meaning of a rain variable from its `cell_methods` and the attributes of its file."""
    if "mean" not in time_methods(cell_methods):
        return Meaning("momentary", from_reflectivity=ZR_FROM in attrs)
    return Meaning("mean", float(attrs.get(ACCUMULATION_MINUTES, step_minutes)))


LEAST_PIXEL_KM, LARGEST_PIXEL_KM = 0.01, 900.0
"""Beyond these sizes of pixels, coordinates are in another unit: X-band radars have 50 m, weather models 2.5°."""
FORWARD, BACKWARD = slice(None), slice(None, None, -1)
KM_PER_DEGREE = 111.2
"""Kilometres per degree of latitude: 6371 km · π / 180."""


@dataclass(frozen=True, eq=False, repr=False)
class Grid:
    """The position of an image on Earth.

    `y` and `x` are the pixel centres, shapes (H,) and (W,), in metres of the projection `crs_wkt`, or in degrees
    if it is geographic. Either direction is allowed; the spacing is constant.
    """

    y: npt.NDArray[np.float64]
    x: npt.NDArray[np.float64]
    crs_wkt: str

    def __repr__(self) -> str:
        """Return the number and size of the pixels in one line."""
        height, width = self.shape
        return f"Grid({height} × {width} pixels of {self.pixel_km:g} km)"

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.y.size, self.x.size

    def same_as(self, other: "Grid") -> bool:
        """Return True if both have the same pixels on Earth, within a tenth of a pixel.

        Services restate their projection over the years (an Earth radius of 6378.14 or 6378.137 km), so the
        positions of the corners are compared. Longitudes are compared modulo 360.
        """
        if self.shape != other.shape:
            return False
        corners = [np.stack(np.meshgrid(g.x[[0, -1]], g.y[[0, -1]])) for g in (self, other)]
        if self.crs_wkt != other.crs_wkt:
            from pyproj import Transformer
            from pyproj.exceptions import ProjError

            try:
                to_own = Transformer.from_crs(other.crs_wkt, self.crs_wkt, always_xy=True)
            except ProjError:  # there is no transformation between them
                return False
            corners[1] = np.stack(to_own.transform(*corners[1]))
        pixel = min(_spacing(self.y), _spacing(self.x))
        dx, dy = corners[0] - corners[1]
        if np.abs(dx).max() > 180 and is_geographic(self.crs_wkt):
            dx -= 360 * np.rint(dx / 360)
        return bool(np.hypot(dx, dy).max() <= 0.1 * pixel)

    def turn_to(self, other: "Grid") -> tuple[slice, slice] | None:
        """Return the slices that put an image on this grid in the order of `other`: `image[..., rows, columns]`.

        None if the pixels differ. Grids with south first and north first have the same pixels.
        """
        for rows, columns in itertools.product((FORWARD, BACKWARD), repeat=2):
            if Grid(self.y[rows], self.x[columns], self.crs_wkt).same_as(other):
                return rows, columns
        return None

    def near(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Wrap longitudes `x` to within 180° of this grid's middle; coordinates in metres are unchanged."""
        if not is_geographic(self.crs_wkt):
            return x
        middle = 0.5 * (self.x[0] + self.x[-1])
        turned: npt.NDArray[np.float64] = x - 360 * np.rint((x - middle) / 360)
        return turned

    def crop(self, y: int, x: int, height: int, width: int) -> "Grid":
        """Return the part of `height` × `width` pixels whose top-left pixel is (y, x)."""
        return Grid(self.y[y : y + height], self.x[x : x + width], self.crs_wkt)

    @property
    def pixel_km(self) -> float:
        """The height of a pixel in km, which is (nearly) its width too; 1 if there is only one row."""
        size = abs(self.y[-1] - self.y[0]) / max(1, self.y.size - 1)
        return float(size * KM_PER_DEGREE if is_geographic(self.crs_wkt) else size / 1000.0) or 1.0

    def to_coords(self) -> dict[str, Any]:
        """Return the coordinates y and x and the grid-mapping variable for a CF file."""
        y_attrs, x_attrs = axis_attrs(self.crs_wkt)
        return {
            Y: (Y, self.y, y_attrs),
            X: (X, self.x, x_attrs),
            CRS: ((), np.int32(0), mapping_attrs(self.crs_wkt)),
        }


def _spacing(axis: npt.NDArray[np.float64]) -> float:
    return float(abs(axis[-1] - axis[0]) / (axis.size - 1)) if axis.size > 1 else 1.0


def rain_dataset(
    rain: npt.NDArray[np.float32],
    times: npt.NDArray[np.datetime64],
    grid: Grid,
    *,
    step_minutes: float,
    cell_methods: str,
    attrs: dict[str, Any] | None = None,
) -> xr.Dataset:
    """Return frames of rain as a Dataset that fulfils the archive contract.

    `rain` is (time, y, x) in mm/h with NaN for missing; `cell_methods` is "time: point" for instantaneous rates
    and "time: mean" for means over the step that ends at the valid time.
    """
    rain_attrs = RAIN_ATTRS | {"grid_mapping": CRS, "cell_methods": cell_methods}
    times = times.astype("datetime64[ns]")
    step = step_timedelta(step_minutes)
    dataset = xr.Dataset(
        {RAIN: ((TIME, Y, X), rain.astype(np.float32, copy=False), rain_attrs)},
        coords={TIME: (TIME, times, TIME_ATTRS), **grid.to_coords()},
        attrs={"Conventions": CONVENTIONS, STEP_MINUTES: float(step_minutes)} | (attrs or {}),
    )
    missing = missing_times(times, step)
    return dataset.assign_coords(
        {MISSING_TIMES: (MISSING_TIMES, missing, {"long_name": "times of the step that have no frame"})}
    )


def parse_utc(time: object) -> np.datetime64:
    """Return a datetime64, or a time as ISO 8601 text, in ns; UTC unless the text states an offset (+02:00).

    Raises ValueError for anything else, and outside the years 1678 to 2261. (numpy reads 20150728 as a year, which
    wraps around, and `today` as a time.)
    """
    if isinstance(time, np.datetime64):
        moment: np.datetime64 = time.astype("datetime64[ns]")
        return moment
    text = str(time).strip()
    try:
        parsed = datetime.fromisoformat(text if len(text) > 7 else f"{text}-01-01"[:10])
    except ValueError as error:
        raise ValueError(f"{text!r} is not a date; write 2015-07-28 or 2015-07-28T06:00 (UTC).") from error
    if not 1678 <= parsed.year <= 2261:
        raise ValueError(f"{text!r} is outside the years 1678 to 2261.")
    if parsed.tzinfo is not None:
        parsed = parsed.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(parsed, "ns")


def step_timedelta(step_minutes: float) -> np.timedelta64:
    """Return the step as a timedelta64 in ns."""
    return np.timedelta64(round(step_minutes * 60e9), "ns")


def missing_times(times: npt.NDArray[np.datetime64], step: np.timedelta64) -> npt.NDArray[np.datetime64]:
    """Return the times of the step between the first and the last of `times` (ascending) that are not in it."""
    if times.size < 2:
        return times[:0]
    due = np.arange(times[0], times[-1] + step, step)
    return np.setdiff1d(due, times)


def regular_part(dataset: xr.Dataset) -> xr.Dataset:
    """Return `dataset` from its `consistent_timestep_start` on, if stated; earlier frames have another step."""
    start = dataset.attrs.get(REGULAR_START)
    if start is None or TIME not in dataset.variables:
        return dataset
    times = dataset[TIME].values
    first = int(np.searchsorted(times, parse_utc(start).astype(times.dtype)))
    return dataset.isel({TIME: slice(first, None)}) if first else dataset


def continuous_longitudes(dataset: xr.Dataset) -> xr.Dataset:
    """Return `dataset` with longitudes that are continuous across the date line (179.9, 180.1)."""
    x = dataset.variables.get(X)
    if x is None or x.ndim != 1 or not str(x.attrs.get("units", "")).startswith("degree") or x.size < 2:
        return dataset
    values = x.values.astype(np.float64)
    if np.abs(np.diff(values)).max() <= 180:
        return dataset
    continuous = dataset.assign_coords({X: (X, np.unwrap(values, period=360), x.attrs)})
    continuous.set_close(dataset.close)
    return continuous


def rain_variables(dataset: xr.Dataset, *, members: bool = False) -> list[str]:
    """Return the names of the rain rates with or without a dimension of members, by standard_name and units."""
    return [
        str(name)
        for name, variable in dataset.data_vars.items()
        if variable.attrs.get("standard_name") in RAIN_STANDARD_NAMES
        and unit_of(variable.attrs.get("units"), RATE) is not None
        and (member_dimension(dataset, str(name)) is not None) == members
    ]


def find_rain_variable(dataset: xr.Dataset) -> str:
    """Return the name of the rain-rate variable, by its standard_name and units, ignoring ensemble members.

    Raises ValueError if there is none or more than one.
    """
    found = rain_variables(dataset)
    if len(found) == 1:
        return found[0]
    listing = "; ".join(
        f"{name} (standard_name={v.attrs.get('standard_name')}, units={v.attrs.get('units')})"
        for name, v in dataset.data_vars.items()
    )
    problem = "No variable is" if not found else f"{len(found)} variables ({', '.join(found)}) are"
    raise ValueError(
        f"{problem} a rain rate: standard_name one of {', '.join(RAIN_STANDARD_NAMES)} and units such as "
        f"{', '.join(EXAMPLES[RATE])}. Found: {listing or 'no variables'}. Rewrite the file with: "
        "python ingest.py source=cf source.variable=NAME files=… archive=… (source.units=mm/h if it has no units)"
    )


def find_member_variable(dataset: xr.Dataset) -> str | None:
    """Return the name of the rain-rate variable of an ensemble: one that has a dimension of realizations, or None.

    Raises ValueError if there are more than one.
    """
    found = rain_variables(dataset, members=True)
    if len(found) > 1:
        raise ValueError(f"{len(found)} variables ({', '.join(found)}) are rain rates of members: keep one.")
    return found[0] if found else None


def member_dimension(dataset: xr.Dataset, variable: str) -> str | None:
    """Return the dimension of a variable whose coordinate is a realization, or None."""
    for dim in dataset[variable].dims:
        if dim in dataset.coords and dataset[dim].attrs.get("standard_name") == "realization":
            return str(dim)
    return None


def mm_h_per(units: Any) -> float:
    """Return the factor from `units` to mm/h. Raises ValueError if it is not a unit of rain rate."""
    unit = unit_of(units, RATE)
    if unit is None:
        raise ValueError(
            f"{units!r} is not a unit of rain rate: raincast knows {', '.join(EXAMPLES[RATE])} and similar units"
        )
    return unit.factor


def find_crs_wkt(dataset: xr.Dataset, variable: str) -> str | None:
    """Return the projection of `variable` as WKT, from its grid mapping, or WGS 84 for lat/lon axes, else None."""
    definition = find_crs(dataset, variable)
    return None if definition is None else crs_in_metres(definition)[0]


def find_crs(dataset: xr.Dataset, variable: str) -> Any:
    """Return the projection of `variable` as stated: text, CF attributes, or None."""
    mapping = dataset[variable].attrs.get("grid_mapping") or dataset[variable].encoding.get("grid_mapping")
    if mapping in dataset.variables:
        attrs = dataset[mapping].attrs
        if wkt := attrs.get("crs_wkt") or attrs.get("spatial_ref"):
            return str(wkt)
        if "grid_mapping_name" in attrs:
            return attrs
    is_lat_lon = Y in dataset.variables and dataset[Y].attrs.get("units") == "degrees_north"
    return "EPSG:4326" if is_lat_lon else None


def grid_of(dataset: xr.Dataset, variable: str = RAIN) -> Grid:
    """Return the grid of `variable`, in metres or degrees. Raises ValueError as `grid_on`."""
    return grid_on(dataset[Y], dataset[X], find_crs(dataset, variable))


def grid_on(y: xr.DataArray, x: xr.DataArray, definition: Any, *, remedy: str = "") -> Grid:
    """Return the grid of two coordinates, in metres or degrees, by a projection (see `projection.crs_in_metres`).

    Coordinates without units are in the unit of the projection. Raises ValueError, with `remedy`, if units and
    projection contradict each other, and for pixels of a size that no image of rain has.
    """
    units = [str(axis.attrs.get("units", "")).strip().lower() for axis in (y, x)]
    if isinstance(definition, dict) and METRES.get(units[1].removesuffix("s")) == 1000.0:
        definition = definition | _false_origin(definition)
    wkt, of_crs = crs_in_metres(definition)
    in_degrees = is_geographic(wkt)
    values = [axis.values.astype(np.float64) for axis in (y, x)]
    fits = any(unit.startswith("degree") for unit in units) is in_degrees
    if not fits and not (in_degrees and units == ["", ""] and np.abs(values[0]).max(initial=0) <= 90):
        listed = ", ".join(map(repr, units))
        raise ValueError(f"its coordinates are in {listed}, but its projection is {wkt[:60]}…{remedy}")
    if in_degrees:
        values[1] = np.unwrap(values[1], period=360)  # some files jump at the date line
    for axis, unit, own in zip((Y, X), units, values, strict=True):
        if not in_degrees and unit and unit.removesuffix("s") not in METRES:
            raise ValueError(
                f"the coordinate {axis} is in {unit!r}; raincast knows {', '.join(METRES)} and degrees"
            )
        if not in_degrees:
            own *= METRES.get(unit.removesuffix("s"), of_crs)
    grid = Grid(values[0], values[1], wkt)
    check_spacing(grid, units)
    return grid


def check_spacing(grid: Grid, units: Sequence[str] = ("", "")) -> None:
    """Raise ValueError for pixels of a size that no image of rain has; `units` are the file's for y and x."""
    factor = KM_PER_DEGREE if is_geographic(grid.crs_wkt) else 1e-3
    for name, axis, unit in zip((Y, X), (grid.y, grid.x), units, strict=True):
        km = _spacing(axis) * factor
        if axis.size > 1 and not LEAST_PIXEL_KM <= km <= LARGEST_PIXEL_KM:
            raise ValueError(
                f"the coordinate {name} has steps of {km:.3g} km: it is not in {unit or 'metres'}. State its unit "
                f"in the file ({', '.join(METRES)} or degrees)"
            )


def _false_origin(mapping: Mapping[str, Any]) -> dict[str, float]:
    """Return the false origin of CF attributes in metres, for coordinates in km.

    CF gives both in one unit, but some files state the false origin in metres: no projection has one of less than
    20 km, and none on Earth has one of more than 20,000 km.
    """
    origin = {name: float(mapping[name]) for name in ("false_easting", "false_northing") if name in mapping}
    return {name: 1000.0 * value if abs(value) < 20_000 else value for name, value in origin.items()}


def check_archive(dataset: xr.Dataset, name: str = "dataset") -> None:
    """Raise one ValueError that lists all violations of the archive contract by `dataset`.

    The contract: one rain-rate variable with dimensions (time, y, x) and known units; strictly ascending times on
    a regular step, which the attribute `step_minutes` states (or the times show); evenly spaced y and x; a
    projection.
    """
    problems: list[str] = []
    remedy = "Convert the files to an archive with: python ingest.py source=auto files=… archive=…"
    try:
        variable = find_rain_variable(dataset)
    except ValueError as error:
        remedy = ""  # the error has its own
        problems.append(str(error))
    else:
        dims = dataset[variable].dims
        if dims != (TIME, Y, X):
            problems.append(f"{variable} has dimensions {dims}, not ('time', 'y', 'x').")
        try:
            check_cell_methods(dataset[variable].attrs.get("cell_methods"), variable)
        except ValueError as error:
            problems.append(str(error))
        try:
            if find_crs(dataset, variable) is None:
                problems.append(f"{variable} has no grid_mapping with crs_wkt: its position on Earth is unknown.")
            elif {Y, X} <= dataset.variables.keys():
                grid_of(dataset, variable)
        except ValueError as error:
            problems.append(f"{error}.")
    problems += _time_problems(dataset) + _axis_problems(dataset)
    if problems:
        listed = "\n  - ".join(problems)
        raise ValueError(f"{name} is not an archive that raincast can read:\n  - {listed}\n{remedy}".rstrip())


def _time_problems(dataset: xr.Dataset) -> list[str]:
    if TIME not in dataset.variables:
        return ["There is no coordinate 'time'."]
    times = dataset[TIME].values
    if not np.issubdtype(times.dtype, np.datetime64):
        return [f"'time' is {times.dtype}, not decodable as CF time."]
    if times.size == 0:
        return ["It has no frames."]
    gaps = np.diff(times)
    if (gaps <= np.timedelta64(0)).any():
        at = times[1:][gaps <= np.timedelta64(0)][0]
        return [f"Times are not ascending, or repeat, at {at}."]
    try:
        step_minutes = find_step_minutes(dataset)
    except ValueError as error:
        return [str(error)]
    off = (times - times[0]) % step_timedelta(step_minutes) != np.timedelta64(0)
    if not off.any():
        return []
    first = np.datetime_as_string(times[off][0], unit="s")
    return [f"{off.sum()} times are off the step of {step_minutes:g} min, the first {first}."]


def _axis_problems(dataset: xr.Dataset) -> list[str]:
    problems = []
    for axis in (Y, X):
        if axis not in dataset.variables:
            problems.append(f"There is no coordinate '{axis}' (found: {', '.join(map(str, dataset.coords))}).")
            continue
        values = dataset[axis].values.astype(np.float64)
        differences = np.diff(values)
        even = np.allclose(differences, differences.mean(), rtol=1e-3) if differences.size else True
        if not even or (differences == 0).any():
            problems.append(f"'{axis}' is not evenly spaced: {differences.min()} to {differences.max()}.")
    return problems


def find_step_minutes(dataset: xr.Dataset) -> float:
    """Return the step in minutes: the attribute `step_minutes`, else the most frequent gap between times.

    Raises ValueError for one frame without the attribute.
    """
    if STEP_MINUTES in dataset.attrs:
        return float(dataset.attrs[STEP_MINUTES])
    times = dataset[TIME].values
    if times.size < 2:
        raise ValueError("One frame and no attribute 'step_minutes': the step is unknown.")
    gaps, counts = np.unique(np.diff(times), return_counts=True)
    return float(gaps[counts.argmax()] / np.timedelta64(1, "m"))


MOCK_CRS_PROJ = "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 +ellps=WGS84 +units=m +no_defs"


def mock_grid(height: int = 12, width: int = 10) -> Grid:
    """Return a small 1 km polar-stereographic grid near 52° N."""
    from pyproj import CRS as ProjCRS

    return Grid(
        y=-4_000_000.0 - 1000.0 * np.arange(height, dtype=np.float64),
        x=-300_000.0 + 1000.0 * np.arange(width, dtype=np.float64),
        crs_wkt=ProjCRS.from_proj4(MOCK_CRS_PROJ).to_wkt(),
    )


def mock_archive(
    num_times: int = 24,
    height: int = 12,
    width: int = 10,
    *,
    start: str = "2026-01-01T00:00",
    step_minutes: float = 5.0,
    missing: tuple[int, ...] = (),
    seed: int = 0,
) -> xr.Dataset:
    """Return a small Dataset that fulfils the archive contract, with random rain; `missing` are frame numbers."""
    rng = np.random.default_rng(seed)
    rain = np.round(rng.gamma(0.3, 4.0, (num_times, height, width)), 2).astype(np.float32)
    rain[:, :2, :2] = np.nan
    times = np.datetime64(start, "ns") + step_timedelta(step_minutes) * np.arange(num_times)
    keep = np.setdiff1d(np.arange(num_times), missing)
    return rain_dataset(
        rain[keep],
        times[keep],
        mock_grid(height, width),
        step_minutes=step_minutes,
        cell_methods="time: mean",
        attrs={"source": "mock", "title": "mock archive"},
    )
