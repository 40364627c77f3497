"""The classifiers of timm (pytorch-image-models), by name and tag."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, cast

import convpeft._torchvision  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
import timm
from timm.data.config import resolve_data_config
from torch import nn

from convpeft.errors import ModelError, one_line
from convpeft.models.downloads import fetch_from_hub, fetch_from_url
from convpeft.models.network import Network, load_state
from convpeft.models.preprocessing import INTERPOLATIONS, Preprocessing, Resize
from convpeft.models.weights import StateDict, read_weights

# Only names: timm also understands "hf-hub:" and "local-dir:", which reach files and repositories of anybody's choice.
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_RESIZE: dict[str, Resize] = {"center": "crop", "squash": "squash", "border": "pad"}


def timm_network(name: str) -> Network:
    """Return the network that timm registers under a name such as "resnet18" or "resnet18.a1_in1k".

    Raises:
        ModelError: If the name or its tag is unknown.
    """
    source = f"timm/{name}"
    architecture = name.partition(".")[0]
    if not _NAME.fullmatch(name) or not timm.is_model(architecture):
        raise ModelError(f"{source}: timm knows no such model.{_suggestion(name, timm.list_models())}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = timm.list_pretrained(f"{architecture}.*")
        raise ModelError(f"{source}: {architecture} has no such weights.{_suggestion(name, tags)}") from None

    def build(num_classes: int | None, in_channels: int | None) -> nn.Module:
        return _create(name, num_classes=num_classes, in_channels=in_channels)

    def pretrained(num_classes: int | None, in_channels: int | None) -> nn.Module:
        # Loaded strictly with its own head: timm would skip over missing tensors once the head is another.
        model = _create(name, state=read_weights(_fetch(source, config)))
        if num_classes is None and in_channels is None:
            return model
        return load_state(
            network,
            dict(model.state_dict()),
            num_classes=num_classes,
            in_channels=in_channels,
            fresh_head=True,
            file=source,
        )

    def translate(state: StateDict) -> StateDict:
        # timm renames the tensors of older files while it loads them; a file it cannot use is left for the error.
        overlay: dict[str, Any] = {}
        head = state.get(f"{getattr(config, 'classifier', None)}.weight")
        if head is not None:
            overlay["num_classes"] = head.shape[0]
        try:
            return dict(_create(name, state=state, overlay=overlay).state_dict())
        except Exception:
            return state

    network = Network(
        build=build,
        preprocessing=_preprocessing(config),
        pretrained=pretrained if config is not None and config.has_weights else None,
        translate=translate,
        without_weights=f"{source}: timm has no weights for it, so it starts from random ones; pass weights=FILE.",
    )
    return network


def _create(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    state: StateDict | None = None,
    overlay: dict[str, Any] | None = None,
) -> nn.Module:
    """Let timm build the model, with random weights or with a state that it translates and loads strictly."""
    wanted = {"num_classes": num_classes, "in_chans": in_channels}
    settings: dict[str, Any] = {key: value for key, value in wanted.items() if value is not None}
    asked = ", ".join(f"{key}={value}" for key, value in settings.items())
    if state is not None:
        settings["pretrained_cfg_overlay"] = {**(overlay or {}), "state_dict": dict(state)}
    try:
        model = timm.create_model(name, pretrained=state is not None, **settings)
    except (RuntimeError, TypeError, ValueError, KeyError, AssertionError) as error:
        reason = one_line(error, 200)
        remedy = "get its weights again" if state is not None else f"leave out {asked}" if asked else "choose another"
        raise ModelError(f"timm/{name}: timm cannot build it ({reason}); {remedy}.") from None
    # The overlay stays in the model's configuration: without this, every copy would carry the weights twice.
    cast("dict[str, object]", model.pretrained_cfg).pop("state_dict", None)
    return model


def _fetch(source: str, config: Any) -> Path:
    """Return the weights' local path: from the hub where they are there, else from their address."""
    if config.hf_hub_id:
        names = (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES
        return fetch_from_hub(config.hf_hub_id, names, source=source)
    return fetch_from_url(config.url, source=source)


def _preprocessing(config: Any) -> Preprocessing:
    if config is None:
        return Preprocessing()
    settings = resolve_data_config(pretrained_cfg=config.to_dict())
    channels, height, width = settings["input_size"]
    interpolation = settings["interpolation"]
    return Preprocessing(
        size=(height, width),
        resize=_RESIZE.get(settings["crop_mode"], "crop"),
        crop=min(float(settings["crop_pct"]), 1.0),
        mean=tuple(float(value) for value in settings["mean"]),
        std=tuple(float(value) for value in settings["std"]),
        channels=channels,
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bilinear",
    )


def _suggestion(name: str, known: list[str]) -> str:
    """Name up to five close names; the whole list would be hundreds of lines."""
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    return f" Did you mean {', '.join(close)}?" if close else " See timm.list_models()."
