"""Units of rain: parse their spellings to a quantity and a factor to mm/h, mm or dBZ.

All readers, archives and baselines use this module. CF uses UDUNITS spellings ("kg m-2 s-1"); services also write
"mm/hour", "mm h**-1", "kg/m^2/s", "mm h⁻¹", "kg/(m2 s)".
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

Quantity = Literal["rate", "accumulation", "reflectivity"]
RATE: Quantity = "rate"
ACCUMULATION: Quantity = "accumulation"
REFLECTIVITY: Quantity = "reflectivity"
EXAMPLES: dict[str, tuple[str, ...]] = {
    RATE: ("mm/h", "kg m-2 s-1", "m s-1"),
    ACCUMULATION: ("mm", "kg m-2", "m"),
    REFLECTIVITY: ("dBZ",),
}
"""Some spellings of each quantity, for messages; the first is the shortest to type."""

_LENGTHS = {"mm": Fraction(1), "cm": Fraction(10), "m": Fraction(1000), "in": Fraction(254, 10)}  # in mm
_HOURS = {"s": Fraction(1, 3600), "min": Fraction(1, 60), "h": Fraction(1), "d": Fraction(24)}
_NAMES = {
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "in": "in inch inches",
    "kg": "kg kilogram kilograms",
    "l": "l litre litres liter liters",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "d": "d day days",
}
_NAME_OF = {spelling: name for name, spellings in _NAMES.items() for spelling in spellings.split()}
_SUPERSCRIPTS = str.maketrans("⁻⁺⁰¹²³⁴⁵⁶⁷⁸⁹", "-+0123456789")
_NUMBER = re.compile(r"(\d{1,6}(?:\.\d{1,6})?(?:e[-+]?\d\d?)?|1/[1-9]\d{0,5}) *\*? *(?=[a-z])")
_TIME = r"(?P<number>[1-9]\d{0,3})[- ]*(?P<time>[a-z]+)"
_SEVERAL = re.compile(rf"(?P<depth>.*?)(?:(?:/|\bper\b) *\(? *{_TIME}\.? *\)?)")
"""A depth per several units of time: "mm/5min", "mm per 5 minutes"."""
_FACTOR = re.compile(r"([a-z]+) *\^? *([-+]?\d+)?")


@dataclass(frozen=True)
class Unit:
    """A unit is `factor` mm/h, mm or dBZ. `by_itself` is False if the unit alone does not mean rain: m s-1, m."""

    quantity: Quantity
    factor: float
    by_itself: bool = True


@lru_cache(maxsize=256)
def parse_unit(text: object) -> Unit | None:
    """Return the unit of rain that `text` spells; None for anything else."""
    words = str(text or "").strip().lower()
    if words in ("dbz", "db z", "dbz (decibel)"):
        return Unit(REFLECTIVITY, 1.0)
    words, number = _number(words)
    powers = _powers(words)
    if powers is None:
        return None
    times = [name for name in powers if name in _HOURS]
    per_time = Fraction(1)
    if times:
        if len(times) > 1 or powers.pop(times[0]) != -1:
            return None
        per_time = 1 / _HOURS[times[0]]
    by_itself = True
    if powers in ({"kg": 1, "m": -2}, {"l": 1, "m": -2}):  # 1 kg or l of water per m² is 1 mm
        depth = Fraction(1)
    elif len(powers) == 1 and next(iter(powers.values())) == 1 and next(iter(powers)) in _LENGTHS:
        length = next(iter(powers))
        depth = _LENGTHS[length]
        by_itself = times[0] != "s" if times else length == "mm"
    else:
        return None
    return Unit(RATE if times else ACCUMULATION, float(number * depth * per_time), by_itself)


def unit_of(text: object, quantity: str) -> Unit | None:
    """Parse a unit like `parse_unit`; None if it is not a unit of `quantity`."""
    unit = parse_unit(text)
    return unit if unit is not None and unit.quantity == quantity else None


def _number(words: str) -> tuple[str, Fraction]:
    """Split numbers off: "0.1 mm" is ("mm", 1/10), and "mm/5min" is ("mm/min", 1/5)."""
    factor = Fraction(1)
    words = re.sub(r"[][{}]", "", words.translate(_SUPERSCRIPTS))
    if match := _NUMBER.match(words):
        factor, words = Fraction(match[1]), words[match.end() :]
    if match := _SEVERAL.fullmatch(words):
        factor, words = factor / int(match["number"]), f"{match['depth']}/{match['time']}"
    return words if factor > 0 else "", factor


def _powers(words: str) -> dict[str, int] | None:
    """Parse 'kg m-2 s-1' to {'kg': 1, 'm': -2, 's': -1}; None if a word is not part of a unit of rain."""
    words = words.translate(_SUPERSCRIPTS).replace("**", "^").replace("·", " ").replace("*", " ")
    words = re.sub(r"\bper\b", "/", re.sub(r"\.(?!\d)", " ", words))
    # a slash before brackets divides by all factors inside
    words = re.sub(r"/ *\(([^()]*)\)", lambda match: "/" + re.sub(r"[ *]+", "/", match[1].strip()), words)
    powers: dict[str, int] = {}
    place, sign = 0, 1
    while place < len(words):
        if words[place] in " /":
            sign = -1 if words[place] == "/" else sign
            place += 1
            continue
        match = _FACTOR.match(words, place)
        if match is None or match[1] not in _NAME_OF:
            return None
        name = _NAME_OF[match[1]]
        powers[name] = powers.get(name, 0) + sign * int(match[2] or 1)
        place, sign = match.end(), 1
    return powers or None
