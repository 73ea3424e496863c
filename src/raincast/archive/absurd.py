"""Values that cannot be rain (negative, infinite, or beyond any radar) become missing, with a warning."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

MOST_MM_H = 1e6
"""Radar files hold at most 95.5 dBZ, about 1e5 mm/h. Undeclared fill values are larger."""
MOST_NAMED = 20
_named: set[str] = set()


def find_absurd(rates: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Return the mask of `rates` in mm/h that cannot be rain; False for NaN, which is missing."""
    found: npt.NDArray[np.bool_] = (rates < 0) | (rates > MOST_MM_H)
    return found


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
    if str(path) in _named or len(_named) > MOST_NAMED:
        return
    _named.add(str(path))
    if len(_named) > MOST_NAMED:
        log.warning("More files hold values that cannot be rain: they become missing without further warnings.")
        return
    frame, row, column = map(int, np.argwhere(absurd)[0])
    log.warning(
        "%s holds %d values that cannot be rain (negative, infinite or above %g mm/h, or "
        "below -100 dBZ); they count as missing. The first: %g in the frame of %s, row %d, column %d (from 0).",
        *(path, absurd.sum(), MOST_MM_H, rates[frame, row, column], np.datetime_as_string(times[frame], unit="m")),
        *(row + first_pixel[0], column + first_pixel[1]),
    )
