"""How the numbers of a netCDF or Zarr variable become values: the one decoder for ingest, archives and channels.

Conventions: CF 1.11, section 2.5.1 (missing data, valid range) and 8.1 (packing); `_Unsigned` of the NetCDF User's
Guide (attribute conventions).
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

log = logging.getLogger(__name__)

ATTRS = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned")
VALID_ATTRS = ("valid_range", "valid_min", "valid_max")
MOST_CODES_BEYOND = 10
"""Different numbers beyond the valid range above which it is named: codes of missing are few, rain has many."""
LOOKED_AT = 4096
_said: set[str] = set()


@dataclass(frozen=True)
class Packing:
    """value = scale · number + offset; numbers in `fills` or not in `low` to `high` are missing.

    `dtype` is the numbers' type in the byte order of this machine, unsigned where `_Unsigned` says so. `fills`,
    `low` and `high` are in packed numbers.
    """

    dtype: np.dtype[Any]
    scale: float = 1.0
    offset: float = 0.0
    fills: tuple[float, ...] = ()
    low: float = -np.inf
    high: float = np.inf

    @classmethod
    def of(cls, array: xr.DataArray | xr.Variable) -> "Packing":
        """That of a variable, whether xarray decodes it or not.

        ValueError where it holds no numbers, or where its scale_factor or add_offset makes none of them.
        """
        said = {**array.attrs, **{name: v for name, v in array.encoding.items() if name in (*ATTRS, "dtype")}}
        dtype = np.dtype(said.get("dtype", array.dtype)).newbyteorder("=")
        turned = str(said.get("_Unsigned")).lower()
        if (dtype.kind, turned) in (("i", "true"), ("u", "false")):  # as files have it that know one kind only
            dtype = np.dtype(f"{'u' if turned == 'true' else 'i'}{dtype.itemsize}")
        if dtype.kind not in "iufb":
            raise ValueError(f"it holds {dtype}, not numbers")
        scale, offset = (
            _number(said, name, default) for name, default in (("scale_factor", 1.0), ("add_offset", 0.0))
        )
        if scale == 0:
            raise ValueError("its scale_factor is 0: every value would be the same. Mend the attribute")
        fills = {
            _in_type(value, dtype)
            for name in ("_FillValue", "missing_value")
            for value in np.ravel(said.get(name, []))
            if not isinstance(value, str | bytes) and np.isfinite(value)
        }
        packed = "scale_factor" in said or "add_offset" in said
        low, high = _limits(said, dtype, scale, offset, packed=packed)
        return cls(dtype, scale, offset, tuple(sorted(fills)), low, high)

    @property
    def has_limits(self) -> bool:
        """True if a valid range is stated."""
        return self.low > -np.inf or self.high < np.inf

    def numbers(self, raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Stored numbers in the type that they stand for."""
        native = raw.astype(raw.dtype.newbyteorder("="), copy=False)
        turned = native.dtype.kind in "iu" and self.dtype.kind in "iu" and native.dtype != self.dtype
        return native.view(self.dtype) if turned else native

    def decode(
        self, raw: npt.NDArray[Any], name: str = "", *, keep_infinite: bool = False
    ) -> npt.NDArray[np.float64]:
        """Stored numbers → values in the variable's unit, NaN for missing; of any shape.

        Infinite numbers are missing, unless they are kept for whoever names them (`absurd`).
        A valid range that takes away most observed values, or many different ones, is named in a warning, once
        for each `name`.
        """
        numbers = self.numbers(raw).astype(np.float64)
        missing = np.isnan(numbers) if keep_infinite else ~np.isfinite(numbers)
        for fill in self.fills:
            missing |= numbers == fill
        if self.has_limits:
            beyond = (numbers < self.low) | (numbers > self.high)
            beyond &= ~missing
            self._check(numbers, beyond, missing, name)
            missing |= beyond
        values = numbers * self.scale
        values += self.offset
        values[missing] = np.nan
        return values

    def _check(
        self, numbers: npt.NDArray[Any], beyond: npt.NDArray[np.bool_], missing: npt.NDArray[np.bool_], name: str
    ) -> None:
        num_beyond, num_observed = int(np.count_nonzero(beyond)), beyond.size - int(np.count_nonzero(missing))
        if not name or not num_beyond:
            return
        num_codes = np.unique(numbers[beyond][:LOOKED_AT]).size
        if 2 * num_beyond <= num_observed and num_codes <= MOST_CODES_BEYOND:
            return
        limits = sorted(number * self.scale + self.offset for number in (self.low, self.high))
        said = f"{name}: its valid_min, valid_max or valid_range ({limits[0]:g} to {limits[1]:g} in its unit)"
        if said not in _said:  # the share is another in each frame
            _said.add(said)
            log.warning(
                "%s leaves out %.3g%% of the observed values of a frame, %d different numbers among them. Check "
                "these attributes.", said, 100 * num_beyond / max(1, num_observed), num_codes,
            )  # fmt: skip


def warn_once(text: str) -> None:
    """A warning that a process gives once."""
    if text not in _said:
        _said.add(text)
        log.warning("%s.", text)


def _number(said: Mapping[str, Any], name: str, default: float) -> float:
    try:
        value = float(np.ravel(said.get(name, default))[0])
    except (ValueError, TypeError):
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"its {name} is {said[name]}, no finite number")
    return value


def _in_type(value: Any, dtype: np.dtype[Any]) -> float:
    """A code as `dtype` holds it: −1 of unsigned bytes is 255, 1e20 of float32 is the float32 nearest to it."""
    if dtype.kind == "u" and value < 0:
        return float(value) + 2.0 ** (8 * dtype.itemsize)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return float(dtype.type(value))
    return float(value)


def _limits(
    said: Mapping[str, Any], dtype: np.dtype[Any], scale: float, offset: float, *, packed: bool
) -> tuple[float, float]:
    """The lowest and the highest valid number, in packed numbers.

    By CF the type of the attribute decides: that of the packed numbers, or that of the unpacked values. A text has
    no type: its numbers may be either, and what is valid in one of the two readings counts.
    """
    stated = {}
    for name, sides in (("valid_range", (0, 1)), ("valid_min", (0,)), ("valid_max", (1,))):
        if name not in said:
            continue
        values, is_text = _parse(said[name])
        if len(values) != len(sides):
            warn_once(f"{name}={said[name]!r} is ignored: it should be {len(sides)} numbers")
            continue
        stated[name] = sides, values, is_text
    readings = []
    for text_is_unpacked in (False, True) if packed and any(text for _, _, text in stated.values()) else (False,):
        found = [-np.inf, np.inf]
        for sides, values, is_text in stated.values():
            for side, value in zip(sides, values, strict=True):
                if np.isnan(value):
                    continue
                as_value = text_is_unpacked if is_text else packed and _is_unpacked(value, dtype, said)
                number = (float(value) - offset) / scale if as_value else _in_type(value, dtype)
                # with a negative scale the lowest value is the highest number
                found[1 - side if as_value and scale < 0 else side] = number
        readings.append(sorted(found))  # some services give the range in the order of the values
    low, high = min(reading[0] for reading in readings), max(reading[1] for reading in readings)
    slack = 0.5 if dtype.kind in "iu" else 0.0  # for limits between two numbers, as 0.1 / 0.01 is
    return low - slack, high + slack


def _parse(said: Any) -> tuple[list[Any], bool]:
    """The numbers of an attribute, each in its own type, and whether they are written as a text."""
    if isinstance(said, str | bytes):
        text = said.decode("ascii", "replace") if isinstance(said, bytes) else said
        words = re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", text)
        return [int(word) if re.fullmatch(r"[-+]?\d+", word) else float(word) for word in words], True
    values = np.ravel(said)
    return (list(values), False) if values.dtype.kind in "iufb" else ([], False)


def _is_unpacked(value: Any, dtype: np.dtype[Any], said: Mapping[str, Any]) -> bool:
    """Whether a limit of this type is one of unpacked values."""
    own = np.asarray(value).dtype
    if own.kind != "f":
        return False
    if dtype.kind != "f":
        return True
    unpacked = np.asarray(np.ravel(said.get("scale_factor", said.get("add_offset")))[0]).dtype
    return own not in (dtype, np.dtype(object)) and own == unpacked
