"""The weighted sum of what several adapters do to each layer, in factors where it can be, else as whole weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from convpeft.adapter_file import AdapterFile
from convpeft.adapters import Adapter, Module, method_class
from convpeft.canonical import to_canonical
from convpeft.errors import ConvpeftError, ModelError
from convpeft.heads import FreshHead
from convpeft.low_rank import LowRank
from convpeft.planning import Part, read_requests
from convpeft.sites import Site

Key = tuple[str, str]  # path of a layer and name of its tensor
Place = list[tuple[float, list[Adapter]]]  # what each adapter has at one key, with its coefficient
Both = tuple[Tensor, Tensor | None]  # weight and bias


@dataclass(frozen=True)
class Loaded:
    """An adapter file and its parts, without norm statistics."""

    file: AdapterFile
    parts: list[Part]


def parts_alone(file: AdapterFile) -> Loaded | None:
    """The parts of a file that are read without its base: low-rank updates and heads; None if there is anything else.

    Nothing of the size that a description claims is made before the tensors are seen to have it.
    """
    try:
        given = {key: value for key, value in file.config["options"].items() if key != "rank_policy"}
        requests = {request.name: request for request in read_requests(file.config["method"], given)}
        parts: list[Part] = []
        used: set[str] = set()
        for described in file.config["parts"]:
            path, label = described["path"], described["part"]
            if label == "norm":
                used |= {key for key in file.tensors if key.startswith(f"{path}:norm.")}
                continue
            shape = tuple(int(size) for size in described["shape"])
            kind = "linear" if len(shape) == 2 else "conv"
            site = Site(path, kind, shape, described["groups"], described["transposed"])
            with torch.device("meta"):
                if label == "head":
                    part: Module = FreshHead(site, num_classes=file.config["num_classes"])
                else:
                    request = requests[label]
                    part = request.form(site, **(request.options | described.get("options", {})))
            state = {key: file.tensors[f"{path}:{label}.{key}"] for key in part.state_dict()}
            fits = all(state[key].shape == own.shape for key, own in part.state_dict().items())
            if not fits or (label != "head" and not (isinstance(part, LowRank) and part.is_product)):
                return None
            part.load_state_dict(state, assign=True)
            if isinstance(part, LowRank) and part.eval().factors() is None:
                return None
            used |= {f"{path}:{label}.{key}" for key in state}
            parts.append((path, label, part))
    except (ConvpeftError, LookupError, ArithmeticError, TypeError, ValueError, RuntimeError):
        return None  # with the base the same is read again, and says what is wrong
    return Loaded(file, parts) if used == set(file.tensors) else None


def needs_base(loaded: Sequence[Loaded]) -> bool:
    """Whether some layer's sum is larger in factors than the layer."""
    return any(_by_whole_weight(place) for place in _places(loaded, [1.0] * len(loaded)).values())


def sum_parts(loaded: Sequence[Loaded], coefficients: Sequence[float], base: nn.Module | None) -> list[Part]:
    """The parts of the sum, in the order of the adapters' own.

    Raises:
        ModelError: If a part is no map of weights.
    """
    parts: list[Part] = []
    for (path, _), place in _places(loaded, coefficients).items():
        made = [part for _, own in place for part in own]
        if any(isinstance(part, FreshHead) for part in made):
            parts.append((path, "head", _head(place)))
        elif not _by_whole_weight(place):
            products = [(share, part) for share, own in place for part in own if isinstance(part, LowRank)]
            offsets = [(share, part) for share, own in place for part in own if not part.maps_weight]
            if products:
                parts.append((path, "lora", _factors(products)))
            if offsets:
                parts.append((path, "bitfit", _offset(offsets)))
        else:
            parts += _whole(path, place, cast(nn.Module, base))
    return parts


def _places(loaded: Sequence[Loaded], coefficients: Sequence[float]) -> dict[Key, Place]:
    """What each adapter has at each tensor that any of them changes."""
    found: dict[Key, Place] = {}
    for number, each in enumerate(loaded):
        for path, _, part in each.parts:
            part.eval()
            if not isinstance(part, Adapter) or part.runs_beside:
                name = part.method_name if isinstance(part, Module) else "norm"
                raise ModelError(
                    f"{each.file.path}: method {name!r} at {path!r} is no map of weights, so there is no sum of it. "
                    "Combine adapters of methods that merge."
                )
            place = found.setdefault((path, part.site.tensor), [])
            while len(place) <= number:
                place.append((coefficients[len(place)], []))
            place[number][1].append(part.double().requires_grad_(False))
    return found


def _by_whole_weight(place: Place) -> bool:
    """Whether the sum at one tensor is written as the whole tensor."""
    parts = [part for _, own in place for part in own]
    if any(isinstance(part, FreshHead) for part in parts):
        return False
    rank = 0
    for part in parts:
        product = part.factors() if isinstance(part, LowRank) and part.is_product else None
        if product is None and part.maps_weight:
            return True
        rank += 0 if product is None else product[0].shape[1]
    return rank > method_class("lora").largest_rank(parts[0].site) if rank else False  # type: ignore[operator]


def _factors(products: Sequence[tuple[float, LowRank]]) -> Module:
    """One low-rank update with the columns and rows of all."""
    both = [(share, cast(tuple[Tensor, Tensor], part.factors())) for share, part in products]
    up = torch.cat([share * up for share, (up, _) in both], 1)
    part = method_class("lora")(products[0][1].site, rank=up.shape[1])  # pyright: ignore[reportCallIssue]
    part.settled = {"rank": up.shape[1]}
    return _filled(part, up=up, down=torch.cat([down for _, (_, down) in both]))


def _offset(offsets: Sequence[tuple[float, Adapter]]) -> Module:
    """One offset of the bias."""
    site = offsets[0][1].site
    nothing = torch.zeros(site.shape[:1] if site.kind != "norm" else site.shape, dtype=torch.float64)
    total = sum((share * cast(Tensor, part(nothing, nothing)[1]) for share, part in offsets), nothing)
    return _filled(method_class("bitfit")(site, create=True), offset=total)  # pyright: ignore[reportCallIssue]


def _head(place: Place) -> Module:
    """The weighted head; whatever acts on top of an adapter's own head is in it."""
    first = next(part for _, own in place for part in own if isinstance(part, FreshHead))
    nothing = torch.zeros(first.site.shape, dtype=torch.float64)
    made = [(share, _mapped(own, nothing, None)) for share, own in place]
    weight = cast(Tensor, sum(share * weight for share, (weight, _) in made))
    bias = cast(Tensor, sum(share * cast(Tensor, bias) for share, (_, bias) in made))
    return _filled(FreshHead(first.site, num_classes=weight.shape[0]), weight=weight, bias=bias)


def _whole(path: str, place: Place, base: nn.Module) -> list[Part]:
    """The whole weight and bias of a layer, and where the layer has none an offset for the bias."""
    site = next(part for _, own in place for part in own).site
    layer = base.get_submodule(path)
    weight = to_canonical(cast(Tensor, layer._parameters[site.tensor]), site).detach().to("cpu", torch.float64)
    loose = site.kind == "parameter"
    held = None if loose else layer._parameters.get("bias")
    bias = None if held is None else held.detach().to("cpu", torch.float64)
    total, offset = weight.clone(), None if bias is None else bias.clone()
    for share, own in place:
        new_weight, new_bias = _mapped(own, weight, bias)
        total += share * (new_weight - weight)
        if new_bias is not None:
            added = share * (new_bias if bias is None else new_bias - bias)
            offset = added if offset is None else offset + added
    label = "full" if site.tensor == "weight" else f"full@{site.tensor}"
    full = method_class("full")(site)
    if bias is not None or offset is None:
        return [(path, label, _filled(full, weight=total, **({} if offset is None else {"bias": offset})))]
    created = method_class("bitfit")(site, create=True)  # pyright: ignore[reportCallIssue]
    return [(path, label, _filled(full, weight=total)), (path, "bitfit", _filled(created, offset=offset))]


def _mapped(parts: Sequence[Adapter], weight: Tensor, bias: Tensor | None) -> Both:
    for part in parts:
        weight, bias = part(weight, bias)
    return weight, bias


def _filled(part: Module, **tensors: Tensor) -> Module:
    """A part with these tensors, still in float64."""
    part.load_state_dict(tensors, strict=True, assign=True)
    return part
