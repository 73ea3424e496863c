"""Precipitation of a weather model, from CF netCDF of any grid: runs, rates in mm/h, and their times."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.find import find_files
from raincast.archive.head import open_packed, open_plain
from raincast.archive.packing import Packing
from raincast.archive.rates import drop_absurd
from raincast.archive.times import MINUTES_PER, stated_minutes
from raincast.forecasting.regrid import Regrid, Scattered
from raincast.ingest.readers import naming
from raincast.ingest.readers.cf import CF
from raincast.ingest.readers.common.axes import find_grid, find_roles, in_our_words
from raincast.schema import TIME, Grid, X, Y, time_methods
from raincast.system.files import sight_of
from raincast.units import ACCUMULATION, REFLECTIVITY, Unit, unit_of

log = logging.getLogger(__name__)

Times = npt.NDArray[np.datetime64]
Maps = npt.NDArray[np.float32]
FORMAT = "a weather model's CF netCDF"
MEMBER = "member"
MEMBER_NAMES = ("member", "realization", "ensemble_member", "ensemble", "number", "ens", "eps")
SINCE_RUN, SINCE_STEP = "run", "step"
DECREASE_MM, DECREASE_SHARE = 0.05, 0.01
"""Decrease of a sum since the run's start that rounding in storage explains: in mm, and as a share of the sum."""
FIRST, MORE = "first", 3
BOUNDS = "time_bounds_of_period"
SECOND, HOUR = np.timedelta64(1, "s"), np.timedelta64(1, "h")
MOST_APART = np.timedelta64(3, "h")
"""Longest interval between instantaneous rates; longer ones cannot be interpolated."""


class NoRun(ValueError):
    """No run of the model can be used for a forecast."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Settings for reading files of a weather model; conf/forecast.yaml explains each field."""

    variable: str | None = None
    units: str | None = None
    crs: str | None = None
    accumulated: str | None = None
    run_time: str | None = None
    delay_minutes: float = 0.0
    corrected: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for values that no file can have."""
        if self.accumulated not in (None, SINCE_RUN, SINCE_STEP):
            raise ValueError(f"blending.accumulated={self.accumulated}: choose {SINCE_RUN}, {SINCE_STEP} or null.")
        if self.delay_minutes < 0:
            raise ValueError(f"blending.delay_minutes={self.delay_minutes}: give 0 or more.")
        with _in_our_keys():
            self.reader()

    def reader(self) -> CF:
        """Return the reader that chooses the variable and its unit."""
        return CF(variable=self.variable, units=self.units, crs=self.crs)


@contextmanager
def _in_our_keys() -> Iterator[None]:
    """Rename the keys in the CF reader's error messages to those of blending."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("source.", "blending.")) from error


@dataclass(frozen=True, eq=False)
class Part:
    """The part of a run in one file: the ends of its periods, (T,) UTC.

    `number` is the index of the run in the file. `member` is the file's ensemble member; None if the file has all
    members.
    """

    path: Path
    number: int
    run_time: np.datetime64
    ends: Times
    member: int | None


@dataclass(frozen=True, eq=False)
class Values:
    """Stored values (N, T, h, w) of the periods from `starts` (NaT: not stated) to `ends`.

    A period with equal times is an instant. Values are in mm if `depth`, otherwise in mm/h.
    """

    values: Maps
    starts: Times
    ends: Times
    depth: bool
    place: Grid | Scattered


@dataclass(frozen=True, eq=False)
class ModelForecast:
    """Model rates (N, T, H, W) in mm/h on a radar's grid, and their origin."""

    rates: Maps
    run_time: np.datetime64
    variable: str
    files: tuple[str, ...]


class WeatherModel:
    """The runs in `files` (file, folder, glob or list), listed anew for each forecast, read with `settings`."""

    def __init__(self, files: str | Path | Sequence[str | Path], settings: ModelSettings | None = None) -> None:
        self.files, self.settings = files, settings or ModelSettings()
        self._known: dict[tuple[str, int], list[Part]] = {}
        self._variable = ""

    def forecast(self, times: Times, grid: Grid, needed: npt.NDArray[np.bool_]) -> ModelForecast:
        """Return the newest run available at `times[0]`, at all `times` (ascending, UTC) on `grid`.

        The run must cover the pixels `needed` (H, W); others may be NaN. Raises NoRun if no run was available, or
        none covers the times or the pixels.
        """
        runs = self._runs()
        due = times[0] - np.timedelta64(round(self.settings.delay_minutes * 60), "s")
        there = sorted((time for time in runs if time <= due), reverse=True)
        if not there:
            late = f" {self.settings.delay_minutes:g} min (blending.delay_minutes)" if times[0] > due else ""
            raise NoRun(
                f"nwp={self.files}: no run was there{late} before {_text(times[0])}. Found: {_listing([*runs])}."
            )
        lacking: list[str] = []
        for run_time in there:
            values = self._read(runs[run_time], times)
            if isinstance(values, str):
                lacking.append(f"that of {_text(run_time)} {values}")
                continue
            if lacking:
                log.warning("The run of %s is blended: %s.", _text(run_time), "; ".join(lacking))
            made = _on_grid(values, times, grid, needed, f"nwp={self.files}")
            names = tuple(sorted({part.path.name for part in runs[run_time]}))
            return ModelForecast(made, run_time, self._variable, names)
        raise NoRun(
            f"nwp={self.files}: no run covers {_text(times[0])} to {_text(times[-1])}: {'; '.join(lacking)}. Give "
            "files that do, or a smaller lead_steps."
        )

    def _runs(self) -> dict[np.datetime64, list[Part]]:
        runs: dict[np.datetime64, list[Part]] = {}
        for path in find_files(self.files, "nwp"):
            key = str(path), sight_of(path)
            if key not in self._known:
                self._known[key] = self._scan(path)
            for part in self._known[key]:
                runs.setdefault(part.run_time, []).append(part)
        return runs

    def _scan(self, path: Path) -> list[Part]:
        with self._open(path) as (runs, name, unit):
            depth = unit.quantity == ACCUMULATION
            return [
                Part(path, number, run_time, _periods(dataset, dataset[name], depth)[1], _scalar_member(dataset))
                for number, (run_time, dataset) in enumerate(runs)
            ]

    @contextmanager
    def _open(self, path: Path) -> Iterator[tuple[list[tuple[np.datetime64, xr.Dataset]], str, Unit]]:
        """Yield the runs in a file, by valid time, and the name and unit of their precipitation."""
        with naming(path, FORMAT), _in_our_keys(), ExitStack() as stack:
            dataset = _with_members(stack.enter_context(open_plain(path, decode_timedelta=True)))
            first = next(_by_run(dataset))[1]
            one = first.isel({MEMBER: 0}, drop=True) if MEMBER in first.dims else first
            reader = self.settings.reader()
            name, quantity = reader.choose(one)
            schema.check_cell_methods(one[name].attrs.get("cell_methods"), name)
            stack.close()
            # xarray knows neither netCDF's default fill values nor valid ranges
            dataset = _with_members(stack.enter_context(open_packed(path, name, decode_timedelta=True)))
            runs = [(self._run_time(run, part), part) for run, part in _by_run(dataset)]
            if quantity == REFLECTIVITY:
                raise ValueError(
                    f"{name} is a reflectivity, no precipitation. Name that with source.variable=NAME"
                )
            unit = unit_of(reader.unit_text(one[name]), quantity)
            assert unit is not None
            Packing.of(dataset[name])  # raises ValueError for invalid packing attributes
            self._variable = name
            yield runs, name, unit

    def _run_time(self, found: np.datetime64 | None, dataset: xr.Dataset) -> np.datetime64:
        if found is not None:
            return _moment(found)
        stated = self.settings.run_time
        if stated is None:
            raise ValueError(
                "it states no run time (forecast_reference_time). Give it with "
                "blending.run_time=2026-01-31T06:00, or blending.run_time=first if that is the first time in it"
            )
        if stated != FIRST:
            try:
                return schema.parse_utc(stated)
            except ValueError as error:
                raise ValueError(f"blending.run_time: {error}") from error
        times: Times = np.atleast_1d(dataset[TIME].values).astype("datetime64[ns]")
        return _moment(times.min())

    def _read(self, parts: list[Part], times: Times) -> Values | str:
        """Return the rates of a run around `times` in mm/h, or the reason why it does not cover them."""
        by_member: dict[int | None, list[Part]] = {}
        for part in parts:
            by_member.setdefault(part.member, []).append(part)
        found = [self._read_member(own, times) for own in by_member.values()]
        if reason := next((one for one in found if isinstance(one, str)), None):
            return reason
        read = [one for one in found if isinstance(one, Values)]
        for other in read[1:]:
            if not (np.array_equal(other.ends, read[0].ends) and _same_place(other.place, read[0].place)):
                raise NoRun(
                    f"nwp={self.files}: the members of {_text(parts[0].run_time)} differ in times or grid."
                )
        return replace(read[0], values=np.concatenate([one.values for one in read]))

    def _read_member(self, parts: list[Part], times: Times) -> Values | str:
        ends = np.sort(np.concatenate([part.ends for part in parts]))
        if (np.diff(ends) == np.timedelta64(0)).any():
            raise NoRun(
                f"nwp={self.files}: the run of {_text(parts[0].run_time)} has a time twice, in "
                f"{', '.join(sorted({part.path.name for part in parts})[:4])}: give each file once, of one model."
            )
        if ends[-1] < times[-1]:
            return f"ends at {_text(ends[-1])}"
        # a few more on either side: for differences, between the middles of periods, and to see what sums are
        low = ends[max(0, np.searchsorted(ends, times[0], side="right") - MORE)]
        high = ends[min(ends.size - 1, np.searchsorted(ends, times[-1], side="left") + MORE)]
        due = [part for part in parts if ((part.ends >= low) & (part.ends <= high)).any()]
        read = [self._read_part(part, low, high) for part in due]
        if not all(_same_place(one.place, read[0].place) and one.depth == read[0].depth for one in read):
            raise NoRun(
                f"nwp={self.files}: the files of {_text(parts[0].run_time)} are on two grids, or of two units."
            )
        order = np.argsort(np.concatenate([one.ends for one in read]), kind="stable")
        joined = Values(
            np.concatenate([one.values for one in read], axis=1)[:, order],
            np.concatenate([one.starts for one in read])[order],
            np.concatenate([one.ends for one in read])[order],
            read[0].depth,
            read[0].place,
        )
        begins_here = bool(joined.ends[0] == ends[0])
        return _covering(self._as_rates(joined, parts[0], begins_here), times)

    def _read_part(self, part: Part, low: np.datetime64, high: np.datetime64) -> Values:
        with self._open(part.path) as (runs, name, unit):
            dataset = runs[part.number][1]
            field = dataset[name]
            depth = unit.quantity == ACCUMULATION
            starts, ends = _periods(dataset, field, depth)
            if np.isnat(starts).all():
                starts = self._stated_starts(dataset, field, ends, depth)
            own = (ends >= low) & (ends <= high)
            place, values = _stored(dataset, field, own, self.settings.crs, f"{part.path.name}, {name}")
            values *= np.float32(unit.factor)
            values[(values < 0) & (values >= -DECREASE_MM)] = 0  # rounding
            for member in values:
                drop_absurd(member, part.path, ends[own])
            return Values(values, starts[own], ends[own], depth, place)

    def _stated_starts(self, dataset: xr.Dataset, field: xr.DataArray, ends: Times, depth: bool) -> Times:
        """Return the starts of the periods by the attributes of the file; NaT if they are not stated."""
        if self.settings.accumulated is not None:
            return np.full(ends.shape, np.datetime64("NaT"), "datetime64[ns]")
        minutes = stated_minutes(field.attrs, dataset.attrs, is_depth=depth)
        span = np.timedelta64("NaT") if minutes is None else np.timedelta64(round(60 * minutes), "s")
        return (ends - span).astype("datetime64[ns]")

    def _as_rates(self, given: Values, part: Part, begins_here: bool) -> Values:
        """Convert to mm/h over each value's own period. `begins_here`: the first value is the first of its run."""
        starts, ends, values = given.starts.copy(), given.ends, given.values
        kind = self.settings.accumulated
        if np.isnat(starts).any():
            if kind is None:
                kind = self._guessed(given, part)
            starts[:] = part.run_time
            if kind == SINCE_STEP:
                starts[1:] = ends[:-1]
        if (starts == ends).all() and not given.depth:
            return replace(given, starts=starts)
        hours = ((ends - starts) / HOUR).astype(np.float32)
        sums = values if given.depth else values * hours[:, None, None]
        # sums since one time, that of the run or of each bucket of some hours
        continues = (starts[1:] == starts[:-1]) & (ends[:-1] > starts[:-1])
        if continues.any():
            sums, starts = _differences(sums, starts, ends, continues, part)
        if not begins_here and (continues.any() or kind == SINCE_STEP):
            sums, starts, ends = sums[:, 1:], starts[1:], ends[1:]
        counts = ends > starts  # not the sum of 0 at the run's own time
        hours = ((ends - starts) / HOUR).astype(np.float32)[counts]
        rates = np.maximum(sums[:, counts] / hours[:, None, None], 0)
        return Values(rates, starts[counts], ends[counts], False, given.place)

    def _guessed(self, given: Values, part: Part) -> str:
        """Guess the kind of depths: sums since the start if they never fall, with rain in three of them."""
        values, what = given.values, "depths" if given.depth else "means"
        rises = (values[:, 1:] - values[:, :-1]) >= -_slack(values[:, 1:])
        wet = (values > 0).any(axis=(0, 2, 3)).sum()
        if given.depth and rises.all() and wet >= 3:
            log.warning(
                "%s does not say over which time its depths are: they never fall, so they are taken for sums "
                "since the run's start. Say so with blending.accumulated=run, or else blending.accumulated=step.",
                part.path,
            )
            return SINCE_RUN
        raise ValueError(
            f"{part.path} does not say over which time its {what} are (time bounds). Give "
            "blending.accumulated=run (since the run's start) or blending.accumulated=step (since the one before)."
        )


def _slack(values: Maps) -> Maps:
    return np.asarray(DECREASE_MM + DECREASE_SHARE * np.abs(values))


def _differences(
    sums: Maps, starts: Times, ends: Times, continues: npt.NDArray[np.bool_], part: Part
) -> tuple[Maps, Times]:
    """Return the sums of each step, and their starts, from sums since `starts`.

    `continues` (T − 1,) is True where a sum is since the same time as the one before.
    Raises ValueError if sums fall.
    """
    steps = sums.copy()
    steps[:, 1:][:, continues] -= sums[:, :-1][:, continues]
    fallen = steps < -_slack(sums)
    if fallen.any():
        raise ValueError(
            f"{part.path}: its depths since {_text(starts[0])} fall with time, by up to {-np.nanmin(steps):.3g} "
            "mm. If they are not sums since the run's start, say blending.accumulated=step."
        )
    own_starts = starts.copy()
    own_starts[1:][continues] = ends[:-1][continues]
    return np.maximum(steps, 0), own_starts


def _covering(rates: Values, times: Times) -> Values | str:
    """Return `rates`, or the reason why they do not cover `times`."""
    starts, ends = rates.starts, rates.ends
    if not ends.size or starts[0] > times[0]:
        return f"begins at {_text(starts[0])}" if ends.size else "has no period"
    apart = starts[1:] - ends[:-1]
    if (starts == ends).all():
        if (apart > MOST_APART).any():
            return f"lacks the times after {_text(ends[:-1][apart > MOST_APART][0])}"
    elif (np.abs(apart) > SECOND).any():
        return f"lacks the period after {_text(ends[:-1][np.abs(apart) > SECOND][0])}"
    return rates


def _on_grid(rates: Values, times: Times, grid: Grid, needed: npt.NDArray[np.bool_], source: str) -> Maps:
    """Interpolate rates to `times` on `grid`, linearly between the middles of periods: (N, L, H, W)."""
    regrid = Regrid(rates.place, grid)
    middles = (rates.starts + (rates.ends - rates.starts) / 2 - times[0]) / SECOND
    wanted = (times - times[0]) / SECOND
    after = np.clip(np.searchsorted(middles, wanted), 1, max(1, middles.size - 1))
    before = after - 1
    if middles.size == 1:
        after = before
    span = np.maximum(middles[after] - middles[before], 1.0)
    weight = np.clip((wanted - middles[before]) / span, 0, 1).astype(np.float32)
    used = np.unique(np.concatenate([before, after]))
    made = np.empty((len(rates.values), times.size, *grid.shape), np.float32)
    for member, own in enumerate(rates.values):
        maps = {int(number): regrid(own[number]) for number in used}
        for lead, (low, high, share) in enumerate(zip(before, after, weight, strict=True)):
            made[member, lead] = (1 - share) * maps[int(low)] + share * maps[int(high)]
    lacks = ~np.isfinite(made).all(axis=(0, 1))
    if (lacks & needed).any():
        share = (lacks & needed).sum() / needed.sum()
        raise NoRun(
            f"{source} does not cover the radar: of {share:.1%} of the pixels that it sees the model says "
            "nothing. Give a model of the whole region, or crop the radar's grid (python ingest.py … grid.crop=…)."
        )
    made[:, :, lacks] = np.nan
    return made


def _with_members(dataset: xr.Dataset) -> xr.Dataset:
    """Return `dataset` with its ensemble dimension, if it has one, renamed to `MEMBER`."""
    for dim in map(str, dataset.dims):
        attrs = dataset[dim].attrs if dim in dataset.variables else {}
        if attrs.get("standard_name") == "realization" or dim.lower() in MEMBER_NAMES:
            return dataset if dim == MEMBER else dataset.rename({dim: MEMBER})
    return dataset


def _scalar_member(dataset: xr.Dataset) -> int | None:
    """Return the number of the file's ensemble member; None if it does not state one."""
    for name, variable in dataset.coords.items():
        is_one = variable.ndim == 0 and variable.dtype.kind in "iu"
        if is_one and (variable.attrs.get("standard_name") == "realization" or str(name).lower() in MEMBER_NAMES):
            return int(variable)
    return None


def _by_run(dataset: xr.Dataset) -> Iterator[tuple[np.datetime64 | None, xr.Dataset]]:
    """Yield the runs of a file with their run times (None if not stated), each with valid times.

    Two layouts are known: valid times (time) with one run time or one per valid time, and lead times
    (forecast_period) of one run, or of several runs along a dimension.
    """
    named = {str(variable.attrs.get("standard_name")): str(name) for name, variable in dataset.variables.items()}
    reference, period = named.get("forecast_reference_time"), named.get("forecast_period")
    if reference is None or dataset[reference].dtype.kind != "M":
        yield None, dataset
        return
    run_times = dataset[reference]
    if period is None or dataset[period].ndim == 0:
        if run_times.ndim == 0:
            yield _moment(run_times.values[()]), dataset.drop_vars(reference)
            return
        (dim,) = run_times.dims
        for run_time in np.unique(run_times.values):
            own = np.flatnonzero(run_times.values == run_time)
            yield run_time, dataset.isel({dim: own}).drop_vars(reference)
        return
    (along,) = dataset[period].dims
    if dataset[along].dtype.kind == "M" and run_times.ndim == 0:  # valid times, and leads beside them
        yield _moment(run_times.values[()]), dataset.drop_vars([reference, period])
        return
    for number in range(run_times.size):
        run = dataset.isel({run_times.dims[0]: number}) if run_times.ndim else dataset
        run_time = _moment(run[reference].values[()])
        yield run_time, _by_valid_time(run, run_time, period)


def _by_valid_time(dataset: xr.Dataset, run_time: np.datetime64, period: str) -> xr.Dataset:
    """Replace the lead times of one run by valid times."""
    leads = dataset[period]
    (along,) = leads.dims
    attrs: dict[str, Any] = {"standard_name": "time", "axis": "T"}
    bounds = dataset.variables.get(leads.attrs.get("bounds", ""))
    times = [name for name, variable in dataset.variables.items() if variable.dtype.kind == "M"]
    # a period that is no dimension of its own goes, too
    plain = dataset.drop_vars([*times, period])
    plain = plain if along == TIME else plain.rename({along: TIME})
    coords: dict[str, Any] = {TIME: (TIME, run_time + _as_span(leads.variable, leads.variable), attrs)}
    if bounds is not None and bounds.ndim == 2:
        attrs["bounds"] = BOUNDS
        coords[BOUNDS] = ((TIME, "bound"), run_time + _as_span(bounds, leads.variable), {})
    return plain.assign_coords(coords)


def _as_span(variable: xr.Variable, described: xr.Variable) -> npt.NDArray[np.timedelta64]:
    """Return durations; without a unit, that of `described` applies."""
    if variable.dtype.kind == "m":
        return variable.values.astype("timedelta64[ns]")
    units = str(variable.attrs.get("units") or described.attrs.get("units") or described.encoding.get("units"))
    minutes = MINUTES_PER.get(units.lower()) or MINUTES_PER.get(units.lower().removesuffix("s"))
    if minutes is None:
        raise ValueError(f"its lead times are in {units!r}: raincast knows seconds, minutes, hours and days")
    return np.rint(variable.values * (minutes * 60e9)).astype("timedelta64[ns]")


def _periods(dataset: xr.Dataset, field: xr.DataArray, depth: bool) -> tuple[Times, Times]:
    """Return starts and ends of the periods of `field`: its time bounds, or NaT and the times.

    Both are the times of instants: rates with `cell_methods` of "time: point", or with neither bounds nor a mean.
    """
    roles = find_roles(field.isel({MEMBER: 0}, drop=True) if MEMBER in field.dims else field)
    assert roles is not None
    time = dataset[roles[TIME]]
    times: Times = np.atleast_1d(time.values).astype("datetime64[ns]")
    bounds = dataset.variables.get(time.attrs.get("bounds") or time.encoding.get("bounds") or "")
    if bounds is not None and (bounds.size != 2 * times.size or bounds.dtype.kind != "M"):
        bounds = None
    methods = time_methods(field.attrs.get("cell_methods"))
    if not depth and ("point" in methods or (bounds is None and "mean" not in methods)):
        return times, times
    if bounds is None:
        return np.full(times.shape, np.datetime64("NaT"), "datetime64[ns]"), times
    starts, ends = np.sort(bounds.values.reshape(-1, 2), axis=1).astype("datetime64[ns]").T
    return starts, ends


def _stored(
    dataset: xr.Dataset, field: xr.DataArray, own: npt.NDArray[np.bool_], crs: str | None, said: str
) -> tuple[Grid | Scattered, Maps]:
    """Return the grid of a field, and its values (N, T, h, w) at the times `own`."""
    one = field.isel({MEMBER: 0}, drop=True) if MEMBER in field.dims else field
    roles = find_roles(one)
    assert roles is not None
    if roles[TIME] not in field.dims:
        field = field.expand_dims(roles[TIME])
    if MEMBER not in field.dims:
        field = field.expand_dims(MEMBER)
    order = (MEMBER, roles[TIME], roles[Y], roles[X])
    ones = [dim for dim in field.dims if dim not in order]
    loaded = field.isel({roles[TIME]: np.flatnonzero(own)}).squeeze(ones).load().transpose(*order)
    place = _curvilinear(dataset, one, (roles[Y], roles[X])) or find_grid(dataset, in_our_words(one), crs)
    packing = Packing.of(loaded)
    values = np.empty(loaded.shape, np.float32)
    for member, stored in zip(values, loaded.values, strict=True):
        member[:] = packing.decode(stored, said, keep_infinite=True)
    return place, values


def _curvilinear(dataset: xr.Dataset, field: xr.DataArray, dims: tuple[str, str]) -> Scattered | None:
    """Return the curvilinear grid of a field whose dimensions have no coordinates; None if there is none."""
    if all(dim in field.coords for dim in dims):
        return None
    found = {}
    for name, variable in dataset.variables.items():
        if set(variable.dims) == set(dims):
            units, standard = str(variable.attrs.get("units")), str(variable.attrs.get("standard_name"))
            for what, unit in (("latitude", "degrees_north"), ("longitude", "degrees_east")):
                if what in (standard, str(name).lower()) or unit == units:
                    found[what] = dataset[name].transpose(*dims).values.astype(np.float64)
    return Scattered(found["latitude"], found["longitude"]) if len(found) == 2 else None


def _same_place(one: Grid | Scattered, other: Grid | Scattered) -> bool:
    if isinstance(one, Grid) and isinstance(other, Grid):
        return one.same_as(other)
    if isinstance(one, Scattered) and isinstance(other, Scattered):
        return np.array_equal(one.lat, other.lat) and np.array_equal(one.lon, other.lon)
    return False


def _listing(runs: list[np.datetime64]) -> str:
    if not runs:
        return "none"
    return f"{len(runs)}, from {_text(min(runs))} to {_text(max(runs))}"


def _moment(value: Any) -> np.datetime64:
    return np.datetime64(value, "ns")


def _text(time: np.datetime64) -> str:
    return str(np.datetime_as_string(time, unit="m"))
