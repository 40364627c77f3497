"""Between the base and the fine-tuned network: weights on the straight line from one to the other (WiSE-FT)."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from convpeft.adapters import Adapter
from convpeft.attachment import require_state
from convpeft.canonical import to_canonical
from convpeft.errors import ModelError, OptionError
from convpeft.heads import FreshHead
from convpeft.injection import adapted_layers
from convpeft.slots import NormStatistics, slots_of

Model = TypeVar("Model", bound=nn.Module)


def interpolated(model: Model, coefficient: float) -> Model:
    r"""Copy a fine-tuned model with every trained weight between the base's and its own.

    weight' = (1 - coefficient) * base + coefficient * trained, and the running statistics of norms likewise

    A fresh head has no counterpart in the base and stays as it was trained. The adapter stays on the copy, so
    `disabled`, `old_head`, `save` and `merge` work on it.

    Args:
        model: A model with one adapter that trains weights themselves, such as `full`.
        coefficient: 0 gives the base's weights, 1 the trained ones; in 0..1.

    Returns:
        The copy; the model itself is left as it was.

    Raises:
        OptionError: If the coefficient is out of range.
        ModelError: If nothing or several adapters are attached, or one that is no copy of the base's weights.

    Source:
        Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, arXiv 2109.01903, equation 3. Differs:
        there both ends have one classifier, which is interpolated too; here a fresh head is not.
    """
    if not 0 <= coefficient <= 1:
        raise OptionError(f"coefficient={coefficient!r} is out of range, it must lie in 0..1: 0 is the base.")
    if len(require_state(model).names) > 1:
        raise ModelError("interpolated: several adapters are attached. Merge or detach all but one.")
    twin = copy.deepcopy(model)
    for path, layer in adapted_layers(twin):
        for part in slots_of(layer).active():
            if isinstance(part, NormStatistics):
                _mix_statistics(layer, part, coefficient)
            elif isinstance(part, Adapter) and part.replaces:
                _mix_weights(layer, part, coefficient)
            elif not isinstance(part, FreshHead):
                method = part.method_name if isinstance(part, Adapter) else type(part).__name__
                raise ModelError(
                    f"interpolated: method {method!r} at {path!r} is no copy of the base's weights, so there is no "
                    "line to it. Interpolate a model adapted with full, norm-tuning or the like."
                )
    return twin


def _mix_weights(layer: nn.Module, part: Adapter, coefficient: float) -> None:
    """Move a trained copy towards the layer's own tensors, on the line between them."""
    for name, value in part.named_parameters(recurse=False):
        own = layer._parameters[part.site.tensor if name == "weight" else name]
        if own is not None:
            start = to_canonical(own, part.site) if name == "weight" else own
            with torch.no_grad():
                value.copy_(torch.lerp(start.to(value.dtype), value, coefficient))


def _mix_statistics(layer: nn.Module, part: NormStatistics, coefficient: float) -> None:
    """The same for running mean and variance; counters stay."""
    for name, value in part._buffers.items():
        base = layer._buffers.get(name)
        if base is not None and value is not None and value.is_floating_point():
            value.copy_(torch.lerp(base.to(value.dtype), value, coefficient))
