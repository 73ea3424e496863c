"""Rates in archives: their int16 codes, and values that cannot be rain.

Values that are negative, infinite, or beyond any radar become missing, with a warning. Large frames are encoded in
bands to avoid large temporaries.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raincast.archive.packing import Packing

log = logging.getLogger(__name__)

CODE_MM_H = 0.01
MISSING_CODE = -32768
MAX_RATE = 327.0  # the largest rate that an int16 code of 0.01 mm/h can represent, rounded down
CODES = Packing(np.dtype(np.int16), scale=CODE_MM_H, fills=(float(MISSING_CODE),))
"""Packing of rates in raincast's archives."""
CHUNKS = (8, 64, 64)
TIME_UNITS = "seconds since 1970-01-01"
BAND_PIXELS = 2**18  # 2 MB in float64, which fit into a core's cache
_MOST_MM_H = 1e6
"""Radar files hold at most 95.5 dBZ, about 1e5 mm/h. Undeclared fill values are larger."""
_MOST_NAMED = 20
_named: set[str] = set()


def bands(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of the first axis of `shape`, in order, of about `BAND_PIXELS` pixels at most."""
    rows = max(1, BAND_PIXELS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


THRESHOLDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Thresholds of the scores in mm/h. Encoding never moves a rate onto or across one of them."""
_IS_THRESHOLD = np.zeros(2**16, bool)
_IS_THRESHOLD[[round(threshold / CODE_MM_H) for threshold in THRESHOLDS]] = True


def nearest_codes(rates: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Return the nearest codes of rates (0 to `MAX_RATE` mm/h, NaN for missing), on the same side of `THRESHOLDS`.

    0.098 mm/h becomes 0.09, 0.102 mm/h becomes 0.11, and only the float32 nearest to 0.1 becomes 0.1. The error is
    at most 0.005 mm/h, or 0.01 mm/h within 0.005 mm/h of a threshold.
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
    """Encode rates in mm/h, NaN for missing, of any shape, like `nearest_codes`.

    Raises ValueError for rates above `MAX_RATE` mm/h and for negative rates.
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


def find_absurd(rates: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Return the mask of `rates` in mm/h that cannot be rain; False for NaN, which is missing."""
    found: npt.NDArray[np.bool_] = (rates < 0) | (rates > _MOST_MM_H)
    return found


def drop_absurd(
    rates: npt.NDArray[np.floating], path: Path, times: Sequence[np.datetime64] | npt.NDArray[np.datetime64]
) -> None:
    """Set `rates` (T, H, W) in mm/h that cannot be rain to NaN, and warn of them by file and time."""
    absurd = find_absurd(rates)
    if absurd.any():
        name_absurd(path, times, absurd, rates)
        rates[absurd] = np.nan


def name_absurd(
    path: Path,
    times: Sequence[np.datetime64] | npt.NDArray[np.datetime64],
    absurd: npt.NDArray[np.bool_],
    rates: npt.NDArray[np.floating],
    *,
    first_pixel: tuple[int, int] = (0, 0),
) -> None:
    """Warn once per file of the first `absurd` pixel (T, H, W), with its frame, row, column and value.

    `first_pixel` is the row and column of the window's corner in the image.
    """
    if str(path) in _named or len(_named) > _MOST_NAMED:
        return
    _named.add(str(path))
    if len(_named) > _MOST_NAMED:
        log.warning("More files hold values that cannot be rain: they become missing without further warnings.")
        return
    frame, row, column = map(int, np.argwhere(absurd)[0])
    log.warning(
        "%s holds %d values that cannot be rain (negative, infinite or above %g mm/h, or "
        "below -100 dBZ); they count as missing. The first: %g in the frame of %s, row %d, column %d (from 0).",
        *(
            path,
            absurd.sum(),
            _MOST_MM_H,
            rates[frame, row, column],
            np.datetime_as_string(times[frame], unit="m"),
        ),
        *(row + first_pixel[0], column + first_pixel[1]),
    )
