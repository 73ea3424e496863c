"""How tests ask forecasters, and the one tolerance for files that are compared with the rates written to them."""

from typing import Any

import numpy as np

from raincast.archive.rates import CODE_MM_H, THRESHOLDS
from raincast.forecaster import Forecaster, Query


def query(rain: np.ndarray, num_steps: int, *, step_minutes: float = 5.0, **others: Any) -> Query:
    """For the next steps, on pixels of 1 km unless others are stated."""
    return Query.for_steps(rain, num_steps, step_minutes=step_minutes, **({"pixel_km": 1.0} | others))


def rates_of(forecaster: Forecaster, rain: np.ndarray, num_steps: int, **others: Any) -> np.ndarray:
    """(B, T, C, H, W) mm/h → (B, num_steps, 1, H, W) mm/h."""
    return forecaster.predict(query(rain, num_steps, **others)).rates


def check_encoded(found: Any, rain: Any) -> None:
    """Half a code from `rain` (mm/h, NaN for missing), a whole one near a threshold, and on the same side of each."""
    found, rain = np.asarray(found, np.float32), np.asarray(rain, np.float32)
    assert found.shape == rain.shape
    np.testing.assert_array_equal(np.isnan(found), np.isnan(rain))
    thresholds = np.float32(THRESHOLDS)
    after = np.searchsorted(thresholds, rain).clip(1, len(thresholds) - 1)
    distance = np.minimum(np.abs(rain - thresholds[after - 1]), np.abs(rain - thresholds[after]))
    error = np.abs(found - rain) - np.where(distance < 0.51 * CODE_MM_H, 1.01, 0.501) * CODE_MM_H
    assert not (error > 1e-5).any(), f"an error of {np.nanmax(np.abs(found - rain))} mm/h"
    # how many thresholds each value reaches: np.searchsorted puts NaN behind all
    reached = (np.searchsorted(thresholds, values, side="right") for values in (found, rain))
    np.testing.assert_array_equal(*reached)
