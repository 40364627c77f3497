"""From a method, or several, and their options to the parts that go on a model; nothing is attached here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from convpeft.adapters import Adapter, Branch, Module, NormPolicy, complete_options, method_class
from convpeft.canonical import to_canonical
from convpeft.composing import effective
from convpeft.errors import ModelError, OptionError
from convpeft.heads import FreshHead
from convpeft.injection import AdaptedLayer
from convpeft.methods.full import Full
from convpeft.norms import norms_with_statistics
from convpeft.selection import as_tuple, choose
from convpeft.sites import Site, find_head, walk
from convpeft.slots import HEAD, NormStatistics

RankPolicy = Literal["clamp", "error", "skip"]
Part = tuple[str, str, Module | NormStatistics]  # (path of the layer, part name, what sits there)
_PLACES = ("include", "exclude")
_KEYWORDS = ("num_classes", *_PLACES, "norm", "head", "rank_policy", "also_train", "name", "generator")


@dataclass(frozen=True)
class Request:
    """One method of an adapter: its options, complete, and where it goes."""

    method: type[Module]
    options: dict[str, Any]
    include: Sequence[str] | str | None
    exclude: Sequence[str] | str | None

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.method.method_name

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of `include`, none where the method's own sites are meant."""
        return as_tuple(self.include or ())

    @property
    def form(self) -> type[Module]:
        """The class that these options ask for."""
        return self.method.form(**self.options)


def read_requests(
    method: str,
    options: Mapping[str, Any],
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
) -> tuple[Request, ...]:
    """Check a method's options; a mix `first+second` takes a mapping of options for each of its methods.

    Such a mapping may have `include` and `exclude` of its own, which win over the common ones.

    Raises:
        OptionError: For an unknown method or option, or a method named twice.
    """
    names = method.split("+")
    if len(names) == 1:
        cls = method_class(method)
        return (Request(cls, complete_options(cls, options, beside=_KEYWORDS), include, exclude),)
    if len(set(names)) < len(names):
        raise OptionError(f"method={method!r} names a method twice. Name each once, or attach it under another name.")
    requests: list[Request] = []
    classes = {name: method_class(name) for name in names}
    for name, cls in classes.items():
        given: Any = options.get(name, {})
        if not isinstance(given, Mapping):
            raise OptionError(f"{name}={given!r}: expected the options of method {name!r}, for example {{'rank': 4}}.")
        own = dict(cast(Mapping[str, Any], given))
        places = {place: own.pop(place) for place in _PLACES if place in own}
        complete = complete_options(cls, own, beside=_PLACES)
        requests.append(Request(cls, complete, places.get("include", include), places.get("exclude", exclude)))
    for key in options:
        if key not in classes:
            raise OptionError(
                f"option {key!r} belongs to none of the mixed methods {method!r}. "
                f"Give options by method, for example {names[0]}={{{key!r}: ...}}."
            )
    return tuple(requests)


def options_of(requests: Sequence[Request]) -> dict[str, Any]:
    """The complete options as `read_requests` takes them."""
    if len(requests) == 1:
        return dict(requests[0].options)
    return {request.name: dict(request.options) for request in requests}


def plan_parts(
    model: nn.Module,
    known: Sequence[Site],
    requests: Sequence[Request],
    *,
    policy: NormPolicy,
    num_classes: int | None,
    head: str,
    rank_policy: RankPolicy,
    also_train: Sequence[str] | str,
) -> tuple[list[Part], tuple[Site, ...]]:
    """The parts of a new adapter, without their starting values, and the sites that the rank policy skips.

    Raises:
        OptionError: If a pattern names nothing or a layer the method refuses, or a rank is too large.
        ModelError: If a new head or a branch has no place.
    """
    whole = choose(known, also_train, None) if also_train else ()
    replaced = _site_of_new_head(known, model, head) if num_classes is not None else None
    taken = {(site.path, site.tensor) for site in (*whole, *([replaced] if replaced else ()))}
    parts: list[Part] = [(site.path, "full", Full(site)) for site in whole]
    if replaced is not None and num_classes is not None:
        parts.append((replaced.path, HEAD, FreshHead(replaced, num_classes=num_classes)))
    skipped: list[Site] = []
    own: list[Part] = []
    for request in requests:
        cls = request.form
        chosen = _choose_sites(cls, known, request)
        refitted = chosen if cls.after_head else ()
        chosen = tuple(site for site in chosen if (site.path, site.tensor) not in taken)
        chosen += tuple(
            dataclasses.replace(site, shape=(num_classes, *site.shape[1:]), bias=True)
            for site in refitted
            if site == replaced and num_classes is not None
        )
        if issubclass(cls, Branch):
            _refuse_bypassed(model, chosen)
        made, left_out = _make(cls, chosen, known, request.options, rank_policy)
        own += [(part.site.path, request.name, part) for part in made if _has_tensors(part)]
        skipped += left_out
    if not own and not parts:
        method = "+".join(request.name for request in requests)
        raise OptionError(
            f"method {method!r} finds no layer to adapt in this model{_quantised(model)}. "
            "Give num_classes=... for a new head, or other layers with include=[...]."
        )
    own.sort(key=lambda part: not (isinstance(part[2], Module) and part[2].replaces))  # keeps the order otherwise
    parts += own
    parts += _norm_parts(model, known, policy, taken | {(path, "weight") for path, _, _ in parts})
    return parts, tuple(skipped)


def _quantised(model: nn.Module) -> str:
    """Say which layer's weights are no floating-point numbers any more; nothing where there is none."""
    for path, module in walk(model):
        if ".quantized." in type(module).__module__ and callable(getattr(module, "weight", None)):
            return f": layer {path!r} ({type(module).__name__}) is quantised. Adapt the model before it is quantised"
    return ""


def trainable_on(known: Sequence[Site], method: str) -> int:
    """Parameters that a method trains on a network of these sites at default options, the old head kept.

    Raises:
        OptionError: If there is no such method.
    """
    (request,) = read_requests(method, {})
    cls = request.form
    with torch.device("meta"):
        made, _ = _make(cls, _choose_sites(cls, known, request), known, request.options, "clamp")
    taken = {part.site.path for part in made}
    norms = [site for site in known if site.kind == "norm" and site.path not in taken]
    own = sum(parameter.numel() for part in made for parameter in part.parameters())
    return own + (sum(2 * site.out_channels for site in norms) if cls.norm_policies[0] == "train" else 0)


def start_part(part: Module, model: nn.Module, before: Sequence[Part], generator: torch.Generator | None) -> None:
    """Give a new part its dtype, its starting values and its device, and check what it promises."""
    site = part.site
    layer = model.get_submodule(site.path)
    if site.kind == "block":
        reference = next(layer.parameters(), torch.empty(0))
        part.to(dtype=torch.promote_types(reference.dtype, torch.float32))
        part.start(torch.empty(0), None, generator)
        part.to(device=reference.device)
        return
    own = cast(torch.Tensor, layer._parameters[site.tensor])
    dtype = torch.promote_types(own.dtype, torch.float32)
    with torch.no_grad():  # on top of active adapters the start is what they make of the layer
        if isinstance(layer, AdaptedLayer):
            tensor, bias = effective(layer, site.tensor, settled=True)
        else:
            tensor, bias = own, layer._parameters.get("bias") if site.tensor == "weight" else None
        weight = to_canonical(tensor, site).to("cpu", dtype)
        bias = None if bias is None else bias.to("cpu", dtype)
        part.to(dtype=dtype)
        for path, _, other in before:  # parts of the same adapter that come first on this layer
            if path == site.path and isinstance(other, Adapter) and other.site.tensor == site.tensor:
                weight, bias = other.to("cpu")(weight, bias)
    part.start(weight.detach(), None if bias is None else bias.detach(), generator)
    if isinstance(part, Adapter):
        with torch.no_grad():
            shape = part(weight, bias)[0].shape
        if shape != weight.shape and not isinstance(part, FreshHead):
            raise ModelError(
                f"method {part.method_name!r} maps {site.describe()} to a weight of shape {tuple(shape)}. "
                "An Adapter keeps the shape; a method that cannot is a Branch."
            )


def _choose_sites(cls: type[Module], known: Sequence[Site], request: Request) -> tuple[Site, ...]:
    if request.include is None:
        default = cls.default_sites
        if default == ("block",) and not any(site.kind == "block" for site in known):
            default = ("spatial",)
        chosen = choose(known, default, request.exclude, without=cls.default_exclude, lenient=True)
    else:
        chosen = choose(known, request.include, request.exclude)
        _refuse_kinds(cls, known, request)
    fitting = [site for site in chosen if site.kind in cls.kinds]
    blocks = [f"{site.path}." for site in fitting if site.kind == "block"]
    return tuple(  # a block's path names its layers too, but a branch on the block stands for them
        site
        for site in fitting
        if site.path in request.patterns or not any(site.path.startswith(block) for block in blocks)
    )


def _refuse_kinds(cls: type[Module], known: Sequence[Site], request: Request) -> None:
    """Raise where a layer is named that the method cannot sit on; a pattern may catch such layers by the way."""
    for pattern in request.patterns:
        sites = [site for site in known if site.matches(pattern)]
        if any(site.kind in cls.kinds for site in sites) or not sites:
            continue
        site = sites[0]
        raise OptionError(
            f"{site.describe()}: method {request.name!r} cannot adapt it, because {cls.refused[site.kind]}. "
            f"It takes: {', '.join(cls.kinds)}."
        )


def _make(
    cls: type[Module],
    sites: Sequence[Site],
    known: Sequence[Site],
    options: dict[str, Any],
    rank_policy: RankPolicy,
) -> tuple[list[Module], list[Site]]:
    """Adapters of one method, and the sites that are too small for it."""
    made: list[Module] = []
    skipped: list[Site] = []
    for site, own in zip(sites, cls.settle(options, sites, known), strict=True):
        rank, largest = own.get("rank"), cls.largest_rank(site, **own)
        fits = rank is None or largest is None or rank <= largest
        if not fits and rank_policy == "error":
            raise OptionError(
                f"{site.describe()}: rank={rank} is too large, this layer takes at most {largest}. "
                f'Lower rank, use rank_policy="clamp" (the default), or exclude=["{site.path}"].'
            )
        if not fits and (rank_policy == "skip" or largest == 0):
            skipped.append(site)
            continue
        part = cls(site, **own)
        part.settled = {key: value for key, value in own.items() if options[key] != value}
        made.append(part)
    return made, skipped


def _site_of_new_head(known: Sequence[Site], model: nn.Module, head: str) -> Site:
    path = find_head(model, head)
    for site in known:
        if site.path == path and site.tensor == "weight":
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
