"""Decode packed numbers of a netCDF or Zarr variable. Ingest, archives and channels all use this decoder.

Conventions: CF 1.11, sections 2.5.1 (missing data, valid range) and 8.1 (packing); `_Unsigned` from the NetCDF
User's Guide (attribute conventions).
"""

import contextlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

log = logging.getLogger(__name__)

FILLS = ("_FillValue", "missing_value")
ATTRS = ("scale_factor", "add_offset", *FILLS, "_Unsigned")
DEFAULT_FILLS = {np.dtype(kind): float(fill) for kind, fill in (
    ("i2", -32767), ("u2", 65535), ("i4", -(2**31) + 1), ("u4", 2**32 - 1),
)}  # fmt: skip
"""netCDF's own fill values: missing if a file states no _FillValue (NUG, attribute conventions)."""
SCALES = ("scale", "gain", "slope", "multiplier")
"""Names that files use for a scale, although no convention of netCDF or GDAL has them."""
MOST_CODES_BEYOND = 10
"""Warn above this number of distinct values outside the valid range: missing codes are few, rain rates many."""
LOOKED_AT = 4096
_said: set[str] = set()


@dataclass(frozen=True)
class Packing:
    """value = scale · number + offset; numbers in `fills` or outside `low` to `high` are missing.

    `dtype` is the type of the numbers in native byte order, with the signedness of `_Unsigned`. `fills`, `low` and
    `high` are packed numbers.
    """

    dtype: np.dtype[Any]
    scale: float = 1.0
    offset: float = 0.0
    fills: tuple[float, ...] = ()
    low: float = -np.inf
    high: float = np.inf

    @classmethod
    def of(cls, array: xr.DataArray | xr.Variable) -> "Packing":
        """Return the packing of a variable, whether xarray decodes it or not.

        Raises ValueError if it does not hold numbers, or if scale_factor or add_offset is invalid.
        """
        said = {**array.attrs, **{name: v for name, v in array.encoding.items() if name in (*ATTRS, "dtype")}}
        dtype = np.dtype(said.get("dtype", array.dtype)).newbyteorder("=")
        turned = str(said.get("_Unsigned")).lower()
        if (dtype.kind, turned) in (("i", "true"), ("u", "false")):  # formats with only one kind of integer
            dtype = np.dtype(f"{'u' if turned == 'true' else 'i'}{dtype.itemsize}")
        if dtype.kind not in "iufb":
            raise ValueError(f"it holds {dtype}, not numbers")
        scale, offset = (
            _number(said, name, default) for name, default in (("scale_factor", 1.0), ("add_offset", 0.0))
        )
        if scale == 0:
            raise ValueError("its scale_factor is 0: every value would be the same. Correct the attribute")
        if "scale_factor" not in said and dtype.kind in "iu" and (found := unapplied_scale(array.attrs)):
            raise ValueError(
                f"its integers have the attribute {found[0]}={found[1]:g}, which no convention applies. If it is "
                f"their scale, rename it: ncrename -a {getattr(array, 'name', '')}@{found[0]},scale_factor FILE "
                "(add_offset for an offset). Otherwise remove it"
            )
        fills = {
            _in_type(value, dtype)
            for name in (*FILLS, "nodata")
            for value in np.ravel(said.get(name, []))
            if not isinstance(value, str | bytes) and np.isfinite(value)
        }
        if not said.keys() & {"_FillValue", "_Unsigned"} and dtype in DEFAULT_FILLS:
            fills.add(DEFAULT_FILLS[dtype])
        packed = "scale_factor" in said or "add_offset" in said
        low, high = _limits(said, dtype, scale, offset, packed=packed)
        return cls(dtype, scale, offset, tuple(sorted(fills)), low, high)

    @property
    def has_dry_fill(self) -> bool:
        """Return True if a code of missing also is the number of no rain, 0 in the variable's unit."""
        return any(fill * self.scale + self.offset == 0 for fill in self.fills)

    @property
    def has_limits(self) -> bool:
        """Return True if a valid range is stated."""
        return self.low > -np.inf or self.high < np.inf

    def numbers(self, raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return stored numbers in native byte order with the signedness of `_Unsigned`."""
        native = raw.astype(raw.dtype.newbyteorder("="), copy=False)
        turned = native.dtype.kind in "iu" and self.dtype.kind in "iu" and native.dtype != self.dtype
        return native.view(self.dtype) if turned else native

    def decode(
        self, raw: npt.NDArray[Any], name: str = "", *, keep_infinite: bool = False
    ) -> npt.NDArray[np.float64]:
        """Return stored numbers (any shape) as values in the variable's unit, NaN for missing.

        Infinite numbers are missing unless `keep_infinite`, for callers that report them (`name_absurd`). Warns,
        once per `name`, if the valid range excludes most observed values or many distinct ones.
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
        if said not in _said:  # keyed without the share, which differs from frame to frame
            _said.add(said)
            log.warning(
                "%s leaves out %.3g%% of the observed values of a frame, with %d distinct numbers. Check "
                "these attributes.", said, 100 * num_beyond / max(1, num_observed), num_codes,
            )  # fmt: skip


def unapplied_scale(said: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the name and value of an attribute that looks like a scale other than 1, or None."""
    for name in SCALES:
        with contextlib.suppress(TypeError, ValueError):
            if (value := float(np.ravel(said.get(name, 1.0))[0])) != 1.0:
                return name, value
    return None


def warn_dry_fill(name: str) -> None:
    """Warn once that pixels without rain count as missing, since their number is that of missing pixels."""
    warn_once(
        f"{name}: its code of missing pixels is 0 (_FillValue or missing_value), so pixels without rain count as "
        "missing. If it means no rain, read it with source=cf source.missing_is_dry=true"
    )


def warn_once(text: str) -> None:
    """Log a warning once per process."""
    if text not in _said:
        _said.add(text)
        log.warning("%s.", text)


def _number(said: Mapping[str, Any], name: str, default: float) -> float:
    try:
        value = float(np.ravel(said.get(name, default))[0])
    except (ValueError, TypeError):
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"its {name} is {said[name]}, not a finite number")
    return value


def _in_type(value: Any, dtype: np.dtype[Any]) -> float:
    """Return a code as `dtype` represents it: −1 as an unsigned byte is 255, 1e20 becomes the nearest float32."""
    if dtype.kind == "u" and value < 0:
        return float(value) + 2.0 ** (8 * dtype.itemsize)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return float(dtype.type(value))
    return float(value)


def _limits(
    said: Mapping[str, Any], dtype: np.dtype[Any], scale: float, offset: float, *, packed: bool
) -> tuple[float, float]:
    """Return the lowest and the highest valid packed number.

    In CF the type of the attribute decides: it is the type of the packed numbers or that of the unpacked values. A
    string has no type, so both readings are tried, and a number valid in either of them is valid.
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
        readings.append(sorted(found))  # with a negative scale some services order the range by value
    low, high = min(reading[0] for reading in readings), max(reading[1] for reading in readings)
    slack = 0.5 if dtype.kind in "iu" else 0.0  # limits may fall between two integers by rounding, like 0.1 / 0.01
    return low - slack, high + slack


def _parse(said: Any) -> tuple[list[Any], bool]:
    """Return the numbers of an attribute, each in its own type, and whether the attribute is a string."""
    if isinstance(said, str | bytes):
        text = said.decode("ascii", "replace") if isinstance(said, bytes) else said
        words = re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", text)
        return [int(word) if re.fullmatch(r"[-+]?\d+", word) else float(word) for word in words], True
    values = np.ravel(said)
    return (list(values), False) if values.dtype.kind in "iufb" else ([], False)


def _is_unpacked(value: Any, dtype: np.dtype[Any], said: Mapping[str, Any]) -> bool:
    """Return True if a limit of this type refers to unpacked values."""
    own = np.asarray(value).dtype
    if own.kind != "f":
        return False
    if dtype.kind != "f":
        return True
    unpacked = np.asarray(np.ravel(said.get("scale_factor", said.get("add_offset")))[0]).dtype
    return own not in (dtype, np.dtype(object)) and own == unpacked
