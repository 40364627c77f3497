"""What is trained: parameters, optimiser groups and counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convpeft.adapters import Module, Progress
from convpeft.attachment import require_state
from convpeft.errors import OptionError
from convpeft.fingerprints import base_tensors
from convpeft.injection import adapted_layers
from convpeft.norms import verify_norms
from convpeft.slots import slots_of


@dataclass(frozen=True)
class Count:
    """Sizes of an adapted model, in numbers (not bytes).

    Attributes:
        base: Parameters of the base, its own head included.
        trainable: Parameters that an optimiser would change.
        stored: Numbers that the adapter file holds: parameters and buffers of all attached adapters.
        layers: Trainable parameters of each adapted layer.
    """

    base: int
    trainable: int
    stored: int
    layers: dict[str, int]

    @property
    def share(self) -> float:
        """Trainable parameters as a share of the base's, 0 or more."""
        return self.trainable / self.base if self.base else 0.0


def count(model: nn.Module) -> Count:
    """Count what is trained and what is stored.

    >>> from torch import nn
    >>> import convpeft
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    >>> count(convpeft.attach(net, "lora", rank=2)).trainable
    70
    """
    layers: dict[str, int] = {}
    stored = 0
    for path, layer in adapted_layers(model):
        tensors = list(slots_of(layer).state_dict().values())
        stored += sum(tensor.numel() for tensor in tensors)
        layers[path] = sum(p.numel() for p in slots_of(layer).parameters() if p.requires_grad)
    buffers = {id(buffer) for buffer in model.buffers()}
    base = sum(tensor.numel() for tensor in _unique(base_tensors(model)) if id(tensor) not in buffers)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Count(base, trainable, stored, {path: number for path, number in layers.items() if number})


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters to give to an optimiser.

    Raises:
        ModelError: If nothing is attached, or a frozen norm was replaced by a live one.
    """
    require_state(model)
    verify_norms(model)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def param_groups(model: nn.Module, *, lr: float | None = None, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Optimiser groups of the trainable parameters: no decay for biases and norms, a method's own rates kept.

    Args:
        model: A model with adapters.
        lr: Learning rate, > 0. Default: each method's own; for a head that of the first of the last attached methods.
        weight_decay: Decay of tensors with two axes or more.

    Returns:
        Groups with `params`, `lr` and `weight_decay`, for any torch optimiser.

    Raises:
        ModelError: If nothing is attached, or a frozen norm was replaced by a live one.
    """
    state = require_state(model)
    verify_norms(model)
    common = lr if lr is not None else list(state.names.values())[-1].learning_rate
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for part in training_parts(model):
        rate = common if lr is not None or not part.paper or part.replaces else part.learning_rate
        for group in part.param_groups():
            own_rate = rate * group.get("lr_scale", 1.0)
            for parameter in group["params"]:
                decay = group.get("weight_decay", weight_decay if parameter.ndim > 1 else 0.0)
                groups.setdefault((own_rate, decay), []).append(parameter)
    return [{"params": found, "lr": own, "weight_decay": decay} for (own, decay), found in groups.items()]


def penalty(model: nn.Module) -> Tensor | None:
    """Sum of the terms that the attached methods add to the loss; None if there are none."""
    terms = [term for part in training_parts(model) for term in [part.asked_for_penalty()] if term is not None]
    return sum(terms[1:], terms[0]) if terms else None


def plan_training(model: nn.Module, *, epochs: int, steps_per_epoch: int, steps_done: int = 0) -> None:
    """Tell the methods how long the training will be; some spread their work over it.

    Args:
        model: A model with adapters.
        epochs: Epochs in all, >= 1.
        steps_per_epoch: Optimiser steps of one epoch, >= 1.
        steps_done: Steps taken already, where a training goes on.

    Raises:
        ModelError: If nothing is attached.
        OptionError: If a number is out of range.
    """
    for name, value, least in (("epochs", epochs, 1), ("steps_per_epoch", steps_per_epoch, 1)):
        if value < least:
            raise OptionError(f"{name}={value!r} is out of range, it must be at least {least}.")
    if steps_done < 0:
        raise OptionError(f"steps_done={steps_done!r} is out of range, it must be at least 0.")
    require_state(model).plan = Progress(steps_done, steps_per_epoch, epochs)


def after_step(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Let the attached methods do their work after an optimiser step, before the gradients are cleared.

    Args:
        model: A model with adapters.
        optimizer: The optimiser that took the step; methods that reset their factors reset its state for them.

    Raises:
        ModelError: If nothing is attached, or a method lacks another hook that it needs.
    """
    state = require_state(model)
    if state.plan is not None:
        state.plan = dataclasses.replace(state.plan, step=state.plan.step + 1)
    parts: dict[type[Module], list[Module]] = {}
    for part in training_parts(model):
        part.acknowledge_step(state.plan)
        parts.setdefault(type(part), []).append(part)
    for cls, each in parts.items():
        cls.after_step(each, state.plan, optimizer)
        for part in each:
            part.forget_steps()  # the work above changed parameters too


def training_parts(model: nn.Module) -> Iterator[Module]:
    """Adapters with trainable parameters, in the order of the model's modules."""
    for _, layer in adapted_layers(model):
        for part in slots_of(layer).children():
            if isinstance(part, Module) and any(p.requires_grad for p in part.parameters()):
                yield part


def _unique(tensors: dict[str, Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors.values()}.values())
