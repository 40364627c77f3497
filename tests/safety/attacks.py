"""Hostile files for every reader, always the same bytes: what runs code, reaches outside, lies or never ends."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from convpeft.data.cifar import CIFAR100
from safety import samples
from safety.mutations import NAMES, nested
from safety.readers import READERS

CANARY = "canary"  # what every payload would make in the working directory
_COMMAND = f"touch {CANARY}"


class _Call:
    """Unpickles into a call."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


def pickles() -> dict[str, bytes]:
    """Pickles that run a command when they are read by the ordinary reader, and some that never end."""
    calls = {
        "system": (os.system, _COMMAND),
        "eval": (eval, f"__import__('os').system('{_COMMAND}')"),
        "exec": (exec, f"open('{CANARY}', 'w')"),
        "import": (__import__, "tabnanny"),
        "popen": (subprocess.Popen, ["touch", CANARY]),
        "open": (open, CANARY, "w"),
        "load": (np.load, "/etc/passwd"),
        "getattr": (getattr, "x", "__class__"),
    }
    found: dict[str, bytes] = {}
    for name, call in calls.items():
        for protocol in (0, 2, 4):
            found[f"{name}-{protocol}"] = pickle.dumps({b"data": _Call(*call)}, protocol=protocol)
    return found | {
        "instance": b"(ios\nsystem\n(S'" + _COMMAND.encode() + b"'\ntR.",
        "object": b"(cos\nsystem\nS'" + _COMMAND.encode() + b"'\no.",
        "new-object": b"\x80\x02cos\nsystem\nX\x05\0\0\0touch\x85\x81.",
        "stack-global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x05touch\x85R.",
        "name-in-two-lines": b"\x80\x04\x8c\x04o\ns\x1b\x8c\x06system\x93.",
        "persistent": b"Pos\n.",
        "extension": b"\x80\x02\x82\x01.",
        "state-of-a-name": b"\x80\x02}c_codecs\nencode\n}X\x0c\0\0\0__defaults__X\x06\0\0\0latin1\x85s\x86b.",
        "reduce-of-a-name": b"\x80\x02cnumpy\nndarray\n)R.",
        "doubled-tuples": b"\x80\x02)q\0" + b"h\0h\0\x86q\0" * 60 + b"}h\0K\x01s.",
        "doubled-type": b"\x80\x02)q\0" + b"h\0h\0\x86q\0" * 60 + b"cnumpy\ndtype\nh\0\x85R.",
        "colliding-keys": b"}" + b"".join(b"I%d\nI1\ns" % (k * (2**61 - 1)) for k in range(20_000)) + b".",
        "colliding-puts": b"}" + b"".join(b"p%d\n" % (k * (2**61 - 1)) for k in range(20_000)) + b".",
        "many-lists": b"\x80\x02" + b"]" * 600_000 + b".",
        "far-memo": b"\x80\x02}r\xff\xff\xff\x7f.",
        "long-integer": b"\x80\x02}X\x01\0\0\0x\x8b\xff\xff\xff\x7f\x01s.",
        "in-itself": b"\x80\x02]q\0h\0a.",
        "large-shape": _shaped(b"(K\x02" * 1 + b"J\xff\xff\xff\x7f" * 2 + b"t"),
        "long-shape": _shaped(b"(" + b"\x8a\x10" + b"\x7f" * 16 + b"2" * 0 + b"J\xff\xff\xff\x7f" * 1000 + b"t"),
    }


def _shaped(shape: bytes) -> bytes:
    """A pickle of one array whose shape lies."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85U\x01btR"
    kind = b"cnumpy\ndtype\nU\x02u1\x85R"
    return b"\x80\x02}U\x04data" + array + b"(K\x01" + shape + kind + b"\x89U\x01xtbs."


def torch_files() -> dict[str, bytes]:
    """Files of torch.save with a payload where the table should be, in the new form and in the old one."""
    found: dict[str, bytes] = {}
    for name, content in pickles().items():
        if name.startswith(("doubled-tuples", "many")):  # on these, the unpickler of torch itself has no end
            continue
        found[f"zip-{name}"] = samples.zipped(
            {"archive/data.pkl": content, "archive/version": b"3\n", "archive/byteorder": b"little"},
            zipfile.ZIP_STORED,
        )
        if name.endswith("-2"):
            head = b"".join(pickle.dumps(each, protocol=2) for each in (0x1950A86A20F9469CFC6C, 1001, {}))
            found[f"old-{name}"] = head + content
            found[f"plain-{name}"] = content
    return found


def tars(batch: bytes) -> dict[str, bytes]:
    """Archives whose members are links, devices, lead outside, or are not what they say."""
    folder = CIFAR100.folder
    found: dict[str, bytes] = {}
    for name, kind, target in (
        ("symlink", tarfile.SYMTYPE, "/etc/passwd"),
        ("symlink-out", tarfile.SYMTYPE, "../../secret"),
        ("hardlink", tarfile.LNKTYPE, "/etc/passwd"),
        ("hardlink-out", tarfile.LNKTYPE, "../../secret"),
        ("character-device", tarfile.CHRTYPE, ""),
        ("block-device", tarfile.BLKTYPE, ""),
        ("pipe", tarfile.FIFOTYPE, ""),
        ("folder", tarfile.DIRTYPE, ""),
    ):
        info = tarfile.TarInfo(f"{folder}/train")
        info.type, info.linkname, info.devmajor, info.devminor = kind, target, 1, 5
        found[name] = samples.tarred({f"{folder}/test": batch, f"{folder}/train": info})
    for name in (
        "../../canary",
        "/tmp/canary",
        f"{folder}/../../canary",
        f"/{folder}/train",
        "..\\canary",
        "C:\\canary",
    ):
        found[f"member-{name}"] = samples.tarred({name: batch, f"{folder}/test": batch})
    payload = pickles()["system-2"]
    found["pickle"] = samples.tarred({f"{folder}/{each}": payload for each in ("train", "test")})
    return {name: gzip.compress(content, 1, mtime=0) for name, content in found.items()}


def npz_attacks() -> dict[str, bytes]:
    """Archives of arrays that hold objects, lie about their size, or have names that lead outside."""
    members = samples.npz_members()
    objects = io.BytesIO()
    np.save(objects, np.array([_Call(os.system, _COMMAND)], dtype=object), allow_pickle=True)
    found = {
        f"objects-in-{name}": samples.zipped(members | {name: objects.getvalue()})
        for name in ("train_labels.npy", "classes.npy")
    }
    found |= {
        f"member-{n}": samples.zipped(members | {name: members["val_images.npy"]}) for n, name in enumerate(OUTSIDE)
    }
    for n, text in enumerate(
        (
            "{'descr': '|u1', 'fortran_order': False, 'shape': (__import__('os').system('touch canary'),)}",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 99999999999)}",
            "{'descr': '|u1', 'fortran_order': False, 'shape': " + "(" * 500 + ")" * 500 + "}",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "-" * 3000 + "1,)}",
            "{'descr': '|V0', 'fortran_order': False, 'shape': (999999999999,)}",
            "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        )
    ):
        header = b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text.encode()
        found[f"header-{n}"] = samples.zipped(members | {"train_images.npy": header})
    characters = samples.npy(np.array([1, 2, 0x110000, 0xD800], dtype=np.uint32).reshape(2, 2))
    found["no-characters"] = samples.zipped(
        members | {"classes.npy": characters.replace(b"'<u4'", b"'<U2'").replace(b"(2, 2)", b"(2,)  ")}
    )
    found["classes-that-steer"] = samples.zipped(members | {"classes.npy": samples.npy(np.array(["\x1b[2J", "b"]))})
    for value in (np.inf, 1e300, -np.inf):
        labels = samples.npy(np.full(4, value))
        found[f"labels-{value}"] = samples.zipped(members | {"train_labels.npy": labels})
    return found


OUTSIDE = (
    "../../canary",
    "/etc/canary",
    "train_images.npy/../../canary",
    "..\\canary",
    "C:\\canary",
    "a\0b",
    "\x1b[2J",
)


def descriptions(content: bytes) -> dict[str, bytes]:
    """Descriptions of an adapter that name code, paths, monsters and endless nests."""
    good: dict[str, Any] = json.loads(content)
    found: dict[str, bytes] = {"pickle": pickles()["system-2"], "nest": b"[" * 200_000, "nest-2": b'{"a":' * 100_000}

    def put(name: str, **changes: Any) -> None:
        found[name] = json.dumps(good | changes).encode()

    for number, source in enumerate(
        (
            "os:system",
            "antigravity:fly",
            "subprocess:run",
            "builtins:exec",
            "timm/hf-hub:evil/net",
            "timm/local-dir:/tmp/net",
            "timm/../../net",
            "torchvision/resnet18:../../x",
            "file:///etc/passwd",
            "http://127.0.0.1:9/x",
            "\\\\127.0.0.1\\share",
            "small-cnn\n",
        )
    ):
        model = {
            "source": source,
            "num_classes": None,
            "in_channels": 1,
            "weights": None,
            "pretrained": True,
            "seed": 0,
        }
        put(f"source-{number}", model=model)
    for number, weights in enumerate(
        ("/etc/passwd", "../../x.pth", "http://127.0.0.1:9/x.pth", "a\0b.pth", "x" * 5000)
    ):
        model = {
            "source": "small-cnn",
            "num_classes": None,
            "in_channels": 1,
            "weights": weights,
            "pretrained": True,
            "seed": 0,
        }
        put(f"weights-{number}", model=model)
    for number, name in enumerate((*NAMES, "os.system", "convpeft.cli", "lora;import os", "+".join(["lora"] * 2000))):
        put(f"method-{number}", method=name)
        put(f"class-{number}", classes=[name, "b"])
        put(f"path-{number}", parts=[part | {"path": name} for part in good["parts"]])
        put(f"part-{number}", parts=[part | {"part": name} for part in good["parts"]])
    put("deep-options", options={"rank": nested(500)})
    put("many-classes", num_classes=10**9, classes=None)
    put("huge-rank", options=good["options"] | {"rank": 10**12})
    put("own-options", parts=[part | {"options": {"rank": 10**12, "__class__": "x"}} for part in good["parts"]])
    put("two-heads", parts=good["parts"] * 2)
    found["doubled-key"] = content.replace(b"{", b'{"method": "full", ', 1)
    return found


def tensor_files(content: bytes) -> dict[str, bytes]:
    """Safetensors files whose header lies, and files that are something else."""
    size = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    key = next(name for name in header if name != "__metadata__")
    entry = header[key]
    found = {f"pickle-{name}": each for name, each in pickles().items() if name.endswith("-2")}
    found |= {f"torch-{name}": each for name, each in torch_files().items() if name.startswith("zip-system")}
    texts = {
        "huge-shape": header | {key: entry | {"shape": [2**62, 4]}},
        "overflow": header | {key: entry | {"shape": [2**63, 2]}},
        "negative": header | {key: entry | {"shape": [-1]}},
        "backwards": header | {key: entry | {"data_offsets": [8, 0]}},
        "far": header | {key: entry | {"data_offsets": [2**40, 2**40 + 8]}},
        "overlap": header | {"another": entry},
        "empty": header | {"empty": {"dtype": "F32", "shape": [0, 2**50], "data_offsets": [len(body), len(body)]}},
        "outside": {f"../../{name}" if name != "__metadata__" else name: each for name, each in header.items()},
        "metadata": header | {"__metadata__": {name: "x" for name in NAMES if name != "\ud800"}},
    }
    for name, text in texts.items():
        packed = json.dumps(text).encode()
        found[name] = struct.pack("<Q", len(packed)) + packed + body
    for name, told in (("long-header", 2**63), ("longest-header", 2**64 - 1), ("header-of-100-MB", 10**8)):
        found[name] = struct.pack("<Q", told) + content[8:]
    found["nest"] = struct.pack("<Q", 100_000) + b"[" * 100_000
    return found


def images() -> dict[str, bytes]:
    """Files that are called pictures: programs, other formats, and pictures that lie."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def png(*chunks: bytes, side: int = 4) -> bytes:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        rows = chunk(b"IDAT", zlib.compress(b"\0" * 20))
        return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + rows + chunk(b"IEND", b"")

    bomb = zlib.compress(bytes(30_000_000), 9)
    return {
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(canary) (w) file\n%%EOF\n",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><image href='file:///etc/passwd'/></svg>",
        "script": b"#!/bin/sh\ntouch canary\n",
        "pickle": pickles()["system-2"],
        "text-bomb": png(chunk(b"zTXt", b"a\0\0" + bomb)),
        "profile-bomb": png(chunk(b"iCCP", b"a\0\0" + bomb)),
        "large": png(side=13_000),
        "largest": png(side=2**31 - 1),
        "no-size": png(side=0),
        "tiff-loop": b"II*\0\x08\0\0\0" + b"\x01\0\0\x01\x03\0\x01\0\0\0\x04\0\0\0\x08\0\0\0",
        "ppm-long": b"P6 99999999999999999999 1 255\n",
        "ppm-negative": b"P5 -5 -5 255\n",
        "gif-zero": b"GIF89a\0\0\0\0\0\0\0;",
        "bmp-huge": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
    }


def tables() -> dict[str, bytes]:
    """Tables whose names lead outside, steer a terminal or are formulas."""
    names = ("../../x.png", "/etc/passwd", "a/../../x.png", "C:\\x.png", "\\\\host\\x.png", "a\0.png", "\x1b[2J.png")
    found = {f"file-{n}": f'file,class\n"{name}",a\na/x.png,b\n'.encode() for n, name in enumerate(names)}
    words = ("=cmd|' /C calc'!A0", "\x1b[2J", "two\nlines", "", "\u202e", "9" * 5000, "x" * 200_000)
    found |= {f"class-{n}": f'file,class\na/x.png,"{word}"\na/x.jpg,b\n'.encode() for n, word in enumerate(words)}
    found |= {f"fold-{n}": f'file,class,fold\na/x.png,a,"{word}"\n'.encode() for n, word in enumerate(words)}
    return found


def recipes() -> dict[str, bytes]:
    """Recipes that name code, nest without end or count beyond all digits."""
    start = 'data.source = "glyphs:digits"\nmodel.source = '
    found = {
        f"source-{n}": f"{start}{json.dumps(source)}\n".encode()
        for n, source in enumerate(
            ("os:system", "!!python/object/apply:os.system", "timm/hf-hub:x/y", "\x00", "../../x")
        )
    }
    return found | {
        "nest": b"a = " + b"[" * 5000 + b"]" * 5000,
        "nest-of-tables": b"[" + b"a." * 3000 + b"a]\nb = 1",
        "number": f'{start}"small-cnn"\ntrain.epochs = 0x{"f" * 6000}\n'.encode(),
        "option": f'{start}"small-cnn"\nmethod.rank = 0x{"f" * 6000}\n'.encode(),
        "key": f'{start}"small-cnn"\n"two\\nlines" = 1\n'.encode(),
        "long-key": f'{start}"small-cnn"\n{"k" * 100_000} = 1\n'.encode(),
        "pickle": pickles()["system-0"],
    }


def attacks() -> dict[str, dict[str, bytes]]:
    """Every hostile file, by reader and name. Each reader gets the payloads of the others' kind too."""
    found: dict[str, dict[str, bytes]] = {name: {"pickle": pickles()["system-2"], "empty": b""} for name in READERS}
    for name, reader in READERS.items():
        seed = next(iter(reader.seeds().values()))
        if "description" in name or "classifier" in name:
            found[name] |= descriptions(seed)
        elif "tensors" in name or name == "weights-safetensors":
            found[name] |= tensor_files(seed)
        elif name.startswith("checkpoint-facts"):
            facts = json.loads(seed)
            found[name] |= {
                f"{key}-{n}": json.dumps(facts | {key: value}).encode()
                for key in facts
                for n, value in enumerate(NAMES)
            }
            found[name] |= {"nest": b"[" * 200_000}
    batch = samples.cifar_batches()["protocol-2"]
    found["cifar-pickle"] |= pickles()
    found["cifar-archive"] |= tars(batch)
    found["weights-torch"] |= torch_files()
    found["npz"] |= npz_attacks()
    found["image"] |= images()
    found["table"] |= tables()
    found["recipe"] |= recipes()
    found["word"] |= {str(n): each for n, each in enumerate((b"[" * 5000, b"0x" + b"f" * 6000, b"a\nb = 1", b"\x00"))}
    claims = struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    found["idx"] |= {"claims": claims, "three-of-four": claims[:10]}
    found["idx.gz"] |= {"claims": gzip.compress(claims, mtime=0), "bomb": gzip.compress(bytes(20_000_000), mtime=0)}
    found["emnist-zip"] |= {f"member-{n}": samples.zipped({name: claims}) for n, name in enumerate(OUTSIDE)}
    found["predictions"] |= {"no-columns": b"a,b\n1,2\n", "nul": b"image,label\n\0,\0\n", "long": b"x" * 300_000}
    for host in ("a\nb", "\x1b[2J", "x" * 3000):
        found["lock"][host[:5]] = json.dumps({"pid": 1, "host": host, "boot": "b"}).encode()
    return found
