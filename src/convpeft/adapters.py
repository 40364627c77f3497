"""What a method is: a map of one layer's weight and bias (Adapter), or a path beside layers (Branch)."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import math
import pkgutil
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, Union, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from convpeft.errors import ModelError, OptionError, nearest
from convpeft.sites import Kind, Site

NormPolicy = Literal["frozen", "adapt", "train"]
Mergeable = Literal["always", "eval", "never"]
Hook = Literal["plan_training", "penalty", "after_step"]

_HOOKS: tuple[Hook, ...] = ("plan_training", "penalty", "after_step")

_REFUSED: Mapping[Kind, str] = {
    "conv": "it has no use for a convolution",
    "linear": "it has no use for a linear layer",
    "norm": "a norm's weight is no map from inputs to outputs",
    "parameter": "a loose parameter is no map from inputs to outputs",
    "block": "a block has no weight of its own",
}

METHODS: dict[str, type[Module]] = {}


@dataclass(frozen=True)
class Progress:
    """Where a training stands after an optimiser step.

    Attributes:
        step: Steps taken, this one included, from 1.
        steps_per_epoch: Steps of one epoch.
        epochs: Epochs planned.
    """

    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def total(self) -> int:
        """Steps planned."""
        return self.steps_per_epoch * self.epochs

    @property
    def ends_epoch(self) -> bool:
        """Whether this step was the last of its epoch."""
        return self.step % self.steps_per_epoch == 0


class Module(nn.Module):
    """What Adapter and Branch share: the declarations that the generic functions read.

    A subclass with `name="..."` is a method of that name; its keyword-only `__init__` arguments are its options.
    """

    method_name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    mergeable: ClassVar[Mergeable] = "always"
    additive: ClassVar[bool] = False  # the map adds something that does not depend on the weight
    after_head: ClassVar[bool] = False  # goes on top of a fresh head too
    maps_weight: ClassVar[bool] = True  # not the bias alone
    replaces: ClassVar[bool] = False  # the map ignores the weight it is given, so it comes first on its layer
    kinds: ClassVar[tuple[Kind, ...]] = ("conv", "linear")
    refused: ClassVar[Mapping[Kind, str]] = _REFUSED  # why the kinds that are not in `kinds` are refused
    default_sites: ClassVar[tuple[str, ...]] = ("conv", "linear")
    default_exclude: ClassVar[tuple[str, ...]] = ("head",)
    norm_policies: ClassVar[tuple[NormPolicy, ...]] = ("frozen", "adapt", "train")  # the first is the default
    learning_rate: ClassVar[float] = 1e-3
    hooks: frozenset[Hook] = frozenset()  # what a training loop has to call for this adapter to be right

    def __init_subclass__(cls, *, name: str | None = None, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if name is not None:
            cls.method_name = name
            METHODS[name] = cls

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        self.settled: dict[str, Any] = {}  # options of this site alone, see `settle`
        self._seen = 0  # sum of the parameters' version counters at the last look
        self._missed = 0  # steps since the hooks were last called
        self._penalised = False

    @property
    def runs_beside(self) -> bool:
        """Whether `beside` computes it now, rather than a map of weights."""
        return False

    def beside(self, given: Tensor, output: Tensor) -> Tensor:
        """What becomes of the layer's (or block's) output, from that and its input."""
        raise NotImplementedError

    @classmethod
    def form(cls, **options: Any) -> type[Module]:
        """The class for these options, where some of them are no map of weights (or no Branch)."""
        return cls

    @classmethod
    def settle(cls, options: dict[str, Any], sites: Sequence[Site], known: Sequence[Site]) -> list[dict[str, Any]]:
        """Options of each of `sites`, where they depend on the others or on the whole network's sites `known`."""
        return [options for _ in sites]

    @classmethod
    def largest_rank(cls, site: Site, **options: Any) -> int | None:
        """Largest rank at which the adapter is no larger than its layer; 0 if none, None without a rank."""
        return None

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Fill the parameters so that the map is the identity."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups: `params`, and where they differ from the rest `lr_scale` and `weight_decay`."""
        return [{"params": list(self.parameters(recurse=True))}]

    def penalty(self) -> Tensor | None:
        """Term that the method adds to the loss, if any."""
        return None

    @classmethod
    def after_step(
        cls, parts: Sequence[Any], progress: Progress | None, optimizer: torch.optim.Optimizer | None
    ) -> None:
        """Work after each optimiser step, on all adapters of the method at once, before gradients are cleared."""

    def watch_hooks(self) -> None:
        """Notice optimiser steps in a training loop that does not call the hooks this adapter needs.

        Raises:
            ModelError: At the second such step.
        """
        if not self.hooks:
            return
        version = sum(parameter._version for parameter in self.parameters() if parameter.requires_grad)
        self._missed += version > self._seen
        self._seen = version
        if self._missed > 1:
            needed = ", ".join(f"convpeft.{hook}" for hook in _HOOKS if hook in self.hooks)
            raise ModelError(
                f"method {self.method_name!r} needs {needed} and the training loop took steps without. "
                "Call convpeft.after_step(model, optimizer) after each optimizer.step()."
            )

    def acknowledge_step(self, progress: Progress | None) -> None:
        """Note that the loop called `after_step`.

        Raises:
            ModelError: If it left another hook out that this adapter needs.
        """
        if "plan_training" in self.hooks and progress is None:
            raise ModelError(
                f"method {self.method_name!r} follows the whole training's course. "
                "Call convpeft.plan_training(model, epochs=..., steps_per_epoch=...) before the first step."
            )
        if "penalty" in self.hooks and not self._penalised:
            raise ModelError(
                f"method {self.method_name!r} adds a term to the loss. Add convpeft.penalty(model) to it in each step."
            )
        self._penalised = False

    def forget_steps(self) -> None:
        """Count steps without hooks from here on."""
        self._missed = 0
        self._seen = sum(parameter._version for parameter in self.parameters() if parameter.requires_grad)

    def asked_for_penalty(self) -> Tensor | None:
        """The term for the loss, noting that it was asked for."""
        self._penalised = True
        return self.penalty()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Keep float32 when the model is cast to half precision: small updates would be rounded away."""

        def keep_wide(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            narrowed = changed.is_floating_point() and changed.dtype.itemsize < 4 <= tensor.dtype.itemsize
            return tensor.to(changed.device) if narrowed else changed

        return super()._apply(keep_wide, recurse)


class Adapter(Module):
    """Map `(weight, bias)` of one layer to new ones of the same shape and dtype; a bias may come into being.

    `forward(weight, bias) -> (weight, bias)` with the weight as `(out, in/groups, *kernel)`, in float32 or wider.
    An adapter knows nothing of names, files or merging; it is the identity after `start`.
    """


class Additive(Adapter):
    """Adapter that adds a delta which does not depend on the weight, if asked with a trained factor on it.

    The factor starts at one and the delta at zero; were both zero, no gradient would reach either.
    """

    additive: ClassVar[bool] = True

    def __init__(self, site: Site, *, learned_scale: bool = False) -> None:
        super().__init__(site)
        self.learned_scale = nn.Parameter(torch.ones(1)) if learned_scale else None

    def scaled(self, factor: Tensor) -> Tensor:
        """One factor of the delta, times the trained scale where there is one."""
        return factor if self.learned_scale is None else self.learned_scale * factor


class Branch(Module):
    """What is no map of one layer's weights: `forward(given, output) -> output` after the layer or block has run.

    `given` is the layer's input `(batch, in, *space)`, `output` its output `(batch, out, *space)`, in float32 or wider.
    """

    mergeable: ClassVar[Mergeable] = "never"

    @property
    def runs_beside(self) -> bool:
        """Always."""
        return True

    def beside(self, given: Tensor, output: Tensor) -> Tensor:
        """Run the branch."""
        return cast(Tensor, self(given, output))


@dataclass(frozen=True)
class Option:
    """One option of a method, as its signature and docstring state it."""

    name: str
    type: str
    default: Any
    description: str


@dataclass(frozen=True)
class MethodInfo:
    """The record of a method: everything `attach`, recipes, help and docs say about it."""

    name: str
    summary: str
    paper: str
    options: tuple[Option, ...]
    mergeable: Mergeable
    norm: NormPolicy
    norm_policies: tuple[NormPolicy, ...]
    default_sites: tuple[str, ...]
    learning_rate: float


def load_methods() -> Mapping[str, type[Module]]:
    """Import every file of `convpeft.methods` and every installed entry point; return the registry."""
    _import_methods()
    return METHODS


@functools.cache  # looking for files and entry points takes longer than attaching
def _import_methods() -> None:
    package = importlib.import_module("convpeft.methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    for entry in importlib.metadata.entry_points(group="convpeft.methods"):
        entry.load()


def list_methods() -> tuple[str, ...]:
    """Names of all methods, sorted.

    >>> "lora" in list_methods()
    True
    """
    return tuple(sorted(load_methods()))


def method_class(name: str) -> type[Module]:
    """The class registered under a name.

    Raises:
        OptionError: If there is no such method.
    """
    methods = load_methods()
    if name not in methods:
        raise OptionError(f"method={name!r} does not exist. {nearest(name, methods)}")
    return methods[name]


def method_info(name: str) -> MethodInfo:
    """Describe a method: options, mergeable, norm policy, paper.

    Raises:
        OptionError: If there is no such method.

    >>> [option.name for option in method_info("lora").options][:2]
    ['rank', 'alpha']
    """
    cls = method_class(name)
    text = inspect.getdoc(cls) or ""
    return MethodInfo(
        name=name,
        summary=text.split("\n", 1)[0],
        paper=cls.paper,
        options=tuple(
            Option(parameter.name, _type_name(_hints(cls)[parameter.name]), parameter.default, described)
            for parameter in _keyword_only(cls)
            for described in [_describe(text, parameter.name)]
        ),
        mergeable=cls.mergeable,
        norm=cls.norm_policies[0],
        norm_policies=cls.norm_policies,
        default_sites=cls.default_sites,
        learning_rate=cls.learning_rate,
    )


def complete_options(cls: type[Module], options: Mapping[str, Any], *, beside: Sequence[str] = ()) -> dict[str, Any]:
    """Check options against a method's signature and fill in the defaults; `beside` are other names to suggest.

    Raises:
        OptionError: For an unknown name or a value of another type, with the nearest name or the type expected.
    """
    hints = _hints(cls)
    known = {parameter.name: parameter.default for parameter in _keyword_only(cls)}
    for name, value in options.items():
        if name not in known:
            tail = nearest(name, [*known, *beside])
            raise OptionError(f"method {cls.method_name!r} has no option {name!r}. {tail}")
        if not _is_a(value, hints[name]):
            raise OptionError(
                f"method {cls.method_name!r}: {name}={value!r} is not {_type_name(hints[name])}. "
                f"Default: {known[name]!r}."
            )
    return known | dict(options)


def check_positive(method: str, **numbers: float) -> None:
    """Raise OptionError unless every number is finite and above 0."""
    for name, value in numbers.items():
        if not math.isfinite(value) or value <= 0:
            raise OptionError(f"method {method!r}: {name}={value!r} is out of range, it must be above 0.")


def _keyword_only(cls: type[Module]) -> list[inspect.Parameter]:
    parameters = inspect.signature(cls.__init__).parameters.values()
    return [parameter for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


def _hints(cls: type[Module]) -> dict[str, Any]:
    return get_type_hints(cls.__init__)


def _describe(docstring: str, name: str) -> str:
    """The description of one argument in a Google docstring, on one line."""
    lines = docstring.splitlines()
    for number, line in enumerate(lines):
        if line.strip().startswith(f"{name}: "):
            indent = len(line) - len(line.lstrip())
            words = [line.strip().removeprefix(f"{name}: ")]
            for following in lines[number + 1 :]:
                if len(following) - len(following.lstrip()) <= indent or not following.strip():
                    break
                words.append(following.strip())
            return " ".join(words)
    return ""


def _is_a(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is_a(value, part) for part in get_args(hint))
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _type_name(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(hint))
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(part) for part in get_args(hint))
    return "None" if hint is type(None) else str(getattr(hint, "__name__", hint))
