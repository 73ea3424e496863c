"""raincast in a few calls, from Python: frames, archives, forecasts, scores, training; no config to compose."""

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xarray.backends import BackendEntrypoint

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

Files = str | Path | Sequence[str | Path]


def open_radar(
    files: Files,
    *,
    start: "str | np.datetime64 | None" = None,
    end: "str | np.datetime64 | None" = None,
    source: str = "auto",
    **settings: Any,
) -> "xr.Dataset":
    """Radar files of any format as a Dataset of rain rates in mm/h, NaN for missing, (time, y, x).

    `files` is a path, a folder, a glob such as "radar/*.h5", or a list of them. `source` names a format of
    conf/source, where it should not be recognised by content; `settings` are its own:
    `open_radar(files, source="cf", variable="R")`. Only frames from `start` to `end` (UTC, both inclusive) are
    kept. Frames are read when they are looked at. FileNotFoundError or ValueError say what is wrong with a file.
    """
    import numpy as np

    from raincast import assembly, schema
    from raincast.archive.find import find_files
    from raincast.archive.lazy import lazy_dataset
    from raincast.forecasting.series import FileSeries

    series = FileSeries(assembly.reader_named(source, **settings), find_files(files))
    times = series.times
    if start is not None:
        times = times[times >= np.datetime64(start)]
    if end is not None:
        times = times[times <= np.datetime64(end)]
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
    """An archive of `ingest.py`, a CF netCDF file or a Zarr store as a Dataset of rain rates in mm/h.

    Frames are read when they are looked at; `.chunk({"time": 24})` makes it one of dask. FileNotFoundError or
    ValueError say what is wrong, and how to mend it.
    """
    from raincast.archive import Archive

    return Archive.open(path).lazy()


def sample_path() -> Path:
    """The file of the event that comes with raincast."""
    return Path(str(files("raincast") / "sample" / "2016-07-11.nc"))


def open_sample() -> "xr.Dataset":
    """Real rain that comes with raincast, in mm/h: thunderstorms over Switzerland. Source: MeteoSwiss."""
    return open_archive(sample_path())


def train(*overrides: str, archive: str | Path | None = None, folder: str | Path | None = None) -> Path:
    """Train a network as `python train.py` does, in this process; returns the best checkpoint.

    `overrides` are those of the command line, such as "experiment=radar" or "trainer.max_epochs=5". `archive` is
    an archive's path (None: the built-in one), `folder` takes what the run leaves (None: outputs/train/…).
    ValueError says which setting is wrong.
    """
    from hydra import compose, initialize_config_dir

    from raincast.commands.train import train as run
    from raincast.system.conf import HYDRA_VERSION_BASE, conf_dir

    if folder is None:
        from datetime import datetime

        folder = Path("outputs/train") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}"
    given = [*overrides, f"paths.run_dir={Path(folder).resolve()}"]
    if archive is not None:
        given.append(f"data.archive={Path(archive).resolve()}")
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
        """As `open_archive`, or else `open_radar`, does."""
        if not isinstance(filename_or_obj, str | Path):
            raise TypeError(f"{type(filename_or_obj).__name__}: engine='raincast' opens a path.")
        from raincast.archive import archive_files

        try:
            archive_files(Path(filename_or_obj))
            dataset = open_archive(filename_or_obj)
        except (ValueError, OSError):
            dataset = open_radar(filename_or_obj, source=source)
        return dataset.drop_vars(drop_variables or [])

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Only where it is asked for by name."""
        return False


def _span(times: Any) -> str:
    return f"{str(times[0])[:16]} to {str(times[-1])[:16]}" if times.size else "none"
