"""From updates, layer by layer, to an adapter that is attached."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from convpeft.adapters import Adapter, Module, complete_options, method_class
from convpeft.attachment import install
from convpeft.errors import AdapterFileError, OptionError, one_line
from convpeft.heads import FreshHead
from convpeft.injection import state_of
from convpeft.interop.updates import Update, own_weight, refuse_others
from convpeft.planning import Part
from convpeft.sites import Site, all_sites
from convpeft.slots import HEAD, Attached, State

Model = TypeVar("Model", bound=nn.Module)


def sites_for(model: nn.Module, name: str) -> dict[str, Site]:
    """The layers that a file may name, by path.

    Raises:
        OptionError: If the adapter's name is in use.
        ModelError: If another adapter is active.
    """
    state = state_of(model) or State()
    if name in state.names:
        raise OptionError(f"name={name!r} is in use on this model. Give another name=... to read under.")
    refuse_others(list(state.active))
    return {site.path: site for site in all_sites(model) if site.kind in ("conv", "linear")}


def attach_updates(model: Model, name: str, updates: Sequence[Update], source: str) -> Model:
    """Put updates on a model as one adapter; an error leaves the model as it was.

    A layer whose factors hold more numbers than its weight, or are split in a way that ours are not, gets the weight
    itself: the outputs are the same.

    Raises:
        AdapterFileError: If there is none, or one does not fit its layer.
    """
    if not updates:
        raise AdapterFileError(f"{source}: holds no layer's adapter. Get the file again.")
    for update in updates:
        for key, value in update.tensors.items():
            if not bool(torch.isfinite(value).all()):
                raise AdapterFileError(
                    f"{source}: tensor {key!r} of layer {update.path!r} holds NaN or infinity. Train the adapter again."
                )
    parts: list[Part] = []
    common: dict[str, dict[str, Any]] = {}
    widened: list[str] = []
    classes: int | None = None
    for update in updates:
        try:
            _refuse_misfit(update)
            label, part = _part_of(model, update, common)
        except (RuntimeError, ValueError, OptionError) as error:
            raise AdapterFileError(f"{source}: {update.site.describe()} does not fit: {one_line(error)}") from None
        if label == "full" and update.method != "full":
            widened.append(update.path)
        if label == HEAD:
            classes = update.tensors["weight"].shape[0]
        parts.append((update.path, label, part.to(device=own_weight(model, update.site).device)))
    warn_layers(
        widened,
        "factors are larger than the layer, or split otherwise: its weight was taken whole, equal now",
        level=4,
    )
    methods = sorted(common) or ["full"]
    cls = method_class(methods[0])
    options: dict[str, Any] = dict(common)
    if len(methods) == 1:
        options = common.get(methods[0], complete_options(cls, {}))
    record = Attached("+".join(methods), options | {"rank_policy": "clamp"}, "frozen", None, classes, cls.learning_rate)
    install(model, state_of(model) or State(), name, record, parts)
    return model


def warn_layers(paths: Sequence[str], what: str, *, level: int = 3) -> None:
    """One line that names layers, if there are any; it points so many calls up."""
    if paths:
        listed = ", ".join(repr(path) for path in paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
        warnings.warn(f"{len(paths)} layers ({listed}): {what}.", stacklevel=level)


def _part_of(model: nn.Module, update: Update, common: dict[str, dict[str, Any]]) -> tuple[str, Module]:
    """The part of one update under its label: its method, `full` or `head`."""
    site, tensors = update.site, update.tensors
    if update.method == HEAD:
        head = FreshHead(site, num_classes=tensors["weight"].shape[0])
        bias = tensors.get("bias", torch.zeros(tensors["weight"].shape[0]))
        return HEAD, _filled(head, {"weight": tensors["weight"], "bias": bias})
    if update.method == "full":
        return "full", _filled(method_class("full")(site), tensors)
    cls = method_class(update.method)
    for trial in _trials(update):
        options = complete_options(cls, trial)
        part, given = cls(site, **options), dict(tensors)
        if update.method == "lokr":
            given = _lokr_tensors(part, given, update.scale)
        own = part.state_dict()
        if own.keys() != given.keys() or any(_differ(given[key], value) for key, value in own.items()):
            continue
        shared = common.setdefault(update.method, options)
        part.settled = {key: value for key, value in options.items() if shared[key] != value}
        return update.method, _filled(part, {key: given[key].reshape(own[key].shape) for key in own})
    return "full", _weight_itself(model, update)


def _refuse_misfit(update: Update) -> None:
    """Raise ValueError unless the factors make such a weight; before they are multiplied, since they may be bombs."""
    t, shape = update.tensors, (update.site.out_channels, update.site.fan_in)
    if update.whole or update.method == "lora-c":
        return
    made: list[tuple[int, int]] = []
    for word in ("", "_first", "_second"):
        if word[1:] in t:
            made.append((len(t[word[1:]]), t[word[1:]].shape[1]))
        elif f"up{word}" in t:
            up, down = t[f"up{word}"], t[f"down{word}"]
            if up.ndim != 2 or down.ndim != 2 or up.shape[1] != len(down) or not len(down):
                raise ValueError(f"factors {tuple(up.shape)} and {tuple(down.shape)} have no product")
            made.append((len(up), down.shape[1]))
    if update.method == "lokr":
        made = [(made[0][0] * made[1][0], made[0][1] * made[1][1])]
    if any(each != shape for each in made) or ("gain" in t and t["gain"].shape != shape[:1]):
        raise ValueError(f"its factors make {made[0]} numbers, expected {shape}")


def _trials(update: Update) -> list[dict[str, Any]]:
    """Options under which our method might have these very tensors."""
    tensors, site = update.tensors, update.site
    if update.method != "lokr":
        rank = tensors["down_first" if update.method == "loha" else "down"].shape[0]
        if update.method == "lora-c":
            rank //= max(site.kernel, default=1)
        return [update.options | {"rank": rank, "alpha": update.scale * rank}]
    first = tensors["first"].shape if "first" in tensors else (len(tensors["up_first"]), tensors["down_first"].shape[1])
    widths = {tensors[key].shape[1] for key in ("up_first", "up_second") if key in tensors}
    ranks = [*sorted(widths), max(site.shape[:2])]  # the last makes both factors whole
    splits = [update.options["factor"]] if "factor" in update.options else [-1, *sorted(set(first), reverse=True)]
    return [
        update.options | {"rank": rank, "alpha": update.scale * rank, "factor": factor}
        for rank in ranks
        for factor in splits
    ]


def _differ(given: Tensor, own: Tensor) -> bool:
    """Whether a tensor is another matrix, rather than another form of the same."""
    return given.shape[:1] != own.shape[:1] or given.numel() != own.numel()


def _lokr_tensors(part: Module, given: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The factors as this part has them: multiplied out where it has them whole."""
    own = part.state_dict()
    for factor in ("first", "second"):
        if factor in own and f"up_{factor}" in given:
            given[factor] = given.pop(f"up_{factor}") @ given.pop(f"down_{factor}").flatten(1)
    if "first" in own and "second" in own and "second" in given:  # then ours has the scale 1
        given["second"] = given["second"] * scale
    return given


def _weight_itself(model: nn.Module, update: Update) -> Module:
    """The weight that the update makes, to stand for it; an update of a part of the layer that has no rank limit."""
    site, own = update.site, own_weight(model, update.site)
    weight = applied(own, update)
    bias = model.get_submodule(site.path)._parameters.get("bias")
    whole = {"weight": weight} if bias is None else {"weight": weight, "bias": bias.detach()}
    return _filled(method_class("full")(site), whole)


def applied(weight: Tensor, update: Update) -> Tensor:
    """The weight `(out, in/groups, *kernel)` that an update of factors makes of the base's, in double precision.

    Raises:
        ValueError: If the factors do not make such a weight.
    """
    t = {key: value.double().to(weight.device) for key, value in update.tensors.items()}
    if update.method == "loha":
        delta = (t["up_first"] @ t["down_first"]) * (t["up_second"] @ t["down_second"])
    elif update.method == "lokr":
        first = t["first"] if "first" in t else t["up_first"] @ t["down_first"]
        second = t["second"] if "second" in t else t["up_second"] @ t["down_second"]
        kernel = weight.shape[2:]
        second = second.reshape(len(second), -1, *kernel)
        delta = torch.kron(first.reshape(*first.shape, *[1] * len(kernel)), second)
    else:
        delta = t["up"] @ t["down"]
    new = weight.double() + update.scale * delta.reshape(weight.shape)
    if "gain" in t:
        shape = (-1, *[1] * (weight.ndim - 1))
        before, after = weight.double().flatten(1).norm(dim=1), new.flatten(1).norm(dim=1)
        new = (t["gain"] * before / after).view(shape) * new
    return new.to(weight.dtype)


def _filled(part: Adapter | Module, tensors: dict[str, Tensor]) -> Any:
    """A part with these tensors, in float32 or wider."""
    wide = torch.float64 if any(value.dtype == torch.float64 for value in tensors.values()) else torch.float32
    part.to(dtype=wide).load_state_dict({key: value.to(wide) for key, value in tensors.items()}, strict=True)
    return part
