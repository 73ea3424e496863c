"""Forecasts of other parties, from CF files."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.head import open_packed, open_plain
from raincast.archive.packing import Packing
from raincast.forecaster import Gives, Prediction, Query, Rain, share_of_members
from raincast.schema import EXCEEDANCE, INIT_TIME, LEAD_TIME, Grid, X, Y

log = logging.getLogger(__name__)


class ForecastFiles:
    """Forecasts in CF netCDF files: one file, or a folder with one file per init_time.

    Files have the layout of `forecast.py`: a rain rate (lead_time, y, x), a scalar init_time (UTC), lead_time as a
    duration, and a projection. An ensemble is a rain rate with one more dimension, whose coordinate has the
    standard_name realization; without a rate of its own beside it, the rate is the mean of the members.
    `gives.times` are their init and lead times; other windows cannot be scored. Files may cover a larger area and
    more leads than are scored, but not a smaller area. Missing pixels count as no rain. Nothing is interpolated.
    Probabilities in the files are not used, with a warning.
    """

    def __init__(self, path: str | Path | None, *, name: str = "file", members: bool = True) -> None:
        """`name` is the party's name in tables; `members=False` ignores members.

        If only some files have members, the others are left out, with a warning. Raises ValueError if `path` has
        no readable forecast, or ensembles of different sizes.
        """
        if path is None:
            raise ValueError(
                "path=null: set the path of the forecasts, for example baseline.file.path=their/forecasts."
            )
        self.name = name
        self.path = Path(path)
        self._files = _index(self.path)
        if unused := sum(file.has_probabilities for file in self._files.values()):
            log.warning(
                "%s of %d forecasts in %s is not used: probabilities of %s are those of its members, or none.",
                EXCEEDANCE, unused, self.path, name,
            )  # fmt: skip
        sizes = {file.num_members for file in self._files.values()} if members else {0}
        if len(sizes - {0}) > 1:
            raise ValueError(
                f"The ensembles in {self.path} have {' and '.join(map(str, sorted(sizes - {0})))} members. Score "
                "those of each size on their own, or only the rates: baseline.file.members=false."
            )
        if len(sizes) > 1:
            whole = {time: file for time, file in self._files.items() if file.num_members}
            log.warning(
                "%d of the %d forecasts in %s have no members and are left out (baseline.file.members=false "
                "scores the rates of all).", len(self._files) - len(whole), len(self._files), self.path,
            )  # fmt: skip
            self._files = whole
        self._has_members = max(sizes) > 1
        self.gives = Gives(
            members=self._has_members,
            probabilities=self._has_members,
            times={time: f.leads for time, f in self._files.items()},
        )

    def predict(self, query: Query) -> Prediction:
        """Return rates at lead times of the files, members, and the share of them that reach each threshold.

        Raises ValueError without `times`, `grid` or a forecast.
        """
        if query.times is None or query.grid is None:
            raise ValueError(
                f"{self.name} are forecasts in files, found by time and place: the query needs times and a grid."
            )
        read = [
            self._read(
                time.astype("datetime64[ns]"),
                query.lead_times,
                query.sample_grid(number),
                members=(query.members or bool(query.thresholds)) and self._has_members,
            )
            for number, time in enumerate(query.times)
        ]
        rates = np.stack([own for own, _ in read])[:, :, None]
        members = np.stack([own for _, own in read if own is not None]) if read[0][1] is not None else None
        if members is None or not query.thresholds:
            return Prediction(rates, members)
        reached = share_of_members(members, query.thresholds)
        return Prediction(rates, members if query.members else None, reached, query.thresholds)

    def _read(
        self, time: np.datetime64, leads: npt.NDArray[np.timedelta64], crop: Grid, *, members: bool
    ) -> tuple[Rain, Rain | None]:
        """Return rates (L, H, W) and members (L, M, H, W)."""
        if time not in self._files:
            first, last = min(self._files), max(self._files)
            raise ValueError(
                f"{self.path} has no forecast from {_text(time)}; it has {len(self._files)}, from {_text(first)} "
                f"to {_text(last)}. Add it, or score only windows that it has (data.split, data.eval_stride)."
            )
        file = self._files[time]
        path = file.path
        with _open(path) as dataset:
            now = _File.of(path, dataset)
            if dataset[INIT_TIME].values.astype("datetime64[ns]") != time:
                raise ValueError(f"{path} was rewritten: it is no longer from {_text(time)}. Start again.")
            if members and now.num_members != file.num_members:
                raise ValueError(
                    f"{path} was rewritten: it no longer has {file.num_members} members. Start again."
                )
            ensemble = schema.find_member_variable(dataset) if members or file.members_alone else None
            variable = ensemble if file.members_alone else schema.find_rain_variable(dataset)
        wanted = {name for name in (variable, ensemble) if name is not None}
        with open_packed(path, *wanted, decode_timedelta=True) as dataset:
            own = dataset[LEAD_TIME].values.astype("timedelta64[ns]")
            absent = np.setdiff1d(leads, own)
            if len(absent):
                raise ValueError(
                    f"{path} lacks lead times, the first {absent[0] / np.timedelta64(60, 's'):g} min: request "
                    "fewer steps, or add them."
                )
            order = [int(np.flatnonzero(own == lead)[0]) for lead in leads]
            read = {name: _rates(path, dataset, name, order, crop) for name in wanted}
        if file.members_alone:
            assert ensemble is not None
            return read[ensemble].mean(1), read[ensemble] if members else None
        assert variable is not None
        return read[variable], None if ensemble is None else read[ensemble]


@dataclass(frozen=True)
class _File:
    """A forecast file: its lead times, its number of members, whether it has no other rates, and probabilities."""

    path: Path
    leads: frozenset[Any]
    num_members: int
    members_alone: bool
    has_probabilities: bool

    @classmethod
    def of(cls, path: Path, dataset: xr.Dataset) -> "_File":
        """Read this from the open file."""
        leads = frozenset(np.atleast_1d(dataset[LEAD_TIME].values).astype("timedelta64[ns]"))
        ensemble = schema.find_member_variable(dataset)
        member = None if ensemble is None else schema.member_dimension(dataset, ensemble)
        num_members = 0 if member is None else dataset.sizes[member]
        members_alone = ensemble is not None and not schema.rain_variables(dataset)
        return cls(path, leads, num_members, members_alone, EXCEEDANCE in dataset)


def _rates(path: Path, dataset: xr.Dataset, variable: str, order: list[int], crop: Grid) -> Rain:
    """Return a rain rate in mm/h, (L, H, W) or (L, M, H, W), at the pixels of `crop`; 0 where missing."""
    member = schema.member_dimension(dataset, variable)
    rain = dataset[variable].transpose(*([LEAD_TIME] if member is None else [LEAD_TIME, member]), Y, X)
    rows, columns = _place(path, dataset, variable, crop)
    raw = rain.isel({Y: rows, X: columns}).values[order]
    values = Packing.of(dataset[variable]).decode(raw, str(path)) * schema.mm_h_per(rain.attrs["units"])
    filled: Rain = np.maximum(np.nan_to_num(values, nan=0.0, posinf=0.0), 0.0).astype(np.float32)
    return filled


def _index(path: Path) -> dict[Any, _File]:
    """Return the file of each init_time."""
    files = [path] if path.is_file() else sorted(path.glob("*.nc"))
    if not files:
        raise ValueError(f"path={path} is neither a forecast file nor a folder with forecast files (*.nc).")
    found: dict[Any, _File] = {}
    for file in files:
        with _open(file) as dataset:
            time = dataset[INIT_TIME].values.astype("datetime64[ns]")[()]
            own = _File.of(file, dataset)
        if time in found:
            raise ValueError(f"{found[time].path} and {file} are both from {_text(time)}: remove one of them.")
        leads = next((other.leads for other in found.values() if other.leads == own.leads), own.leads)
        found[time] = replace(own, leads=leads)  # equal sets are shared
    return found


def _open(path: Path) -> xr.Dataset:
    try:
        dataset = open_plain(path, decode_timedelta=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a CF netCDF file: {error}") from error
    absent = [name for name in (INIT_TIME, LEAD_TIME, Y, X) if name not in dataset.variables]
    if absent or dataset[INIT_TIME].ndim:
        dataset.close()
        raise ValueError(
            f"{path} is not a forecast in raincast's layout: it lacks "
            f"{', '.join(absent) or 'a scalar init_time'}. Write one file per init_time."
        )
    return dataset


def _place(path: Path, dataset: xr.Dataset, variable: str, crop: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of the pixels of `crop` in the file. Raises ValueError if they are not there."""
    grid = schema.grid_of(dataset, variable)
    pairs = ((grid.y, crop.y), (grid.x, grid.near(crop.x)))
    picked = [np.abs(axis[:, None] - wanted).argmin(axis=0) for axis, wanted in pairs]
    own = Grid(grid.y[picked[0]], grid.x[picked[1]], grid.crs_wkt)
    if not own.same_as(crop):
        raise ValueError(
            f"{path} does not have the pixels that are scored (y {crop.y[0]:g} … {crop.y[-1]:g}, x {crop.x[0]:g} "
            f"… {crop.x[-1]:g}): reproject the forecast to the grid of the archive first."
        )
    return picked[0], picked[1]


def _text(time: Any) -> str:
    return str(np.datetime_as_string(time, unit="m"))
