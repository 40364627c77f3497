"""A compressed network as one file: its tensors, and which layers of which base are thin convolutions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from convpeft.decompositions.forms import RANKS, Form, Thin, shapes_of
from convpeft.decompositions.replacing import replace_layer, thin_layers
from convpeft.errors import AdapterFileError, ConvpeftError, ModelError, OptionError, one_line
from convpeft.fingerprints import tensor_digest
from convpeft.models._fields import fields_of, is_whole, shown
from convpeft.models.network import Network, load_state
from convpeft.models.preprocessing import Preprocessing
from convpeft.models.source import ModelSource
from convpeft.models.weights import StateDict, read_weights
from convpeft.writing import whole_file

KEY, VERSION, SUFFIX, PREFIX = "convpeft_compressed", 1, ".safetensors", "compressed:"
_FIELDS = ("version", "source", "preprocessing", "layers", "digest")
_LARGEST_HEADER = 1 << 24  # characters of the description
_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class CompressedFile:
    """What a compressed file holds, read and checked; nothing is built yet."""

    path: Path
    source: ModelSource | None
    preprocessing: Preprocessing | None
    layers: Mapping[str, Thin]
    tensors: StateDict

    def thinned(self, model: nn.Module) -> nn.Module:
        """Replace the layers of a base by random thin ones, in place.

        Raises:
            ModelError: If the base has no such layers.
        """
        for path, thin in self.layers.items():
            layer = dict(model.named_modules()).get(path, model)
            weight = getattr(layer, "weight", None)
            if layer is model or not isinstance(weight, Tensor) or weight.ndim < 3:
                raise ModelError(
                    f"{self.path}: the base has no convolution {path!r}. Build the one that was compressed."
                )
            shapes = shapes_of(tuple(weight.shape), thin)
            found = tuple(
                tuple(self.tensors[key].shape)
                for number in range(len(shapes))
                if (key := f"{path}.{number}.weight") in self.tensors
            )
            if found != shapes:  # found out before anything is made: a small file cannot ask for gigabytes
                raise ModelError(
                    f"{self.path}: layer {path!r} has thin weights {list(found)}, expected {list(shapes)} for the "
                    "base's. Build the network that was compressed."
                )
            replace_layer(model, path, thin_layers(layer, thin))
        return model


def save_compressed(
    model: nn.Module, path: str | Path, layers: Mapping[str, Thin], *, source: ModelSource | None
) -> Path:
    """Write a compressed network whole or not at all.

    Args:
        model: The network with its thin layers.
        path: A name that ends in .safetensors.
        layers: Which of its layers are thin, by the paths that they have in the base.
        source: How the base was built, if that is known.

    Raises:
        OptionError: If the name has another ending.
        OSError: If it cannot be written.
    """
    target = Path(path)
    if target.suffix != SUFFIX:
        raise OptionError(f"{target}: expected a name that ends in {SUFFIX}.")
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    preprocessing = cast("Preprocessing | None", model.__dict__.get("_convpeft_preprocessing"))
    told = {
        "version": VERSION,
        "source": None if source is None else source.to_dict(),
        "preprocessing": None if preprocessing is None else preprocessing.to_dict(),
        "layers": {name: {"form": thin.form, "ranks": list(thin.ranks)} for name, thin in layers.items()},
        "digest": _digest(tensors),
    }
    try:
        with whole_file(target) as work:
            save_file(tensors, work, metadata={"format": "pt", KEY: json.dumps(told, ensure_ascii=False)})
    except SafetensorError as error:
        raise OSError(None, f"cannot be written ({one_line(error)})", str(target)) from None
    return target


def read_compressed(path: str | Path) -> CompressedFile:
    """Read a compressed file and check all of it; nothing that it names is imported, opened or built.

    Raises:
        AdapterFileError: If it is damaged or was not written by `save_compressed`.
        ModelError: If there is no such file, or its tensors cannot be read.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ModelError(f"compressed file {str(path)!r}: expected a name that ends in {SUFFIX}.")
    tensors = read_weights(path)
    told = fields_of(_description(path), _FIELDS, str(path))
    if told["version"] != VERSION or not is_whole(told["version"]):
        raise AdapterFileError(
            f"{path}: has version {shown(told['version'])}, expected {VERSION}. Use the convpeft that wrote it."
        )
    if told["digest"] != _digest(tensors):
        raise AdapterFileError(f"{path}: the tensors are not those that were written. Get the file again.")
    source, preprocessing = told["source"], told["preprocessing"]
    return CompressedFile(
        path,
        None if source is None else ModelSource.from_dict(source, where=f"{path}: source"),
        None if preprocessing is None else Preprocessing.from_dict(preprocessing, where=f"{path}: preprocessing"),
        _layers(told["layers"], path),
        tensors,
    )


def compressed_network(path: str | Path, network_of: Callable[[str], Network]) -> Network:
    """Return the network of a compressed file, on the base that the file names.

    Args:
        path: The file.
        network_of: Finds out what the source string of the base names.

    Raises:
        AdapterFileError: If the file is damaged.
        ModelError: If the file names no base, or one that would have to be imported.
    """
    file = read_compressed(path)
    source = file.source
    if source is None or source.imports_code:
        whose = "no base" if source is None else f"a Python function, {shown(source.source)}, which no file imports"
        raise ModelError(f"{path}: names {whose}. Build the base yourself: convpeft.load_compressed(path, base=model).")
    if source.source.startswith("compressed"):
        raise ModelError(f"{path}: names another compressed file as its base. Compress the original network instead.")
    base = network_of(source.source)

    def build(num_classes: int | None, in_channels: int | None) -> nn.Module:
        return file.thinned(base.build(num_classes or source.num_classes, in_channels or source.in_channels))

    def pretrained(num_classes: int | None, in_channels: int | None) -> nn.Module:
        return load_state(
            network,
            file.tensors,
            num_classes=num_classes,
            in_channels=in_channels or source.in_channels,
            fresh_head=True,
            file=str(path),
        )

    network = Network(
        build=build,
        preprocessing=file.preprocessing or base.preprocessing,
        pretrained=pretrained,
    )
    return network


def _description(path: Path) -> object:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY, "")
        if not 0 < len(text) <= _LARGEST_HEADER:
            raise AdapterFileError(
                f"{path}: tells nothing of compressed layers. Give a file that `convpeft compress` wrote."
            )
        return json.loads(text)
    except ConvpeftError:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise AdapterFileError(
            f"{path}: its description cannot be read ({one_line(error, 120)}). Get it again."
        ) from None


def _layers(record: object, path: Path) -> dict[str, Thin]:
    entries = cast("Mapping[object, object]", record) if isinstance(record, Mapping) else None
    if entries is None or len(entries) > _MOST_LAYERS:
        raise AdapterFileError(f"{path}: layers: expected a table of layers, got {shown(record)}.")
    found: dict[str, Thin] = {}
    for name, entry in entries.items():
        where = f"{path}: layers.{shown(name)}"
        told = fields_of(entry, ("form", "ranks"), where)
        form, ranks = told["form"], told["ranks"]
        known = isinstance(form, str) and form in RANKS
        numbers = cast("list[object]", ranks) if isinstance(ranks, list) else []
        whole = [cast(int, each) for each in numbers if is_whole(each) and 1 <= cast(int, each) <= 1 << 20]
        if (
            not known
            or not isinstance(name, str)
            or len(whole) != len(numbers)
            or len(whole) != RANKS[cast(Form, form)]
        ):
            raise AdapterFileError(
                f"{where}: expected a form of {', '.join(RANKS)} and its whole ranks, got {shown(form)} {shown(ranks)}."
            )
        found[name] = Thin(cast(Form, form), tuple(whole))
    return found


def _digest(tensors: StateDict) -> str:
    lines = "".join(f"{name}={tensor_digest(tensors[name])};" for name in sorted(tensors))
    return hashlib.sha256(lines.encode()).hexdigest()
