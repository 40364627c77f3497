"""The class swap: a layer whose `weight` and `bias` are what its active adapters make of its own.

`layer.__class__` becomes a cached subclass of the layer's class with properties in place of its tensors. The layer's
own forward reads them, so stride, dilation, groups, padding and subclasses with their own forward are right by
construction; the base tensors stay where they were, under the same `state_dict` keys.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from convpeft.adapters import Adapter, Module, NormPolicy, Progress
from convpeft.branching import run_beside
from convpeft.canonical import from_canonical, to_canonical
from convpeft.errors import ModelError
from convpeft.frozen_norm import frozen_batch_norm, steps_behind
from convpeft.kernels import run_cheaply
from convpeft.sites import kind_of, walk

SLOTS = "convpeft"  # name of the submodule that holds a layer's adapters
HEAD = "head"  # the part that replaces the classifier
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

_joint = threading.local()  # effective (weight, bias) of the layers whose forward is running in this thread


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
    kernel: str = "auto"  # how adapted layers are computed while they are trained
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

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state

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


class AdaptedLayer(nn.Module):
    """Behaviour of every swapped class; always mixed in before the layer's own class."""

    _convpeft_base: type[nn.Module]
    _convpeft_tensors: tuple[str, ...]

    def _convpeft_run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer's own forward on the effective tensors, then the active branches."""
        if args and isinstance(args[0], torch.fx.Proxy) and _has_joint_bias(self):
            raise ModelError(
                f"fx traces into an adapted {self._convpeft_base.__name__} and would bake its weights into the graph. "
                "Trace a module that contains it, or convpeft.merge first."
            )
        parts = [part for part in slots_of(self).active() if isinstance(part, Module)]
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            for part in parts:
                part.watch_hooks()
        if not any(part.runs_beside for part in parts):
            return self._convpeft_forward(*args, **kwargs)
        return run_beside(self._convpeft_forward, self._convpeft_base.__name__, parts, args, kwargs)

    def _convpeft_forward(self, *args: Any, **kwargs: Any) -> Any:
        base = self._convpeft_base
        convolves = _is_torch_convolution(base)
        if len(args) == 1 and (convolves or base.forward is nn.Linear.forward):
            output = self._convpeft_cheaply(args[0]) if self.training and torch.is_grad_enabled() else None
            if output is not None:
                return output
            weight, bias = effective(self)
            return (
                cast(Any, self)._conv_forward(args[0], weight, bias) if convolves else F.linear(args[0], weight, bias)
            )
        if isinstance(self, _NormBase) and self.training and not _is_live(self):
            return self._convpeft_frozen(*args, **kwargs)
        return self._convpeft_inherited(*args, **kwargs)

    def _convpeft_cheaply(self, x: Tensor) -> Tensor | None:
        """Run a cheaper kernel where one computes the same function."""
        slots = slots_of(self)
        parts = [part for part in slots.active() if isinstance(part, Module)]
        if len(parts) != 1 or parts[0].site.tensor != "weight":
            return None
        bias = self._parameters.get("bias")
        return run_cheaply(parts[0], x, cast(Tensor, self._parameters["weight"]), bias, asked=slots.state.kernel)

    def _convpeft_frozen(self, *args: Any, **kwargs: Any) -> Any:
        """Normalise by running statistics, whatever the training flag says."""
        norm = cast(Any, self)
        if norm.running_mean is None:
            return self._convpeft_inherited(*args, **kwargs)
        behind = steps_behind(self._convpeft_base)
        if behind is not None:
            norm._check_input_dim(args[0])
            weight, bias = effective(self)
            output = frozen_batch_norm(args[0], norm.running_mean, norm.running_var, weight, bias, norm.eps)
            for name in behind:
                output = getattr(norm, name)(output)
            return output
        self.training = False
        try:
            return self._convpeft_inherited(*args, **kwargs)
        finally:
            self.training = True

    def _convpeft_inherited(self, *args: Any, **kwargs: Any) -> Any:
        """Run the class's own forward; its reads of weight and bias share one computation."""
        run = self._convpeft_base.forward
        if not _has_joint_bias(self) or torch.compiler.is_compiling():
            return run(self, *args, **kwargs)
        running: dict[int, Any] = _joint.__dict__.setdefault("running", {})
        running[id(self)] = effective(self)
        try:
            return run(self, *args, **kwargs)
        finally:
            running.pop(id(self), None)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to write an effective tensor back as base, which would apply the adapter twice."""
        if name in self._convpeft_tensors and not isinstance(value, nn.Module):
            raise ModelError(
                f"{self._convpeft_base.__name__}.{name} is computed by an adapter and cannot be assigned. "
                "Call convpeft.merge or convpeft.detach first (conv-norm fusion and re-parameterisation need that)."
            )
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Refuse to replace an adapted tensor, see `__setattr__`."""
        if name in self._convpeft_tensors:
            self.__setattr__(name, param)
        super().register_parameter(name, param)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and deepcopy by the base class, which importable code defines."""
        reduced = cast(tuple[Any, ...], super().__reduce_ex__(2))
        return (_rebuild, (self._convpeft_base, self._convpeft_tensors), *reduced[2:])

    def _get_name(self) -> str:
        return f"Adapted{self._convpeft_base.__name__}"


def refuse_clash(path: str, layer: nn.Module) -> None:
    """Raise for a layer that has something else where the adapters go.

    Raises:
        ModelError: Naming the layer.
    """
    if not isinstance(layer, AdaptedLayer) and hasattr(layer, SLOTS):
        raise ModelError(f"layer {path!r} already has an attribute {SLOTS!r}. Rename it before attaching.")


def swap(layer: nn.Module, state: State) -> Slots:
    """Turn a layer into its adapted class in place; a layer that is adapted already is left as it is."""
    if not isinstance(layer, AdaptedLayer):
        tensors = [name for name, value in layer._parameters.items() if value is not None]
        if isinstance(layer, _ConvNd | nn.Linear | _NormBase | nn.GroupNorm | nn.LayerNorm):
            tensors += [name for name in ("weight", "bias") if name not in tensors]
        if isinstance(layer, _NormBase):
            tensors += STATISTICS
        slots = Slots(state)
        slots.training = layer.training
        layer._modules[SLOTS] = slots
        _set_class(layer, _adapted_class(type(layer), tuple(tensors)))
    return slots_of(layer)


def restore(layer: nn.Module) -> None:
    """Give a layer its own class back and drop everything attached to it."""
    if isinstance(layer, AdaptedLayer):
        del layer._modules[SLOTS]
        _set_class(layer, layer._convpeft_base)


def _set_class(layer: Any, cls: type[nn.Module]) -> None:
    layer.__class__ = cls


def slots_of(layer: nn.Module) -> Slots:
    """The slots of an adapted layer."""
    return cast(Slots, layer._modules[SLOTS])


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLayer]]:
    """Every adapted layer of the model with its path."""
    for path, module in walk(model):
        if isinstance(module, AdaptedLayer):
            yield path, module


def state_of(model: nn.Module) -> State | None:
    """The state shared by the model's adapted layers; None if nothing is attached.

    Raises:
        ModelError: If parts of the model were attached separately.
    """
    states = {id(slots_of(layer).state): slots_of(layer).state for _, layer in adapted_layers(model)}
    if len(states) > 1:
        raise ModelError("parts of this model were attached to separately. Call convpeft on each of those parts.")
    return next(iter(states.values()), None)


def effective(
    layer: nn.Module, tensor: str = "weight", names: tuple[str, ...] | None = None, *, settled: bool = False
) -> tuple[Tensor, Tensor | None]:
    """What the active adapters (or those of `names`) make of a layer's (weight, bias), in the layer's own dtype.

    An adapter that normalises by batches while it is trained is left out then, unless `settled` asks for its map.
    """
    weight = cast(Tensor, layer._parameters[tensor])
    bias = layer._parameters.get("bias") if tensor == "weight" and _has_joint_bias(layer) else None
    parts = [
        part
        for part in slots_of(layer).active(names)
        if isinstance(part, Adapter) and part.site.tensor == tensor and (settled or not part.runs_beside)
    ]
    if not parts:
        return weight, bias
    if torch.is_autocast_enabled(weight.device.type):  # W + delta rounded in half precision loses small updates
        with torch.autocast(weight.device.type, enabled=False):
            return _compose(parts, weight, bias)
    return _compose(parts, weight, bias)


def _compose(parts: list[Adapter], weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    site, dtype = parts[0].site, weight.dtype
    wide = torch.promote_types(dtype, torch.float32)
    new_weight = to_canonical(weight, site).to(wide)
    new_bias = None if bias is None else bias.to(wide)
    for part in parts:
        new_weight, new_bias = part(new_weight, new_bias)
    new_weight = from_canonical(new_weight, site).to(dtype)
    if site.transposed and weight.is_contiguous() and new_weight.stride() != weight.stride():
        # PyTorch chooses the layout of the output by the weight's strides, and later sums round by that layout
        new_weight = new_weight.clone(memory_format=torch.contiguous_format)
    return new_weight, None if new_bias is None else new_bias.to(dtype)


def _is_live(layer: nn.Module) -> bool:
    """Whether the statistics in force are those of the adapter that is being trained."""
    slots = slots_of(layer)
    found = slots.statistics()
    return found is not None and found[0] == slots.state.training


def _has_joint_bias(layer: nn.Module) -> bool:
    """Whether weight and bias belong together, as in every layer; the loose tensors of other modules do not."""
    return kind_of(layer) != "parameter"


def _is_torch_convolution(base: type[nn.Module]) -> bool:
    for torch_class in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if issubclass(base, torch_class):
            own = cast(Any, base)._conv_forward is torch_class._conv_forward  # pyright: ignore[reportPrivateUsage]
            return base.forward is torch_class.forward and own
    return False


def _property(name: str) -> property:
    """The property that stands for one tensor of an adapted layer."""

    def read(layer: AdaptedLayer) -> Any:
        if name in STATISTICS:
            own = slots_of(layer).statistics()
            return layer._buffers.get(name) if own is None else own[1]._buffers[name]
        try:
            joint = _joint.__dict__.get("running", {}).get(id(layer))
            if name in ("weight", "bias") and _has_joint_bias(layer):
                both = effective(layer) if joint is None else joint
                return both[0] if name == "weight" else both[1]
            return effective(layer, name)[0]
        except AttributeError as error:  # nn.Module would hide it behind "object has no attribute 'weight'"
            raise ModelError(f"computing the adapted {name} failed: {error}") from error

    def write(layer: AdaptedLayer, value: Any) -> None:
        layer.__setattr__(name, value)

    return property(read, write)


@functools.cache
def _adapted_class(base: type[nn.Module], tensors: tuple[str, ...]) -> type[nn.Module]:
    body: dict[str, Any] = {name: _property(name) for name in tensors}

    @functools.wraps(base.forward)  # fx, export and inspect see the layer's own arguments
    def forward(self: AdaptedLayer, *args: Any, **kwargs: Any) -> Any:
        return self._convpeft_run(*args, **kwargs)

    body["forward"] = forward
    body |= {"_convpeft_base": base, "_convpeft_tensors": tensors, "__doc__": base.__doc__}
    # fx runs modules of torch.nn as they are and would bake the weights of any other class into the graph.
    inside = base.__module__.startswith("torch.nn")
    body["__module__"] = base.__module__ if inside else f"torch.nn.convpeft.{base.__module__}"
    return cast(Callable[..., type[nn.Module]], type)(f"Adapted{base.__name__}", (AdaptedLayer, base), body)


def _rebuild(base: type[nn.Module], tensors: tuple[str, ...]) -> nn.Module:
    cls = _adapted_class(base, tensors)
    return cls.__new__(cls)


def _key(name: str, part: str) -> str:
    """Any adapter name as the beginning of a module name: dots are not allowed there, `:` ends the name."""
    safe = name.replace("%", "%25").replace(".", "%2E").replace(":", "%3A")
    return f"{safe}:{part}"


def part_label(part: str, module: Module | NormStatistics) -> str:
    """Part name under which a module is stored: the method, with the tensor for a loose parameter."""
    tensor = module.site.tensor if isinstance(module, Module) else "weight"
    return part if tensor in ("weight", "") else f"{part}@{tensor}"
