"""The claims that every adapter makes: identity, gradients, merging, a frozen base, saving, taking off."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from convpeft.adapters import Module
from convpeft.attachment import detach, disabled, old_head, set_active
from convpeft.checking.report import Claim, NotApplicableError, listed
from convpeft.checking.subject import Subject, floats, projected, relative_error, values_that_differ
from convpeft.counting import after_step, param_groups, penalty, plan_training
from convpeft.injection import adapted_layers
from convpeft.merging import merged
from convpeft.norms import norms_with_statistics
from convpeft.sites import walk
from convpeft.slots import slots_of
from convpeft.storage import load, save

GRADIENT_LIMIT = 1e-5  # in float64; a kink crossed on the way costs about the step, a wrong factor costs percents
MERGED_LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5}
_HALF_LIMIT = 1e-2
_DIFFERENCES = (1e-6, 1e-7, 1e-8, 1e-9)  # steps of the finite difference: larger ones cross kinks
_STEPS = 3


def _same_twice(subject: Subject) -> tuple[float, str]:
    model = copy.deepcopy(subject.base)
    return values_that_differ(subject.run(model, seeded=False), subject.run(model, seeded=False)), ""


def require_repeatable(subject: Subject) -> None:
    """Stop a comparison that would measure the network's own noise.

    Raises:
        NotApplicableError: If two equal calls differ even for one random state.
    """
    model = copy.deepcopy(subject.base)
    if values_that_differ(subject.run(model), subject.run(model)):
        raise NotApplicableError("two equal calls differ, so bits cannot be compared")


def _identity(subject: Subject) -> tuple[float, str]:
    require_repeatable(subject)
    model = subject.adapted()
    with old_head(model):  # a new head is no identity; what feeds it is
        number = values_that_differ(subject.run(model), subject.base_output)
    return _fresh(subject, number), ""


def _identity_in_training(subject: Subject) -> tuple[float, str]:
    if any(record.norm != "frozen" for record in subject.state.names.values()):
        raise NotApplicableError("the norms are live in training, as their policy says")
    require_repeatable(subject)
    base, model = copy.deepcopy(subject.base).train(), subject.adapted().train()
    for _, norm in norms_with_statistics(base):
        norm.eval()
    with old_head(model):
        number = values_that_differ(subject.run(model), subject.run(base))
    return _fresh(subject, number), ""


def _fresh(subject: Subject, number: int) -> int:
    if number and not subject.fresh:
        raise NotApplicableError("the adapter is not fresh")
    return number


def _gradients(subject: Subject) -> tuple[float, str]:
    error = _gradient_error(subject, subject.perturbed())
    if not error <= GRADIENT_LIMIT:
        own = _gradient_error(subject, copy.deepcopy(subject.base).requires_grad_(True))
        if not own <= GRADIENT_LIMIT:
            raise NotApplicableError(f"the network's own gradients disagree with finite differences too ({own:.1e})")
    return error, ""


def _gradient_error(subject: Subject, model: nn.Module) -> float:
    """Error of the derivative along a random direction of all that is trained and of the input."""
    model.double()
    moving: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not moving:
        raise NotApplicableError("nothing is trained")
    inputs: list[Tensor] = []
    for each in subject.inputs:
        inputs.append(each.to(torch.float64, copy=True) if each.is_floating_point() else each)
    moving += [each.requires_grad_() for each in floats(inputs)]

    def value() -> Tensor:
        torch.manual_seed(0)
        return projected(model(*(each * 1 for each in inputs)), subject.generator())

    try:
        start = value()
    except (RuntimeError, TypeError) as error:
        raise NotApplicableError(
            f"the network does not run in float64 ({' '.join(str(error).split())[:120]})"
        ) from None
    if not start.requires_grad:
        raise NotApplicableError("the output has no gradient")
    gradients = torch.autograd.grad(start, moving, allow_unused=True)
    generator = subject.generator()
    directions = [torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each) for each in moving]
    pairs = zip(cast(tuple[Tensor | None, ...], gradients), directions, strict=True)
    parts = [float((gradient * direction).sum()) for gradient, direction in pairs if gradient is not None]
    size = math.hypot(*parts)  # the sum alone may cancel
    errors: list[float] = []
    for step in _DIFFERENCES:
        errors.append(_difference_error(value, moving, directions, step, expected=math.fsum(parts), size=size))
        if errors[-1] <= GRADIENT_LIMIT / 10:
            break
    return min(errors)


def _difference_error(
    value: Callable[[], Tensor],
    moving: list[Tensor],
    directions: list[Tensor],
    step: float,
    *,
    expected: float,
    size: float,
) -> float:
    """How far the central difference along the directions is from the derivative, over the derivative's size."""
    own = [each.detach().clone() for each in moving]
    sides: list[float] = []
    with torch.no_grad():
        for sign in (1, -1):
            for each, start, direction in zip(moving, own, directions, strict=True):
                each.copy_(start + sign * step * direction)
            sides.append(float(value()))
        for each, start in zip(moving, own, strict=True):
            each.copy_(start)
    found = (sides[0] - sides[1]) / (2 * step)
    return abs(found - expected) / max(size, abs(found), 1e-300)


def _merged(subject: Subject) -> tuple[float, str]:
    require_repeatable(subject)
    names = subject.state.active
    for path, layer in adapted_layers(subject.adapted()):
        for part in slots_of(layer).active(names):
            if isinstance(part, Module) and part.mergeable == "never":
                raise NotApplicableError(
                    f"method {part.method_name!r} at {path!r} is no map of weights and never merges"
                )
    return relative_error(subject.run(merged(subject.perturbed())), subject.perturbed_output), ""


def merged_limit(subject: Subject) -> float:
    """The largest relative error for the network's own precision."""
    types = {each.dtype for each in floats(subject.base_output)}
    return max(MERGED_LIMITS.get(each, _HALF_LIMIT) for each in types)


def _frozen(subject: Subject) -> tuple[float, str]:
    model = subject.adapted().train()
    before = {name: tensor.detach().clone() for name, tensor in own_tensors(model).items()}
    train_steps(subject, model)
    after = own_tensors(model)
    changed = [
        name for name, tensor in before.items() if name not in after or values_that_differ([after[name]], [tensor])
    ]
    changed += [name for name in after if name not in before]
    return len(changed), f"changed: {listed(changed)}" if changed else ""


def train_steps(subject: Subject, model: nn.Module) -> None:
    """A few optimiser steps with every hook, as a training loop takes them.

    Raises:
        NotApplicableError: If nothing is trained.
    """
    groups = param_groups(model, weight_decay=0.1)
    if not groups:
        raise NotApplicableError("nothing is trained")
    optimizer = torch.optim.AdamW(groups)
    plan_training(model, epochs=1, steps_per_epoch=_STEPS)
    torch.manual_seed(0)
    for _ in range(_STEPS):
        loss = projected(model(*(each.clone() for each in subject.inputs)), subject.generator())
        extra = penalty(model)
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        after_step(model, optimizer)
        optimizer.zero_grad()


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of the base, counters and unsaved buffers too."""
    return {
        f"{path}.{name}".lstrip("."): tensor
        for path, module in walk(model)
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def _saved(subject: Subject) -> tuple[float, str]:
    require_repeatable(subject)
    model, again = subject.perturbed(), copy.deepcopy(subject.base)
    active = subject.state.active
    with tempfile.TemporaryDirectory(prefix="convpeft-check-") as folder:
        for number, name in enumerate(active):
            load(again, save(model, Path(folder) / str(number), name=name), name=name)
    set_active(again, active)
    return values_that_differ(subject.run(again.eval()), subject.perturbed_output), ""


def _disabled(subject: Subject) -> tuple[float, str]:
    require_repeatable(subject)
    model = subject.perturbed()
    subject.run(model)  # what the network might keep of it must not stay
    with disabled(model):
        number = values_that_differ(subject.run(model), subject.base_output)
    if number:
        return number, "with the adapter disabled the output is not the base's"
    plain = detach(model).requires_grad_(False)  # as the base here
    number = values_that_differ(subject.run(plain), subject.base_output)
    if number:
        return number, "with the adapter detached the output is not the base's"
    left = sorted(plain.state_dict().keys() ^ subject.base.state_dict().keys())
    return len(left), f"left behind: {listed(left)}" if left else ""


REPEATABLE: Claim[Subject] = Claim(
    "same output twice",
    "values",
    "The network says the same twice in evaluation.",
    "Two equal calls in evaluation differ: something is random there, such as a dropout that is always on.",
    _same_twice,
)
PROMISES: tuple[Claim[Subject], ...] = (
    Claim(
        "identity in evaluation",
        "values",
        "A fresh adapter changes no bit of the output.",
        "A fresh adapter changes the output.",
        _identity,
    ),
    Claim(
        "identity in training",
        "values",
        "The same in training, against the base with its norms in evaluation.",
        "A fresh adapter changes the output in training.",
        _identity_in_training,
    ),
    Claim(
        "gradients",
        "relative",
        "Gradients agree with finite differences in float64, adapter and input.",
        "Gradients disagree with finite differences, although those of the base agree.",
        _gradients,
        GRADIENT_LIMIT,
    ),
    Claim(
        "merged equals adapted",
        "relative",
        "Merged weights give the adapter's output.",
        "Merged weights give another output than the adapter: some code reads the base's weights past it.",
        _merged,
        merged_limit,
    ),
    Claim(
        "base frozen",
        "tensors",
        "Training steps move no weight and no buffer of the base.",
        "Training steps move the base.",
        _frozen,
    ),
    Claim(
        "saved and loaded",
        "values",
        "A saved adapter on a fresh base gives the same bits.",
        "A saved and loaded adapter gives another output: the file lacks something that it uses.",
        _saved,
    ),
    Claim(
        "disabled and detached",
        "values",
        "Without the adapter the base is back, bit for bit.",
        "Without the adapter the output is not the base's.",
        _disabled,
    ),
)
