"""The built-in archive: synthetic storms that move, grow and decay, for use without a radar archive.

Each day is one weather situation. A Gaussian field with a power-law spectrum is advected by a smooth flow that
rotates and shears. Its scales decay and are renewed at different rates, by an autoregressive process in Lagrangian
coordinates as in STEPS (Bowler, Pierce and Seed, 2006). Rain grows where air ascends a ridge, fixed in the grid,
and decays in its lee. Convective cells are born, grow, widen and die. The sum is thresholded at the day's wet
share, and its ranks are mapped to log-normal rates.
"""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from raincast import archive, schema
from raincast.synthetic.fields import Floats, Weather, draw_weather, rain_fields
from raincast.version import __version__

FIRST_DAY = np.datetime64("2026-06-01")
SOURCE = "raincast built-in archive (synthetic storms)"
CONFIG_ATTR = "raincast_config"
DRIZZLE_MM_H = 0.1
MAX_MM_H = 120.0
UNSEEN_SHARE = 0.07  # share of the grid beyond the radar's range
BEAM_BLOCK_DEG = (128.0, 131.0)  # a mast blocks these azimuths beyond half the range
NUM_THREADS = 2  # days in parallel; NumPy, FFT and interpolation release the GIL


def build_builtin_archive(
    path: Path,
    *,
    num_days: int = 8,
    frames_per_day: int = 288,
    size: int = 128,
    step_minutes: float = 5.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write an archive of `size` × `size` km, one netCDF file per day, into the folder `path`.

    The same arguments give the same data; a day depends only on the seed and its number. A rerun keeps the days
    that an interrupted build finished. `progress(done, total)` counts frames; several threads call it, but never
    at the same time. Raises ValueError for invalid arguments, or if `path` has other files.
    """
    config = {
        "num_days": int(num_days),
        "frames_per_day": int(frames_per_day),
        "size": int(size),
        "step_minutes": float(step_minutes),
        "seed": int(seed),
    }
    _check_arguments(num_days, frames_per_day, size, step_minutes)
    days = _unfinished_days(path, config)
    count = _Counter(progress, (num_days - len(days)) * frames_per_day, num_days * frames_per_day)

    def make(day: int) -> tuple[int, xr.Dataset]:
        return day, _day_dataset(day, config, count)

    # a few days at a time, so that finished days are on disk before the next ones fill the memory
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for first in range(0, len(days), NUM_THREADS):
            futures = [pool.submit(make, day) for day in days[first : first + NUM_THREADS]]
            try:
                for future in as_completed(futures):
                    day, dataset = future.result()
                    # write in this thread only, because HDF5 is not thread-safe
                    archive.write_part(dataset, path / _file_name(day))
            except BaseException:
                count.stop.set()
                raise


def _check_arguments(num_days: int, frames_per_day: int, size: int, step_minutes: float) -> None:
    if num_days < 1 or size < 8:
        raise ValueError(f"num_days={num_days}, size={size}: at least 1 day and 8 pixels are needed.")
    if step_minutes <= 0:
        raise ValueError(f"step_minutes={step_minutes} is not above 0. Radars scan every 5 to 15 minutes.")
    most = int(1440 / step_minutes)
    if not 8 <= frames_per_day <= most:
        raise ValueError(
            f"frames_per_day={frames_per_day} is not in 8 to {most}, the number of frames of a day at "
            f"step_minutes={step_minutes}."
        )


class _Counter:
    """Counts frames over threads, and stops the other days if one failed or the user interrupted."""

    def __init__(self, progress: Callable[[int, int], None] | None, done: int, total: int) -> None:
        self.progress, self.done, self.total = progress, done, total
        self.lock, self.stop = threading.Lock(), threading.Event()

    def add(self) -> None:
        if self.stop.is_set():
            raise InterruptedError("Another day of the archive failed.")
        with self.lock:
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)


def _file_name(day: int) -> str:
    return f"{FIRST_DAY + day}.nc"


def _unfinished_days(path: Path, config: dict[str, Any]) -> list[int]:
    """Return the days still to be made. Raises ValueError if the folder was not begun with these arguments."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; the built-in archive needs a folder. Choose another path.")
    expected = [_file_name(day) for day in range(config["num_days"])]
    # ignore hidden files: a partially written day is hidden, and is overwritten
    present = sorted(p.name for p in path.glob("*") if not p.name.startswith(".")) if path.is_dir() else []
    foreign = [name for name in present if name not in expected]
    for name in present:
        if name in expected:
            _check_same_config(path / name, config)
    if foreign:
        raise ValueError(
            f"{path} holds files that are not part of this archive: {', '.join(foreign[:5])}"
            f"{', …' if len(foreign) > 5 else ''}. Choose an empty or new folder."
        )
    return [day for day, name in enumerate(expected) if name not in present]


def _check_same_config(file: Path, config: dict[str, Any]) -> None:
    try:
        with xr.open_dataset(file, engine="netcdf4", chunks=None) as dataset:
            found = str(dataset.attrs.get(CONFIG_ATTR))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}). Delete it and build again.") from error
    if found != json.dumps(config):
        raise ValueError(
            f"{file} was made with {found}, not with {json.dumps(config)}. "
            "Choose another folder, or delete this one to build it again."
        )


def _day_dataset(day: int, config: dict[str, Any], count: _Counter) -> xr.Dataset:
    """Return one day as a Dataset that fulfils the archive contract."""
    rng = np.random.default_rng(np.random.SeedSequence(config["seed"], spawn_key=(day,)))
    num_frames, size, step_minutes = config["frames_per_day"], config["size"], config["step_minutes"]
    weather = draw_weather(day, config["seed"], rng)
    seen = _coverage(size)
    present = _present_frames(num_frames, rng, ends_at_midnight=num_frames * step_minutes >= 1440)
    fields = np.empty((num_frames, size, size), np.float32)
    for number, field in enumerate(rain_fields(weather, size, num_frames, step_minutes / 60, rng)):
        fields[number] = field
        count.add()
    rain = _rates(fields, seen, weather)
    rain[:, ~seen] = np.nan
    times = (FIRST_DAY + day).astype("datetime64[ns]") + schema.step_timedelta(step_minutes) * np.arange(
        num_frames
    )
    return schema.rain_dataset(
        rain[present],
        times[present],
        schema.mock_grid(size, size),
        step_minutes=step_minutes,
        cell_methods="time: point",
        attrs={
            "title": "Synthetic rain for training and testing without a radar",
            "source": SOURCE,
            "raincast_version": __version__,
            CONFIG_ATTR: json.dumps(config),
        },
    )


def _coverage(size: int) -> npt.NDArray[np.bool_]:
    """Return the mask of pixels that the radar observes, (size, size): in range and not behind the mast."""
    rows, columns = np.mgrid[:size, :size] / size
    dy, dx = rows - 0.55, columns - 0.38
    distance = np.hypot(dy, dx)
    reach = np.quantile(distance, 1 - UNSEEN_SHARE)
    azimuth = np.rad2deg(np.arctan2(dx, -dy)) % 360
    blocked = (distance > 0.5 * reach) & (azimuth > BEAM_BLOCK_DEG[0]) & (azimuth < BEAM_BLOCK_DEG[1])
    return np.asarray((distance <= reach) & ~blocked)


def _present_frames(num_frames: int, rng: np.random.Generator, *, ends_at_midnight: bool) -> npt.NDArray[np.intp]:
    """Return the numbers of the frames that exist: about 1 % are missing, single ones and a pair.

    The first and the last frame exist, so that one file shows all its gaps. But if the next day follows directly,
    the last frame is missing too, so that no window spans two weather situations.
    """
    last = num_frames - 1 - ends_at_midnight
    if num_frames < 144:  # a short day keeps one long run
        missing = [int(rng.integers(1, max(2, num_frames // 8)))]
    else:
        pair = int(rng.integers(1, last - 1))
        missing = [pair, pair + 1, *rng.integers(1, last, max(1, round(num_frames / 100) - 2)).tolist()]
    if ends_at_midnight:
        missing.append(num_frames - 1)
    return np.setdiff1d(np.arange(num_frames), missing)


def _rates(fields: Floats, seen: npt.NDArray[np.bool_], weather: Weather) -> Floats:
    """Map fields to rates in mm/h, both (T, H, W): the highest `wet_share` of the day's pixels become log-normal.

    The map is monotone: the u-quantile of the wet pixels becomes the u-quantile of the log-normal distribution.
    """
    from scipy.special import ndtr, ndtri

    normal = np.linspace(ndtri(1e-3), ndtri(1 - 1e-6), 600)
    share_below = 1 - weather.wet_share * (1 - ndtr(normal))
    levels = np.quantile(fields[::3, seen], share_below)
    log_rate = np.log(weather.median_mm_h) + weather.log_sigma * normal
    wet = fields > levels[0]
    wet_rates = np.minimum(np.exp(np.interp(fields[wet], levels, log_rate)), MAX_MM_H)
    rates = np.zeros_like(fields)
    rates[wet] = np.where(wet_rates < DRIZZLE_MM_H, 0, np.round(wet_rates, 2))
    return rates
