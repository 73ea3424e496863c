"""The files of a forecast: netCDF, Zarr, GeoTIFFs, tables and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from raincast import schema
from raincast.forecasting.files.dataset import MEMBERS
from raincast.forecasting.files.maps import rasterio_or_refuse, write_geotiffs, write_pngs
from raincast.forecasting.files.netcdf import write_forecast, write_zarr
from raincast.forecasting.gaps import on_times, past_of
from raincast.forecasting.series import Series

FORMATS = ("netcdf", "zarr", "geotiff", "png")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files to write for a forecast.

    `formats`: netcdf always; zarr adds a store, geotiff and png a folder with a file for each lead time.
    `for_pysteps`: the netCDF with the names that pysteps' importer looks for. `animation`: gif, or mp4;
    `pictures`: a PNG for each lead time; both show local times of `time_zone`, and coasts with `coastlines`.
    `places`: a table of the points and polygons in a file (`files.places`).
    """

    formats: Sequence[str] = field(default=("netcdf",))
    for_pysteps: bool = False
    animation: bool | str = False
    places: str | None = None
    pictures: bool = False
    time_zone: str | None = None
    coastlines: bool = True

    @property
    def shows_observed(self) -> bool:
        """True if observations after the init time are drawn next to the forecast."""
        return bool(self.animation) or self.pictures

    @property
    def moving(self) -> str:
        """The file type of the animation."""
        return "mp4" if self.animation == "mp4" else "gif"

    def __post_init__(self) -> None:
        """Raise ValueError for formats, packages, time zones or places that would fail after the forecast."""
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown:
            raise ValueError(f"formats: {', '.join(unknown)} unknown; there are {', '.join(FORMATS)}.")
        if self.animation not in (True, False, "gif", "mp4"):
            raise ValueError(f"animation={self.animation}: choose gif, mp4 or false.")
        if self.animation == "mp4":
            from raincast.plotting.animation import check_installed

            check_installed()
        if "geotiff" in self.formats:
            rasterio_or_refuse()
        if self.time_zone is not None:
            from raincast.plotting.rain_image import valid_text

            valid_text(np.datetime64("2026-01-01T00:00"), self.time_zone)
        if self.places is not None:
            from raincast.forecasting.files.locations import read_places

            read_places(self.places)


def forecast_name(init_time: np.datetime64) -> str:
    """The name of a forecast's files without their suffix: forecast_20100826T0600."""
    return f"forecast_{np.datetime_as_string(init_time, unit='m').replace('-', '').replace(':', '')}"


def forecast_path(folder: Path, init_time: np.datetime64) -> Path:
    """The netCDF file of a forecast."""
    return folder / f"{forecast_name(init_time)}.nc"


def write_outputs(
    forecast: xr.Dataset,
    frames: xr.Dataset,
    folder: Path,
    outputs: Outputs | None = None,
    *,
    observed: xr.Dataset | None = None,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Write the files of `outputs`, each atomically; returns their paths by kind.

    The netCDF file is written last: if it exists, the others do. `observed` are the known frames after
    `init_time`, for pictures next to the forecast. FileExistsError if the netCDF file exists and `overwrite` is
    false.
    """
    outputs = outputs or Outputs()
    init_time: Any = forecast[schema.INIT_TIME].values[()]
    path = forecast_path(folder, init_time)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. Choose another folder=…, delete the file, or say overwrite=true.")
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = {}
    if "zarr" in outputs.formats:
        written["zarr"] = write_zarr(forecast, path.with_suffix(".zarr"))
    if "geotiff" in outputs.formats:
        written["geotiff"] = write_geotiffs(forecast, folder, path.stem)
    if "png" in outputs.formats:
        written["web map"] = write_pngs(forecast, folder, path.stem)
    if outputs.places is not None:
        from raincast.forecasting.files.locations import read_places
        from raincast.forecasting.files.places import write_place_members, write_places

        table = folder / f"{path.stem}_places.csv"
        places, newest = read_places(outputs.places), past_of(frames).newest()
        written["places"] = write_places(forecast, places, table, newest)
        if MEMBERS in forecast:
            written["members"] = write_place_members(forecast, places, table.with_suffix(".nc"), newest)
    if outputs.shows_observed:
        moving = path.with_suffix(f".{outputs.moving}")
        stills = folder / path.stem if outputs.pictures else None
        _animate(forecast, frames, observed, moving, stills, outputs)
        if outputs.animation:
            written["animation"] = moving
        else:
            moving.unlink()
        if stills is not None:
            written["pictures"] = stills
    made = write_forecast(forecast, path, overwrite=overwrite, for_pysteps=outputs.for_pysteps)
    return {"forecast": made} | written


def what_came(series: Series, forecast: xr.Dataset) -> xr.Dataset | None:
    """Return the frames of `series` at the valid times of `forecast`, up to the last known one, or None."""
    valid = forecast[schema.TIME].values.astype("datetime64[ns]")
    there = np.intersect1d(valid, series.times)
    if not there.size:
        return None
    return on_times(series.read(there), valid[valid <= there[-1]], float(forecast.attrs[schema.STEP_MINUTES]))


def _animate(
    forecast: xr.Dataset,
    frames: xr.Dataset,
    observed: xr.Dataset | None,
    path: Path,
    stills: Path | None,
    outputs: Outputs,
) -> Path:
    from raincast.plotting.animation import forecast_animation
    from raincast.plotting.rain_image import credit

    init_time: Any = forecast[schema.INIT_TIME].values[()]
    return forecast_animation(
        frames[schema.RAIN].values,
        forecast[schema.RAIN].values,
        grid=schema.grid_of(frames),
        init_time=init_time,
        step_minutes=float(forecast.attrs[schema.STEP_MINUTES]),
        path=path,
        observed=None if observed is None else observed[schema.RAIN].values,
        time_zone=outputs.time_zone,
        coastlines=outputs.coastlines,
        stills=stills,
        credit=credit(frames.attrs),
    )
