"""Read the plain pickles of CIFAR without ever running what is in them."""

from __future__ import annotations

import math
import pickletools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from convpeft.data.quoting import reason
from convpeft.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_STEPS = 400_000  # a step may make an object; the largest official file takes 200,000
_MAX_INDEX = 1 << 31  # of a remembered object: larger ones could be chosen so that they all collide
_MAX_AXES = 4
_MAX_SIDE = 1 << 32

# Opcodes that push what they carry, and those that push one thing.
_CARRIERS = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
    ]
)
_OLD_STRINGS = frozenset(["STRING", "BINSTRING", "SHORT_BINSTRING"])  # bytes to Python 2
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PUTS = frozenset(["PUT", "BINPUT", "LONG_BINPUT"])
_GETS = frozenset(["GET", "BINGET", "LONG_BINGET"])
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NO_OPERATION = frozenset(["PROTO", "FRAME"])

# The names that an array and its bytes are written with. They are words here: nothing is looked up or called.
_WORDS = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "class",
    "numpy dtype": "type",
    "_codecs encode": "bytes",
}


class _Word:
    """One of the names above, on the stack."""

    def __init__(self, name: str) -> None:
        try:
            self.meaning = _WORDS[name]
        except KeyError:
            raise ValueError(f"names {'.'.join(name.split())}, which is not allowed") from None


class _Made:
    """Stands in for a numpy array or type: keeps what the pickle says of it, allocates nothing."""

    def __init__(self, meaning: str, given: tuple[object, ...]) -> None:
        self.meaning, self.given = meaning, given
        self.state: object = None


def read_plain_pickle(content: bytes, where: str) -> dict[str, Any]:
    """Read a pickled dictionary of arrays, lists, strings, bytes and integers.

    Returns:
        The dictionary, its keys as str; arrays as uint8 numpy arrays, other bytes as they are.

    Raises:
        DataError: If the pickle is damaged, or names anything but the parts of a uint8 array.
    """
    try:
        found = _run(content)
        if not isinstance(found, dict):
            raise TypeError(f"holds a {type(found).__name__}, expected a dictionary")
        entries = cast("dict[str | bytes, object]", found)
        return {_text(key): _array(value) if isinstance(value, _Made) else value for key, value in entries.items()}
    # A damaged pickle raises anything: IndexError, ValueError, UnicodeDecodeError, ...
    except Exception as error:
        raise DataError(f"{where}: is no plain pickle ({reason(error)}). Get the official archive again.") from error


def _run(content: bytes) -> object:
    """Follow the opcodes on a stack of plain values; tuples are never hashed, compared or shown."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    for step, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        name = opcode.name
        if step > _MAX_STEPS:
            raise ValueError(f"takes more than {_MAX_STEPS:,} steps")
        if name in _CARRIERS:
            stack.append(argument)
        elif name in _OLD_STRINGS:
            stack.append(cast("str", argument).encode("latin1"))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _PUTS:
            if not 0 <= cast("int", argument) < _MAX_INDEX:
                raise ValueError("remembers an object under a number out of range")
            memo[cast("int", argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _GETS:
            stack.append(memo[cast("int", argument)])
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("LIST", "DICT", "TUPLE", "APPENDS", "SETITEMS"):
            _gather(stack, name, _above(stack, marks.pop()))
        elif name in _SHORT_TUPLES:
            _gather(stack, "TUPLE", _above(stack, len(stack) - _SHORT_TUPLES[name]))
        elif name == "APPEND":
            _gather(stack, "APPENDS", _above(stack, len(stack) - 1))
        elif name == "SETITEM":
            _gather(stack, "SETITEMS", _above(stack, len(stack) - 2))
        elif name == "GLOBAL":
            stack.append(_Word(cast("str", argument)))
        elif name == "STACK_GLOBAL":
            module, own = _above(stack, len(stack) - 2)
            stack.append(_Word(f"{_string(module)} {_string(own)}"))
        elif name == "REDUCE":
            word, given = _above(stack, len(stack) - 2)
            stack.append(_make(word, given))
        elif name == "BUILD":
            made, state = _above(stack, len(stack) - 2)
            if not isinstance(made, _Made):
                raise TypeError("gives a state to what is no array")
            made.state = state
            stack.append(made)
        elif name == "STOP":
            return stack.pop()
        elif name not in _NO_OPERATION:
            raise ValueError(f"forbidden opcode {name}")
    raise ValueError("has no end")


def _above(stack: list[Any], start: int) -> list[Any]:
    """Take everything from a place upwards off the stack."""
    if start < 0 or start > len(stack):
        raise IndexError("takes more from the stack than there is")
    taken = stack[start:]
    del stack[start:]
    return taken


def _gather(stack: list[Any], name: str, items: list[Any]) -> None:
    """Make a container of these items, or add them to the one on the stack."""
    if name == "TUPLE":
        stack.append(tuple(items))
        return
    if name in ("LIST", "DICT"):
        stack.append([] if name == "LIST" else {})
    if not stack:
        raise IndexError("takes more from the stack than there is")
    target = stack[-1]
    if name in ("LIST", "APPENDS") and isinstance(target, list):
        cast("list[Any]", target).extend(items)
    elif name in ("DICT", "SETITEMS") and isinstance(target, dict):
        table = cast("dict[Any, Any]", target)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, bytes)):
                raise TypeError(f"a key of the dictionary is no text but a {type(key).__name__}")
            table[key] = value
    else:
        raise TypeError(f"{name} on a {type(target).__name__}")


def _make(word: object, given: object) -> object:
    """What a call of one of the known names stands for."""
    if not isinstance(word, _Word) or not isinstance(given, tuple):
        raise TypeError("calls what is no name")
    arguments = cast("tuple[object, ...]", given)
    if word.meaning == "bytes":  # by which Python 3 writes bytes in old protocols
        text, *encoding = arguments
        if encoding != ["latin1"]:
            raise ValueError("bytes in another encoding than latin1")
        return _string(text).encode("latin1")
    if word.meaning == "class":
        raise TypeError("calls a class that is only named")
    return _Made(word.meaning, arguments)


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} where a text belongs")
    return value


def _text(key: str | bytes) -> str:
    return key.decode("utf-8") if isinstance(key, bytes) else key


def _array(made: _Made) -> NDArray[np.uint8]:
    if made.meaning != "array" or not isinstance(made.state, tuple):
        raise TypeError("an array without a state")
    _, shape, dtype, fortran, content = cast("tuple[object, ...]", made.state)
    code = dtype.given[0] if isinstance(dtype, _Made) and dtype.meaning == "type" and dtype.given else None
    if code not in ("u1", b"u1") or not isinstance(content, bytes):
        raise TypeError("an array is not of unsigned bytes")
    sides = cast("Sequence[object]", shape) if isinstance(shape, tuple) else ()
    if not 0 < len(sides) <= _MAX_AXES or not all(type(side) is int and 0 <= side < _MAX_SIDE for side in sides):
        raise ValueError("an array has a shape that is none")
    known = tuple(cast("int", side) for side in sides)
    if math.prod(known) != len(content):
        raise ValueError(f"an array of shape {known} has {len(content)} bytes")
    return np.frombuffer(content, dtype=np.uint8).reshape(known, order="F" if fortran else "C")
