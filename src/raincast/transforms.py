"""Conversions between rain rate in mm/h, reflectivity in dBZ and the network's own scale.

Each conversion is an immutable object that maps in both directions, defines the value of no rain, keeps NaN
(missing) as NaN, and works on NumPy arrays and torch tensors without importing torch.
"""

import math
import sys
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

Array = TypeVar("Array")
"""A NumPy array or a torch tensor; the result has the type of the input."""


@runtime_checkable  # so that checked annotations (jaxtyping, beartype) accept it
class Transform(Protocol):
    """Conversion between mm/h and the network's scale, on which no rain is 0."""

    def forward(self, rate: Array) -> Array:
        """Convert mm/h to the network scale; NaN stays NaN."""

    def inverse(self, scaled: Array) -> Array:
        """Convert the network scale to mm/h, 0 or more."""


def _namespace(values: Any) -> Any:
    """Return the module (numpy or torch) of `values`; torch is already loaded if there is a tensor."""
    return sys.modules[type(values).__module__.partition(".")[0]]


THRESHOLDS = (0.1, 0.2, 0.5, 1.0, 2.0, 3.5, 5.0, 7.5, 10.0, 15.0, 20.0, 35.0, 50.0)
"""Thresholds in mm/h at which `head=distribution` describes the distribution of each pixel."""

UNKNOWN = -1.0
"""Value of that head's last channel where the advected newest frame is undefined: rain from outside the grid."""


_HARDLY_ANY = 1e-37
"""Rate in mm/h near the smallest normal float32."""


@dataclass(frozen=True)
class ZR:
    """The Z-R relation Z = a·R^b between rain rate R (mm/h) and reflectivity Z (mm⁶/m³), used in dBZ.

    The default is Marshall-Palmer. No rain has no finite dBZ: it becomes `dry_dbz`, and every dBZ at or below
    `dry_dbz` becomes exactly 0 mm/h.
    """

    a: float = 200.0
    b: float = 1.6
    dry_dbz: float = -32.0

    def __post_init__(self) -> None:
        """Raise ValueError for coefficients without an inverse."""
        if self.a <= 0 or self.b <= 0:
            raise ValueError(f"Z = a·R^b needs a > 0 and b > 0, found a={self.a}, b={self.b}.")

    def to_dbz(self, rate: Array) -> Array:
        """Convert rain rate in mm/h to dBZ."""
        xp: Any = _namespace(rate)
        # replace no rain by a rate that has a logarithm, far below `dry_dbz`; NaN stays NaN in both clips
        log_rate = xp.log10(xp.clip(rate, _HARDLY_ANY, None))
        return xp.clip(10.0 * math.log10(self.a) + 10.0 * self.b * log_rate, self.dry_dbz, None)  # type: ignore[no-any-return]

    def to_rate(self, dbz: Array) -> Array:
        """Convert dBZ to rain rate in mm/h."""
        xp: Any = _namespace(dbz)
        rate = 10.0 ** ((dbz - 10.0 * math.log10(self.a)) / (10.0 * self.b))  # type: ignore[operator]
        return xp.where(dbz <= self.dry_dbz, xp.zeros_like(dbz), rate)  # type: ignore[operator, no-any-return]


@dataclass(frozen=True)
class DbzScaling:
    """Rain rate in mm/h ↔ dBZ scaled linearly so that `min_dbz` is 0 and `max_dbz` is 1.

    This is the pixel scale of HKO-7 (Shi et al. 2017): with a = 58.53, b = 1.56, min −10 and max 60,
    p = (dBZ + 10) / 70. No rain, and rain below `min_dbz`, is exactly 0 on the network's scale; 0 and
    everything below it comes back as exactly 0 mm/h, everything above 1 as the rate of `max_dbz`.
    """

    a: float = 200.0
    b: float = 1.6
    min_dbz: float = -10.0
    max_dbz: float = 60.0

    def __post_init__(self) -> None:
        """Raise ValueError for an empty scale or an invalid Z-R relation."""
        _ = self.zr  # raises ValueError for coefficients without an inverse
        if self.max_dbz <= self.min_dbz:
            raise ValueError(f"max_dbz={self.max_dbz} must exceed min_dbz={self.min_dbz}.")

    @property
    def zr(self) -> ZR:
        """The Z-R relation, with `dry_dbz` at the bottom of the scale."""
        return ZR(self.a, self.b, dry_dbz=self.min_dbz)

    def forward(self, rate: Array) -> Array:
        """Convert rain rate in mm/h to the network scale, 0 to 1."""
        xp: Any = _namespace(rate)
        dbz: Any = self.zr.to_dbz(rate)
        return xp.clip((dbz - self.min_dbz) / (self.max_dbz - self.min_dbz), 0.0, 1.0)  # type: ignore[no-any-return]

    def inverse(self, scaled: Array) -> Array:
        """Convert the network scale to rain rate in mm/h."""
        xp: Any = _namespace(scaled)
        clipped = xp.clip(scaled, 0.0, 1.0)
        rate: Any = self.zr.to_rate(self.min_dbz + clipped * (self.max_dbz - self.min_dbz))
        # make 0 exact despite rounding in the line above
        return xp.where(clipped <= 0, xp.zeros_like(rate), rate)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LogScaling:
    """Rain rate in mm/h ↔ log10((R + offset) / offset) / log10((max + offset) / offset).

    0 mm/h is exactly 0 and `max_rate` is 1; rates above `max_rate` are clipped.
    """

    offset: float = 0.1
    max_rate: float = 150.0

    def __post_init__(self) -> None:
        """Raise ValueError for an empty scale."""
        if self.offset <= 0 or self.max_rate <= 0:
            raise ValueError(
                f"offset and max_rate must be positive, found {self.offset} and {self.max_rate} mm/h."
            )

    @property
    def _span(self) -> float:
        return math.log10((self.max_rate + self.offset) / self.offset)

    def forward(self, rate: Array) -> Array:
        """Convert rain rate in mm/h to the network scale, 0 to 1."""
        xp: Any = _namespace(rate)
        scaled: Array = xp.log10(1.0 + xp.clip(rate, 0.0, self.max_rate) / self.offset) / self._span
        return scaled

    def inverse(self, scaled: Array) -> Array:
        """Convert the network scale to rain rate in mm/h."""
        xp: Any = _namespace(scaled)
        rate: Array = self.offset * (10.0 ** (xp.clip(scaled, 0.0, 1.0) * self._span) - 1.0)
        return rate


@dataclass(frozen=True)
class RateScaling:
    """Rain rate in mm/h, unchanged, for networks that work in physical units."""

    def forward(self, rate: Array) -> Array:
        """Return the rain rate in mm/h, 0 or more."""
        xp: Any = _namespace(rate)
        return xp.clip(rate, 0.0, None)  # type: ignore[no-any-return]

    def inverse(self, scaled: Array) -> Array:
        """Return the rain rate in mm/h, 0 or more."""
        return self.forward(scaled)


@dataclass(frozen=True)
class LinearScaling:
    """(value − offset) / scale of a channel in its own unit, for covariates whose 0 has no special meaning.

    With mean and standard deviation as arguments the channel is standardised; missing values then count as the
    mean.
    """

    offset: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for a scale without an inverse."""
        if not (math.isfinite(self.offset) and math.isfinite(self.scale)) or self.scale == 0:
            raise ValueError(f"offset={self.offset}, scale={self.scale} must be finite, the scale not 0.")

    def forward(self, value: Array) -> Array:
        """Convert the channel's unit to the network scale."""
        scaled: Array = (value - self.offset) / self.scale  # type: ignore[operator, assignment]
        return scaled

    def inverse(self, scaled: Array) -> Array:
        """Convert the network scale to the channel's unit."""
        value: Array = scaled * self.scale + self.offset  # type: ignore[operator, assignment]
        return value


def accumulation_to_rate(depth_mm: Array, step_minutes: float) -> Array:
    """Convert a depth in mm over one step to the mean rain rate in mm/h over that step."""
    rate: Array = depth_mm * (60.0 / step_minutes)  # type: ignore[operator, assignment]
    return rate
