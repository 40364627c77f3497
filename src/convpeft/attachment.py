"""Put adapters on a model, take them off, and say which are active."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, Literal, TypeVar, cast

import torch
from torch import nn

from convpeft.adapters import Adapter, Branch, Module, NormPolicy, complete_options, method_class
from convpeft.errors import ModelError, OptionError, nearest
from convpeft.heads import FreshHead
from convpeft.injection import (
    HEAD,
    AdaptedLayer,
    Attached,
    NormStatistics,
    State,
    adapted_layers,
    effective,
    part_label,
    refuse_clash,
    restore,
    slots_of,
    state_of,
    swap,
    to_canonical,
)
from convpeft.methods.full import Full
from convpeft.norms import choose_policy, norms_with_statistics, verify_norms
from convpeft.sites import Site, all_sites, choose, find_head, refuse_layer

RankPolicy = Literal["clamp", "error", "skip"]
Model = TypeVar("Model", bound=nn.Module)
_KEYWORDS = ("num_classes", "include", "exclude", "norm", "head", "rank_policy", "also_train", "name", "generator")
Part = tuple[str, str, Module | NormStatistics]  # (path of the layer, part name, what sits there)


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
        method: Name of a method, see `convpeft.list_methods()`.
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
        **options: The method's options, checked against its signature.

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
    cls = method_class(method)
    complete = complete_options(cls, options, beside=_KEYWORDS)
    policy = choose_policy(cls, norm)
    state = state_of(model) or State()
    _check_request(state, name, num_classes, rank_policy)

    known = all_sites(model, head=head)
    whole = choose(known, also_train, None) if also_train else ()
    replaced = _site_of_new_head(known, model, head) if num_classes is not None else None
    taken = {(site.path, site.tensor) for site in (*whole, *([replaced] if replaced else ()))}
    if include is None:
        chosen = choose(known, cls.default_sites, exclude, without=cls.default_exclude, lenient=True)
    else:
        chosen = choose(known, include, exclude)
    chosen = tuple(s for s in chosen if s.kind in cls.kinds and (s.path, s.tensor) not in taken)
    if issubclass(cls, Branch):
        _refuse_bypassed(model, chosen)

    chosen, skipped = _fit_rank(cls, chosen, complete, rank_policy)
    parts: list[Part] = [(site.path, method, cls(site, **complete)) for site in chosen]
    parts = [part for part in parts if _has_tensors(part[2])]
    parts += [(site.path, "full", Full(site)) for site in whole]
    if replaced is not None and num_classes is not None:
        parts.append((replaced.path, HEAD, FreshHead(replaced, num_classes=num_classes)))
    if not parts:
        raise OptionError(
            f"method {method!r} finds no layer to adapt in this model. "
            "Give num_classes=... for a new head, or other layers with include=[...]."
        )
    parts += _norm_parts(model, known, policy, taken | {(path, "weight") for path, _, _ in parts})
    for path, _, part in parts:
        if isinstance(part, Module):
            _start(part, model.get_submodule(path), generator)
    record = Attached(method, complete | {"rank_policy": rank_policy}, policy, None, num_classes, cls.learning_rate)
    record.skipped = tuple(site.path for site in skipped)
    install(model, state, name, record, parts)
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
    for path in dict.fromkeys([*(path for path, _, _ in parts), *norms]):
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
        swap(layer, state).put(name, part_label(part_name, part), part)
    for path in norms:
        swap(model.get_submodule(path), state)
    state.names[name] = record
    state.active = (*state.active, name)
    state.training = name
    state.layers = sum(1 for _ in adapted_layers(model))


def remove(model: nn.Module, state: State, name: str) -> None:
    """Drop all parts of one adapter; after the last one every layer gets its own class back."""
    for _, layer in list(adapted_layers(model)):
        slots_of(layer).drop(name)
    del state.names[name]
    state.active = tuple(active for active in state.active if active != name)
    state.training = None if state.training == name else state.training
    if state.names:
        return
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


def _site_of_new_head(known: Sequence[Site], model: nn.Module, head: str) -> Site:
    path = find_head(model, head)
    for site in known:
        if site.path == path:
            return site
    raise ModelError("no Linear or 1x1 convolution was found to be the classifier. Name it with head='path.of.layer'.")


def _refuse_bypassed(model: nn.Module, sites: Sequence[Site]) -> None:
    for site in sites:
        parent = model.get_submodule(site.path.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention):
            raise ModelError(
                f"{site.describe()}: MultiheadAttention reads its weight and never calls it, so a Branch there "
                f'would not run. Use exclude=["{site.path}"].'
            )


def _fit_rank(
    cls: type[Module], sites: Sequence[Site], options: dict[str, Any], policy: RankPolicy
) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """Split sites into those that are adapted and those that are skipped."""
    rank = options.get("rank")
    kept: list[Site] = []
    skipped: list[Site] = []
    for site in sites:
        largest = cls.largest_rank(site)
        if rank is None or largest is None or rank <= largest:
            kept.append(site)
        elif policy == "error":
            raise OptionError(
                f"{site.describe()}: rank={rank} is too large, this layer takes at most {largest}. "
                f'Lower rank, use rank_policy="clamp" (the default), or exclude=["{site.path}"].'
            )
        else:
            (skipped if policy == "skip" or largest == 0 else kept).append(site)
    return tuple(kept), tuple(skipped)


def _norm_parts(model: nn.Module, known: Sequence[Site], policy: NormPolicy, taken: set[tuple[str, str]]) -> list[Part]:
    """What the norm policy itself puts on normalisation layers."""
    if policy == "frozen":
        return []
    parts: list[Part] = []
    if policy == "train":
        norms = [site for site in known if site.kind == "norm" and (site.path, "weight") not in taken]
        parts += [(site.path, "full", Full(site)) for site in norms]
    return parts + [(path, "norm", NormStatistics(layer)) for path, layer in norms_with_statistics(model)]


def _has_tensors(part: nn.Module) -> bool:
    return bool(part.state_dict())


def _start(part: Module, layer: nn.Module, generator: torch.Generator | None) -> None:
    """Give a new part its dtype, its starting values and its device, and check what it promises."""
    own = cast(torch.Tensor, layer._parameters[part.site.tensor])
    dtype = torch.promote_types(own.dtype, torch.float32)
    with torch.no_grad():  # on top of active adapters the start is what they make of the layer
        if isinstance(layer, AdaptedLayer):
            tensor, bias = effective(layer, part.site.tensor)
        else:
            tensor, bias = own, layer._parameters.get("bias") if part.site.bias else None
    weight = to_canonical(tensor, part.site).to("cpu", dtype)
    bias = None if bias is None else bias.to("cpu", dtype)
    part.to(dtype=dtype)
    part.start(weight, bias, generator)
    if isinstance(part, Adapter):
        with torch.no_grad():
            shape = part(weight, bias)[0].shape
        if shape != weight.shape and not isinstance(part, FreshHead):
            raise ModelError(
                f"method {part.method_name!r} maps {part.site.describe()} to a weight of shape {tuple(shape)}. "
                "An Adapter keeps the shape; a method that cannot is a Branch."
            )
    part.to(device=own.device)
