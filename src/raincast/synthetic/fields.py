"""The weather of a day, and rain fields that follow it: advected, decaying and renewed, with a ridge and cells."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

ROSE_DEG = 137.508  # golden angle and ratio spread any number of days evenly over the kinds of weather
GOLDEN = 0.618034


@dataclass(frozen=True)
class Weather:
    """The weather situation of a day. Directions are those of the motion, in degrees anticlockwise from east."""

    heading_deg: float
    turn_deg: float  # over 24 h
    speed_km_h: float
    eddy_km_h: float  # variation of the flow over the grid: shear and rotation
    slope: float  # of the two-dimensional power spectrum
    outer_km: float  # outer scale: there is no structure beyond it
    stretch: float  # square root of the aspect ratio of bands
    band_deg: float
    life_minutes: float  # of structures of length `LIFE_KM`
    convective: float  # 0 stratiform, 1 showers only
    wet_share: float
    median_mm_h: float
    log_sigma: float


def draw_weather(day: int, seed: int, rng: np.random.Generator) -> Weather:
    """Draw the weather of day number `day`; consecutive days differ, and every kind occurs in turn."""
    offset = np.random.default_rng(np.random.SeedSequence(seed)).uniform(size=2)
    convective = float((offset[0] + GOLDEN * day) % 1)
    # mid-latitudes: flow mostly from the west, so the lee of the ridge is on the same side on most days
    heading = 75 * np.sin(2 * np.pi * offset[1] + np.deg2rad(ROSE_DEG) * day)
    return Weather(
        heading_deg=float(heading),
        turn_deg=float(rng.choice([-1, 1]) * rng.uniform(30, 80)),
        speed_km_h=float(rng.uniform(18, 40)),
        eddy_km_h=float(rng.uniform(3, 7)),
        slope=float(3.7 - 0.4 * convective + rng.uniform(-0.1, 0.1)),
        outer_km=float(rng.uniform(140, 200) - 40 * convective),
        stretch=float(1 + rng.uniform(0.1, 0.6)),
        band_deg=float(heading + 90 + rng.uniform(-40, 40)),  # bands are perpendicular to the flow, like fronts
        life_minutes=float(rng.uniform(600, 800) - 150 * convective),
        convective=convective,
        wet_share=float(0.25 - 0.12 * convective + rng.uniform(-0.03, 0.03)),
        median_mm_h=float(rng.uniform(0.8, 1.1)),
        log_sigma=float(0.85 + 0.2 * convective),
    )


EDDY_WAVES = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, -2))  # waves per torus, over rows and columns
MARGIN_KM = 128  # the torus is this much wider than the grid, so that rain which leaves returns as new rain
SPIN_UP_HOURS = 1.5  # until the ridge has modified the rain
LIFE_POWER = 1.25  # lifetime of a structure grows with this power of its length
LIFE_KM = 32  # the length to which `Weather.life_minutes` refers


def rain_fields(
    weather: Weather, size: int, num_frames: int, step_hours: float, rng: np.random.Generator
) -> Iterator[Floats]:
    """Yield the day's fields over the grid, (size, size) each, dimensionless: higher values mean more rain."""
    from scipy.fft import next_fast_len

    torus = next_fast_len(size + MARGIN_KM, real=True)
    first = (torus - size) // 2
    window = slice(first, first + size)
    flow = Flow.draw(weather, torus, rng)
    drift = Drift(weather, torus, step_hours, rng)
    cells = Cells(weather, torus, step_hours, rng)
    ridge = ridge_height(torus)
    for number in range(-round(SPIN_UP_HOURS / step_hours), num_frames):
        hours = number * step_hours
        velocity = flow.velocity(hours)
        lift = _lift(ridge, velocity)
        field = drift.step(velocity, lift)
        cells.step(velocity, field, hours)
        if number >= 0:
            yield field[window, window] + cells.draw(window)


@dataclass(frozen=True, eq=False)
class Flow:
    """A smooth flow on the torus: a translation that rotates with time, and slow non-divergent eddies."""

    weather: Weather
    torus: int
    phases: npt.NDArray[np.float64]

    @classmethod
    def draw(cls, weather: Weather, torus: int, rng: np.random.Generator) -> "Flow":
        """Return a flow whose eddies have random phases."""
        return cls(weather, torus, rng.uniform(0, 2 * np.pi, len(EDDY_WAVES)))

    def steering(self, hours: float) -> tuple[float, float]:
        """Return the translation along increasing rows and columns in km/h."""
        weather = self.weather
        angle = np.deg2rad(weather.heading_deg + weather.turn_deg * (hours / 24 + 0.1 * np.sin(hours * 0.7)))
        speed = weather.speed_km_h * (1 + 0.15 * np.sin(hours * 0.45 + self.phases[0]))
        return float(-speed * np.sin(angle)), float(speed * np.cos(angle))

    def velocity(self, hours: float) -> Floats:
        """Return the velocity along increasing rows and columns in km/h, (2, torus, torus)."""
        place = 2 * np.pi * np.arange(self.torus) / self.torus
        wave_y, wave_x = np.array(EDDY_WAVES).T[:, :, None]
        along_y = wave_y * place + self.phases[:, None] + 0.3 * hours
        along_x = wave_x * place
        # cos(a + b) = cos a cos b − sin a sin b: all waves in one matrix product
        rows = np.concatenate([np.cos(along_y), -np.sin(along_y)])
        columns = np.concatenate([np.cos(along_x), np.sin(along_x)]).astype(np.float32)
        speed = self.weather.eddy_km_h / (wave_y**2 + wave_x**2)
        velocity = np.empty((2, self.torus, self.torus), np.float32)
        # the curl of a stream function: flow is parallel to the crests
        for axis, (mean, across) in enumerate(zip(self.steering(hours), (wave_x, -wave_y), strict=True)):
            weights = np.concatenate([across * speed] * 2)
            velocity[axis] = mean + (rows * weights).astype(np.float32).T @ columns
        return velocity


def ridge_height(torus: int) -> Floats:
    """Return the height, 0 to 1, of a ridge through the middle of the grid, (torus, torus)."""
    rows, columns = np.mgrid[:torus, :torus]
    turn = 2 * np.pi * rows / torus
    crest = torus * 0.53 + 14 * np.sin(turn + 1) + 5 * np.sin(3 * turn)
    height = 0.7 + 0.3 * np.sin(2 * turn + 2)
    return np.asarray(height * np.exp(-0.5 * ((columns - crest) / 11) ** 2), np.float32)


def _lift(ridge: Floats, velocity: Floats) -> Floats:
    """Return the hourly change of the field by ascent over the ridge.

    The lee loses more than the ascent gained and recovers later: a rain shadow.
    """
    slope = [(np.roll(ridge, -1, axis) - np.roll(ridge, 1, axis)) / 2 for axis in (0, 1)]
    climb = velocity[0] * slope[0] + velocity[1] * slope[1]
    return np.asarray(np.where(climb > 0, 0.8, 1.0) * climb, np.float32)


class Drift:
    """A Gaussian field of unit variance that is advected while its scales decay and are renewed.

    Each step is z ← ρ(k) · advected z + √(1 − ρ²) · new noise in Fourier space; advection uses cubic splines. ρ(k)
    falls with the wavenumber: large structures live for hours, small ones for minutes.
    """

    def __init__(self, weather: Weather, torus: int, step_hours: float, rng: np.random.Generator) -> None:
        self.torus, self.step_hours, self.rng = torus, step_hours, rng
        self.places = np.mgrid[:torus, :torus].astype(np.float32)
        ky, kx = np.fft.fftfreq(torus)[:, None], np.fft.rfftfreq(torus)[None, :]
        spread = _spectrum(weather, ky, kx)
        wavelength = 1 / np.maximum(np.hypot(ky, kx), 1 / torus)
        life_hours = weather.life_minutes / 60 * (wavelength / LIFE_KM) ** LIFE_POWER
        fade = np.exp(-step_hours / life_hours)
        self.fade = fade.astype(np.float32)
        self.renew = (np.sqrt(1 - fade**2) * spread).astype(np.float32)
        # the transform of a sampled cubic B-spline: dividing by it gives the spline's coefficients
        self.spline = ((2 + np.cos(2 * np.pi * ky)) * (2 + np.cos(2 * np.pi * kx)) / 9).astype(np.float32)
        self.spectrum = self._noise() * spread.astype(np.float32)

    def _noise(self) -> npt.NDArray[np.complex64]:
        from scipy.fft import rfft2

        white = self.rng.standard_normal((self.torus, self.torus), np.float32)
        return np.asarray(rfft2(white), np.complex64)

    def step(self, velocity: Floats, lift: Floats) -> Floats:
        """Advect by `velocity` (2, torus, torus) in km/h, add `lift` per hour; return the field (torus, torus)."""
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
    weather: Weather, ky: npt.NDArray[np.floating], kx: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Return amplitudes that turn white noise into noise of unit variance with a power-law spectrum.

    The spectrum is flat beyond the outer scale, and stretched to bands.
    """
    angle = np.deg2rad(weather.band_deg)
    # rows run south, so a band towards the north-east has increasing columns and decreasing rows
    along = kx * np.cos(angle) - ky * np.sin(angle)
    across = kx * np.sin(angle) + ky * np.cos(angle)
    wavenumber = np.hypot(along * weather.stretch, across / weather.stretch)
    power = (wavenumber**2 + weather.outer_km**-2.0) ** (-weather.slope / 2)
    power[0, 0] = 0
    # rfft keeps half the plane: every column counts twice except the first and, for even sizes, the last
    weights = np.full(kx.shape, 2.0)
    weights[0, 0] = 1
    return np.asarray(np.sqrt(power / ((power * weights).sum() / ky.size**2)))


class Cells:
    """Convective cells: born in the afternoon and where the field is high, they grow fast, widen and decay."""

    BLOBS = 3  # per cell, because storms are not round

    def __init__(self, weather: Weather, torus: int, step_hours: float, rng: np.random.Generator) -> None:
        self.weather, self.torus, self.step_hours, self.rng = weather, torus, step_hours, rng
        self.own_motion = rng.normal(0, 4, (1, 2))  # the same deviation from the steering flow for all storms
        self.table = np.empty((0, 6 + 2 * self.BLOBS))
        """One row per cell: y, x (km), age, life (h), strength, width (km), offsets of its blobs (km)."""

    def step(self, velocity: Floats, field: Floats, hours: float) -> None:
        """Move and age all cells, remove dead ones and add new ones."""
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
        # about one of four candidates survives, mostly where the field is already high
        odds = 1 / (1 + np.exp(2 - 2 * self._at(field, cells)))
        return np.asarray(cells[rng.uniform(size=count) < odds])

    def draw(self, window: slice) -> Floats:
        """Return the contribution of the cells to the field in the window, (size, size)."""
        y, x, age, life, strength, width = self.table[:, :6].T
        phase = age / life
        # quick growth and slow decay: the maximum is at 0.4 of the life
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
