"""Small good files of every kind that is read, always the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
from functools import cache

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from convpeft.data.cifar import CIFAR100

_WHEN = (2020, 1, 1, 0, 0, 0)


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of these members, with no time of its own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, _WHEN), content, compress_type=method)
    return buffer.getvalue()


def tarred(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    """A tar of these members; a TarInfo stands for itself, without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    """One array as numpy writes it."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@cache
def npz_members() -> dict[str, bytes]:
    """The members of a file of the MedMNIST form."""
    rng = np.random.default_rng(0)
    members: dict[str, bytes] = {}
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        members[f"{split}_images.npy"] = npy(rng.integers(0, 256, (count, 3, 2), dtype=np.uint8))
        members[f"{split}_labels.npy"] = npy((np.arange(count) % 2).astype(np.uint8)[:, None])
    members["classes.npy"] = npy(np.array(["healthy", "ill"]))
    return members


@cache
def npz_files() -> dict[str, bytes]:
    """Files of the MedMNIST form, packed and not."""
    members = npz_members()
    return {"deflated": zipped(members), "stored": zipped(members, zipfile.ZIP_STORED)}


@cache
def idx_files() -> dict[str, bytes]:
    """One idx file by its suffix."""
    pixels = np.random.default_rng(1).integers(0, 256, 3 * 4 * 5, dtype=np.uint8)
    plain = struct.pack(">BBBB3I", 0, 0, 8, 3, 3, 4, 5) + pixels.tobytes()
    return {"": plain, ".gz": gzip.compress(plain, mtime=0), ".xz": lzma.compress(plain)}


@cache
def emnist_zip() -> bytes:
    """The official archive of EMNIST, with four letters in it."""
    rng = np.random.default_rng(2)
    members: dict[str, bytes] = {}
    for split in ("train", "test"):
        images = struct.pack(">BBBB3I", 0, 0, 8, 3, 4, 3, 3) + rng.integers(0, 256, 36, dtype=np.uint8).tobytes()
        labels = struct.pack(">BBBBI", 0, 0, 8, 1, 4) + bytes([1, 2, 3, 26])
        for kind, number, content in (("images", 3, images), ("labels", 1, labels)):
            name = f"gzip/emnist-letters-{split}-{kind}-idx{number}-ubyte.gz"
            members[name] = gzip.compress(content, mtime=0)
    return zipped(members, zipfile.ZIP_STORED)


@cache
def cifar_batches() -> dict[str, bytes]:
    """One batch of CIFAR-100, in each protocol that it may be written with."""
    data = np.random.default_rng(3).integers(0, 256, (2, 3072), dtype=np.uint8)
    table = {b"data": data, b"fine_labels": [3, 99], b"coarse_labels": [1, 2], b"filenames": [b"a.png", b"b.png"]}
    return {f"protocol-{protocol}": pickle.dumps(table, protocol=protocol) for protocol in (2, 0, 4)}


@cache
def cifar_c() -> dict[str, bytes]:
    """Files of CIFAR-10-C with two images a severity."""
    images = np.random.default_rng(7).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    return {"fog.npy": npy(images), "labels.npy": npy(np.tile(np.array([3, 9], np.uint8), 5))}


@cache
def cifar_archives() -> dict[str, bytes]:
    """The official archive of CIFAR-100 with two images a file, packed and not."""
    batch = cifar_batches()["protocol-2"]
    plain = tarred({f"{CIFAR100.folder}/{name}": batch for name in ("meta", "train", "test")})
    return {"gz": gzip.compress(plain, mtime=0), "plain": plain, "xz": lzma.compress(plain)}


@cache
def pictures() -> dict[str, bytes]:
    """One small picture of each format that is read."""
    pixels = np.random.default_rng(4).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    forms = {
        "png": (image, {}),
        "jpg": (image, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
        "gif": (image.convert("P"), {}),
        "bmp": (image, {}),
        "tif": (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
        "webp": (image, {"lossless": True}),
        "ppm": (image, {}),
        "apng": (image.convert("RGBA"), {"save_all": True, "append_images": [image.convert("RGBA").rotate(180)]}),
    }
    names = {"tif": "TIFF", "jpg": "JPEG", "apng": "PNG"}
    found: dict[str, bytes] = {}
    for name, (picture, options) in forms.items():
        buffer = io.BytesIO()
        picture.save(buffer, names.get(name, name.upper()), **options)
        found[name] = buffer.getvalue()
    return found


def tables() -> dict[str, bytes]:
    """A labels.csv with every column, and a plain one."""
    return {
        "folds": b"file,class,patient,fold\na/x.png,cat,p1,0\na/x.jpg,dog,p2,1\na/x.gif,cat,p3,2\na/x.bmp,dog,,0\n",
        "splits": b'\xef\xbb\xbffile,label,split\na/x.png,"cat, big",train\na/x.jpg,dog,test\na/x.tif,dog,val\n',
    }


def recipes() -> dict[str, bytes]:
    """A recipe that says everything, and a short one."""
    whole = """
out = "runs/run"
warm_start = "runs/other"
[model]
source = "small-cnn"
weights = "base.safetensors"
image_size = 28
[data]
source = "folder:pictures"
limit = 100
fold = 1
val_fraction = 0.25
augment = "none"
[method]
name = "lora+bitfit"
norm = "frozen"
also_train = ["norm"]
[method.lora]
rank = 4
include = ["conv"]
[method.bitfit]
exclude = ["head"]
[train]
epochs = 3
lr = 1e-3
optimizer = "sgd"
seed = 7
"""
    short = b'model = {source = "small-cnn"}\ndata.source = "glyphs:digits"\nmethod.rank = 8\ntrain.lr = 1\n'
    return {"whole": whole.encode(), "short": short}


def words() -> dict[str, bytes]:
    """Values as they are typed behind an option."""
    return {"number": b"1e-3", "list": b'["a", "b"]', "word": b"lora", "table": b"{rank = 3}", "date": b"1979-05-27"}


def predictions() -> dict[str, bytes]:
    """The answers of another run to the same six images."""
    rows = [f"test/{n},{('cat', 'dog')[n % 2]},{('cat', 'dog')[n // 3]},0.9" for n in range(6)]
    return {"six": "\r\n".join(["image,label,predicted,probability", *rows, ""]).encode()}


def metrics() -> dict[str, bytes]:
    """What a run of cats and dogs writes of itself, the parts that a card has use for."""
    facts = {
        "command": ["convpeft", "train"],
        "notes": ["a note"],
        "parameters": {"trainable": 10, "base": 100},
        "images": {"train": 8, "test": 6},
        "duplicates_across_splits": 1,
        "test": {"classes": ["cat", "dog"], "confusion": [[2, 1], [0, 3]]},
    }
    return {"cats": json.dumps(facts).encode()}


def locks() -> dict[str, bytes]:
    """Locks of a dead process and of one on another machine."""
    return {
        "dead": json.dumps({"pid": 2**22 - 1, "host": "elsewhere", "boot": ""}).encode(),
        "other": json.dumps({"pid": 12, "host": "elsewhere", "boot": "b"}).encode(),
    }


def measurements() -> dict[str, bytes]:
    """What an autotuner has measured."""
    times = {"weight": 0.003, "side": 0.002, "hybrid": 0.001, "fused": 0.002}
    return {"two": json.dumps({"one": times, json.dumps({"site": {"shape": [8, 3, 3, 3]}}): times}).encode()}


def weights(model: nn.Module) -> dict[str, bytes]:
    """A state in the three forms that weights come in."""
    state = {key: value for key, value in model.state_dict().items() if value.ndim}
    found = {"safetensors": save(state)}
    for name, new in (("zip", True), ("old", False)):
        buffer = io.BytesIO()
        torch.save({"state_dict": state}, buffer, _use_new_zipfile_serialization=new)
        found[name] = buffer.getvalue()
    return found


FEATURE_SETTINGS = {"numbers": 3, "model": "x"}


@cache
def features() -> dict[str, bytes]:
    """Cached features of two black images of 8 x 8 pixels, and the facts about them."""
    rows = np.arange(6, dtype=np.float16).tobytes()
    images = np.full((2, 1, 8, 8), -1, np.float32).tobytes()
    told = {"rows": 2, "images": hashlib.sha256(images).hexdigest(), "digest": hashlib.sha256(rows).hexdigest()}
    facts = {"format": 1, "settings": FEATURE_SETTINGS, "splits": {"train": told}}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return {"facts.json": json.dumps(facts | {"digest": digest}).encode(), "train.f16": rows}


@cache
def onnx_files() -> dict[str, bytes]:
    """A file as `convpeft export` writes it, of a network that only takes averages."""
    from onnx import TensorProto, helper

    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 2, 4, 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    node = helper.make_node("ReduceMean", ["images", "axes"], ["logits"], keepdims=0)
    graph = helper.make_graph([node], "network", [images], [logits], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    preprocessing = {"size": [4, 4], "resize": "squash", "crop": 1.0, "mean": [0.5, 0.5], "std": [0.5, 0.5]}
    preprocessing |= {"channels": 2, "interpolation": "nearest"}
    told = {"classes": json.dumps(["cat", "dog"]), "preprocessing": json.dumps(preprocessing)}
    helper.set_model_props(model, {f"convpeft.{key}": value for key, value in told.items()})
    return {"model": model.SerializeToString()}
