"""What is attached to the layers of a model: the slots of one layer, and the state that all layers share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from torch import nn

from convpeft.adapters import Module, NormPolicy, Progress
from convpeft.errors import ModelError
from convpeft.kernels import Computing
from convpeft.sites import Site

SLOTS = "convpeft"  # name of the submodule that holds a layer's adapters
HEAD = "head"  # the part that replaces the classifier
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass
class Attached:
    """What is known of one attached adapter beyond its tensors."""

    method: str
    options: dict[str, Any]
    norm: NormPolicy
    classes: tuple[str, ...] | None = None
    num_classes: int | None = None
    learning_rate: float = 1e-3
    skipped: tuple[str, ...] = ()


@dataclass
class State:
    """Shared by all adapted layers of one model: which adapters exist and which are active, in order."""

    names: dict[str, Attached] = field(default_factory=dict[str, Attached])
    active: tuple[str, ...] = ()
    training: str | None = None  # the adapter attached last; no other's statistics move
    layers: int = 0  # adapted layers of the whole model
    old_head: bool = False  # leave fresh heads out: the base's classifier on the adapted features
    computing: Computing = field(default_factory=Computing)  # how layers are computed while they are trained
    plan: Progress | None = None  # the training that is going on, where the loop has told
    trainable_before: list[nn.Parameter] = field(default_factory=list[nn.Parameter])


class NormStatistics(nn.Module):
    """An adapter's own running statistics of one normalisation layer (policies `adapt` and `train`)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name in STATISTICS:
            value = getattr(layer, name, None)  # those of the adapters below, where there are any
            self.register_buffer(name, None if value is None else value.detach().clone())


class Slots(nn.Module):
    """All that is attached to one layer, keyed by adapter name and part; the parts of one name run in order."""

    convpeft_slots: ClassVar[bool] = True

    def __init__(self, state: State, path: str, site: Site | None) -> None:
        super().__init__()
        self.state, self.path, self.site = state, path, site
        # the norm behind a convolution, and the modules around one of the two alone; in a tuple they are no submodules
        self.norm: tuple[nn.Module, ...] | None = None

    def forward(self, *_: Any) -> Any:
        """Stop a module that runs all its children, whatever they are.

        Raises:
            ModelError: Always.
        """
        raise ModelError(
            "a module that runs all its children met its own adapters among them. Name the layers inside it instead."
        )

    def put(self, name: str, part: str, module: nn.Module) -> None:
        """Add one part of the adapter `name`."""
        self._modules[_key(name, part)] = module

    def drop(self, name: str) -> None:
        """Remove every part of the adapter `name`."""
        for key in [key for key in self._modules if key.startswith(_key(name, ""))]:
            del self._modules[key]

    def parts(self, name: str) -> Iterator[tuple[str, nn.Module]]:
        """Parts of the adapter `name` as (part, module)."""
        prefix = _key(name, "")
        for key, module in self._modules.items():
            if key.startswith(prefix) and module is not None:
                yield key.removeprefix(prefix), module

    def active(self, names: tuple[str, ...] | None = None) -> Iterator[nn.Module]:
        """Parts that act now (or those of `names`), in the order of composition."""
        for name in self.state.active if names is None else names:
            for part, module in self.parts(name):
                if names is not None or not (self.state.old_head and part == HEAD):
                    yield module

    def statistics(self) -> tuple[str, NormStatistics] | None:
        """The last active adapter with statistics of its own, and those."""
        found = None
        for name in self.state.active:
            for _, module in self.parts(name):
                if isinstance(module, NormStatistics):
                    found = (name, module)
        return found


def slots_of(layer: nn.Module) -> Slots:
    """The slots of an adapted layer."""
    return cast(Slots, layer._modules[SLOTS])


def _key(name: str, part: str) -> str:
    """Any adapter name as the beginning of a module name: dots are not allowed there, `:` ends the name."""
    safe = name.replace("%", "%25").replace(".", "%2E").replace(":", "%3A")
    return f"{safe}:{part}"


def part_label(part: str, module: Module | NormStatistics) -> str:
    """Part name under which a module is stored: the method, with the tensor for a loose parameter."""
    tensor = module.site.tensor if isinstance(module, Module) else "weight"
    return part if tensor in ("weight", "") else f"{part}@{tensor}"
