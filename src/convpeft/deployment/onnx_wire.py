"""Walk through the bytes of an ONNX file, to see that its tensors are all inside it, before anything else reads it.

Only the parts that can hold a tensor are entered; the numbers themselves are stepped over.
"""

from __future__ import annotations

from collections.abc import Iterator

_DEEPEST = 64  # messages in each other
# For each kind of message, the fields that lead on: (kind, field number) to kind.
_INSIDE = {
    ("model", 7): "graph",
    ("model", 20): "training",
    ("model", 25): "function",
    ("training", 1): "graph",
    ("training", 2): "graph",
    ("function", 7): "node",
    ("function", 11): "attribute",
    ("graph", 1): "node",
    ("graph", 5): "tensor",
    ("graph", 15): "sparse",
    ("node", 5): "attribute",
    ("attribute", 5): "tensor",
    ("attribute", 6): "graph",
    ("attribute", 10): "tensor",
    ("attribute", 11): "graph",
    ("attribute", 22): "sparse",
    ("attribute", 23): "sparse",
    ("sparse", 1): "tensor",
    ("sparse", 2): "tensor",
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of a tensor


class NotOnnx(Exception):  # noqa: N818 - never leaves this package
    """The bytes are no message of this kind."""


def has_outside_data(content: bytes) -> bool:
    """Whether a tensor of the file says that its numbers are in another file.

    Raises:
        NotOnnx: If the bytes cannot be walked through.
    """
    if content[4:8] == b"ORTM":  # onnxruntime's own format, which it would take as well
        raise NotOnnx("is in onnxruntime's own format")
    waiting = [("model", 0, len(content), 0)]
    graphs = 0
    while waiting:
        kind, start, end, depth = waiting.pop()
        if depth > _DEEPEST:
            raise NotOnnx("is nested too deeply")
        for number, wire, value, length in _fields(content, start, end):
            if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
                return True
            inside = _INSIDE.get((kind, number))
            if inside is not None:
                if wire != 2:  # not a message
                    raise NotOnnx("is no ONNX file")
                graphs += inside == "graph"
                waiting.append((inside, value, value + length, depth + 1))
    if not graphs:
        raise NotOnnx("is no ONNX file")
    return False


def _fields(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Field number, wire type, and the value of a number, or the place and length of what is longer."""
    while start < end:
        key, start = _number(content, start, end)
        wire, value, length = key & 7, start, 0
        if wire == 0:
            value, start = _number(content, start, end)
        elif wire == 2:
            length, value = _number(content, start, end)
            start = value + length
        elif wire in (1, 5):
            start += 8 if wire == 1 else 4
        else:
            raise NotOnnx("is no ONNX file")
        if start > end:
            raise NotOnnx("ends too early")
        yield key >> 3, wire, value, length


def _number(content: bytes, start: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = 0
    for place in range(10):
        if start + place >= end:
            raise NotOnnx("ends too early")
        byte = content[start + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, start + place + 1
    raise NotOnnx("is no ONNX file")
