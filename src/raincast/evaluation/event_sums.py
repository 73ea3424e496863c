"""Exact sums per event, independent of the order of addition."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

COARSE_BITS = 10
FINE_BITS = 60


@dataclass(eq=False)
class FixedPoint:
    """A float64 array as integer multiples of 2⁻¹⁰ and 2⁻⁶⁰, whose additions are exact.

    Sums therefore do not depend on the order or grouping of the terms. Parts below 2⁻⁶⁰ are lost; the largest
    value is ±2⁵².
    """

    coarse: npt.NDArray[np.int64]
    fine: npt.NDArray[np.int64]

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> "FixedPoint":
        """Convert values; raises ValueError if one is not finite or too large."""
        if not (np.abs(values) < 2.0**52).all():  # False for NaN
            raise ValueError(f"A sum of {np.abs(values).max():g} is not a finite number below 2^52.")
        coarse = np.floor(np.ldexp(values, COARSE_BITS))
        rest = values - np.ldexp(coarse, -COARSE_BITS)  # exact
        return cls(coarse.astype(np.int64), np.rint(np.ldexp(rest, FINE_BITS)).astype(np.int64))

    def __add__(self, other: "FixedPoint") -> "FixedPoint":
        """Add element by element."""
        fine = self.fine + other.fine
        carry = fine >> (FINE_BITS - COARSE_BITS)
        return FixedPoint(self.coarse + other.coarse + carry, fine - (carry << (FINE_BITS - COARSE_BITS)))

    def values(self) -> npt.NDArray[np.float64]:
        """Return the nearest float64 values."""
        return np.ldexp(self.coarse.astype(np.float64), -COARSE_BITS) + np.ldexp(
            self.fine.astype(np.float64), -FINE_BITS
        )


Exact = npt.NDArray[np.int64] | FixedPoint
WINDOWS = "windows"
"""Name of the sum that every event has: its number of windows."""


@dataclass(eq=False)
class EventSums:
    """Sums by event and name; counts stay integers."""

    sums: dict[str, dict[str, Exact]] = field(default_factory=dict)

    def add(self, event: str, named: Mapping[str, Array]) -> None:
        """Add the sums of one window."""
        own = self.sums.setdefault(event, {})
        for name, values in {WINDOWS: np.array(1, np.int64), **named}.items():
            is_float = values.dtype.kind == "f"
            exact = FixedPoint.of(values.astype(np.float64)) if is_float else values.astype(np.int64)
            own[name] = _plus(own[name], exact) if name in own else exact

    def merge(self, other: "EventSums") -> None:
        """Add all sums of `other`."""
        for event, named in other.sums.items():
            own = self.sums.setdefault(event, {})
            for name, exact in named.items():
                own[name] = _plus(own[name], exact) if name in own else exact

    @property
    def num_windows(self) -> int:
        """Number of windows of all events."""
        return sum(int(_values(own[WINDOWS])) for own in self.sums.values())

    def stacked(self, name: str, events: Iterable[str]) -> Array:
        """Stack the sum `name` of each event along the first axis; 0 for an event without it."""
        values = {event: _values(own[name]) for event, own in self.sums.items() if name in own}
        none = np.zeros_like(next(iter(values.values())))
        stacked: Array = np.stack([values.get(event, none) for event in events])
        return stacked

    @property
    def names(self) -> list[str]:
        """Names of the sums, in the order in which they were first added."""
        return list(dict.fromkeys(name for own in self.sums.values() for name in own))

    def arrays(self) -> dict[str, npt.NDArray[np.int64]]:
        """Return plain arrays for a file."""
        flat: dict[str, npt.NDArray[np.int64]] = {}
        for event, named in self.sums.items():
            for name, exact in named.items():
                key = f"{event}|{name}"
                if isinstance(exact, FixedPoint):
                    flat |= {f"{key}|coarse": exact.coarse, f"{key}|fine": exact.fine}
                else:
                    flat[key] = exact
        return flat

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.int64]]) -> "EventSums":
        """Rebuild the sums from `arrays()`."""
        made = cls()
        for key, values in arrays.items():
            event, name, *half = key.split("|")
            own = made.sums.setdefault(event, {})
            if not half:
                own[name] = values
            elif half == ["coarse"]:
                own[name] = FixedPoint(values, arrays[f"{event}|{name}|fine"])
        return made


def _plus(a: Exact, b: Exact) -> Exact:
    return a + b  # type: ignore[operator]  # both are of one kind


def _values(exact: Exact) -> Array:
    return exact.values() if isinstance(exact, FixedPoint) else exact
