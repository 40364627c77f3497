"""Write adapters into the weights: afterwards the model is an ordinary one and costs nothing extra."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from convpeft.adapters import Module
from convpeft.attachment import detach, known_name, remove, require_state
from convpeft.composing import effective
from convpeft.errors import ModelError, OptionError
from convpeft.injection import adapted_layers, state_of
from convpeft.slots import NormStatistics, State, slots_of

Model = TypeVar("Model", bound=nn.Module)
SOURCE = "_convpeft_source"  # where load_model notes what it built; no longer true of merged weights


def merge(model: Model, names: Sequence[str] | str | None = None) -> Model:
    """Write active adapters into the base weights, in place, and take them off.

    Args:
        model: A model with adapters.
        names: Which of the active ones; they must come first in the order of composition, because the rest stays
            active on top of them. Adapters that only add may be merged in any order. Default: all active ones.

    Returns:
        The same model.

    Raises:
        OptionError: If a name is not attached, not active, or does not come first.
        ModelError: If a method cannot be merged, or the result is not finite. Nothing is changed then.
    """
    state = require_state(model)
    wanted = state.active if names is None else ((names,) if isinstance(names, str) else tuple(names))
    for name in wanted:
        known_name(state, name)
    ordered = tuple(name for name in state.active if name in wanted)
    if set(ordered) != set(wanted):
        idle = sorted(set(wanted) - set(ordered))
        raise OptionError(
            f"adapter {idle[0]!r} is not active, so merging it would change the output. Call set_active first."
        )
    if ordered != state.active[: len(ordered)] and not _only_adds(model, state):
        raise OptionError(
            f"adapters {list(ordered)!r} do not come first in the active order {list(state.active)!r}, and these "
            "methods do not commute. Merge a beginning of that order."
        )
    _require_mergeable(model, ordered)
    planned = [(path, layer, _merged_tensors(path, layer, ordered)) for path, layer in adapted_layers(model)]
    tied = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    for _, layer, tensors in planned:
        for tensor, value in tensors.items():
            _write(layer, tensor, value, state, tied)
        _write_statistics(layer, ordered)
    for name in ordered:
        remove(model, state, name)
    model.__dict__.pop(SOURCE, None)
    return model


def merged(model: Model) -> Model:
    """A merged deep copy; the model itself keeps its adapters.

    Raises:
        ModelError: As `merge`.
    """
    require_state(model)
    twin = copy.deepcopy(model)
    merge(twin)
    return twin if state_of(twin) is None else detach(twin)


def _require_mergeable(model: nn.Module, names: tuple[str, ...]) -> None:
    for path, layer in adapted_layers(model):
        for part in slots_of(layer).active(names):
            if not isinstance(part, Module) or part.mergeable == "always":
                continue
            if part.mergeable == "never":
                raise ModelError(f"method {part.method_name!r} at {path!r} is no map of weights and cannot be merged.")
            if part.runs_beside or layer.training:
                raise ModelError(
                    f"method {part.method_name!r} at {path!r} merges in evaluation only. Call model.eval()."
                )


def _only_adds(model: nn.Module, state: State) -> bool:
    """Whether every active part of the model adds something that does not depend on the weight."""
    parts = [part for _, layer in adapted_layers(model) for part in slots_of(layer).active(state.active)]
    return all(isinstance(part, Module) and part.additive for part in parts)


def _merged_tensors(path: str, layer: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    parts = [part for part in slots_of(layer).active(names) if isinstance(part, Module)]
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for tensor in {part.site.tensor for part in parts}:
            weight, bias = effective(layer, tensor, names)
            tensors[tensor] = weight
            if bias is not None:
                tensors["bias"] = bias
    for tensor, value in tensors.items():
        if not torch.isfinite(value).all():
            raise ModelError(
                f"layer {path!r}: the merged {tensor} is not finite. The adapter was trained to NaN or overflow."
            )
    return tensors


def _write(layer: nn.Module, tensor: str, value: Tensor, state: State, tied: Counter[int]) -> None:
    """Replace one base tensor; a parameter shared with another layer is untied, the other keeps its values."""
    old = layer._parameters.get(tensor)
    if old is not None and old.shape == value.shape and tied[id(old)] == 1:
        with torch.no_grad():
            old.copy_(value)
        return
    new = nn.Parameter(value.detach().clone(), requires_grad=False)
    layer._parameters[tensor] = new
    reference = old if old is not None else cast(Tensor, layer._parameters["weight"])
    if any(reference is parameter for parameter in state.trainable_before):
        state.trainable_before.append(new)
    if tensor == "weight" and old is not None and old.shape[0] != value.shape[0]:
        size = "out_features" if isinstance(layer, nn.Linear) else "out_channels"
        setattr(layer, size, value.shape[0])


def _write_statistics(layer: nn.Module, names: tuple[str, ...]) -> None:
    for part in slots_of(layer).active(names):
        if isinstance(part, NormStatistics):
            for name, value in part._buffers.items():
                base = layer._buffers.get(name)
                if base is not None and value is not None:
                    base.copy_(value)
