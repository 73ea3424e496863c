"""How tests ask forecasters."""

from typing import Any

import numpy as np

from raincast.forecaster import Forecaster, Query


def query(rain: np.ndarray, num_steps: int, *, step_minutes: float = 5.0, **others: Any) -> Query:
    """For the next steps, on pixels of 1 km unless others are stated."""
    return Query.for_steps(rain, num_steps, step_minutes=step_minutes, **({"pixel_km": 1.0} | others))


def rates_of(forecaster: Forecaster, rain: np.ndarray, num_steps: int, **others: Any) -> np.ndarray:
    """(B, T, C, H, W) mm/h → (B, num_steps, 1, H, W) mm/h."""
    return forecaster.predict(query(rain, num_steps, **others)).rates
