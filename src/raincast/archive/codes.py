"""Rates as int16 codes, and how to go through a large frame without large temporaries."""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

CODE_MM_H = 0.01
MISSING_CODE = -32768
MAX_RATE = 327.0  # the largest rate an int16 code of 0.01 mm/h holds, rounded down
CHUNKS = (8, 64, 64)
TIME_UNITS = "seconds since 1970-01-01"
BAND_PIXELS = 2**18  # 2 MB in float64: stays in a core's cache


def bands(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of the first axis of `shape`, in order, of at most about `BAND_PIXELS` pixels each."""
    rows = max(1, BAND_PIXELS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def encode(rain: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Rates in mm/h, NaN for missing, of any shape → the nearest codes.

    ValueError for rates above `MAX_RATE` mm/h, which do not fit, and for negative ones, which are none.
    """
    codes = np.empty(rain.shape, np.int16)
    for rows in bands(rain.shape):
        rates = rain[rows].astype(np.float64)
        if (rates > MAX_RATE).any():
            raise ValueError(f"A rate of {np.nanmax(rates):.0f} mm/h is over {MAX_RATE} mm/h: cap rates first.")
        if (rates < 0).any():
            raise ValueError(f"A rate of {np.nanmin(rates)} mm/h is negative: missing is NaN, no rain is 0.")
        rates /= CODE_MM_H
        np.rint(rates, out=rates)
        rates[np.isnan(rates)] = MISSING_CODE
        codes[rows] = rates
    return codes
