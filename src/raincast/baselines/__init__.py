"""Forecasts without training: persistence, extrapolation along motion, S-PROG, ANVIL, STEPS, LINDA
(pysteps); and what lies in files.

A forecaster has a `name` and `forecast(rain, num_steps)`: rain rates in mm/h in, NaN where missing, and
rain rates in mm/h out, finite and not negative everywhere, 0 where nothing is known. Those with members also
have `ensemble(rain, num_steps)`.
"""

from raincast.baselines.cascades import Anvil, SProg
from raincast.baselines.ensembles import Ensemble, Linda, Members, Steps
from raincast.baselines.extrapolation import Extrapolation
from raincast.baselines.files import ForecastFiles
from raincast.baselines.motion import METHODS, SMALLEST_GRID
from raincast.baselines.past import Forecast, Persistence, Rain

__all__ = [
    "METHODS",
    "SMALLEST_GRID",
    "Anvil",
    "Ensemble",
    "Extrapolation",
    "Forecast",
    "ForecastFiles",
    "Linda",
    "Members",
    "Persistence",
    "Rain",
    "SProg",
    "Steps",
]
