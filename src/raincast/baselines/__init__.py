"""Forecasts without training: persistence, extrapolation, S-PROG, ANVIL, STEPS and LINDA (pysteps), and files.

Each is a `forecaster.Forecaster`. They forecast in whole steps and use only the rain. Rates are finite and
nonnegative everywhere, and 0 where nothing is known.
"""

from raincast.baselines.ensembles import Ensemble, Linda, Steps
from raincast.baselines.evolution import Anvil, FastSProg, SProg
from raincast.baselines.files import ForecastFiles
from raincast.baselines.motion import METHODS, SMALLEST_GRID, Extrapolation, Persistence

__all__ = [
    "METHODS",
    "SMALLEST_GRID",
    "Anvil",
    "Ensemble",
    "Extrapolation",
    "FastSProg",
    "ForecastFiles",
    "Linda",
    "Persistence",
    "SProg",
    "Steps",
]
