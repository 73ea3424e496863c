"""raincast inside pysteps: a nowcast method and an importer, both named "raincast" (docs/pysteps.md).

`import raincast.pysteps` registers them. If raincast is installed, `import pysteps` alone does, since the importer
is an entry point of `pysteps.plugins.importers`; pysteps has no plugins for nowcast methods.

The interfaces are those of pysteps 1.21: `pysteps.nowcasts.interface`, `pysteps.io.importers` (Pulkkinen et al.
2019, doi 10.5194/gmd-12-4185-2019).
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import xarray as xr

    from raincast.forecaster import Forecaster
    from raincast.forecasting import ForecastPipeline

DRY_RATE = 0.1
"""Rates below this value (mm/h) are dry: the threshold of imported images, and of input in dBR or dBZ."""

Array = npt.NDArray[np.float64]


def _of_db(values: Array) -> Array:
    return np.asarray(10.0 ** (values / 10.0))


UNITS: dict[str, Callable[[Array], Array]] = {
    "mm/h": lambda values: values,
    "dBR": _of_db,
    "dBZ": lambda values: np.asarray((_of_db(values) / 200.0) ** (1.0 / 1.6)),
}
"""Conversion to mm/h from each unit that `precip` may have.

dBZ follows Marshall and Palmer, Z = 200·R^1.6, pysteps' default.
"""


def forecast(
    precip: npt.ArrayLike,
    velocity: npt.ArrayLike | None,
    timesteps: int | Sequence[float],
    *,
    timestep: float | None = None,
    kmperpixel: float | None = None,
    unit: str = "mm/h",
    thresholds: Sequence[float] | None = None,
    n_ens_members: int | None = None,
    checkpoint: "str | Path | Forecaster" = "box",
    **settings: Any,
) -> Array:
    """Forecast as `pysteps.nowcasts.get_method("raincast")`: (L, H, W) in mm/h.

    Pixels are NaN where no frame observed anything, and where the rain comes from outside of what was observed.

    `precip`: (T, H, W) from the oldest to the newest frame, at least two, NaN or masked for missing; row 0 is the
    northernmost, as in pysteps. The bundled network uses the last four frames. `unit`: mm/h, or dBR (10·log10 of
    mm/h) or dBZ, in which everything below 0.1 mm/h is no rain.
    `velocity`: (2, H, W) pixels per step, or None. It is not used, as raincast estimates the motion itself; a
    warning says so if there is rain.
    `timesteps`: the number L of steps, or an increasing list of L whole numbers.
    `timestep`: minutes between frames. `kmperpixel`: the pixel size. Both are required.
    `thresholds`: mm/h, increasing. The result is then the probability of reaching them, (L, K, H, W).
    `n_ens_members`: number of members, at least two; the result is (n_ens_members, L, H, W). They are equally
    likely and coherent in space and time; `seed` selects them.
    `checkpoint`: that of your own network, a file of `export.py`, or any `raincast.forecaster.Forecaster`, such as
    `raincast.load_forecaster()`, which is then loaded once for many forecasts. The default is the bundled weights.
    `settings` are those of `raincast.load_forecaster`, for example `device="cuda"`.

    Raises ValueError for input of another shape or unit, for a missing keyword, and for outputs that the
    forecaster lacks.
    """
    if timestep is None or kmperpixel is None:
        absent = [name for name, given in (("timestep", timestep), ("kmperpixel", kmperpixel)) if given is None]
        raise ValueError(
            f"{' and '.join(absent)} must be given: timestep=5 (minutes between frames), kmperpixel=1. The "
            "importer's metadata have xpixelsize, in metres."
        )
    if not (timestep > 0 and kmperpixel > 0):
        raise ValueError(f"timestep={timestep} and kmperpixel={kmperpixel} must be above 0.")
    reached = [] if thresholds is None else [float(threshold) for threshold in thresholds]
    if reached and n_ens_members:
        raise ValueError("Give only one of thresholds and n_ens_members: the result has one or the other.")
    steps = _steps(timesteps)
    rain = _rates(precip, unit)
    if velocity is not None:
        _say_unused(np.shape(velocity), rain)
    frames = _dataset(rain, timestep, kmperpixel)
    if n_ens_members:
        settings["members"] = n_ens_members
    pipeline = _pipeline(checkpoint, len(rain), timestep, int(steps[-1]), reached, settings)
    dataset = pipeline(frames)
    unknown = _unknown(dataset["quality_flag"].values)
    if n_ens_members:
        members = _members(dataset, pipeline.name, n_ens_members)
        return np.where(unknown, np.nan, members)[:, steps - 1]
    maps = dataset["rain_rate_exceedance" if reached else "rain_rate"].values.astype(np.float64)
    maps[np.broadcast_to(unknown[:, None] if reached else unknown, maps.shape)] = np.nan
    return maps[steps - 1]


def import_raincast(
    filename: str | Path,
    *,
    time: "str | np.datetime64 | None" = None,
    timestep: float | None = None,
    source: str = "auto",
    dtype: str = "double",
    fillna: float = np.nan,
    **settings: Any,
) -> tuple[npt.NDArray[Any], None, dict[str, Any]]:
    """Import a radar file of any format that raincast reads: `pysteps.io.get_method("raincast", "importer")`.

    Returns precip, (H, W) in mm/h with NaN for missing and the northernmost row first; quality, None; and the
    metadata of pysteps' importers. Its threshold is 0.1 mm/h. Its accutime, in minutes, is the period of means and
    depths, otherwise the time between frames; it is absent if neither is known.

    `time`: UTC, for a file with several frames; None: the newest. `timestep`: minutes between frames, if the file
    does not state it. `source` names a format of conf/source if the format should not be recognised by content;
    `settings` belong to that format: source="cf", variable="R". `dtype` and `fillna` are those of all importers of
    pysteps.

    Raises FileNotFoundError, or ValueError that says what is wrong with the file or which times it has.
    """
    import xarray as xr

    from raincast import assembly, schema
    from raincast.ingest.readers import check_period

    path = Path(filename)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    reader = assembly.reader_named(source, **settings)
    head = reader.scan(path)
    times = head.times.astype("datetime64[ns]")
    at = int(times.argmax()) if time is None else _number(path, times, time)
    step = timestep or head.step_minutes
    if step is None and times.size > 1:
        step = schema.find_step_minutes(xr.Dataset(coords={schema.TIME: np.unique(times)}))
    if step is not None:
        check_period(reader, path, head.meaning, np.unique(times), step)
    momentary = head.meaning is not None and not head.meaning.is_averaged
    # momentary rates do not depend on the step, which readers require
    frame = reader.read(path, slice(at, at + 1), step_minutes=5.0 if step is None and momentary else step)
    precip, metadata = _upright(frame)
    if step is not None or not momentary:
        stated = frame.attrs[schema.STEP_MINUTES]
        metadata["accutime"] = float(frame.attrs.get(schema.ACCUMULATION_MINUTES, stated))
    if head.meaning is not None and head.meaning.quantity:
        metadata["product"] = head.meaning.quantity
    return np.where(np.isfinite(precip), precip, fillna).astype(dtype), None, metadata


def _steps(timesteps: int | Sequence[float]) -> npt.NDArray[np.int64]:
    """Return the steps to forecast, (L,); raises ValueError unless they are increasing whole numbers above 0."""
    given = np.arange(1, timesteps + 1) if np.ndim(timesteps) == 0 else np.asarray(timesteps)  # type: ignore[operator]
    steps = np.rint(given).astype(np.int64)
    if not steps.size or np.abs(given - steps).max() > 1e-6 or steps[0] < 1 or (np.diff(steps) < 1).any():
        raise ValueError(
            f"timesteps={timesteps}: give the number of steps, or an increasing list of whole numbers above 0."
        )
    return steps


def _rates(precip: npt.ArrayLike, unit: str) -> npt.NDArray[np.float32]:
    """Convert `precip` to mm/h with NaN for missing; raises ValueError for a wrong shape, unit or value."""
    values: Array = np.ma.asarray(precip, np.float64).filled(np.nan)
    if values.ndim != 3 or len(values) < 2:
        raise ValueError(
            f"precip has shape {values.shape}: give at least two frames, (T, H, W), from the oldest to the newest."
        )
    if unit not in UNITS:
        raise ValueError(f"unit={unit!r}: choose one of {', '.join(UNITS)}.")
    if unit == "mm/h" and (values < 0).any():
        raise ValueError('precip has values below 0: for decibels, give unit="dBR" or unit="dBZ".')
    rates = UNITS[unit](values)
    if unit != "mm/h":
        rates[rates < DRY_RATE * (1 - 1e-6)] = 0.0
    if np.isinf(rates).any() or np.isnan(rates).all():
        raise ValueError("precip has infinite values, or no observed one: NaN marks missing pixels.")
    return rates.astype(np.float32)


def _say_unused(shape: tuple[int, ...], rain: npt.NDArray[np.float32]) -> None:
    if shape != (2, *rain.shape[1:]):
        raise ValueError(f"velocity has shape {shape}: give {(2, *rain.shape[1:])}, or None.")
    if (rain >= DRY_RATE).any():
        text = "raincast estimates the motion itself and does not use velocity; pass None to silence this."
        warnings.warn(text, stacklevel=3)


def _dataset(rain: npt.NDArray[np.float32], timestep: float, kmperpixel: float) -> "xr.Dataset":
    """Return the frames at an arbitrary time and place, since pysteps does not pass theirs to its methods."""
    from pyproj import CRS

    from raincast import schema

    H, W = rain.shape[1:]
    metres = 1000.0 * kmperpixel
    y, x = (metres * np.arange(n, dtype=np.float64) for n in (H, W))
    grid = schema.Grid(-y, x, CRS.from_proj4("+proj=aeqd").to_wkt())
    times = np.datetime64("2000-01-01", "ns") + schema.step_timedelta(timestep) * np.arange(len(rain))
    return schema.rain_dataset(rain, times, grid, step_minutes=timestep, cell_methods="time: point")


def _pipeline(
    checkpoint: "str | Path | Forecaster",
    num_frames: int,
    timestep: float,
    lead_steps: int,
    thresholds: list[float],
    settings: dict[str, Any],
) -> "ForecastPipeline":
    from raincast import load_forecaster
    from raincast.forecasting import ForecastPipeline
    from raincast.forecasting.fit import Trained

    settings = settings | {"lead_steps": lead_steps, "thresholds": thresholds}
    if not isinstance(checkpoint, str | Path):
        any_input = Trained(num_frames, lead_steps, timestep, physical=True)
        return ForecastPipeline(checkpoint, any_input, **settings)
    pipeline = load_forecaster(checkpoint, **settings)
    if pipeline.channels is not None:
        raise ValueError(f"{checkpoint} reads covariates, at times and places that pysteps does not pass on.")
    needed = pipeline.input_steps
    if num_frames < needed and not pipeline.trained.physical:
        raise ValueError(f"precip has {num_frames} frames, {checkpoint} needs {needed}.")
    pipeline.trained = replace(pipeline.trained, input_steps=min(num_frames, needed))
    return pipeline


def _members(dataset: "xr.Dataset", name: str, number: int) -> Array:
    """Return the members (number, lead_steps, H, W) in mm/h; raises ValueError if there are not enough."""
    if "rain_rate_members" not in dataset:
        raise ValueError(
            f"n_ens_members={number}: {name} gives no members for this input. Use thresholds=[…] for "
            'probabilities, or pysteps.nowcasts.get_method("steps").'
        )
    made = dataset["rain_rate_members"].transpose("member", ...).values
    if len(made) < number:
        raise ValueError(f"n_ens_members={number}: {name} gives {len(made)} members.")
    return made[:number].astype(np.float64)


def _unknown(flags: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    from raincast.forecasting.files.dataset import MISSING, OUTSIDE_REACH

    return (flags & (MISSING | OUTSIDE_REACH)) > 0


def _number(path: Path, times: npt.NDArray[np.datetime64], time: str | np.datetime64) -> int:
    from raincast import schema

    wanted = schema.parse_utc(time)
    if wanted not in times:
        raise ValueError(
            f"{path} has no frame of {time}: it has {times.size} from {times.min()} to {times.max()}."
        )
    return int(np.flatnonzero(times == wanted)[0])


def _upright(frame: "xr.Dataset") -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """Return the single image of `frame`, north up and west left, and its metadata in pysteps' terms."""
    from pyproj import CRS

    from raincast import schema
    from raincast.projection import is_geographic

    grid = schema.grid_of(frame)
    rows, columns = (
        slice(None, None, 1 if up else -1) for up in (grid.y[0] >= grid.y[-1], grid.x[0] <= grid.x[-1])
    )
    (x1, x2, dx), (y1, y2, dy) = _edges(grid.x), _edges(grid.y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PROJ strings say less than WKT, but pysteps knows nothing else
        projection = CRS.from_wkt(grid.crs_wkt).to_proj4()
    metadata = {
        "projection": projection,
        "cartesian_unit": "degrees" if is_geographic(grid.crs_wkt) else "m",
        "x1": x1,
        "y1": y1,
        "x2": x2,
        "y2": y2,
        "xpixelsize": dx,
        "ypixelsize": dy,
        "yorigin": "upper",
        "institution": str(frame.attrs.get("institution") or frame.attrs.get("source", "unknown")),
        "unit": "mm/h",
        "transform": None,
        "zerovalue": 0.0,
        "threshold": DRY_RATE,
        "timestamps": frame[schema.TIME].values.astype("datetime64[us]").astype(object),
    }
    return frame[schema.RAIN].values[0, rows, columns], metadata


def _edges(centres: Array) -> tuple[float, float, float]:
    """Return the lower and upper edge of an axis, and its pixel size."""
    low, high = float(centres.min()), float(centres.max())
    size = (high - low) / max(1, centres.size - 1)
    return low - size / 2, high + size / 2, size


def _register() -> None:
    """Add both to pysteps' tables, as `pysteps.io.interface.discover_importers` does."""
    from pysteps.decorators import postprocess_import
    from pysteps.io import importers
    from pysteps.io import interface as readers
    from pysteps.nowcasts import interface as nowcasts

    nowcasts._nowcast_methods["raincast"] = forecast
    if "raincast" not in readers._importer_methods:
        readers._importer_methods["raincast"] = postprocess_import()(import_raincast)
    importers.import_raincast = readers._importer_methods["raincast"]


_register()  # last: if this is imported before pysteps, pysteps looks for the importer as soon as it is imported
