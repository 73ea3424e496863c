"""The built-in archive: synthetic storms that move, grow and decay, for when no radar archive is at hand.

A day is one weather situation. A Gaussian field with a power-law spectrum drifts with a smooth flow that
turns and shears; its scales fade and are renewed at their own pace (an autoregressive process in
coordinates that move with the rain, as in STEPS: Bowler, Pierce and Seed, 2006). Air that climbs a ridge,
fixed in the grid, gains rain and loses it in the lee; convective cells are born, grow, widen and die. The
sum is thresholded at the day's wet share and its ranks are mapped to log-normal rates.
"""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

import raincast
from raincast import archive, schema
from raincast.schema import Grid

Floats = npt.NDArray[np.float32]

FIRST_DAY = np.datetime64("2026-06-01")
SOURCE = "raincast built-in archive (synthetic storms)"
CONFIG_ATTR = "raincast_config"
EDDY_WAVES = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, -2))  # to the torus, over rows and columns
MARGIN_KM = 128  # the fields live on a torus this much wider than the grid: what leaves comes back as new rain
SPIN_UP_HOURS = 1.5  # until the ridge has left its mark on the rain
LIFE_POWER = 1.25  # how the life of a structure grows with its length
LIFE_KM = 32  # the length whose life a day's weather states
DRIZZLE_MM_H = 0.1
MAX_MM_H = 120.0
UNSEEN_SHARE = 0.07  # of the grid, beyond the radar's range
BEAM_BLOCK_DEG = (128.0, 131.0)  # a mast: azimuths hidden beyond half the range
NUM_THREADS = 2  # days side by side; NumPy, FFT and interpolation release the interpreter
ROSE_DEG = 137.508  # golden angle and golden ratio spread the days over the kinds of weather, however many
GOLDEN = 0.618034


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
    """Write an archive of `size` × `size` km, one netCDF file a day, into the folder `path`.

    The same arguments give the same data; a day depends on the seed and its number alone. A rerun keeps the
    days that an interrupted build finished. `progress(done, total)` counts frames, from several threads but
    never at once. ValueError where `path` holds anything else.
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

    # a few days at a time: a finished day is on disk before the next ones fill the memory
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for first in range(0, len(days), NUM_THREADS):
            futures = [pool.submit(make, day) for day in days[first : first + NUM_THREADS]]
            try:
                for future in as_completed(futures):
                    day, dataset = future.result()
                    # in this thread only: HDF5 is not made for two writers
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
            f"frames_per_day={frames_per_day} is not in 8 to {most}, the frames that fit into a day at "
            f"step_minutes={step_minutes}."
        )


class _Counter:
    """Counts frames over threads, and ends the other days when one failed or the user gave up."""

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
    """The days still to be made; ValueError where the folder is not one that these arguments began."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; the built-in archive needs a folder. Choose another path.")
    expected = [_file_name(day) for day in range(config["num_days"])]
    # hidden files do not count: a half-written day is one, and is overwritten
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
            "Choose another folder, or delete this one to build it anew."
        )


def _day_dataset(day: int, config: dict[str, Any], count: _Counter) -> xr.Dataset:
    """One day of the archive, in the words of its contract."""
    rng = np.random.default_rng(np.random.SeedSequence(config["seed"], spawn_key=(day,)))
    num_frames, size, step_minutes = config["frames_per_day"], config["size"], config["step_minutes"]
    weather = _draw_weather(day, config["seed"], rng)
    seen = _coverage(size)
    present = _present_frames(num_frames, rng, ends_at_midnight=num_frames * step_minutes >= 1440)
    fields = np.empty((num_frames, size, size), np.float32)
    for number, field in enumerate(_fields(weather, size, num_frames, step_minutes / 60, rng)):
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
        _grid(size),
        step_minutes=step_minutes,
        cell_methods="time: point",
        attrs={
            "title": "Synthetic rain for training and testing without a radar",
            "source": SOURCE,
            "raincast_version": raincast.__version__,
            CONFIG_ATTR: json.dumps(config),
        },
    )


def _grid(size: int) -> Grid:
    """A 1 km polar-stereographic grid, north up, whose north-west corner is that of the mock grid."""
    return schema.mock_grid(size, size)


def _coverage(size: int) -> npt.NDArray[np.bool_]:
    """Where the radar sees, (size, size): inside its range, and not behind the mast."""
    rows, columns = np.mgrid[:size, :size] / size
    dy, dx = rows - 0.55, columns - 0.38
    distance = np.hypot(dy, dx)
    reach = np.quantile(distance, 1 - UNSEEN_SHARE)
    azimuth = np.rad2deg(np.arctan2(dx, -dy)) % 360
    blocked = (distance > 0.5 * reach) & (azimuth > BEAM_BLOCK_DEG[0]) & (azimuth < BEAM_BLOCK_DEG[1])
    return np.asarray((distance <= reach) & ~blocked)


def _present_frames(num_frames: int, rng: np.random.Generator, *, ends_at_midnight: bool) -> npt.NDArray[np.intp]:
    """The numbers of the frames that exist: about 1 % are missing, single ones and a pair.

    The first and the last frame stay, so that the gaps are known from one file. Only where the next day
    follows at once the last frame is missing too: no window then spans two weather situations.
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


@dataclass(frozen=True)
class _Weather:
    """The situation of a day. Directions are degrees anticlockwise from east, of where the rain goes."""

    heading_deg: float
    turn_deg: float  # over 24 h
    speed_km_h: float
    eddy_km_h: float  # how much the flow differs over the grid: its shear and rotation
    slope: float  # of the two-dimensional power spectrum
    outer_km: float  # no structure beyond this scale
    stretch: float  # length of bands over their width, square root
    band_deg: float
    life_minutes: float  # of structures `LIFE_KM` long
    convective: float  # 0 stratiform, 1 showers only
    wet_share: float
    median_mm_h: float
    log_sigma: float


def _draw_weather(day: int, seed: int, rng: np.random.Generator) -> _Weather:
    offset = np.random.default_rng(np.random.SeedSequence(seed)).uniform(size=2)
    convective = float((offset[0] + GOLDEN * day) % 1)
    # mid-latitudes: mostly from the west, which makes the ridge's lee the same side on most days
    heading = 75 * np.sin(2 * np.pi * offset[1] + np.deg2rad(ROSE_DEG) * day)
    return _Weather(
        heading_deg=float(heading),
        turn_deg=float(rng.choice([-1, 1]) * rng.uniform(30, 80)),
        speed_km_h=float(rng.uniform(18, 40)),
        eddy_km_h=float(rng.uniform(3, 7)),
        slope=float(3.7 - 0.4 * convective + rng.uniform(-0.1, 0.1)),
        outer_km=float(rng.uniform(140, 200) - 40 * convective),
        stretch=float(1 + rng.uniform(0.1, 0.6)),
        band_deg=float(heading + 90 + rng.uniform(-40, 40)),  # bands lie across their way, like fronts
        life_minutes=float(rng.uniform(600, 800) - 150 * convective),
        convective=convective,
        wet_share=float(0.25 - 0.12 * convective + rng.uniform(-0.03, 0.03)),
        median_mm_h=float(rng.uniform(0.8, 1.1)),
        log_sigma=float(0.85 + 0.2 * convective),
    )


def _fields(
    weather: _Weather, size: int, num_frames: int, step_hours: float, rng: np.random.Generator
) -> Iterator[Floats]:
    """The day's fields over the grid, (size, size) each, without unit: the higher, the more rain."""
    from scipy.fft import next_fast_len

    torus = next_fast_len(size + MARGIN_KM, real=True)
    first = (torus - size) // 2
    window = slice(first, first + size)
    flow = _Flow.draw(weather, torus, rng)
    drift = _Drift(weather, torus, step_hours, rng)
    cells = _Cells(weather, torus, step_hours, rng)
    ridge = _ridge(torus)
    for number in range(-round(SPIN_UP_HOURS / step_hours), num_frames):
        hours = number * step_hours
        velocity = flow.velocity(hours)
        lift = _lift(ridge, velocity)
        field = drift.step(velocity, lift)
        cells.step(velocity, field, hours)
        if number >= 0:
            yield field[window, window] + cells.draw(window)


@dataclass(frozen=True, eq=False)
class _Flow:
    """A smooth flow on the torus: a translation that turns, and slow eddies without divergence."""

    weather: _Weather
    torus: int
    phases: npt.NDArray[np.float64]

    @classmethod
    def draw(cls, weather: _Weather, torus: int, rng: np.random.Generator) -> "_Flow":
        return cls(weather, torus, rng.uniform(0, 2 * np.pi, len(EDDY_WAVES)))

    def steering(self, hours: float) -> tuple[float, float]:
        """The translation towards rising rows and columns, km/h."""
        weather = self.weather
        angle = np.deg2rad(weather.heading_deg + weather.turn_deg * (hours / 24 + 0.1 * np.sin(hours * 0.7)))
        speed = weather.speed_km_h * (1 + 0.15 * np.sin(hours * 0.45 + self.phases[0]))
        return float(-speed * np.sin(angle)), float(speed * np.cos(angle))

    def velocity(self, hours: float) -> Floats:
        """Towards rising rows and columns, km/h: (2, torus, torus)."""
        place = 2 * np.pi * np.arange(self.torus) / self.torus
        wave_y, wave_x = np.array(EDDY_WAVES).T[:, :, None]
        along_y = wave_y * place + self.phases[:, None] + 0.3 * hours
        along_x = wave_x * place
        # cos(a + b) = cos a cos b − sin a sin b: all waves in one matrix product
        rows = np.concatenate([np.cos(along_y), -np.sin(along_y)])
        columns = np.concatenate([np.cos(along_x), np.sin(along_x)]).astype(np.float32)
        speed = self.weather.eddy_km_h / (wave_y**2 + wave_x**2)
        velocity = np.empty((2, self.torus, self.torus), np.float32)
        # the curl of a stream function: along the crests
        for axis, (mean, across) in enumerate(zip(self.steering(hours), (wave_x, -wave_y), strict=True)):
            weights = np.concatenate([across * speed] * 2)
            velocity[axis] = mean + (rows * weights).astype(np.float32).T @ columns
        return velocity


def _ridge(torus: int) -> Floats:
    """The height of a ridge through the middle of the grid, 0 to 1, (torus, torus)."""
    rows, columns = np.mgrid[:torus, :torus]
    turn = 2 * np.pi * rows / torus
    crest = torus * 0.53 + 14 * np.sin(turn + 1) + 5 * np.sin(3 * turn)
    height = 0.7 + 0.3 * np.sin(2 * turn + 2)
    return np.asarray(height * np.exp(-0.5 * ((columns - crest) / 11) ** 2), np.float32)


def _lift(ridge: Floats, velocity: Floats) -> Floats:
    """What climbing adds to the field an hour.

    More is lost in the lee than was gained, and comes back later: a rain shadow.
    """
    slope = [(np.roll(ridge, -1, axis) - np.roll(ridge, 1, axis)) / 2 for axis in (0, 1)]
    climb = velocity[0] * slope[0] + velocity[1] * slope[1]
    return np.asarray(np.where(climb > 0, 0.8, 1.0) * climb, np.float32)


class _Drift:
    """A Gaussian field of unit variance that drifts while its scales fade and are renewed.

    Each step is z ← ρ(k) · advected z + √(1 − ρ²) · new noise, in Fourier space, where the shift is by cubic
    splines. ρ(k) falls with the wavenumber: large structures live for hours, small ones for minutes.
    """

    def __init__(self, weather: _Weather, torus: int, step_hours: float, rng: np.random.Generator) -> None:
        self.torus, self.step_hours, self.rng = torus, step_hours, rng
        self.places = np.mgrid[:torus, :torus].astype(np.float32)
        ky, kx = np.fft.fftfreq(torus)[:, None], np.fft.rfftfreq(torus)[None, :]
        spread = _spectrum(weather, ky, kx)
        wavelength = 1 / np.maximum(np.hypot(ky, kx), 1 / torus)
        life_hours = weather.life_minutes / 60 * (wavelength / LIFE_KM) ** LIFE_POWER
        fade = np.exp(-step_hours / life_hours)
        self.fade = fade.astype(np.float32)
        self.renew = (np.sqrt(1 - fade**2) * spread).astype(np.float32)
        # the samples of a cubic B-spline have this transform: dividing by it gives the spline's coefficients
        self.spline = ((2 + np.cos(2 * np.pi * ky)) * (2 + np.cos(2 * np.pi * kx)) / 9).astype(np.float32)
        self.spectrum = self._noise() * spread.astype(np.float32)

    def _noise(self) -> npt.NDArray[np.complex64]:
        from scipy.fft import rfft2

        white = self.rng.standard_normal((self.torus, self.torus), np.float32)
        return np.asarray(rfft2(white), np.complex64)

    def step(self, velocity: Floats, lift: Floats) -> Floats:
        """Move by `velocity` (2, torus, torus), km/h, and add `lift` per hour.

        The new field is (torus, torus).
        """
        from scipy.fft import irfft2, rfft2
        from scipy.ndimage import map_coordinates

        shape = (self.torus, self.torus)
        departure = self.places - velocity * np.float32(self.step_hours)
        coefficients = irfft2(self.spectrum / self.spline, shape)
        moved = map_coordinates(
            coefficients, departure, order=3, mode="grid-wrap", prefilter=False, output=np.float32
        )
        moved += lift * np.float32(self.step_hours)
        self.spectrum = self.fade * rfft2(moved) + self.renew * self._noise()
        return np.asarray(irfft2(self.spectrum, shape), np.float32)


def _spectrum(
    weather: _Weather, ky: npt.NDArray[np.floating], kx: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Amplitudes that turn white noise into noise of unit variance whose power is a power law.

    The law levels off beyond the outer scale, and is stretched to bands.
    """
    angle = np.deg2rad(weather.band_deg)
    # rows run south, so that a band towards north-east has rising columns and falling rows
    along = kx * np.cos(angle) - ky * np.sin(angle)
    across = kx * np.sin(angle) + ky * np.cos(angle)
    wavenumber = np.hypot(along * weather.stretch, across / weather.stretch)
    power = (wavenumber**2 + weather.outer_km**-2.0) ** (-weather.slope / 2)
    power[0, 0] = 0
    # rfft keeps half the plane: every column but the first and (even sizes) the last stands for two
    weights = np.full(kx.shape, 2.0)
    weights[0, 0] = 1
    return np.asarray(np.sqrt(power / ((power * weights).sum() / ky.size**2)))


class _Cells:
    """Convective cells: born where the field is high and in the afternoon, they grow fast, widen and fade."""

    BLOBS = 3  # to a cell: storms are not round

    def __init__(self, weather: _Weather, torus: int, step_hours: float, rng: np.random.Generator) -> None:
        self.weather, self.torus, self.step_hours, self.rng = weather, torus, step_hours, rng
        self.own_motion = rng.normal(0, 4, (1, 2))  # storms leave the steering flow a little, all alike
        self.table = np.empty((0, 6 + 2 * self.BLOBS))
        """A row a cell: y, x (km), age, life (h), strength, width (km), offsets of its blobs (km)."""

    def step(self, velocity: Floats, field: Floats, hours: float) -> None:
        """Move and age all cells, remove the dead, let new ones be born."""
        cells = self.table
        cells[:, :2] += (self._at(velocity, cells).T + self.own_motion) * self.step_hours
        cells[:, :2] %= self.torus
        cells[:, 2] += self.step_hours
        self.table = np.concatenate([cells[cells[:, 2] < cells[:, 3]], self._births(field, hours)])

    def _at(self, values: Floats, cells: npt.NDArray[np.float64]) -> Floats:
        rows, columns = (cells[:, :2].T % self.torus).astype(np.intp)
        return values[..., rows, columns]

    def _births(self, field: Floats, hours: float) -> npt.NDArray[np.float64]:
        day_course = 1 + 0.6 * np.cos(2 * np.pi * (hours - 15) / 24)
        per_hour = (0.1 + 0.9 * self.weather.convective) * day_course * 26 * (self.torus / 256) ** 2
        rng, count = self.rng, self.rng.poisson(4 * per_hour * self.step_hours)
        cells = np.empty((count, self.table.shape[1]))
        cells[:, :2] = rng.uniform(0, self.torus, (count, 2))
        cells[:, 2] = 0
        cells[:, 3] = rng.uniform(0.5, 1.4, count)
        cells[:, 4] = rng.uniform(0.8, 2.4, count)
        cells[:, 5] = rng.uniform(1.8, 3.8, count)
        cells[:, 6:] = rng.normal(0, 1.3, (count, 2 * self.BLOBS)) * cells[:, 5:6]
        # of four tries about one lives: mostly where the field is high already
        odds = 1 / (1 + np.exp(2 - 2 * self._at(field, cells)))
        return np.asarray(cells[rng.uniform(size=count) < odds])

    def draw(self, window: slice) -> Floats:
        """What the cells add to the field in the window, (size, size)."""
        y, x, age, life, strength, width = self.table[:, :6].T
        phase = age / life
        # quick growth, slow decay: the maximum, 1, is at 0.4 of the life
        vigour = strength * np.sin(np.pi * phase**0.75) ** 2
        spread = width * (0.7 + 0.6 * phase)
        total = np.zeros((window.stop - window.start,) * 2, np.float32)
        for blob in range(self.BLOBS):
            dy, dx = self.table[:, 6 + 2 * blob], self.table[:, 7 + 2 * blob]
            rows, columns = self._bell(y + dy, spread, window), self._bell(x + dx, spread, window)
            total += (rows * (vigour / (1 + 0.5 * blob))[:, None]).T.astype(np.float32) @ columns.astype(
                np.float32
            )
        return total

    def _bell(self, centre: Any, spread: Any, window: slice) -> npt.NDArray[np.float64]:
        distance = np.arange(window.start, window.stop) - centre[:, None]
        distance = (distance + self.torus / 2) % self.torus - self.torus / 2
        return np.asarray(np.exp(-0.5 * (distance / spread[:, None]) ** 2))


def _rates(fields: Floats, seen: npt.NDArray[np.bool_], weather: _Weather) -> Floats:
    """Fields to rates in mm/h, both (T, H, W): the highest `wet_share` of the day's pixels become log-normal.

    The map is monotone: the value that a share u of the wet pixels stay below becomes the u-quantile of the
    log-normal distribution.
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
