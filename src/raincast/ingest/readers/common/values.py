"""Special pixel codes, gain and offset, and the Z-R relation of a file."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from raincast.archive.packing import warn_once
from raincast.schema import ZR_FROM
from raincast.transforms import ZR


def choose_zr(
    said: Mapping[str, Any], a: float | None, b: float | None, *, default: ZR | None = None
) -> tuple[ZR, dict[str, Any]]:
    """Return the Z-R relation for a file, and the attributes that record it in the archive.

    The configured relation (`a`, `b`; None if not configured) takes precedence over that of the file (zr_a and
    zr_b in `said`), with a warning if they differ; `default` applies if there is neither. Raises ValueError if the
    file's relation has no inverse.
    """
    default = default or ZR()
    stated = None
    if "zr_a" in said and "zr_b" in said:
        try:
            stated = ZR(*(float(np.ravel(said[name])[0]) for name in ("zr_a", "zr_b")))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"its zr_a={said['zr_a']}, zr_b={said['zr_b']} are not a Z-R relation: set "
                f"source.zr_a={default.a:g} source.zr_b={default.b:g}, or the right one"
            ) from error
    if a is None and b is None:
        zr, origin = (default, "the default") if stated is None else (stated, "the file")
    else:
        other = stated or default
        zr, origin = ZR(other.a if a is None else a, other.b if b is None else b), "the configuration"
        if stated is not None and stated != zr:
            warn_once(
                f"The files state the Z-R relation Z = {stated.a:g} R^{stated.b:g}; source.zr_a and source.zr_b "
                f"replace it by Z = {zr.a:g} R^{zr.b:g}"
            )
    return zr, {"zr_a": zr.a, "zr_b": zr.b, ZR_FROM: origin}


LEAST_DBZ = -100.0
"""Reflectivity below which a value is an undeclared code. −∞, the logarithm of no echo, is not."""


def rate_of_dbz(zr: ZR, dbz: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the rates in mm/h of reflectivities; those below `LEAST_DBZ` stay, so that they count as absurd.

    An undeclared −9999 may mean missing or no echo: `archive.absurd` makes it missing, with a warning.
    """
    rates: npt.NDArray[Any] = np.where((dbz < LEAST_DBZ) & (dbz > -np.inf), dbz, zr.to_rate(dbz))
    return rates


def check_gain(gain: float, offset: float) -> None:
    """Raise ValueError for a gain of 0, which would make all values equal, or numbers that are not finite."""
    if gain == 0 or not np.isfinite([gain, offset]).all():
        raise ValueError(f"its gain is {gain:g} and its offset {offset:g}: values cannot be computed from these")


def is_nan(code: Any) -> bool:
    """Return True if a code is stated and is NaN."""
    return code is not None and bool(np.isnan(float(code)))


def equals(raw: npt.NDArray[Any], code: Any) -> npt.NDArray[np.bool_]:
    """Return the mask where `raw` equals `code`, compared in the dtype of `raw`.

    A code that an integer dtype cannot represent (−9999000 as a byte) matches nothing, and 1e30 is rounded to
    float32. The code NaN matches NaN; None matches nothing.
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
