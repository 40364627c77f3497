"""Every reader of foreign files as one call on bytes: the attacks, the mutations and the fuzzer share this list."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load
from torch import nn

import convpeft
from convpeft.adapter_description import MAP
from convpeft.adapter_file import CONFIG, WEIGHTS, description_digest, read_adapter
from convpeft.autotuning import read_times
from convpeft.commands.evaluating import _compare
from convpeft.data import ImageBatches, read_image
from convpeft.data.characters import load_emnist
from convpeft.data.cifar import CIFAR100, load_cifar
from convpeft.data.cifar_c import open_cifar_c
from convpeft.data.datasets import array_split
from convpeft.data.folders import load_folder
from convpeft.data.idx import read_idx
from convpeft.data.images import find_fault
from convpeft.data.npz import load_npz
from convpeft.deployment.card_facts import read_facts
from convpeft.deployment.model_card import model_card
from convpeft.deployment.onnx_file import load_onnx
from convpeft.evaluation.inference import load_classifier
from convpeft.fingerprints import tensor_digest
from convpeft.hub_address import HubAddress
from convpeft.interop import read_loralib, read_lycoris, read_peft, write_loralib, write_lycoris, write_peft
from convpeft.models import Preprocessing, compressed, load_model
from convpeft.models.weights import read_weights
from convpeft.planning import read_requests
from convpeft.training.checkpoints import capture, read_checkpoint, reinstate, write_checkpoint
from convpeft.training.features import Unusable, Wanted, read_features
from convpeft.training.locking import LOCK, lock_run
from convpeft.training.recipe import make_recipe, parse_value, read_recipe
from convpeft.training.runs import RECIPE
from safety import patches, samples


@dataclass(frozen=True)
class Reader:
    """One file that comes from elsewhere: where it lies, what lies beside it, and the call that reads it."""

    name: str
    covers: tuple[str, ...]  # the functions of src that open or decode it, as "module:function"
    file: str
    read: Callable[[Path], object]
    seeds: Callable[[], dict[str, bytes]]  # small good files; the first one is what `prepare` fits
    prepare: Callable[[Path], object] = lambda folder: None
    sign: Callable[[bytes], bytes] = bytes  # what an attacker who knows the format does last

    def opened(self, folder: Path) -> Callable[[bytes], object]:
        """Lay out a folder once, and return the call that puts bytes into it and reads them."""
        self.prepare(folder)
        file = folder / self.file
        file.parent.mkdir(parents=True, exist_ok=True)

        def run(content: bytes) -> object:
            file.write_bytes(self.sign(content))
            return self.read(folder)

        return run


def network() -> nn.Sequential:
    """A base of a convolution, a norm and a head, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2)).eval()


@cache
def _saved(kind: str) -> dict[str, bytes]:
    """Files of an adapter on the small base, or of one on a base that its own description builds."""
    import tempfile

    torch.manual_seed(0)
    if kind == "built":
        model, classes, options = load_model("small-cnn", pretrained=False), [str(n) for n in range(10)], {}
        model.__dict__["_convpeft_source"] = model.__dict__["_convpeft_source"].__class__(
            **(model.__dict__["_convpeft_source"].to_dict() | {"seed": 0})
        )
    else:
        model, classes, options = network(), ["cat", "dog"], {"num_classes": 2, "norm": "adapt"}
    convpeft.attach(model, "lora", rank=1, include=["conv"], **options)
    with tempfile.TemporaryDirectory() as folder:
        place = convpeft.save(model, Path(folder) / "adapter", classes=classes)
        return {name: (place / name).read_bytes() for name in (CONFIG, WEIGHTS)}


def _prepare_adapter(kind: str, *names: str) -> Callable[[Path], object]:
    def prepare(folder: Path) -> None:
        (folder / "adapter").mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / "adapter" / name).write_bytes(_saved(kind)[name])

    return prepare


@cache
def _peft_files() -> dict[str, bytes]:
    """An adapter of the small base in the forms of other packages."""
    import tempfile

    torch.manual_seed(0)
    model = convpeft.attach(network(), "lora", rank=1, include=["conv", "linear"])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = write_peft(model, Path(folder) / "peft")
        lycoris = write_lycoris(model, Path(folder) / "x.safetensors")
        loralib = write_loralib(model, Path(folder) / "x.pt")
        files = {name: (place / name).read_bytes() for name in (CONFIG, WEIGHTS)}
        return files | {"lycoris": lycoris.read_bytes(), "loralib": loralib.read_bytes()}


def _prepare_peft(other: str) -> Callable[[Path], object]:
    def prepare(folder: Path) -> None:
        (folder / "peft").mkdir(parents=True, exist_ok=True)
        (folder / "peft" / other).write_bytes(_peft_files()[other])

    return prepare


def _told(read: Callable[[Path, nn.Module], nn.Module], path: Path) -> dict[str, str]:
    """What a file puts on the small base, whatever it is warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = read(path, network())
    return {name: tensor_digest(value.detach()) for name, value in model.state_dict().items()}


_BASE: list[nn.Module] = []


def _load_adapter(folder: Path) -> object:
    """Load an adapter on the small base; the base is as it was after a refusal."""
    file = read_adapter(folder / "adapter")
    model = _BASE.pop() if _BASE else network()
    keys = list(model.state_dict())
    try:
        convpeft.load(model, folder)
    except convpeft.ConvpeftError:
        assert list(model.state_dict()) == keys, "a refused adapter has changed the base"
        _BASE.append(model)
        raise
    return file.config, {key: tensor_digest(value) for key, value in file.tensors.items()}


def sign_description(content: bytes) -> bytes:
    """Give a changed description the digest that belongs to it, as anybody can who knows the format."""
    try:
        config = json.loads(content)
        return json.dumps(config | {"digest": description_digest(config)}).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return content


@cache
def _compressed() -> dict[str, bytes]:
    import tempfile

    torch.manual_seed(0)
    done = convpeft.compress(load_model("small-cnn", pretrained=False), lambda model: 1.0, candidates=1)
    with tempfile.TemporaryDirectory() as folder:
        return {"thin": done.save(Path(folder) / "thin.safetensors").read_bytes()}


def sign_compressed(content: bytes) -> bytes:
    """Write the digest of altered tensors into the description of a compressed file."""
    try:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        told = json.loads(header["__metadata__"][compressed.KEY])
        told["digest"] = compressed._digest(load(content))
        header["__metadata__"][compressed.KEY] = json.dumps(told)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + size :]
    except Exception:  # whatever is wrong with it is for the reader to find
        return content


def _load_compressed(folder: Path) -> object:
    model = convpeft.load_compressed(folder / "x.safetensors")
    return {key: tensor_digest(value) for key, value in model.state_dict().items()}


def _load_classifier(folder: Path) -> object:
    return load_classifier(folder / "adapter")


def sign_tensors(folder: Path) -> None:
    """Write the digests of altered tensors into the description beside them."""
    tensors = load((folder / "adapter" / WEIGHTS).read_bytes())
    config = json.loads(_saved("plain")[CONFIG])
    config["tensors"] = {key: tensor_digest(value) for key, value in tensors.items()}
    (folder / "adapter" / CONFIG).write_bytes(sign_description(json.dumps(config).encode()))


def _load_signed_tensors(folder: Path) -> object:
    try:
        sign_tensors(folder)
    except Exception:
        (folder / "adapter" / CONFIG).write_bytes(_saved("plain")[CONFIG])
    return _load_adapter(folder)


def _checkpoint_model() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    convpeft.attach(model, "lora", rank=1, include=["conv"])
    return model, torch.optim.AdamW(convpeft.param_groups(model), lr=0.1)


@cache
def _checkpoint() -> dict[str, bytes]:
    import tempfile

    torch.manual_seed(0)
    model, optimizer = _checkpoint_model()
    model(torch.ones(1, 1, 3, 3)).sum().backward()
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(capture(model, optimizer, {"history": [], "position": {"epoch": 1}}), Path(folder) / "last")
        return {name: (Path(folder) / "last" / name).read_bytes() for name in ("state.json", "state.safetensors")}


def _prepare_checkpoint(folder: Path) -> None:
    (folder / "last").mkdir(parents=True, exist_ok=True)
    for name, content in _checkpoint().items():
        (folder / "last" / name).write_bytes(content)


_TRAINED: list[tuple[nn.Module, torch.optim.Optimizer]] = []


def _resume(folder: Path) -> object:
    found = read_checkpoint(folder / "last")
    assert found is not None
    told = {key: tensor_digest(value) for key, value in found.tensors.items()}
    if not _TRAINED:
        _TRAINED.append(_checkpoint_model())
    state = torch.get_rng_state()
    try:
        facts = reinstate(found, *_TRAINED[0])
    finally:
        torch.set_rng_state(state)
    return facts, told


def _resume_signed(folder: Path) -> object:
    """Read a checkpoint whose digest was made anew."""
    place = folder / "last"
    try:
        facts = json.loads((place / "state.json").read_bytes())
        facts.pop("digest", None)
        plain = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()
        facts["digest"] = hashlib.sha256(plain + (place / "state.safetensors").read_bytes()).hexdigest()
        (place / "state.json").write_text(json.dumps(facts))
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    return _resume(folder)


@cache
def _wanted() -> dict[str, Wanted]:
    preprocessing = Preprocessing((8, 8), "squash", 1.0, (0.5,), (0.5,), 1, "nearest")
    split = array_split("train", np.zeros((2, 8, 8), np.uint8), [0, 1])
    return {"train": Wanted(ImageBatches(split, preprocessing, batch_size=2), torch.tensor([0, 1]), 1)}


def _features(folder: Path) -> object:
    """Read cached features as a run does that goes on: what is not right is computed anew."""
    try:
        return read_features(folder, _wanted(), samples.FEATURE_SETTINGS, told=None)["train"].tolist()
    except Unusable as error:
        return str(error)


def _prepare_features(name: str) -> Callable[[Path], object]:
    def prepare(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for each, content in samples.features().items():
            if each != name:
                (folder / each).write_bytes(content)

    return prepare


def sign_facts(content: bytes) -> bytes:
    """Give changed facts the digest that belongs to them."""
    try:
        facts = json.loads(content)
        facts.pop("digest", None)
        return json.dumps(
            facts | {"digest": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}
        ).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return content


def _read_recipe(folder: Path) -> object:
    recipe = make_recipe(read_recipe(folder / RECIPE))
    text = recipe.to_toml()
    requests = read_requests(recipe.method.name, recipe.method.options, recipe.method.include, recipe.method.exclude)
    return text, [request.name for request in requests]


def _read_word(folder: Path) -> object:
    return parse_value(os.fsdecode((folder / "word").read_bytes()))


def _compare_predictions(folder: Path) -> object:
    truth = {f"test/{number}": ("cat", "dog")[number % 2] for number in range(6)}
    return _compare(Path("run"), folder / "other", truth, np.ones(6, dtype=bool))


def _write_card(folder: Path) -> object:
    return model_card(read_facts(folder), HubAddress("me/net"))


def _prepare_card(folder: Path) -> None:
    _prepare_adapter("plain", CONFIG, WEIGHTS)(folder)
    (folder / "metrics.json").write_bytes(samples.metrics()["cats"])


def _read_times(folder: Path) -> object:
    """Read measurements as the autotuner does, which leaves out what it cannot use."""
    try:
        return read_times(folder / "kernels.json")
    except (ValueError, RecursionError) as error:
        raise convpeft.RunError(str(error)) from None


def _take_lock(folder: Path) -> object:
    with lock_run(folder) as note:
        return note


def _see_image(folder: Path) -> object:
    find_fault(folder / "image.png")
    return read_image(folder / "image.png")


def _cifar(folder: Path) -> object:
    return load_cifar(folder, CIFAR100)


def _prepare_cifar(folder: Path) -> None:
    (folder / CIFAR100.folder).mkdir(parents=True, exist_ok=True)
    (folder / CIFAR100.folder / "test").write_bytes(samples.cifar_batches()["protocol-2"])


def _cifar_c(folder: Path) -> object:
    files = open_cifar_c(folder)
    return files.classes, files.count, [files.split(files.names[0], s).images[0].sum() for s in (1, 5)]


def _prepare_cifar_c(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in samples.cifar_c().items():
        (folder / name).write_bytes(content)


def _prepare_emnist(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def _prepare_table(folder: Path) -> None:
    for name, content in samples.pictures().items():
        (folder / "pictures" / "a").mkdir(parents=True, exist_ok=True)
        (folder / "pictures" / "a" / f"x.{name}").write_bytes(content)


_FEATURES = tuple(f"convpeft.training.features:{name}" for name in ("_read_facts", "_map_rows", "_digest_of_file"))
_IDX = ("convpeft.data.idx:read_idx", "convpeft.data.idx:_unpacked")
_ADAPTER = ("convpeft.adapter_file:read_adapter", "convpeft.adapter_description:read_description")
_PLAIN = tuple(f"convpeft.deployment.plain_adapter:{name}" for name in ("read_plain_adapter", "parse_tensors"))
_CHECKPOINT = ("convpeft.training.checkpoints:read_checkpoint", "convpeft.training.checkpoints:_digest")
_WEIGHTS = ("convpeft.models.weights:_read_safetensors", "convpeft.models.weights:_read_torch")


def _adapter(
    name: str, kind: str, file: str, read: Callable[[Path], object], sign: Callable[[bytes], bytes] = bytes
) -> Reader:
    prepare = _prepare_adapter(kind, WEIGHTS if file == CONFIG else CONFIG)
    return Reader(name, _ADAPTER, f"adapter/{file}", read, lambda: {file: _saved(kind)[file]}, prepare, sign)


@cache
def _patch_files() -> dict[str, bytes]:
    """All that `convpeft patch` reads, for the small base."""
    adapter = _saved("plain")
    return {
        "base.onnx": patches.base(network()),
        **{f"adapter/{name}": content for name, content in adapter.items()},
        f"adapter/{MAP}": patches.map_of(adapter[CONFIG]),
    }


def _prepare_patch(folder: Path) -> None:
    for name, content in _patch_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _patch_signed(folder: Path) -> object:
    """Patch with altered tensors whose digests, and the map's, were made anew."""
    try:
        sign_tensors(folder)
        config = (folder / "adapter" / CONFIG).read_bytes()
        (folder / "adapter" / MAP).write_bytes(patches.map_of(config))
    except Exception:
        for name in (CONFIG, MAP):
            (folder / "adapter" / name).write_bytes(_patch_files()[f"adapter/{name}"])
    return patches.patch(folder)


def _patch_reader(
    name: str,
    file: str,
    covers: tuple[str, ...],
    read: Callable[[Path], object] = patches.patch,
    sign: Callable[[bytes], bytes] = bytes,
) -> Reader:
    return Reader(name, covers, file, read, lambda: {file: _patch_files()[file]}, _prepare_patch, sign)


def _checkpoint_reader(name: str, file: str, read: Callable[[Path], object]) -> Reader:
    return Reader(name, _CHECKPOINT, f"last/{file}", read, lambda: {file: _checkpoint()[file]}, _prepare_checkpoint)


READERS = {
    reader.name: reader
    for reader in (
        _adapter("adapter-description", "plain", CONFIG, _load_adapter),
        _adapter("adapter-description-signed", "plain", CONFIG, _load_adapter, sign_description),
        _adapter("adapter-classifier-signed", "built", CONFIG, _load_classifier, sign_description),
        _adapter("adapter-tensors", "plain", WEIGHTS, _load_adapter),
        _adapter("adapter-tensors-signed", "plain", WEIGHTS, _load_signed_tensors),
        *(
            _patch_reader(name, f"adapter/{MAP}", ("convpeft.deployment.patching:_map_of",), sign=sign)
            for name, sign in (("patch-map", bytes), ("patch-map-signed", patches.sign_map))
        ),
        *(
            _patch_reader(name, f"adapter/{WEIGHTS}", _PLAIN, read)
            for name, read in (("patch-tensors", patches.patch), ("patch-tensors-signed", _patch_signed))
        ),
        _patch_reader("patch-description", f"adapter/{CONFIG}", _ADAPTER[1:]),
        _patch_reader("patch-base", "base.onnx", ("convpeft.deployment.base_graph:read_base",)),
        _checkpoint_reader("checkpoint-facts", "state.json", _resume),
        _checkpoint_reader("checkpoint-tensors", "state.safetensors", _resume),
        _checkpoint_reader("checkpoint-facts-signed", "state.json", _resume_signed),
        _checkpoint_reader("checkpoint-tensors-signed", "state.safetensors", _resume_signed),
        Reader(
            "npz",
            ("convpeft.data.npz:load_npz", "convpeft.data.npz:_read_arrays"),
            "x.npz",
            lambda folder: load_npz(folder / "x.npz"),
            samples.npz_files,
        ),
        *(
            Reader(
                f"idx{suffix}",
                _IDX,
                f"images-idx3-ubyte{suffix}",
                lambda folder, suffix=suffix: read_idx(folder / f"images-idx3-ubyte{suffix}", dimensions=3),
                lambda suffix=suffix: {f"images{suffix}": samples.idx_files()[suffix]},
            )
            for suffix in ("", ".gz", ".xz")
        ),
        Reader(
            "emnist-zip",
            _IDX,
            "gzip.zip",
            lambda folder: load_emnist(folder, "letters"),
            lambda: {"gzip.zip": samples.emnist_zip()},
            _prepare_emnist,
        ),
        Reader(
            "cifar-pickle",
            ("convpeft.data.cifar:_read_file", "convpeft.data.pickles:_run"),
            f"{CIFAR100.folder}/train",
            _cifar,
            samples.cifar_batches,
            _prepare_cifar,
        ),
        Reader(
            "cifar-archive",
            ("convpeft.data.cifar:_read_archive", "convpeft.data.cifar:_unpacked"),
            CIFAR100.archive.name,
            _cifar,
            samples.cifar_archives,
        ),
        *(
            Reader(
                f"cifar-c-{file.removesuffix('.npy')}",
                tuple(f"convpeft.data.cifar_c:{name}" for name in ("_labels", "_map", "_header")),
                file,
                _cifar_c,
                lambda file=file: {file: samples.cifar_c()[file]},
                _prepare_cifar_c,
            )
            for file in ("fog.npy", "labels.npy")
        ),
        Reader(
            "image",
            ("convpeft.data.images:_open", "convpeft.data.images:_has_end"),
            "image.png",
            _see_image,
            samples.pictures,
        ),
        Reader(
            "table",
            ("convpeft.data.tables:read_table",),
            "pictures/labels.csv",
            lambda folder: load_folder(folder / "pictures"),
            samples.tables,
            _prepare_table,
        ),
        *(
            Reader(name, _FEATURES, file, _features, lambda file=file: {file: samples.features()[file]}, prepare, sign)
            for name, file, sign in (
                ("features-facts", "facts.json", bytes),
                ("features-facts-signed", "facts.json", sign_facts),
                ("features-rows", "train.f16", bytes),
            )
            for prepare in [_prepare_features(file)]
        ),
        Reader(
            "recipe",
            ("convpeft.training.recipe:read_recipe",),
            RECIPE,
            _read_recipe,
            samples.recipes,
        ),
        Reader("word", ("convpeft.training.recipe:parse_value",), "word", _read_word, samples.words),
        Reader(
            "predictions",
            ("convpeft.commands.evaluating:_compare",),
            "other/predictions.csv",
            _compare_predictions,
            samples.predictions,
        ),
        Reader(
            "onnx",
            ("convpeft.deployment.onnx_file:_read", "convpeft.deployment.onnx_file:_json"),
            "x.onnx",
            lambda folder: load_onnx(folder / "x.onnx").classes,
            samples.onnx_files,
        ),
        Reader(
            "card-figures",
            ("convpeft.deployment.card_facts:read_facts",),
            "metrics.json",
            _write_card,
            samples.metrics,
            _prepare_card,
        ),
        Reader(
            "card-description-signed",
            _ADAPTER,
            f"adapter/{CONFIG}",
            _write_card,
            lambda: {CONFIG: _saved("plain")[CONFIG]},
            _prepare_card,
            sign_description,
        ),
        Reader("measurements", ("convpeft.autotuning:read_times",), "kernels.json", _read_times, samples.measurements),
        Reader("lock", ("convpeft.training.locking:_read",), LOCK, _take_lock, samples.locks),
        *(
            Reader(
                name,
                ("convpeft.models.compressed:_description",),
                "x.safetensors",
                _load_compressed,
                _compressed,
                sign=sign,
            )
            for name, sign in (("compressed", bytes), ("compressed-signed", sign_compressed))
        ),
        *(
            Reader(
                f"peft-{name}",
                (f"convpeft.interop.files:{function}",),
                f"peft/{file}",
                lambda folder: _told(read_peft, folder / "peft"),
                lambda file=file: {"lora": _peft_files()[file]},
                _prepare_peft(other),
            )
            for name, function, file, other in (
                ("options", "read_options", CONFIG, WEIGHTS),
                ("tensors", "read_tensors", WEIGHTS, CONFIG),
            )
        ),
        Reader(
            "lycoris",
            ("convpeft.interop.files:read_tensors",),
            "x.safetensors",
            lambda folder: _told(read_lycoris, folder / "x.safetensors"),
            lambda: {"lora": _peft_files()["lycoris"]},
        ),
        Reader(
            "loralib",
            _WEIGHTS[1:],
            "x.pt",
            lambda folder: _told(read_loralib, folder / "x.pt"),
            lambda: {"lora": _peft_files()["loralib"]},
        ),
        Reader(
            "weights-safetensors",
            _WEIGHTS[:1],
            "x.safetensors",
            lambda folder: read_weights(folder / "x.safetensors"),
            lambda: {"state": samples.weights(network())["safetensors"]},
        ),
        Reader(
            "weights-torch",
            _WEIGHTS[1:],
            "x.pth",
            lambda folder: read_weights(folder / "x.pth"),
            lambda: {key: value for key, value in samples.weights(network()).items() if key != "safetensors"},
        ),
    )
}
