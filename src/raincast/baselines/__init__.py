"""Forecasts without training: persistence, extrapolation along motion, S-PROG, ANVIL, STEPS, LINDA
(pysteps); and what lies in files.

Each is a `forecaster.Forecaster`. They go by steps, and use the rain alone: rates are finite and not negative
everywhere, 0 where nothing is known.
"""

from raincast.baselines.cascades import Anvil, SProg
from raincast.baselines.ensembles import Ensemble, Linda, Steps
from raincast.baselines.files import ForecastFiles
from raincast.baselines.motion import METHODS, SMALLEST_GRID, Extrapolation
from raincast.baselines.past import Persistence

__all__ = [
    "METHODS",
    "SMALLEST_GRID",
    "Anvil",
    "Ensemble",
    "Extrapolation",
    "ForecastFiles",
    "Linda",
    "Persistence",
    "SProg",
    "Steps",
]
