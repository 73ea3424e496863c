"""raincast in a few calls, from Python: frames, archives, forecasts, scores, training; no config to compose."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xarray.backends import BackendEntrypoint

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from raincast.forecaster import Forecaster, Gives, Prediction, Query

Files = str | Path | Sequence[str | Path]


def open_radar(
    files: Files,
    *,
    start: "str | np.datetime64 | None" = None,
    end: "str | np.datetime64 | None" = None,
    source: str = "auto",
    **settings: Any,
) -> "xr.Dataset":
    """Open radar files of any format as a Dataset of rain rates in mm/h, NaN for missing, (time, y, x).

    `files` is a path, a folder, a glob such as "radar/*.h5", or a list of them. `source` names a format of
    conf/source, where it should not be recognised by content; `settings` are its own:
    `open_radar(files, source="cf", variable="R")`. Only frames from `start` to `end` (UTC, both inclusive) are
    kept. Frames are read when they are looked at. FileNotFoundError or ValueError say what is wrong with a file.
    """
    from raincast import assembly, schema
    from raincast.archive.find import find_files
    from raincast.archive.lazy import lazy_dataset
    from raincast.forecasting.series import FileSeries

    series = FileSeries(assembly.reader_named(source, **settings), find_files(files))
    times = series.times
    if start is not None:
        times = times[times >= schema.parse_utc(start)]
    if end is not None:
        times = times[times <= schema.parse_utc(end)]
    if not times.size:
        raise ValueError(f"There is no frame from {start} to {end}: the files have {_span(series.times)} UTC.")
    first = series.read(times[:1])
    grid = schema.grid_of(first)

    def read(frames: slice, y: slice, x: slice) -> Any:
        return series.read(times[frames])[schema.RAIN].values[:, y, x]

    return lazy_dataset(
        read,
        times,
        grid,
        step_minutes=float(first.attrs[schema.STEP_MINUTES]),
        cell_methods=str(first[schema.RAIN].attrs["cell_methods"]),
        attrs=first.attrs,
    )


def open_archive(path: str | Path) -> "xr.Dataset":
    """Open an archive of `ingest.py`, a CF netCDF file or a Zarr store as a Dataset of rain rates in mm/h.

    Frames are read on access; `.chunk({"time": 24})` turns it into a dask Dataset. Raises FileNotFoundError or
    ValueError with a remedy.
    """
    from raincast.archive import Archive

    if not isinstance(path, str | Path):
        raise TypeError(f"open_archive takes the path of an archive, found {type(path).__name__}.")
    return Archive.open(path).lazy()


def open_sample() -> "xr.Dataset":
    """Open the bundled radar event: thunderstorms over Switzerland, in mm/h. Source: MeteoSwiss."""
    from raincast.system.paths import sample_path

    return open_archive(sample_path())


def evaluate(
    frames: "xr.Dataset | str | Path",
    forecasters: "Sequence[Forecaster | str | Path] | Mapping[str, Forecaster | str | Path]" = (
        "box",
        "persistence",
        "extrapolation",
    ),
    *,
    thresholds: Sequence[float] = (0.5, 1.0, 2.0, 5.0, 10.0),
    input_steps: int | None = None,
    lead_steps: int = 12,
    every: int = 1,
    confidence: float = 0.95,
    **settings: Any,
) -> "xr.Dataset":
    """Score forecasters on the same windows of `frames`, with intervals, by lead time and threshold (mm/h).

    `frames` is a Dataset of `open_radar` or `open_archive`, all or some of its times, or the path of an archive.
    Forecasters are objects with `predict` (`load_forecaster(…)`, one of your own), names of conf/baseline
    ("sprog", "steps"; "box" is the network that comes with raincast) or paths of checkpoints; a mapping gives them
    other names. `input_steps` is by default what the networks need, or 6. Every `every`-th window without a
    missing frame counts. `settings` are those of `raincast.evaluation.Metrics`: scales=[10, 20], spectrum=True …

    The Dataset has `csi`, `pod`, `far`, `rmse` … (forecaster, threshold, lead_time), `csi_mean`, `csi_interval`,
    `csi_mean_difference_interval`, as scores.nc of `python evaluate.py` (CONTRIBUTING.md). A network must not have
    been trained on these frames; evaluate.py takes the test windows of its own split. Raises ValueError if there
    is no window, or a forecaster does not fit.
    """
    import xarray as xr

    from raincast import schema
    from raincast.evaluation import Metrics, Resampling, blocks, with_intervals
    from raincast.evaluation import evaluate as score
    from raincast.evaluation.queries import newest_frames, windows_of
    from raincast.system.progress import Bar

    if isinstance(frames, str | Path):
        frames = open_archive(frames)
    if not isinstance(frames, xr.Dataset):
        raise TypeError(f"frames is a {type(frames).__name__}: give a Dataset, as raincast.open_archive(path).")
    schema.check_archive(frames, "frames")
    if isinstance(forecasters, Mapping):
        made = [_forecaster(given, name) for name, given in forecasters.items()]
    else:
        made = [_forecaster(given) for given in forecasters]
    if not made:
        raise ValueError('forecasters: give one at least, as ["box", "persistence"].')
    if input_steps is None:
        input_steps = max((getattr(one, "input_steps", 0) for one in made), default=0) or 6
    steps = {"input_steps": input_steps, "lead_steps": lead_steps}
    newest = newest_frames(frames, **steps, every=every)
    times, grid = frames[schema.TIME].values[newest], schema.grid_of(frames)
    metrics = Metrics(thresholds, **{"event_hours": blocks.kept_hours(times), **settings})
    with Bar(f"scoring {', '.join(one.name for one in made)}") as bar:
        scores = score(
            made,
            windows_of(frames, newest, **steps),
            metrics,
            lead_steps=lead_steps,
            step_minutes=schema.find_step_minutes(frames),
            pixel_km=grid.pixel_km,
            grid=grid,
            progress=bar.advance_of(len(newest)),
        )
    if settings.get("event_hours") is None:
        scores = blocks.automatic(scores)
    return with_intervals(scores, Resampling(1000, confidence, 0))


@dataclass(frozen=True, eq=False)
class _Named:
    """A forecaster under another name."""

    name: str
    forecaster: "Forecaster"

    @property
    def gives(self) -> "Gives":
        return self.forecaster.gives

    def predict(self, query: "Query") -> "Prediction":
        return self.forecaster.predict(query)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.forecaster, name)


def _forecaster(given: Any, name: str | None = None) -> "Forecaster":
    """Return a forecaster given as such, by a name of conf/baseline or by a path; `name` renames it."""
    made = _made(given) if isinstance(given, str | Path) else given
    inputs = getattr(getattr(made, "forecaster", made), "inputs", None)
    if inputs is not None and (inputs.past or inputs.future):
        raise ValueError(f"{made.name} sees further channels: python evaluate.py checkpoint=… reads them.")
    if not (hasattr(made, "predict") and hasattr(made, "gives")):
        raise TypeError(
            f"{made!r} is no forecaster: it needs name, gives and predict(query), see docs/own_forecaster.md."
        )
    return made if name is None else _Named(name, made)


def _made(given: str | Path) -> "Forecaster":
    from omegaconf import OmegaConf

    from raincast import assembly
    from raincast.system.paths import conf_dir

    known = {path.stem: path for path in sorted((conf_dir() / "baseline").glob("*.yaml")) if path.stem != "file"}
    if str(given) in known:
        found: Forecaster = assembly.make(OmegaConf.select(OmegaConf.load(known[str(given)]), str(given)))
        return found
    if not Path(given).exists():
        raise ValueError(f"forecasters: {str(given)!r} is neither a file nor one of {', '.join(known)}.")
    return assembly.load_forecaster(given)


def train(*overrides: str, archive: str | Path | None = None, folder: str | Path | None = None) -> Path:
    """Train a network as `python train.py` does, in this process; returns the best checkpoint.

    `overrides` are those of the command line, such as "experiment=radar" or "trainer.max_epochs=5". `archive` is
    an archive's path (None: the built-in one), `folder` takes what the run leaves (None: outputs/train/…).
    ValueError says which setting is wrong.
    """
    from hydra import compose, initialize_config_dir

    from raincast.commands.train import train as run
    from raincast.system.paths import HYDRA_VERSION_BASE, conf_dir
    from raincast.system.remote import as_path

    if folder is None:
        from datetime import datetime

        folder = Path("outputs/train") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}"
    given = [*overrides, f"paths.run_dir={Path(folder).resolve()}"]
    if archive is not None:
        given.append(f"data.archive={as_path(archive).resolve()}")
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        cfg = compose("train", overrides=given)
    return run(cfg).best


class RaincastBackend(BackendEntrypoint):
    """`xr.open_dataset(path, engine="raincast")`: an archive, or a radar file of any format, in mm/h."""

    description = "raincast archives, and files of weather radars in any format that raincast reads"

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        source: str = "auto",
    ) -> "xr.Dataset":
        """Open an archive like `open_archive`, otherwise radar files like `open_radar`."""
        if not isinstance(filename_or_obj, str | Path):
            raise TypeError(f"{type(filename_or_obj).__name__}: engine='raincast' opens a path.")
        from raincast.archive import archive_files
        from raincast.system.remote import as_path

        try:
            archive_files(as_path(filename_or_obj))
            dataset = open_archive(filename_or_obj)
        except (ValueError, OSError):
            dataset = open_radar(filename_or_obj, source=source)
        return dataset.drop_vars(drop_variables or [])

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return False: the engine is used only if it is named."""
        return False


def _span(times: Any) -> str:
    return f"{str(times[0])[:16]} to {str(times[-1])[:16]}" if times.size else "none"
