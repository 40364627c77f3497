"""Put adapters on a model, take them off, and say which are active."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from convpeft.adapters import Module, NormPolicy
from convpeft.blocks import find_blocks
from convpeft.errors import ModelError, OptionError, nearest
from convpeft.forwards import leave_alone, surround
from convpeft.heads import warn_of_other_count
from convpeft.injection import adapted_layers, is_torch_convolution, refuse_clash, restore, state_of, swap
from convpeft.norms import choose_policy, norms_with_statistics, verify_norms
from convpeft.planning import Part, RankPolicy, options_of, plan_parts, read_requests, start_part
from convpeft.sites import all_sites, refuse_layer, walk
from convpeft.slots import Attached, State, part_label, slots_of

Model = TypeVar("Model", bound=nn.Module)


def attach(
    model: Model,
    method: str,
    *,
    name: str = "default",
    num_classes: int | None = None,
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
    norm: NormPolicy | None = None,
    head: str = "auto",
    rank_policy: RankPolicy = "clamp",
    also_train: Sequence[str] | str = (),
    generator: torch.Generator | None = None,
    **options: Any,
) -> Model:
    """Put a method's adapters on a model, in place, and freeze everything else.

    A fresh adapter changes no output until it is trained, except for a new head. An error leaves the model as it was.

    Args:
        model: Any network of convolutions and linear layers.
        method: Name of a method, see `convpeft.list_methods()`; or of several, joined by `+`, in the order in which
            they act on a layer.
        name: What to call this adapter; any string that is not in use on the model.
        num_classes: Put a fresh classifier for so many classes on; the old one stays underneath. Default: keep the old.
        include: Paths, globs or kind words of the layers to adapt, see `convpeft.select`. Default: the method's own.
        exclude: The same, left out.
        norm: Norm policy `frozen`, `adapt` or `train`. Default: the method's own, mostly `frozen`.
        head: Path of the classifier, or `auto`.
        rank_policy: Where a layer cannot take the rank: `clamp` to what it takes, raise an `error`, or `skip` it. A
            layer that cannot take even rank 1 is skipped under `clamp` too.
        also_train: Layers trained whole and saved with the adapter.
        generator: Source of the random starting values. Default: torch's global one.
        **options: The method's options, checked against its signature; for several methods a mapping each, which may
            hold `include` and `exclude` too: `attach(model, "lora+bitfit", lora={"rank": 4, "include": ["conv"]})`.

    Returns:
        The same model.

    Raises:
        OptionError: For an unknown method, option, pattern or policy, a value out of range, or a name in use.
        ModelError: For a model on which an adapter would be silently wrong.

    >>> from torch import nn
    >>> net = attach(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2)), "lora", rank=2)
    >>> isinstance(net[0], nn.Conv2d)
    True
    """
    requests = read_requests(method, options, include, exclude)
    policy = choose_policy([request.form for request in requests], norm)
    state = state_of(model) or State()
    _check_request(state, name, num_classes, rank_policy)
    known = all_sites(model, head=head)
    if any("block" in request.form.kinds or "block" in request.patterns for request in requests):
        known += find_blocks(model)
    parts, skipped = plan_parts(
        model,
        known,
        requests,
        policy=policy,
        num_classes=num_classes,
        head=head,
        rank_policy=rank_policy,
        also_train=also_train,
    )
    for index, (_, _, part) in enumerate(parts):
        if isinstance(part, Module):
            start_part(part, model, parts[:index], generator)
    for path, _, part in parts:
        layer = model.get_submodule(path)
        device = next(layer.parameters(), torch.empty(0)).device
        part.to(device=device)
    settled = options_of(requests) | {"rank_policy": rank_policy}
    record = Attached(method, settled, policy, None, num_classes, requests[0].method.learning_rate)
    record.skipped = tuple(site.path for site in skipped)
    install(model, state, name, record, parts)
    if num_classes is not None:
        warn_of_other_count(model, num_classes)
    return model


def detach(model: Model, name: str | None = None) -> Model:
    """Take an adapter off again, or all of them; the base is what it was before.

    Args:
        model: A model with adapters.
        name: Which one. Default: all.

    Returns:
        The same model.

    Raises:
        OptionError: If no adapter of that name is attached.
    """
    state = require_state(model)
    names = list(state.names) if name is None else [known_name(state, name)]
    for each in names:
        remove(model, state, each)
    return model


def set_active(model: nn.Module, names: Sequence[str] | str) -> None:
    """Choose which adapters act, in the order in which they are composed; an empty list gives the base.

    Raises:
        OptionError: If a name is not attached or is given twice.
    """
    state = require_state(model)
    wanted = (names,) if isinstance(names, str) else tuple(names)
    for name in wanted:
        known_name(state, name)
    if len(set(wanted)) < len(wanted):
        raise OptionError(f"names={list(wanted)!r} holds a name twice. Give each adapter once.")
    state.active = wanted
    state.computing.look_again()


@contextlib.contextmanager
def disabled(model: nn.Module) -> Generator[None]:
    """Run the base inside this block, with its own head and classes; its norms stay frozen.

    The switch is on the model: other threads that use the same model see it too.
    """
    state = require_state(model)
    before, state.active = state.active, ()
    try:
        yield
    finally:
        state.active = before


@contextlib.contextmanager
def old_head(model: nn.Module) -> Generator[None]:
    """Inside this block the base's own classifier sits on the adapted features: what is left of the old task."""
    state = require_state(model)
    before, state.old_head = state.old_head, True
    try:
        yield
    finally:
        state.old_head = before


def install(model: nn.Module, state: State, name: str, record: Attached, parts: Sequence[Part]) -> None:
    """Put finished parts on a model under a name, make it active and the only one that trains."""
    norms = [path for path, _ in norms_with_statistics(model)]
    resting = [*norms, *(path for path, layer in walk(model) if is_torch_convolution(type(layer)))]
    for path in dict.fromkeys([*(path for path, _, _ in parts), *resting]):
        layer = model.get_submodule(path)
        refuse_layer(path, layer)
        refuse_clash(path, layer)
    if not state.names:
        state.trainable_before = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    for path, part_name, part in parts:
        layer = model.get_submodule(path)
        part.train(layer.training)
        if isinstance(part, Module):
            part.requires_grad_(True)
            part.forget_steps()
        swap(layer, state, path).put(name, part_label(part_name, part), part)
    for path in resting:
        swap(model.get_submodule(path), state, path)
    state.names[name] = record
    state.active = (*state.active, name)
    state.training = name
    state.layers = sum(1 for _ in adapted_layers(model))
    surround(model, state)


def remove(model: nn.Module, state: State, name: str) -> None:
    """Drop all parts of one adapter; after the last one every layer gets its own class back."""
    for _, layer in list(adapted_layers(model)):
        slots_of(layer).drop(name)
    del state.names[name]
    state.active = tuple(active for active in state.active if active != name)
    state.training = None if state.training == name else state.training
    state.computing.look_again()
    if state.names:
        return
    leave_alone(model)
    for _, layer in list(adapted_layers(model)):
        restore(layer)
    for parameter in state.trainable_before:
        parameter.requires_grad_(True)


def require_state(model: nn.Module) -> State:
    """The model's state.

    Raises:
        ModelError: If nothing is attached, or the model is only a part of what was attached to.
    """
    state = state_of(model)
    if state is None:
        raise ModelError("no adapter is attached to this model. Call convpeft.attach or convpeft.load first.")
    if sum(1 for _ in adapted_layers(model)) != state.layers:
        verify_norms(model)
        raise ModelError("this is a part of the model that was attached to. Call convpeft on the whole model.")
    return state


def known_name(state: State, name: str) -> str:
    """The name itself if it is attached.

    Raises:
        OptionError: If it is not.
    """
    if name not in state.names:
        raise OptionError(f"no adapter is called {name!r} on this model. {nearest(name, state.names)}")
    return name


def _check_request(state: State, name: str, num_classes: int | None, rank_policy: str) -> None:
    if name in state.names:
        raise OptionError(
            f"name={name!r} is in use on this model. Choose another, or convpeft.detach(model, {name!r})."
        )
    if num_classes is not None and (isinstance(num_classes, bool) or num_classes < 1):
        raise OptionError(f"num_classes={num_classes!r} is out of range, it must be at least 1.")
    if rank_policy not in ("clamp", "error", "skip"):
        raise OptionError(
            f"rank_policy={rank_policy!r} does not exist. {nearest(rank_policy, ('clamp', 'error', 'skip'))}"
        )
