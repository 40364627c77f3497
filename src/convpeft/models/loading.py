"""Build a base model from a source string, with its weights and its preprocessing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from convpeft.errors import ModelError, OptionError, nearest
from convpeft.models._fields import is_whole, shown
from convpeft.models.preprocessing import MAX_CHANNELS, Preprocessing
from convpeft.models.source import MAX_CLASSES, MAX_LENGTH, ModelSource, is_import_path

if TYPE_CHECKING:
    from torch import nn

    from convpeft.models.network import Network

_SOURCES = (
    ("timm/NAME[.TAG]", "a classifier of timm, for example timm/resnet18.a1_in1k"),
    ("torchvision/NAME[:WEIGHTS]", "a classifier of torchvision, for example torchvision/resnet50:IMAGENET1K_V2"),
    ("cifar-resnet/DEPTH", "a thin ResNet for 32x32 images: 20, 32, 44 or 56 layers (weights from a file)"),
    ("mobilenetv1/WIDTH", "MobileNetV1 with BatchNorm, for example mobilenetv1/0.75 (weights from a file)"),
    ("small-cnn", "two convolutions, a projection and a classifier for 28x28 grey images (weights from a file)"),
    ("compressed:FILE", "a network that `convpeft compress` wrote, on the base that the file names"),
    ("PACKAGE.MODULE:FUNCTION", "your own Python function that returns an nn.Module; its module is imported"),
)
_WIDTH = re.compile(r"[0-9](\.[0-9]{1,3})?")
_WIDTHS = (0.1, 2.0)


def model_sources() -> tuple[tuple[str, str], ...]:
    """Return the forms a source string can have, each with a line that describes it."""
    return _SOURCES


def load_model(
    source: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    weights: str | Path | None = None,
    pretrained: bool = True,
) -> nn.Module:
    """Build a model, load its weights, and note on it where it came from and how its images are prepared.

    Fresh layers are drawn from torch's global generator: call ``torch.manual_seed`` before, where that matters.

    Args:
        source: One of the forms that ``model_sources`` lists. The last one imports the module it names: pass only
            what the user wrote, and ``rebuild`` what a file says.
        num_classes: Classes of the head; another number than that of fetched weights gives a fresh head.
            Default: the source's own head, or that of the ``weights`` file.
        in_channels: Input channels, 1 to 4; the first convolution's pretrained weights are adapted.
            Default: the model's own number (1 for small-cnn, else 3).
        weights: A .safetensors file or one of torch.save (.pth, .pt, .th, .bin, .tar), loaded strictly; nothing is
            fetched then.
        pretrained: Fetch timm's or torchvision's weights. The other sources have none to fetch: without
            ``weights`` they start random, which ``notes_of`` then says.

    Raises:
        OptionError: If an argument is of the wrong type or out of range.
        ModelError: If the source is unknown, or its weights cannot be read, fetched or loaded.
    """
    _check_arguments(source, num_classes=num_classes, in_channels=in_channels)
    # Opened after the source is known to be right, read before anything is built.
    network = network_of(source, weights=weights)
    if weights is not None:
        from convpeft.models.network import load_state
        from convpeft.models.weights import read_weights

        model = load_state(
            network,
            read_weights(weights),
            num_classes=num_classes,
            in_channels=in_channels,
            fresh_head=False,
            file=f"weights file {str(weights)!r} for {source}",
        )
    elif pretrained and network.pretrained:
        model = network.pretrained(num_classes, in_channels)
    else:
        model = network.build(num_classes, in_channels)
    return _noted(
        model,
        network,
        ModelSource(
            source=source,
            num_classes=num_classes,
            in_channels=in_channels or _own_channels(model, network),
            weights=None if weights is None else str(weights),
            pretrained=pretrained,
        ),
    )


def rebuild(recorded: ModelSource, *, weights: str | Path | None = None) -> nn.Module:
    """Build the base that a file records, without ever importing what the file names.

    Args:
        recorded: What ``source_of`` returned when the file was written.
        weights: A weights file to read instead of the recorded one.

    Raises:
        ModelError: If the record names a Python function, or the model cannot be built.
    """
    if recorded.imports_code:
        raise ModelError(
            f"model {shown(recorded.source)}: a file never leads to an import; build the base with this function "
            "yourself and call convpeft.load(model, path)."
        )
    import torch

    with torch.random.fork_rng(devices=[]):
        if recorded.seed is not None:
            torch.manual_seed(recorded.seed)
        model = load_model(
            recorded.source,
            num_classes=recorded.num_classes,
            in_channels=recorded.in_channels,
            weights=recorded.weights if weights is None else weights,
            pretrained=recorded.pretrained,
        )
    model.__dict__["_convpeft_source"] = recorded
    return model


def source_of(model: nn.Module) -> ModelSource | None:
    """Return how ``load_model`` built this model, or None for a model from elsewhere."""
    return model.__dict__.get("_convpeft_source")


def preprocessing_of(model: nn.Module) -> Preprocessing | None:
    """Return how images are prepared for this model, or None for a model from elsewhere."""
    return model.__dict__.get("_convpeft_preprocessing")


def notes_of(model: nn.Module) -> tuple[str, ...]:
    """Return what a user should know about this model, such as that it starts from random weights."""
    return model.__dict__.get("_convpeft_notes", ())


def _check_arguments(source: object, *, num_classes: object, in_channels: object) -> None:
    if not isinstance(source, str) or not source.isprintable() or not 0 < len(source) <= MAX_LENGTH:
        raise OptionError(f"model: expected a source string such as 'timm/resnet18.a1_in1k', got {shown(source)}.")
    if num_classes is not None and not (is_whole(num_classes) and num_classes in range(1, MAX_CLASSES + 1)):
        raise OptionError(f"num_classes: expected a whole number from 1 to {MAX_CLASSES}, got {shown(num_classes)}.")
    if in_channels is not None and not (is_whole(in_channels) and in_channels in range(1, MAX_CHANNELS + 1)):
        raise OptionError(f"in_channels: expected a whole number from 1 to {MAX_CHANNELS}, got {shown(in_channels)}.")


def network_of(source: str, *, weights: str | Path | None = None) -> Network:
    """Find out what a source string names; only a user's own function is imported from outside.

    Args:
        source: The string.
        weights: Where the file of a compressed network lies now; of no other source.

    Raises:
        ModelError: If it names nothing that is known.
    """
    kind, slash, name = source.partition("/")
    try:
        if source == "compressed" or (source.startswith("compressed:") and source.endswith(".safetensors")):
            from convpeft.models.compressed import compressed_network

            file = weights if weights is not None else source.partition(":")[2]
            if not file:
                raise ModelError("model 'compressed': names no file. Give compressed:FILE, or the file as weights.")
            return compressed_network(file, network_of)
        if kind == "timm" and slash:
            from convpeft.models.timm_models import timm_network

            return timm_network(name)
        if kind == "torchvision" and slash:
            from convpeft.models.torchvision_models import torchvision_network

            return torchvision_network(name)
        if (kind in ("cifar-resnet", "mobilenetv1") and slash) or source == "small-cnn":
            return _own_network(source, kind, name)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"model {source!r}: needs the package {error.name}; install it with pip install 'convpeft[train]'."
        ) from None
    if is_import_path(source):
        from convpeft.models.imported import imported_network

        return imported_network(source)
    forms = [form for form, _ in _SOURCES]
    raise ModelError(f"model {shown(source)}: no such kind of source. {nearest(source, forms)}")


def _own_network(source: str, kind: str, name: str) -> Network:
    """Return one of the networks that are defined here."""
    from convpeft.models.network import Network

    note = f"{source} has no weights to fetch, so it starts from random ones; pass weights=FILE to load some."
    if kind == "cifar-resnet":
        from convpeft.models import cifar_resnet

        if name not in map(str, cifar_resnet.DEPTHS):
            depths = ", ".join(map(str, cifar_resnet.DEPTHS))
            raise ModelError(f"model {shown(source)}: expected one of the depths {depths}, got {shown(name)}.")
        depth = int(name)
        return Network(
            build=lambda num_classes, in_channels: cifar_resnet.CifarResNet(
                depth=depth, num_classes=num_classes or 10, in_channels=in_channels or 3
            ),
            preprocessing=cifar_resnet.PREPROCESSING,
            without_weights=note,
        )
    if kind == "mobilenetv1":
        from convpeft.models import mobilenet_v1

        if not _WIDTH.fullmatch(name) or not _WIDTHS[0] <= float(name) <= _WIDTHS[1]:
            raise ModelError(
                f"model {shown(source)}: expected a width from {_WIDTHS[0]} to {_WIDTHS[1]}, for example 0.25, 0.5, "
                f"0.75 or 1.0, got {shown(name)}."
            )
        width = float(name)
        return Network(
            build=lambda num_classes, in_channels: mobilenet_v1.mobilenet_v1(
                width, num_classes=num_classes or 1000, in_channels=in_channels or 3
            ),
            preprocessing=mobilenet_v1.PREPROCESSING,
            without_weights=note,
        )
    from convpeft.models import small_cnn

    return Network(
        build=lambda num_classes, in_channels: small_cnn.SmallCNN(
            num_classes=num_classes or 10, in_channels=in_channels or 1
        ),
        preprocessing=small_cnn.PREPROCESSING,
        without_weights=note,
    )


def _own_channels(model: nn.Module, network: Network) -> int:
    from convpeft.models.stems import input_channels

    return input_channels(model) or network.preprocessing.channels


def _noted(model: nn.Module, network: Network, source: ModelSource) -> nn.Module:
    """Write the source, the preprocessing and the notes on the model."""
    random_start = source.pretrained and source.weights is None and network.pretrained is None
    notes = (network.without_weights,) if random_start and network.without_weights else ()
    attributes = {
        "_convpeft_source": source,
        "_convpeft_preprocessing": network.preprocessing.for_channels(source.in_channels),
        "_convpeft_notes": notes,
    }
    for name, value in attributes.items():
        setattr(model, name, value)
    return model
