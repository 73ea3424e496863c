"""Pixels that hold no number of their own: nobody looked there, or nothing was seen."""

from typing import Any

import numpy as np
import numpy.typing as npt


def is_nan(code: Any) -> bool:
    """Whether a code is stated, and NaN."""
    return code is not None and bool(np.isnan(float(code)))


def equals(raw: npt.NDArray[Any], code: Any) -> npt.NDArray[np.bool_]:
    """Where `raw` has the value `code`, in the type of the file: −9999000 is no byte, and 1e30 is a float32.

    NaN is found where that is the code; nothing where it is None.
    """
    no_such = np.zeros(raw.shape, bool)
    if code is None:
        return no_such
    if raw.dtype.kind in "iu":
        info = np.iinfo(raw.dtype)
        is_one = info.min <= float(code) <= info.max and float(code) == int(code)
        return np.equal(raw, int(code)) if is_one else no_such
    if is_nan(code):
        undefined: npt.NDArray[np.bool_] = np.isnan(raw)
        return undefined
    with np.errstate(over="ignore"):
        same: npt.NDArray[np.bool_] = raw == np.asarray(float(code)).astype(raw.dtype)
    return same
