"""Read the plain pickles of CIFAR without ever running what is in them."""

from __future__ import annotations

import io
import math
import pickle
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from convpeft.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What dictionaries, lists, strings, bytes, integers and arrays are written with: no INST, OBJ, NEWOBJ,
# EXT, PERSID or BYTEARRAY8 (which allocates whatever it is told to).
_OPCODES = """
    PROTO STOP MARK FRAME MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
    EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 POP POP_MARK DUP
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINBYTES8
    GLOBAL STACK_GLOBAL REDUCE BUILD
"""


class _Dtype:
    """Stands in for numpy.dtype: keeps the code, ignores the rest."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code: str = code.decode("ascii") if isinstance(code, bytes) else str(code)

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands in for numpy.ndarray: keeps what the pickle says of it, allocates nothing."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = tuple(state)

    def __hash__(self) -> int:
        raise TypeError("an array is no key")


class _NdarrayType:
    """Stands in for the class numpy.ndarray, which `_reconstruct` is given as its first argument."""


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for _codecs.encode, by which Python 3 writes bytes in protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _NdarrayType,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}

# The Python unpickler, since the C one allocates gigabytes for one flipped bit in a memo index.
_PythonUnpickler = cast("type[pickle.Unpickler]", getattr(pickle, "_Unpickler"))  # noqa: B009


class _Restricted(_PythonUnpickler):
    """Knows the opcodes and the five names above and nothing else."""

    dispatch = {  # noqa: RUF012 - the name and form are the base class's
        getattr(pickle, name)[0]: getattr(_PythonUnpickler, "dispatch")[getattr(pickle, name)[0]]  # noqa: B009
        for name in _OPCODES.split()
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _GLOBALS[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"names {module_name}.{global_name}, which is not allowed") from None


def read_plain_pickle(content: bytes, where: str) -> dict[str, Any]:
    """Read a pickled dictionary of arrays, lists, strings, bytes and integers.

    Returns:
        The dictionary, its keys as str; arrays as uint8 numpy arrays, other bytes as they are.

    Raises:
        DataError: If the pickle is damaged, or names anything but the parts of a uint8 array.
    """
    try:
        found = _Restricted(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(found, dict):
            raise TypeError(f"holds a {type(found).__name__}, expected a dictionary")
        entries = cast("dict[object, object]", found)
        return {_text(key): _array(value) if isinstance(value, _Array) else value for key, value in entries.items()}
    # A damaged pickle raises anything: KeyError for an unknown opcode, IndexError, AttributeError, ...
    except Exception as error:
        reason = f"unknown or forbidden opcode {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{where}: is no plain pickle ({reason}). Get the official archive again.") from error


def _text(value: object) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _array(array: _Array) -> NDArray[np.uint8]:
    _, shape, dtype, fortran, content = array.state
    shape = tuple(int(size) for size in shape)
    if not isinstance(dtype, _Dtype) or dtype.code != "u1" or not isinstance(content, bytes):
        raise TypeError("an array is not of unsigned bytes")
    if min(shape, default=0) < 0 or math.prod(shape) != len(content):
        raise ValueError(f"an array of shape {shape} has {len(content)} bytes")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")
