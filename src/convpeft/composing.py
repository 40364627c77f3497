"""The effective weight and bias of an adapted layer: its own, mapped by its active adapters in order."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from convpeft.adapters import Adapter
from convpeft.canonical import from_canonical, to_canonical
from convpeft.sites import kind_of
from convpeft.slots import slots_of


def effective(
    layer: nn.Module, tensor: str = "weight", names: tuple[str, ...] | None = None, *, settled: bool = False
) -> tuple[Tensor, Tensor | None]:
    """What the active adapters (or those of `names`) make of a layer's (weight, bias), in the layer's own dtype.

    An adapter that normalises by batches while it is trained is left out then, unless `settled` asks for its map.
    """
    return composed(layer, acting(layer, tensor, names, settled=settled), tensor)


def acting(
    layer: nn.Module, tensor: str = "weight", names: tuple[str, ...] | None = None, *, settled: bool = False
) -> list[Adapter]:
    """The adapters that `effective` runs, in order."""
    return [
        part
        for part in slots_of(layer).active(names)
        if isinstance(part, Adapter) and part.site.tensor == tensor and (settled or not part.runs_beside)
    ]


def composed(layer: nn.Module, parts: list[Adapter], tensor: str = "weight") -> tuple[Tensor, Tensor | None]:
    """What these adapters make of a layer's (weight, bias), in the layer's own dtype."""
    weight = cast(Tensor, layer._parameters[tensor])
    bias = layer._parameters.get("bias") if tensor == "weight" and has_joint_bias(layer) else None
    if not parts:
        return weight, bias
    if torch.is_autocast_enabled(weight.device.type):  # W + delta rounded in half precision loses small updates
        with torch.autocast(weight.device.type, enabled=False):
            return compose(parts, weight, bias)
    return compose(parts, weight, bias)


def compose(parts: list[Adapter], weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What these adapters make of a weight and a bias, in the weight's own dtype."""
    site, dtype = parts[0].site, weight.dtype
    wide = torch.promote_types(dtype, torch.float32)
    new_weight = to_canonical(weight, site).to(wide)
    new_bias = None if bias is None else bias.to(wide)
    for part in parts:
        new_weight, new_bias = part(new_weight, new_bias)
    new_weight = from_canonical(new_weight, site).to(dtype)
    if site.transposed and weight.is_contiguous() and new_weight.stride() != weight.stride():
        # PyTorch chooses the layout of the output by the weight's strides, and later sums round by that layout
        new_weight = new_weight.clone(memory_format=torch.contiguous_format)
    return new_weight, None if new_bias is None else new_bias.to(dtype)


def has_joint_bias(layer: nn.Module) -> bool:
    """Whether weight and bias belong together, as in every layer; the loose tensors of other modules do not."""
    return kind_of(layer) != "parameter"
