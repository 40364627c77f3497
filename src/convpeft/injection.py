"""The class swap: a layer whose `weight` and `bias` are what its active adapters make of its own.

`layer.__class__` becomes a cached subclass of the layer's class with properties in place of its tensors. The layer's
own forward reads them, so stride, dilation, groups, padding and subclasses with their own forward are right by
construction; the base tensors stay where they were, under the same `state_dict` keys.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from convpeft.adapters import Adapter, Module
from convpeft.branching import run_beside
from convpeft.composing import acting, composed, effective, has_joint_bias
from convpeft.errors import ModelError
from convpeft.folding import Fold, expect, fold_of, is_done
from convpeft.frozen_norm import frozen_batch_norm, steps_behind
from convpeft.kernels import Pull, PullsBack, can_rebuild, find_cheaper, is_traced, run_frozen, run_rebuilt
from convpeft.sites import kind_of, site_of, walk
from convpeft.slots import SLOTS, STATISTICS, Slots, State, slots_of

_joint = threading.local()  # effective (weight, bias) of the layers whose forward is running in this thread


class AdaptedLayer(nn.Module):
    """Behaviour of every swapped class; always mixed in before the layer's own class."""

    _convpeft_base: type[nn.Module]
    _convpeft_tensors: tuple[str, ...]

    def _convpeft_run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer's own forward on the effective tensors, then the active branches."""
        if args and isinstance(args[0], torch.fx.Proxy) and has_joint_bias(self):
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
        convolves = is_torch_convolution(base)
        if len(args) == 1 and (convolves or base.forward is nn.Linear.forward):
            if self.training and torch.is_grad_enabled() and not is_traced(args[0]):
                return self._convpeft_trained(args[0], convolves=convolves)
            return self._convpeft_defined(args[0], *effective(self))
        if isinstance(self, _NormBase) and self.training and not _is_live(self):
            return self._convpeft_frozen(*args, **kwargs)
        return self._convpeft_inherited(*args, **kwargs)

    def _convpeft_defined(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Run a convolution or linear layer of PyTorch's own by its definition."""
        convolves = is_torch_convolution(self._convpeft_base)
        return cast(Any, self)._conv_forward(x, weight, bias) if convolves else F.linear(x, weight, bias)

    def _convpeft_trained(self, x: Tensor, *, convolves: bool) -> Tensor:
        """Run such a layer by the kernel that costs least, with the norm behind it where that is folded in."""
        slots, own = slots_of(self), cast(Tensor, self._parameters["weight"])
        computing = slots.state.computing
        asked = computing.forced.get(slots.path, computing.kernel)
        parts = [part for part in slots.active() if isinstance(part, Module)]
        alone = len(parts) == 1 and parts[0].site.tensor == "weight"
        product = find_cheaper(parts[0], x, own, asked=asked) if alone else None
        cheap = product is not None and product.kernel != "side"
        found = fold_of(self, x, cheap=cheap) if convolves else None
        fold = found if isinstance(found, Fold) else None
        if product is not None:
            kernel, bias = product.kernel, self._parameters.get("bias")
            of = (bias, None) if fold is None else (fold.of_bias(bias), fold.factor)
            output = product.run(x, own, *of)
        else:
            kernel, output = self._convpeft_mapped(x, fold, asked)
        norm = None if fold is None else slots_of(fold.norm).path
        computing.note(slots.path, kernel, norm=norm, why=found if isinstance(found, str) else None)
        if fold is not None:
            expect(fold, output)
        return output

    def _convpeft_mapped(self, x: Tensor, fold: Fold | None, asked: str) -> tuple[str, Tensor]:
        """Run such a layer with the weight that its adapters map its own to, whatever the map."""
        parts, site = acting(self), slots_of(self).site

        def build() -> tuple[Tensor, Tensor | None]:  # also later, when other adapters may be active
            weight, bias = composed(self, parts)
            return (weight, bias) if fold is None else (fold.of_weight(weight), fold.of_bias(bias).to(weight.dtype))

        if site is not None and can_rebuild(site, parts, x, asked):
            every = [each for module in (*parts, self) for each in module.parameters() if each.requires_grad]
            trained = list(dict.fromkeys(every))
            return "rebuilt", run_rebuilt(site, x, build, trained, self._convpeft_pull(parts, fold, trained))
        weight, bias = build()
        output = None if site is None else run_frozen(site, x, weight, bias)
        return "weight", self._convpeft_defined(x, weight, bias) if output is None else output

    def _convpeft_pull(self, parts: list[Adapter], fold: Fold | None, trained: list[nn.Parameter]) -> Pull | None:
        """How the only adapter of this layer finds its gradients itself, if it does and nothing else is trained."""
        part = parts[0]
        own = cast(Tensor, self._parameters["weight"])
        if len(parts) > 1 or not isinstance(part, PullsBack) or [*map(id, trained)] != [*map(id, part.parameters())]:
            return None

        def pull(grad: Tensor) -> Sequence[Tensor]:
            wide = torch.promote_types(own.dtype, torch.float32)
            return part.pull_back(own.to(wide), (grad if fold is None else fold.of_weight(grad)).to(wide))

        return pull

    def _convpeft_frozen(self, *args: Any, **kwargs: Any) -> Any:
        """Normalise by running statistics, whatever the training flag says."""
        norm = cast(Any, self)
        if norm.running_mean is None:
            return self._convpeft_inherited(*args, **kwargs)
        behind = steps_behind(self._convpeft_base)
        if behind is not None:
            norm._check_input_dim(args[0])
            output = args[0]
            if not is_done(self, output):
                weight, bias = effective(self)
                output = frozen_batch_norm(output, norm.running_mean, norm.running_var, weight, bias, norm.eps)
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
        if not has_joint_bias(self) or torch.compiler.is_compiling():
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


def swap(layer: nn.Module, state: State, path: str) -> Slots:
    """Turn a layer into its adapted class in place; a layer that is adapted already is left as it is."""
    if not isinstance(layer, AdaptedLayer):
        tensors = [name for name, value in layer._parameters.items() if value is not None]
        if isinstance(layer, _ConvNd | nn.Linear | _NormBase | nn.GroupNorm | nn.LayerNorm):
            tensors += [name for name in ("weight", "bias") if name not in tensors]
        if isinstance(layer, _NormBase):
            tensors += STATISTICS
        slots = Slots(state, path, site_of(layer, path) if kind_of(layer) in ("conv", "linear") else None)
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


def _is_live(layer: nn.Module) -> bool:
    """Whether the statistics in force are those of the adapter that is being trained."""
    slots = slots_of(layer)
    found = slots.statistics()
    return found is not None and found[0] == slots.state.training


def is_torch_convolution(base: type[nn.Module]) -> bool:
    """Whether a class of layers convolves as PyTorch's own do."""
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
            if name in ("weight", "bias") and has_joint_bias(layer):
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
