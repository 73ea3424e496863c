"""Dates out of a pickle, which could run any code if it were simply loaded.

Only the opcodes and names pass that an array of datetime.datetime takes (pickle protocols 2 to 5), and classes
that do nothing stand in for NumPy's own.
"""

import io
import pickle
import pickletools
from datetime import datetime
from typing import Any

_OPCODES = """
    PROTO FRAME STOP MARK GLOBAL STACK_GLOBAL REDUCE BUILD
    MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE BININT BININT1 BININT2
    SHORT_BINSTRING SHORT_BINBYTES BINBYTES SHORT_BINUNICODE BINUNICODE
    EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
"""
OPCODES = frozenset(_OPCODES.split())


def unpickle_dates(content: bytes) -> list[datetime]:
    """The dates of a pickled array of datetime.datetime; ValueError for anything else, without running it."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in OPCODES:
            raise ValueError(f"its dates hold more than dates (the opcode {opcode.name}), which is not loaded")
        # the number of a memo's entry is how much memory it takes
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(content):
            raise ValueError(f"its dates name a memo's entry {argument} in {len(content)} bytes")
    array = _Unpickler(io.BytesIO(content)).load()
    if not isinstance(array, _Array):
        raise ValueError(f"its dates are {type(array).__name__}, no array")
    odd = [item for item in array.items if type(item) is not datetime or item.tzinfo is not None]
    if odd:
        raise ValueError(f"its dates hold {odd[0]!r}, which is no datetime.datetime in UTC")
    return array.items


class _Array:
    """Stands for numpy.ndarray, and keeps the objects of its state."""

    def __init__(self, *_: object) -> None:
        self.items: list[Any] = []

    def __setstate__(self, state: Any) -> None:
        """The state is (version, shape, dtype, Fortran's order, objects)."""
        if isinstance(state, tuple) and len(state) == 5 and isinstance(state[4], list):
            self.items = state[4]


class _DType:
    """Stands for numpy.dtype."""

    def __init__(self, *_: object) -> None:
        """Whatever its name."""

    def __setstate__(self, state: Any) -> None:
        """Whatever its state."""


def _latin1(text: str, encoding: str) -> bytes:
    """Stands for _codecs.encode, by which old pickles write the bytes of a date."""
    return text.encode("latin1")


_NAMES: dict[tuple[str, str], Any] = {
    ("datetime", "datetime"): datetime,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # from NumPy 2 on
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    """Knows the names that an array of dates takes, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or its stand-in; ValueError for any other name."""
        if (module, name) not in _NAMES:
            raise ValueError(f"its dates name {module}.{name}, which is no date and is not loaded")
        return _NAMES[module, name]
