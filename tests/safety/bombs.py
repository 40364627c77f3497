"""Small files that would unpack into gigabytes, each written by streaming; run as a script, it reads one of them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import resource
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from convpeft.data.cifar import CIFAR100

MEBI = 1 << 20
_ZEROS = bytes(MEBI)


def _png(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _packed(head: bytes, mebi: int, pack: Callable[[bytes], bytes]) -> bytes:
    """A beginning and so much nothing after it; each of these packers takes its streams one after the other."""
    return pack(head) + pack(bytes(16 * MEBI)) * (mebi // 16)


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, 9, mtime=0)


def _zip(name: str, pieces: Iterator[bytes], method: int, claimed: int | None = None) -> bytes:
    """A zip of one member, which may claim another size than it has."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, archive.open(name, "w", force_zip64=False) as member:
        for piece in pieces:
            member.write(piece)
    content = bytearray(buffer.getvalue())
    if claimed is not None:
        start = content.rindex(b"PK\x01\x02")
        content[start + 24 : start + 28] = struct.pack("<I", claimed)
    return bytes(content)


def _zeros(head: bytes, mebi: int) -> Iterator[bytes]:
    yield head
    for _ in range(mebi):
        yield _ZEROS


def _npy(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _tar(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(f"{CIFAR100.folder}/train")
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def _idx(*shape: int) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)


def _images(mebi: int) -> bytes:
    return _npy((mebi, 1024, 1024))


_PICKLE_OF_LISTS = b"\x80\x02" + b"]" * 3_000_000 + b"."
_NAME = "train_images.npy"
_LETTERS = "gzip/emnist-letters-train-images-idx3-ubyte.gz"

# By name: the file that it is read from, and the bytes.
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "png of 13,000 x 13,000": ("x.png", lambda: _png(13_000)),
    "npz of 1000:1": ("x.npz", lambda: _zip(_NAME, _zeros(_images(304), 304), zipfile.ZIP_DEFLATED)),
    "npz that says less": ("x.npz", lambda: _zip(_NAME, _zeros(_images(40), 304), zipfile.ZIP_DEFLATED, 41 * MEBI)),
    "npz packed with bzip2": ("x.npz", lambda: _zip(_NAME, _zeros(_images(40), 96), zipfile.ZIP_BZIP2, 41 * MEBI)),
    "npz packed with lzma": ("x.npz", lambda: _zip(_NAME, _zeros(_images(40), 48), zipfile.ZIP_LZMA, 41 * MEBI)),
    "idx in gzip": ("x.gz", lambda: _packed(_idx(304, 1024, 1024), 304, _gzip)),
    "idx in gzip that says less": ("x.gz", lambda: _packed(_idx(3, 1024, 1024), 304, _gzip)),
    "idx in xz": ("x.xz", lambda: _packed(_idx(304, 1024, 1024), 304, lzma.compress)),
    "idx in gzip in zip": (
        "gzip.zip",
        lambda: _zip(_LETTERS, iter([_packed(_idx(304, 1024, 1024), 304, _gzip)]), zipfile.ZIP_DEFLATED),
    ),
    "zip packed with bzip2": (
        "gzip.zip",
        lambda: _zip(_LETTERS, _zeros(b"\x1f\x8b\x08\0\0\0\0\0\0\x03", 96), zipfile.ZIP_BZIP2),
    ),
    "tar of one large member": ("cifar.tar.gz", lambda: _packed(_tar(608 * MEBI), 600, _gzip)),
    "tar of a large header": ("cifar.tar.gz", lambda: _packed(_tar(608 * MEBI, tarfile.XHDTYPE), 600, _gzip)),
    "tar of a large name": ("cifar.tar.gz", lambda: _packed(_tar(608 * MEBI, tarfile.GNUTYPE_LONGNAME), 600, _gzip)),
    "tar of many members": ("cifar.tar.gz", lambda: _gzip(_tar(0) * 300_000)),
    "tar of links of links": ("cifar.tar.gz", lambda: _gzip(_tar(512, tarfile.GNUTYPE_LONGLINK) * 9_000)),
    "tar in bzip2": ("cifar.tar.gz", lambda: _packed(_tar(304 * MEBI), 304, bz2.compress)),
    "pickle of millions of lists": ("cifar-100-python/train", lambda: _PICKLE_OF_LISTS),
    "pickle of colliding keys": (
        "cifar-100-python/train",
        lambda: b"}" + b"".join(b"I%d\nI1\ns" % (k * (2**61 - 1)) for k in range(100_000)) + b".",
    ),
    "pickle of doubled tuples": (
        "cifar-100-python/train",
        lambda: b"\x80\x02)q\0" + b"h\0h\0\x86q\0" * 100 + b"}h\0K\x01s.",
    ),
    "recipe of nests": ("recipe.toml", lambda: b"a = " + b"[" * 1_000_000),
    "description of nests": ("adapter/adapter_config.json", lambda: b"[" * 1_000_000),
    "pickle of one large array": (
        "cifar-100-python/train",
        lambda: pickle.dumps({b"data": np.zeros((8, 8), np.uint8)}, protocol=2).replace(
            b"K\x08K\x08", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f"
        ),
    ),
}


def _reader(file: Path) -> Callable[[], object]:
    """The call that reads this file, everything it needs already imported."""
    import convpeft
    from convpeft.adapter_file import read_adapter
    from convpeft.data import read_image
    from convpeft.data.characters import load_emnist
    from convpeft.data.cifar import load_cifar
    from convpeft.data.idx import read_idx
    from convpeft.data.npz import load_npz
    from convpeft.training.recipe import read_recipe

    assert convpeft
    readers: dict[str, Callable[[], object]] = {
        "x.png": lambda: read_image(file),
        "x.npz": lambda: load_npz(file),
        "x.gz": lambda: read_idx(file, dimensions=3),
        "x.xz": lambda: read_idx(file, dimensions=3),
        "gzip.zip": lambda: load_emnist(file.parent, "letters"),
        "cifar.tar.gz": lambda: load_cifar(file, CIFAR100),
        "train": lambda: load_cifar(file.parents[1], CIFAR100),
        "recipe.toml": lambda: read_recipe(file),
        "adapter_config.json": lambda: read_adapter(file.parent),
    }
    return readers[file.name]


def main(folder: Path) -> None:
    """Read every bomb below a folder and print what came of each: error, seconds, growth in bytes."""
    import torch

    from safety import samples

    torch.set_num_threads(1)
    found: dict[str, dict[str, object]] = {}
    (folder / "warm.png").write_bytes(samples.pictures()["png"])
    _reader(folder / "x.png")  # imports
    from convpeft.data import read_image

    read_image(folder / "warm.png")
    for name, (place, _) in BOMBS.items():
        read = _reader(folder / _slug(name) / place)
        found[name] = _in_a_child(read)
    sys.stdout.write(json.dumps(found) + "\n")


def _in_a_child(read: Callable[[], object]) -> dict[str, object]:
    """What came of a reading in a process of its own, whose peak of memory begins at what is there now."""
    from convpeft.errors import ConvpeftError

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        before, began, started, error = _peak(), time.perf_counter(), time.process_time(), None
        try:
            read()
        except ConvpeftError as refusal:
            error = str(refusal)
        except BaseException as other:
            error = f"NOT OURS {type(other).__name__}: {other}"
        seconds = min(time.perf_counter() - began, time.process_time() - started)
        told = {"error": error, "seconds": seconds, "growth": _peak() - before}
        os.write(writing, json.dumps(told).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        content = answer.read()
    os.waitpid(child, 0)
    return json.loads(content) if content else {"error": None, "seconds": 0, "growth": 0}


def write_bombs(folder: Path) -> dict[str, int]:
    """Write every bomb below a folder, and return their sizes."""
    sizes: dict[str, int] = {}
    for name, (place, make) in BOMBS.items():
        file = folder / _slug(name) / place
        file.parent.mkdir(parents=True)
        file.write_bytes(make())
        sizes[name] = file.stat().st_size
        if place.startswith("cifar-100-python/"):
            (file.parent / "test").write_bytes(file.read_bytes())
        if place.endswith("adapter_config.json"):
            file.with_name("adapter_model.safetensors").write_bytes(b"")
    return sizes


def _slug(name: str) -> str:
    return name.replace(" ", "-").replace(",", "").replace(":", "-")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
