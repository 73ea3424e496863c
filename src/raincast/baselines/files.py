"""Forecasts of other parties, from CF files."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import schema
from raincast.archive.head import open_packed, open_plain
from raincast.archive.packing import Packing
from raincast.forecaster import Gives, Prediction, Query
from raincast.schema import INIT_TIME, LEAD_TIME, Grid, X, Y


class ForecastFiles:
    """Forecasts in CF netCDF files: one file, or a folder with one file per init_time.

    Files have the layout of `forecast.py`: a rain rate (lead_time, y, x), a scalar init_time (UTC), lead_time as a
    duration, and a projection. `gives.times` are their init and lead times; other windows cannot be scored. Files
    may cover a larger area and more leads than are scored, but not a smaller area. Missing pixels count as no
    rain. Nothing is interpolated.
    """

    def __init__(self, path: str | Path | None, *, name: str = "file") -> None:
        """`name` is the party's name in tables. Raises ValueError if `path` has no readable forecast."""
        if path is None:
            raise ValueError(
                "path=null: set the path of the forecasts, for example baseline.file.path=their/forecasts."
            )
        self.name = name
        self.path = Path(path)
        self._files, leads = _index(self.path)
        self.gives = Gives(times=leads)

    def predict(self, query: Query) -> Prediction:
        """Return rates at lead times of the files. Raises ValueError without `times`, `grid` or a forecast."""
        if query.times is None or query.grid is None:
            raise ValueError(
                f"{self.name} are forecasts in files, found by time and place: the query needs times and a grid."
            )
        rates = np.empty((len(query.rain), len(query.lead_minutes), 1, *query.rain.shape[3:]), np.float32)
        for number, time in enumerate(query.times):
            newest = time.astype("datetime64[ns]")
            rates[number, :, 0] = self._read(newest, query.lead_times, query.sample_grid(number))
        return Prediction(rates)

    def _read(self, time: np.datetime64, leads: npt.NDArray[np.timedelta64], crop: Grid) -> np.ndarray:
        if time not in self._files:
            first, last = min(self._files), max(self._files)
            raise ValueError(
                f"{self.path} has no forecast from {_text(time)}; it has {len(self._files)}, from {_text(first)} "
                f"to {_text(last)}. Add it, or score only windows that it has (data.split, data.eval_stride)."
            )
        path = self._files[time]
        with _open(path) as dataset:
            if dataset[INIT_TIME].values.astype("datetime64[ns]") != time:
                raise ValueError(f"{path} was rewritten: it is no longer from {_text(time)}. Start again.")
            variable = schema.find_rain_variable(dataset)
        with open_packed(path, variable, decode_timedelta=True) as dataset:
            rain = dataset[variable].transpose(LEAD_TIME, Y, X)
            rows, columns = _place(path, dataset, variable, crop)
            own = dataset[LEAD_TIME].values.astype("timedelta64[ns]")
            absent = np.setdiff1d(leads, own)
            if len(absent):
                raise ValueError(
                    f"{path} lacks lead times, the first {absent[0] / np.timedelta64(60, 's'):g} min: request "
                    "fewer steps, or add them."
                )
            order = [int(np.flatnonzero(own == lead)[0]) for lead in leads]
            raw = rain.isel({Y: rows, X: columns}).values[order]
            values = Packing.of(dataset[variable]).decode(raw, str(path)) * schema.mm_h_per(rain.attrs["units"])
        filled: np.ndarray = np.maximum(np.nan_to_num(values, nan=0.0, posinf=0.0), 0.0).astype(np.float32)
        return filled


def _index(path: Path) -> tuple[dict[Any, Path], dict[Any, frozenset[Any]]]:
    """Return the file and the lead times of each init_time."""
    files = [path] if path.is_file() else sorted(path.glob("*.nc"))
    if not files:
        raise ValueError(f"path={path} is neither a forecast file nor a folder with forecast files (*.nc).")
    found: dict[Any, Path] = {}
    leads: dict[Any, frozenset[Any]] = {}
    for file in files:
        with _open(file) as dataset:
            time = dataset[INIT_TIME].values.astype("datetime64[ns]")[()]
            own = frozenset(np.atleast_1d(dataset[LEAD_TIME].values).astype("timedelta64[ns]"))
        if time in found:
            raise ValueError(f"{found[time]} and {file} are both from {_text(time)}: remove one of them.")
        found[time] = file
        leads[time] = next((other for other in leads.values() if other == own), own)  # share equal sets
    return found, leads


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
    axes = [dataset[axis].values.astype(np.float64) for axis in (Y, X)]
    wkt = str(schema.find_crs_wkt(dataset, variable))
    sought = crop.y, Grid(axes[0], axes[1], wkt).near(crop.x)
    picked = [np.abs(axis[:, None] - wanted).argmin(axis=0) for axis, wanted in zip(axes, sought, strict=True)]
    own = Grid(axes[0][picked[0]], axes[1][picked[1]], wkt)
    if not own.same_as(crop):
        raise ValueError(
            f"{path} does not have the pixels that are scored (y {crop.y[0]:g} … {crop.y[-1]:g}, x {crop.x[0]:g} "
            f"… {crop.x[-1]:g}): reproject the forecast to the grid of the archive first."
        )
    return picked[0], picked[1]


def _text(time: Any) -> str:
    return str(np.datetime_as_string(time, unit="m"))
