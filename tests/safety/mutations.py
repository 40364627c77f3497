"""Seeded damage to files: bits, lengths, pieces, and changes that keep the outer form whole."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Mutation = Callable[[np.random.Generator, bytes], bytes]

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_WORDS = (b"NaN", b"-1", b"1e400", b"null", b"\x00", b"\xff\xfe", b"\x1b[2J", b"\r\n", b"../", b"[" * 3000, b"9" * 5000)
NAMES = (
    "",
    "\0",
    "../../x",
    "/etc/x",
    "a\nb",
    "\x1b[31m",
    "\ud800",
    "é" * 300,
    "0:lora.up",
    "__class__",
    "\u202e",
    "conv",
)


def flip_bits(rng: np.random.Generator, content: bytes) -> bytes:
    """Flip one to eight bits."""
    changed = bytearray(content)
    for place in rng.integers(0, 8 * len(content), rng.integers(1, 9)):
        changed[place // 8] ^= 1 << (place % 8)
    return bytes(changed)


def set_bytes(rng: np.random.Generator, content: bytes) -> bytes:
    """Replace one to four bytes."""
    changed = bytearray(content)
    for place in rng.integers(0, len(content), rng.integers(1, 5)):
        changed[place] = rng.integers(256)
    return bytes(changed)


def truncate(rng: np.random.Generator, content: bytes) -> bytes:
    """Cut the end off."""
    return content[: rng.integers(0, len(content))]


def cut_out(rng: np.random.Generator, content: bytes) -> bytes:
    """Cut a piece out."""
    start, end = sorted(rng.integers(0, len(content) + 1, 2).tolist())
    return content[:start] + content[end:]


def splice(rng: np.random.Generator, content: bytes) -> bytes:
    """Copy a piece over another place, or in between."""
    start, end = sorted(rng.integers(0, len(content) + 1, 2).tolist())
    place = int(rng.integers(0, len(content) + 1))
    rest = place + (end - start if rng.integers(2) else 0)
    return content[:place] + content[start:end] + content[rest:]


def edit_length(rng: np.random.Generator, content: bytes) -> bytes:
    """Write a telling number of 1, 2, 4 or 8 bytes somewhere, mostly near the start or the end."""
    size = int(2 ** rng.integers(0, 4))
    near = min(len(content), 40)
    place = int(rng.integers(0, len(content))) if rng.integers(2) else int(rng.integers(0, near))
    if rng.integers(4) == 0:
        place = max(0, len(content) - near + place % near)
    number = _NUMBERS[rng.integers(len(_NUMBERS))] % 2 ** (8 * size)
    order = "little" if rng.integers(2) else "big"
    return (content[:place] + number.to_bytes(size, order) + content[place + size :])[: max(len(content), 1)]


def insert_word(rng: np.random.Generator, content: bytes) -> bytes:
    """Put a telling word somewhere."""
    place = int(rng.integers(0, len(content) + 1))
    return content[:place] + _WORDS[rng.integers(len(_WORDS))] + content[place:]


def edit_digits(rng: np.random.Generator, content: bytes) -> bytes:
    """Replace a number that is written in digits."""
    found = list(re.finditer(rb"-?[0-9]+", content))
    if not found:
        return flip_bits(rng, content)
    match = found[rng.integers(len(found))]
    number = _NUMBERS[rng.integers(len(_NUMBERS))] * (-1) ** int(rng.integers(2))
    text = str(number if rng.integers(8) else 10 ** int(rng.integers(20, 4000))).encode()
    return content[: match.start()] + text + content[match.end() :]


PLAIN: tuple[Mutation, ...] = (
    flip_bits,
    set_bytes,
    truncate,
    cut_out,
    splice,
    edit_length,
    insert_word,
    edit_digits,
)


def plain(rng: np.random.Generator, content: bytes) -> bytes:
    """Damage bytes without regard to their form, once to three times."""
    for _ in range(rng.integers(1, 4)):
        content = PLAIN[rng.integers(len(PLAIN))](rng, content) or b"\0"
    return content


def _anything(rng: np.random.Generator, depth: int = 0) -> Any:
    number = _NUMBERS[rng.integers(len(_NUMBERS))]
    choice = int(rng.integers(12 if depth < 3 else 8))
    if choice == 8:
        return [_anything(rng, depth + 1) for _ in range(rng.integers(4))]
    if choice == 9:
        return {NAMES[rng.integers(len(NAMES))]: _anything(rng, depth + 1) for _ in range(rng.integers(4))}
    if choice == 10:
        return nested(int(rng.integers(1, 400)))
    if choice == 11:
        return [0] * int(rng.integers(1, 3000))
    name = NAMES[rng.integers(len(NAMES))]
    return (None, bool(rng.integers(2)), number, -number, float(number) / 3, float("nan"), name, [number])[choice]


def nested(depth: int) -> Any:
    """A list in a list in a list ..."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, inner in items:
        found += _places(inner, (*path, key))
    return found


def json_text(rng: np.random.Generator, content: bytes) -> bytes:
    """Change a JSON document within its form: values, names, entries, doubled keys, deep nests."""
    try:
        document = json.loads(content)
        places = _places(document)
    except (ValueError, RecursionError):
        return plain(rng, content)
    for _ in range(rng.integers(1, 4)):
        if not places:
            return content
        *parents, last = places[rng.integers(len(places))]
        target = document
        try:
            for key in parents:
                target = target[key]
            kind = rng.integers(6)
            if kind == 0 and isinstance(target, dict):
                target[NAMES[rng.integers(len(NAMES))]] = target.pop(last)
            elif kind == 1:
                del target[last]
            elif kind == 2 and isinstance(target, list):
                target.append(target[last])
            elif kind == 3:
                other = document
                for key in places[rng.integers(len(places))]:
                    other = other[key]
                target[last] = json.loads(json.dumps(other))
            else:
                target[last] = _anything(rng)
        except (KeyError, IndexError, TypeError):
            continue
    text = json.dumps(document)
    if rng.integers(10) == 0 and text.startswith("{") and len(text) > 2:  # a key that occurs twice
        key = json.dumps(list(document)[rng.integers(len(document))])
        text = f"{{{key}: {json.dumps(_anything(rng))}, {text[1:]}"
    if rng.integers(40) == 0:
        text = text.replace("[]", "[" * 20_000 + "]" * 20_000, 1)
    return text.encode("utf-8", "surrogatepass")


def safetensors(rng: np.random.Generator, content: bytes) -> bytes:
    """Change the header or the numbers of a safetensors file within its form."""
    size = int.from_bytes(content[:8], "little")
    header, body = content[8 : 8 + size], bytearray(content[8 + size :])
    kind = rng.integers(4)
    if kind == 0:
        return plain(rng, content)
    if kind == 1 and len(body) >= 8:  # not a number, infinity, and the ends of the range
        at = 4 * int(rng.integers(0, len(body) // 4))
        patterns = (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f")
        body[at : at + 4] = patterns[rng.integers(4)]
    elif kind == 2:
        header = _other_types(rng, header)
    else:
        header = json_text(rng, header)
    told = len(header) if rng.integers(8) else _NUMBERS[rng.integers(len(_NUMBERS))] % 2**64
    return struct.pack("<Q", told) + header + bytes(body)


def _other_types(rng: np.random.Generator, header: bytes) -> bytes:
    """The same bytes as numbers of another type and shape, so that offsets still agree."""
    document = json.loads(header)
    key = list(document)[rng.integers(len(document))]
    entry = document[key]
    if not isinstance(entry, dict) or "data_offsets" not in entry:
        return header
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    types = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "U8": 1, "I8": 1, "BOOL": 1}
    types |= {"F8_E5M2": 1, "F8_E4M3": 1, "U16": 2, "U32": 4, "U64": 8, "C64": 8, "F8_E8M0": 1}
    name = list(types)[rng.integers(len(types))]
    count = size // types[name]
    if count * types[name] == size:
        entry["dtype"] = name
        entry["shape"] = [[count], [count, 1], [1, count], [1] * 20 + [count], [0, 2**40, count]][rng.integers(5)]
    return json.dumps(document).encode()


def zip_member(inner: Sequence[Mutation]) -> Mutation:
    """Change one member and pack the archive again, so that every check sum is right."""

    def mutate(rng: np.random.Generator, content: bytes) -> bytes:
        if rng.integers(3) == 0:
            return plain(rng, content)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        names = list(members)
        name = names[rng.integers(len(names))]
        kind = rng.integers(8)
        if kind == 0:
            del members[name]
        elif kind == 1:
            members[names[rng.integers(len(names))]] = members[name]
        else:
            members[name] = inner[rng.integers(len(inner))](rng, members[name])
        buffer = io.BytesIO()
        method = int(rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]))
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for each, data in members.items():
                archive.writestr(zipfile.ZipInfo(each), data, compress_type=method)
        return buffer.getvalue()

    return mutate


def npy_header(rng: np.random.Generator, content: bytes) -> bytes:
    """Change the type or the shape that an array's header tells."""
    size = int.from_bytes(content[8:10], "little")
    header, body = content[10 : 10 + size].decode("latin1"), content[10 + size :]
    types = ("|u1", "<i8", "<u8", "<f8", "|b1", "<U7", "|S3", "|V0", "<M8[s]", "|O", "<c16", "<U0", ">f2", "<f4")
    shapes = (
        "()",
        "(0,)",
        "(-1, 3)",
        "(4, 3, 2)",
        "(2,)",
        "(4,)",
        "(0, 9999999999)",
        "(2, 1)",
        "(1,) * 9",
        "(4, 1, 1, 1)",
    )
    kind = rng.integers(4)
    if kind == 0:
        header = re.sub(r"'descr': '[^']*'", f"'descr': '{types[rng.integers(len(types))]}'", header)
    elif kind == 1:
        header = re.sub(r"\([^)]*\)", shapes[rng.integers(len(shapes))], header)
    elif kind == 2:
        header = header.replace("False", "True")
        body = rng.bytes(len(body)) if len(body) else body
    else:
        header = edit_digits(rng, header.encode("latin1")).decode("latin1")
    packed = header.encode("latin1")
    return content[:8] + struct.pack("<H", min(len(packed), 65535)) + packed + body


def _packed(unpack: Callable[[bytes], bytes], pack: Callable[[bytes], bytes]) -> Mutation:
    def mutate(rng: np.random.Generator, content: bytes) -> bytes:
        return plain(rng, content) if rng.integers(2) else pack(plain(rng, unpack(content)))

    return mutate


gzipped = _packed(gzip.decompress, lambda content: gzip.compress(content, 1, mtime=0))
xz_packed = _packed(lzma.decompress, lambda content: lzma.compress(content, preset=0))


def archive(rng: np.random.Generator, content: bytes) -> bytes:
    """Change a tar, packed or not, mostly in the blocks that describe its members."""
    pack: Callable[[bytes], bytes] = bytes
    if content[:2] == b"\x1f\x8b":
        content, pack = gzip.decompress(content), lambda plain_bytes: gzip.compress(plain_bytes, 1, mtime=0)
    elif content[:1] == b"\xfd":
        content, pack = lzma.decompress(content), lambda plain_bytes: lzma.compress(plain_bytes, preset=0)
    if rng.integers(3) == 0:
        return plain(rng, pack(content))
    changed = bytearray(plain(rng, content) if rng.integers(2) else content)
    for start in range(0, len(changed) - 511, 512):
        if changed[start + 257 : start + 262] == b"ustar" and rng.integers(3) == 0:
            at = start + int(rng.choice([0, 100, 124, 156, 157, 345])) + int(rng.integers(0, 8))
            changed[at] = rng.choice([0, 0x30, 0x31, 0x32, 0x35, 0x37, 0x4B, 0x4C, 0x78, 0x67, 0x53, 0x80, 0xFF, 0x2F])
            changed[start + 148 : start + 156] = b" " * 8
            changed[start + 148 : start + 156] = b"%06o\0 " % sum(changed[start : start + 512])
    return pack(bytes(changed))


MUTATIONS: dict[str, Mutation] = {
    "adapter-tensors": safetensors,
    "adapter-tensors-signed": safetensors,
    "patch-tensors": safetensors,
    "patch-tensors-signed": safetensors,
    "patch-map": gzipped,
    "patch-map-signed": gzipped,
    "checkpoint-tensors": safetensors,
    "checkpoint-tensors-signed": safetensors,
    "weights-safetensors": safetensors,
    "peft-tensors": safetensors,
    "peft-options": json_text,
    "lycoris": safetensors,
    "adapter-description-signed": json_text,
    "adapter-classifier-signed": json_text,
    "checkpoint-facts-signed": json_text,
    "lock": json_text,
    "npz": zip_member((plain, npy_header)),
    "weights-torch": lambda rng, content: (zip_member((plain,)) if content[:2] == b"PK" else plain)(rng, content),
    "emnist-zip": zip_member((plain, gzipped)),
    "idx.gz": gzipped,
    "idx.xz": xz_packed,
    "cifar-archive": archive,
}


def mutate(reader: str, rng: np.random.Generator, content: bytes) -> bytes:
    """Damage a file of one reader."""
    if reader in ("adapter-description", "checkpoint-facts", "patch-description"):
        return (plain if rng.integers(2) else json_text)(rng, content)
    return MUTATIONS.get(reader, plain)(rng, content)
