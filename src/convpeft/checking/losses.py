"""Silent losses: weights that are read or written past the adapter, norms that are live again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from convpeft.adapters import Branch, Module
from convpeft.checking.promises import own_tensors
from convpeft.checking.report import Claim, NotApplicableError, listed
from convpeft.checking.subject import Subject, projected, values_that_differ
from convpeft.injection import AdaptedLayer, adapted_layers, state_of
from convpeft.norms import norms_with_statistics
from convpeft.sites import walk
from convpeft.slots import slots_of

_NOISE = 0.1  # of each base tensor's own size: gains of zero would hide what is behind them
_MOST = 16  # parts without a gradient that are tried one by one
_ALIKE = 0.999  # cosine from which two filters are the same up to a factor


@dataclass
class Reach:
    """Which adapters act on the output."""

    lost: list[str] = field(default_factory=list[str])  # a line each, with the reason
    idle: list[str] = field(default_factory=list[str])  # paths that have no part in the output


def _in_place(model: nn.Module) -> tuple[float, str]:
    state = state_of(model)
    found = list(adapted_layers(model))
    wrong: list[str] = []
    if state is not None and len(found) != state.layers:
        wrong.append(f"{len(found)} of {state.layers} adapted layers are left")
    for path, module in walk(model):
        if not isinstance(module, AdaptedLayer) and any(hasattr(each, "convpeft_slots") for each in module.children()):
            wrong.append(f"{path!r} was replaced by a plain {type(module).__name__}")
    for path, layer in found:
        if "forward" in layer.__dict__:
            wrong.append(f"{path!r} has a forward put on the instance, which runs past the adapter")
        for part in slots_of(layer).children():
            own = part.site.path if isinstance(part, Module) else path
            if path != own and not path.endswith(f".{own}"):
                wrong.append(f"{path!r} holds the adapter of {own!r}")
    return len(wrong), "; ".join(wrong[:3])


def _live_norms(model: nn.Module) -> tuple[float, str]:
    live = [path for path, layer in norms_with_statistics(model) if not isinstance(layer, AdaptedLayer)]
    text = f"replaced after attaching: {listed(live)}. Convert norms (SyncBatchNorm) before attaching"
    return len(live), text if live else ""


def _lost(subject: Subject) -> tuple[float, str]:
    lost = subject.once(_reach).lost
    return len(lost), "; ".join(lost[:3]) + (f"; and {len(lost) - 3} more" if len(lost) > 3 else "")


def _idle(subject: Subject) -> tuple[float, str]:
    idle = subject.once(_reach).idle
    return len(idle), f"trained for nothing on this input: {listed(idle)}" if idle else ""


def _reach(subject: Subject) -> Reach:
    """Follow gradients, once in evaluation and once in training, to see which adapters the output depends on."""
    model = subject.perturbed()
    _move_base(model, subject.generator())
    parts = {
        (path, part): [each for each in part.parameters() if each.is_floating_point()]
        for path, layer in adapted_layers(model)
        for part in slots_of(layer).active()
        if isinstance(part, Module)
    }
    base = {path: [p for p in layer._parameters.values() if p is not None] for path, layer in adapted_layers(model)}
    below = {path: base[path] or list(model.get_submodule(path).parameters()) for path, _ in parts}
    for tensor in [*model.parameters()]:
        tensor.requires_grad_(tensor.is_floating_point())
    reached: list[set[int]] = []  # tensors with a gradient: in evaluation, in training
    for training in (False, True):
        model.train(training)
        torch.manual_seed(0)
        value = projected(model(*(each.clone() for each in subject.inputs)), subject.generator())
        if not value.requires_grad:
            raise NotApplicableError("the output has no gradient")
        value.backward()
        reached.append({id(p) for p in model.parameters() if p.grad is not None and bool((p.grad != 0).any())})
        model.zero_grad(set_to_none=True)
    model.eval()
    found = Reach()
    # A live norm takes the mean of a batch out again, and with it what a bias adapter adds in training.
    frozen = all(record.norm == "frozen" for record in subject.state.names.values())
    silent: list[tuple[str, Module]] = []
    for (path, part), tensors in parts.items():
        acts = [any(id(each) in ids for each in tensors) for ids in reached]
        matters = [any(id(each) in ids for each in below[path]) for ids in reached]
        if not tensors or (part.hooks and any(acts)):  # masks of a method may rest a part for some steps
            continue
        reason = "the branch never runs" if isinstance(part, Branch) else "its base weight is read past the adapter"
        if matters[0] and not acts[0]:
            found.lost.append(f"{path!r}: {reason}")
        elif frozen and matters[1] and not acts[1]:
            found.lost.append(f"{path!r}: {reason} in training")
        elif not any(acts):
            silent.append((path, part))
    for number, (path, part) in enumerate(silent):
        if number < _MOST and _moves(subject, model, parts[path, part]):
            found.lost.append(f"{path!r} acts but gets no gradient (its weight is read as .data or without gradient)")
        elif number < _MOST and _moves(subject, model, below[path]):
            found.lost.append(f"{path!r}: its base weight is read past the adapter and without gradient")
        elif (twin := _copied_to(subject.base, path)) is not None:
            found.lost.append(f"{path!r}: its weight was copied to {twin!r}, which is used instead")
        else:
            found.idle.append(path)
    if parts and len(found.idle) == len(parts):
        return Reach(lost=[f"{path!r} has no part in the output" for path in found.idle])
    return found


def _moves(subject: Subject, model: nn.Module, tensors: Sequence[Tensor]) -> bool:
    """Whether the output in evaluation changes with these tensors, which are put back."""
    before, own = subject.run(model), [each.detach().clone() for each in tensors]
    generator = subject.generator()
    with torch.no_grad():
        for each in tensors:
            each.add_(torch.randn(each.shape, generator=generator).to(each), alpha=_NOISE)
        moved = values_that_differ(subject.run(model), before) > 0
        for each, start in zip(tensors, own, strict=True):
            each.copy_(start)
    return moved


def _move_base(model: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for _, module in walk(model):
            for tensor in module._parameters.values():
                if tensor is not None and tensor.is_floating_point():
                    size = float(tensor.double().pow(2).mean().sqrt()) or 1.0
                    tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor), alpha=_NOISE * size)


def _copied_to(model: nn.Module, path: str) -> str | None:
    """Where else the model holds the layer's filters, each up to a factor, as fused layers do."""
    weight = model.get_submodule(path)._parameters.get("weight")
    if weight is None or weight.ndim < 2:
        return None
    for name, other in _other_tensors(model, path):
        if other.shape == weight.shape and other.is_floating_point():
            ours, theirs = (each.detach().double().cpu().flatten(1) for each in (weight, other))
            if bool((torch.cosine_similarity(ours, theirs).abs() > _ALIKE).all()):
                return name
    return None


def _other_tensors(model: nn.Module, path: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of other modules, registered or not, also in lists and dictionaries."""
    for place, module in walk(model):
        if place == path:
            continue
        held = {**module._parameters, **module._buffers}
        held |= {name: value for name, value in module.__dict__.items() if not name.startswith("_parameters")}
        for name, value in held.items():
            where = f"{place}.{name}".lstrip(".")
            inside = cast(dict[Any, Any], value) if isinstance(value, dict) else {}
            listed_inside = cast(list[Any], value) if isinstance(value, list | tuple) else []
            for each in (value, *inside.values(), *listed_inside):
                if isinstance(each, Tensor):
                    yield where, each


def _written(subject: Subject) -> tuple[float, str]:
    model = copy.deepcopy(subject.base)
    _move_base(model, subject.generator())
    kept = {name for name, _ in model.named_parameters()}
    before = {name: tensor.detach().clone() for name, tensor in own_tensors(model).items() if name in kept}
    for training in (True, False):
        subject.run(model.train(training))
    after = own_tensors(model)
    written = [name for name in before if name not in after or values_that_differ([after[name]], [before[name]])]
    text = f"the network's own forward, train or eval writes {listed(written)}; with an adapter on, the writing is lost"
    return len(written), text if written else ""


STRUCTURE: tuple[Claim[nn.Module], ...] = (
    Claim(
        "adapters in place",
        "faults",
        "Every adapter sits on the layer it was made for.",
        "An adapter is not where it was attached.",
        _in_place,
    ),
    Claim(
        "norms guarded",
        "norms",
        "No frozen norm was replaced by a live one.",
        "A frozen norm was replaced by a live one.",
        _live_norms,
    ),
)
LOSSES: tuple[Claim[Subject], ...] = (
    Claim(
        "adapters reached",
        "adapters",
        "The output depends on every adapter whose layer matters.",
        "An adapter does not act.",
        _lost,
    ),
    Claim(
        "no weight written",
        "tensors",
        "Running the network writes none of its weights.",
        "Running the network writes its weights.",
        _written,
    ),
    Claim(
        "layers in use",
        "unused",
        "Every adapted layer has a part in the output.",
        "An adapted layer has no part in the output.",
        _idle,
        None,
    ),
)
