"""What one layer's adapter says, in no file's form: factors of a change of the weight, or the weight itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from convpeft.adapters import Module
from convpeft.attachment import known_name, require_state
from convpeft.canonical import to_canonical
from convpeft.errors import ModelError
from convpeft.injection import adapted_layers
from convpeft.low_rank import LowRank
from convpeft.norms import verify_norms
from convpeft.sites import Site
from convpeft.slots import HEAD, NormStatistics, slots_of


@dataclass(frozen=True)
class Update:
    """What an adapter does to one layer.

    Attributes:
        site: The layer.
        method: `lora`, `dora`, `loha`, `lokr` or `lora-c`; `full` for new tensors, `head` for those of new classes.
        tensors: Our tensors by their short names. DoRA's `gain` is relative to the length of the base's filters.
        scale: Factor on the product of the factors.
        options: Options of the method that are neither rank nor alpha.
    """

    site: Site
    method: str
    tensors: dict[str, Tensor]
    scale: float = 1.0
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def path(self) -> str:
        """Path of the layer."""
        return self.site.path

    @property
    def whole(self) -> bool:
        """Whether the tensors take the place of the layer's own."""
        return self.method in ("full", HEAD)


def updates_of(model: nn.Module, name: str, form: str) -> list[Update]:
    """What an attached adapter does, layer by layer.

    Raises:
        OptionError: If the name is not attached.
        ModelError: If other adapters are active, or a part has no form in such a file.
    """
    state = require_state(model)
    verify_norms(model)
    known_name(state, name)
    refuse_others([other for other in state.active if other != name])
    given = state.names[name].options
    return [
        _update(part, path, label, form, given.get(label, given))
        for path, layer in adapted_layers(model)
        for label, part in slots_of(layer).parts(name)
    ]


def refuse_others(active: list[str]) -> None:
    """Raise if adapters are active that no such file tells of.

    Raises:
        ModelError: If there are any.
    """
    if active:
        raise ModelError(
            f"adapter {active[0]!r} is active too, and a file of another package stands for one adapter on the base. "
            "Call convpeft.set_active(model, []) first."
        )


def own_weight(model: nn.Module, site: Site) -> Tensor:
    """The base's weight of a layer, `(out, in/groups, *kernel)`, without what is attached."""
    return to_canonical(cast(Tensor, model.get_submodule(site.path)._parameters["weight"]).detach(), site)


def filter_lengths(model: nn.Module, site: Site, form: str) -> Tensor:
    """Euclidean length of each of the base's filters (out), which DoRA divides by.

    Raises:
        ModelError: If one is zero: a gain cannot be told from it.
    """
    lengths = own_weight(model, site).flatten(1).norm(dim=1)
    if not bool((lengths > 0).all()):
        raise ModelError(
            f"{site.describe()}: a filter of zeros has no direction, so use_dora there has no form in both convpeft "
            f"and {form}. Leave the layer out."
        )
    return lengths


def _update(part: nn.Module, path: str, label: str, form: str, options: Mapping[str, Any]) -> Update:
    """One part as an update; a trained scale and a start that is subtracted go into the factors."""
    if isinstance(part, NormStatistics):
        raise ModelError(
            f"layer {path!r}: its own running statistics (norm='adapt' or 'train') have no place in a file of {form}. "
            "Train with norm='frozen', or use convpeft.save."
        )
    assert isinstance(part, Module)
    site, tensors = part.site, {key: value.detach() for key, value in part.state_dict().items()}
    if label in ("full", HEAD) and site.kind in ("conv", "linear"):
        return Update(site, label, tensors)
    learned = tensors.pop("learned_scale", torch.ones(1))
    scale = float(getattr(part, "scale", 1.0))
    if label == "dora":
        return Update(site, label, tensors, scale)
    if label == "lora":
        up, down = tensors["up"], tensors["down"]
        if "start_up" in tensors:
            up, down = torch.cat([up, -tensors["start_up"]], 1), torch.cat([down, tensors["start_down"]], 0)
        return Update(site, label, {"up": learned * up, "down": down}, scale)
    if label == "loha":
        return Update(site, label, tensors | {"up_second": learned * tensors["up_second"]}, scale)
    if label == "lokr":
        key = "first" if "first" in tensors else "up_first"
        factor = (dict(options) | part.settled).get("factor", -1)
        return Update(site, label, tensors | {key: learned * tensors[key]}, scale, {"factor": factor})
    if label == "lora-c" and tensors["up"].ndim == 2 and not getattr(part, "aligned", True):
        return Update(site, label, {"up": learned * tensors["up"], "down": tensors["down"]}, scale)
    if isinstance(part, LowRank) and (factors := part.factors()) is not None:
        return Update(site, "lora", {"up": factors[0].detach(), "down": factors[1].detach()})
    raise ModelError(
        f"{site.describe()}: method {label!r} has no form in a file of {form}. Merge it with convpeft.merge, "
        "or use convpeft.save."
    )
