"""Put thin convolutions in the place of one layer, with the same geometry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convpeft.decompositions.forms import Thin, shapes_of
from convpeft.errors import ModelError
from convpeft.sites import Site

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CLASSES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def why_not(layer: nn.Module, site: Site) -> str | None:
    """Say why a layer is left alone, or None for one that can be decomposed."""
    if site.kind != "conv":
        return f"a {site.kind} layer has no kernel"
    if site.transposed:
        return "transposed"
    if site.groups > 1:
        return "grouped: a depthwise kernel is thin already, and groups do not share their channels"
    if "pointwise" in site.tags:
        return "1x1: a matrix, with no taps to separate"
    if type(layer) not in _CLASSES:
        return f"a {type(layer).__name__} computes its weight in a way of its own"
    hooks: Any = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks)
    return "it has hooks" if any(hooks) or "forward" in layer.__dict__ else None


def thin_layers(layer: nn.Module, thin: Thin, weights: Sequence[Tensor] | None = None) -> nn.Sequential:
    """Build the convolutions that stand for a layer: stride, padding and dilation on the spatial one, bias on the last.

    Padding of any mode before a 1x1 convolution without bias is padding after it, so the chain is the convolution
    with the reconstructed kernel, borders included.

    Args:
        layer: The convolution.
        thin: The form and its ranks.
        weights: What `decompose` returned. Default: random ones.

    Raises:
        ModelError: If the layer is no ordinary convolution with one group.
    """
    if not isinstance(layer, _CLASSES) or layer.groups != 1:
        raise ModelError(
            f"a {type(layer).__name__} cannot be replaced by thin convolutions: expected an nn.Conv1d, nn.Conv2d or "
            "nn.Conv3d with groups=1. Leave it out."
        )
    kind: Any = type(layer)
    place = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    chain: list[nn.Module] = []
    shapes = shapes_of(tuple(layer.weight.shape), thin)
    spatial = len(shapes) // 2
    for number, (out, into, *kernel) in enumerate(shapes):
        options: dict[str, Any] = {"bias": False, **place}
        if number == spatial:
            options |= {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")}
            options["groups"] = 1 if thin.form == "tucker" else out
        if number == len(shapes) - 1:
            options["bias"] = layer.bias is not None
        chain.append(kind(into * options.get("groups", 1), out, tuple(kernel), **options))
    built = nn.Sequential(*chain).train(layer.training)
    if weights is not None:
        with torch.no_grad():
            for each, weight in zip(built, weights, strict=True):
                getattr(each, "weight").copy_(weight)  # noqa: B009 - pyright reads a module's attribute as a module
            if layer.bias is not None:
                getattr(built[-1], "bias").copy_(layer.bias)  # noqa: B009
    return built


def replace_layer(model: nn.Module, path: str, new: nn.Module) -> nn.Module:
    """Put a module in the place of another, wherever the model holds it, and return the old one.

    Raises:
        ModelError: If there is no such layer, or it is the model itself.
    """
    try:
        old = model.get_submodule(path)
    except AttributeError:
        raise ModelError(f"layer {path!r}: this model has none. Take the network that was compressed.") from None
    if old is model:
        raise ModelError("the model is one layer and cannot be replaced inside itself. Put it into an nn.Sequential.")
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new
    return old
