"""Safe reading of dates from a pickle, which could run any code if it were simply loaded.

Only the opcodes and names that an array of datetime.datetime needs are allowed (pickle protocols 2 to 5), and
inert classes replace NumPy's own.
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
    """Return the dates of a pickled array of datetime.datetime, running no code. Raises ValueError otherwise."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in OPCODES:
            raise ValueError(f"its dates hold more than dates (the opcode {opcode.name}), which is not loaded")
        # the index of a memo entry determines how much memory the memo takes
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(content):
            raise ValueError(f"its dates use memo entry {argument} in {len(content)} bytes")
    array = _Unpickler(io.BytesIO(content)).load()
    if not isinstance(array, _Array):
        raise ValueError(f"its dates are {type(array).__name__}, not an array")
    odd = [item for item in array.items if type(item) is not datetime or item.tzinfo is not None]
    if odd:
        raise ValueError(f"its dates hold {odd[0]!r}, which is not a naive datetime.datetime (UTC)")
    return array.items


class _Array:
    """Stand-in for numpy.ndarray that keeps the objects of its state."""

    def __init__(self, *_: object) -> None:
        self.items: list[Any] = []

    def __setstate__(self, state: Any) -> None:
        """Keep the objects of the state (version, shape, dtype, Fortran order, objects)."""
        if isinstance(state, tuple) and len(state) == 5 and isinstance(state[4], list):
            self.items = state[4]


class _DType:
    """Stand-in for numpy.dtype."""

    def __init__(self, *_: object) -> None:
        """Ignore the name."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the state."""


def _latin1(text: str, encoding: str) -> bytes:
    """Stand-in for _codecs.encode, with which old pickles write the bytes of a date."""
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
    """Allows only the names that an array of dates needs."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the class or its stand-in. Raises ValueError for any other name."""
        if (module, name) not in _NAMES:
            raise ValueError(f"its dates name {module}.{name}, which is not a date and is not loaded")
        return _NAMES[module, name]
