"""The classifiers of torchvision.models, by name and weights."""

from __future__ import annotations

import difflib
import re
from typing import Any

import convpeft._torchvision  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
from torch import nn
from torchvision import models

from convpeft.errors import ModelError, nearest
from convpeft.models.downloads import fetch_from_url
from convpeft.models.network import Network, load_state
from convpeft.models.preprocessing import INTERPOLATIONS, Preprocessing
from convpeft.models.stems import set_input_channels
from convpeft.models.weights import StateDict, read_weights

# By default these two answer with auxiliary heads while training, and warn until they are told to initialise.
_INCEPTIONS = ("googlenet", "inception_v3")
_AUXILIARY_HEAD = re.compile(r"(aux1|aux2|AuxLogits)\.")
# The first DenseNet files say "norm.1" where the modules are called "norm1".
_OLD_DENSE_LAYER = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")


def torchvision_network(name: str) -> Network:
    """Return the network that a string such as "resnet50" or "resnet50:IMAGENET1K_V2" names.

    Raises:
        ModelError: If the name or its weights are unknown.
    """
    source = f"torchvision/{name}"
    architecture, colon, tag = name.partition(":")
    known = models.list_models(module=models)
    if architecture not in known:
        close = difflib.get_close_matches(architecture, known, n=5, cutoff=0.5)
        advice = f"Did you mean {', '.join(close)}?" if close else "See torchvision.models.list_models()."
        raise ModelError(f"{source}: torchvision knows no such classifier. {advice}")
    choices: Any = models.get_model_weights(architecture)
    tags = ["DEFAULT", *(member.name for member in choices)]
    if colon and tag not in tags:
        raise ModelError(f"{source}: {architecture} has no such weights. {nearest(tag, tags)}")
    weights = choices[tag or "DEFAULT"]
    settings = {"aux_logits": False, "init_weights": True} if architecture in _INCEPTIONS else {}

    def build(num_classes: int | None, in_channels: int | None) -> nn.Module:
        classes = num_classes or len(weights.meta["categories"])
        model = models.get_model(architecture, weights=None, num_classes=classes, **settings)
        if in_channels is not None:
            set_input_channels(model, in_channels, source=source)
        return model

    def pretrained(num_classes: int | None, in_channels: int | None) -> nn.Module:
        path = fetch_from_url(weights.url, source=source)
        return load_state(
            network,
            read_weights(path),
            num_classes=num_classes,
            in_channels=in_channels,
            fresh_head=True,
            file=f"{source}: {path}",
        )

    network = Network(
        build=build,
        preprocessing=_preprocessing(weights.transforms(), architecture),
        pretrained=pretrained,
        translate=_translated,
    )
    return network


def _translated(state: StateDict) -> StateDict:
    """Rename old DenseNet tensors and leave out auxiliary heads."""
    return {
        _OLD_DENSE_LAYER.sub(r"\1\2", name): tensor for name, tensor in state.items() if not _AUXILIARY_HEAD.match(name)
    }


def _preprocessing(transforms: Any, architecture: str) -> Preprocessing:
    size, resize = int(transforms.crop_size[0]), int(transforms.resize_size[0])
    interpolation = transforms.interpolation.value
    # These two were trained on pixels in -1..1; torchvision converts from ImageNet's numbers inside the model, which
    # `transform_input=False` (the default without weights) leaves out.
    plain = architecture in _INCEPTIONS
    return Preprocessing(
        size=(size, size),
        crop=min(size / resize, 1.0),
        mean=(0.5, 0.5, 0.5) if plain else tuple(float(value) for value in transforms.mean),
        std=(0.5, 0.5, 0.5) if plain else tuple(float(value) for value in transforms.std),
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bilinear",
    )
