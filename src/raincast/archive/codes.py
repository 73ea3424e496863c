"""Rates as int16 codes, and how to go through a large frame without large temporaries."""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from raincast.archive.packing import Packing

CODE_MM_H = 0.01
MISSING_CODE = -32768
MAX_RATE = 327.0  # the largest rate an int16 code of 0.01 mm/h holds, rounded down
CODES = Packing(np.dtype(np.int16), scale=CODE_MM_H, fills=(float(MISSING_CODE),))
"""How rates lie in archives of ours."""
CHUNKS = (8, 64, 64)
TIME_UNITS = "seconds since 1970-01-01"
BAND_PIXELS = 2**18  # 2 MB in float64: stays in a core's cache


def bands(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of the first axis of `shape`, in order, of at most about `BAND_PIXELS` pixels each."""
    rows = max(1, BAND_PIXELS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


THRESHOLDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""mm/h, those of the scores: no rate comes to lie on the other side of one, or on it, by being encoded."""
_IS_THRESHOLD = np.zeros(2**16, bool)
_IS_THRESHOLD[[round(threshold / CODE_MM_H) for threshold in THRESHOLDS]] = True


def nearest_codes(rates: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Rates of 0 to `MAX_RATE` mm/h, NaN for missing → the nearest codes that keep them apart from `THRESHOLDS`.

    0.098 mm/h becomes 0.09 and 0.102 mm/h becomes 0.11; only what is 0.1 as a float32 becomes 0.1. So the error is
    at most 0.005 mm/h, and at most 0.01 mm/h within 0.005 mm/h of a threshold.
    """
    numbers = np.rint(rates / np.float64(CODE_MM_H))
    missing = np.isnan(numbers)
    numbers[missing] = MISSING_CODE
    codes = numbers.astype(np.int16)
    at = np.nonzero(_IS_THRESHOLD[codes.view(np.uint16)])
    given, exact = rates[at].astype(np.float32), (codes[at] * np.float64(CODE_MM_H)).astype(np.float32)
    codes[at] += (given > exact).astype(np.int16) - (given < exact).astype(np.int16)
    return codes


def encode(rain: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Rates in mm/h, NaN for missing, of any shape → codes, as `nearest_codes`.

    ValueError for rates above `MAX_RATE` mm/h, which do not fit, and for negative ones, which are none.
    """
    codes = np.empty(rain.shape, np.int16)
    for rows in bands(rain.shape):
        rates = rain[rows].astype(np.float64)
        if (rates > MAX_RATE).any():
            raise ValueError(f"A rate of {np.nanmax(rates):.0f} mm/h is over {MAX_RATE} mm/h: cap rates first.")
        if (rates < 0).any():
            raise ValueError(f"A rate of {np.nanmin(rates)} mm/h is negative: missing is NaN, no rain is 0.")
        codes[rows] = nearest_codes(rates)
    return codes
