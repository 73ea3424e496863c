"""The weather of a day: numbers that everything about its rain follows from."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

ROSE_DEG = 137.508  # golden angle and golden ratio spread the days over the kinds of weather, however many
GOLDEN = 0.618034


@dataclass(frozen=True)
class Weather:
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


def draw_weather(day: int, seed: int, rng: np.random.Generator) -> Weather:
    """That of day number `day`; neighbouring days are unlike each other, and every kind comes round."""
    offset = np.random.default_rng(np.random.SeedSequence(seed)).uniform(size=2)
    convective = float((offset[0] + GOLDEN * day) % 1)
    # mid-latitudes: mostly from the west, which makes the ridge's lee the same side on most days
    heading = 75 * np.sin(2 * np.pi * offset[1] + np.deg2rad(ROSE_DEG) * day)
    return Weather(
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
