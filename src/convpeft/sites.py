"""Where an adapter can sit: the layers of a model, listed before anything changes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.lazy import LazyModuleMixin

from convpeft.errors import ModelError, OptionError, nearest

Kind = Literal["conv", "linear", "norm", "parameter", "block"]

NORM_CLASSES = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_STAGE = re.compile(r"(?:^|\.)(?:layers?|stages?|blocks?|features|denseblock|s)[._]?(\d+)(?=\.|$)")
KIND_WORDS = frozenset(
    [
        "conv",
        "linear",
        "norm",
        "parameter",
        "block",
        "depthwise",
        "grouped",
        "pointwise",
        "spatial",
        "transposed",
        "head",
    ]
)  # these name kinds, never paths
_WRAPPERS = frozenset(("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"))


@dataclass(frozen=True)
class Site:
    """One place for one adapter.

    `shape` is the weight's shape in the form every method sees, `(out, in/groups, *kernel)`, also for
    transposed convolutions; `(out, in)` for a linear layer; `(out, in, *ones)`, a one for each spatial axis, for a
    block; the parameter's own shape otherwise.

    Attributes:
        path: Dotted path of the module inside the model; empty for the model itself.
        kind: What the module is; `parameter` is one loose tensor of a module of any other class, `block` a module with
            several layers that maps one tensor to one.
        shape: See above.
        groups: Groups of a convolution, else 1.
        transposed: Whether the convolution is transposed.
        bias: Whether the layer has a bias.
        head: Whether this is the classifier.
        stage: Number of the stage that the path belongs to, where the path tells.
        last_stage: Whether that is the highest stage of the model.
        tensor: Name of the tensor, `weight` for every layer, empty for a block.
        stride: Step of a convolution, one number a spatial axis, like the three below; empty otherwise.
        padding: Padding, or "same" or "valid".
        dilation: Distance of the kernel's taps.
        output_padding: Extra size of a transposed convolution's output.
        padding_mode: What the padding holds: zeros, reflect, replicate or circular.
    """

    path: str
    kind: Kind
    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    bias: bool = False
    head: bool = False
    stage: int | None = None
    last_stage: bool = False
    tensor: str = "weight"
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    padding_mode: str = "zeros"

    @property
    def out_channels(self) -> int:
        """Number of output channels (first axis of `shape`)."""
        return self.shape[0]

    @property
    def fan_in(self) -> int:
        """Inputs of one output: in/groups times the kernel."""
        return math.prod(self.shape[1:])

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size, one number a spatial axis; empty for a linear layer, ones for a block."""
        return self.shape[2:]

    @property
    def tags(self) -> frozenset[str]:
        """Every kind word that `include` and `exclude` match on this site."""
        words = {self.kind}
        if self.kind == "conv":
            depthwise = self.shape[1] == 1 and self.groups > 1
            words |= {"depthwise"} if depthwise else set()
            words |= {"grouped"} if self.groups > 1 and not depthwise else set()
            words |= {"pointwise"} if math.prod(self.kernel) == 1 else {"spatial"}
            words |= {"transposed"} if self.transposed else set()
        if self.head:
            words.add("head")
        if self.stage is not None:
            words.add(f"stage:{self.stage}")
        if self.last_stage:
            words.add("stage:last")
        return frozenset(words)

    def matches(self, pattern: str) -> bool:
        """Whether a kind word, a path, a path's beginning or a glob names this site; kind words win over paths."""
        own = self.path if self.kind != "parameter" else f"{self.path}.{self.tensor}".lstrip(".")
        if pattern in KIND_WORDS or pattern.startswith("stage:"):
            return pattern in self.tags
        return own.startswith(f"{pattern}.") or fnmatchcase(own, pattern)

    def describe(self) -> str:
        """Name the site in an error message: `layer 'a.b' (depthwise, weight (32, 1, 3, 3))`."""
        special = [word for word in ("depthwise", "grouped", "transposed") if word in self.tags]
        if self.kind == "block":
            return f"block {self.path!r} ({self.shape[1]} to {self.shape[0]} channels)"
        return f"layer {self.path!r} ({', '.join([*special, self.kind])}, {self.tensor} {self.shape})"


def canonical_shape(layer: nn.Module) -> tuple[int, ...]:
    """Shape of a layer's weight as methods see it, `(out, in/groups, *kernel)`, active adapters included."""
    shape = tuple(cast(nn.Parameter, layer.weight).shape)
    if isinstance(layer, _ConvTransposeNd):
        return (layer.out_channels, layer.in_channels // layer.groups, *shape[2:])
    return shape


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module of the model with its path, each once, without what adapters added."""
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        inside = [(name, child) for name, child in module.named_children() if not hasattr(child, "convpeft_slots")]
        waiting += [(f"{path}.{name}" if path else name, child) for name, child in reversed(inside)]


def find_head(model: nn.Module, head: str = "auto") -> str | None:
    """Path of the classifier: the last Linear or 1x1 convolution, or what the model itself says.

    A 1x1 convolution that another layer follows, as in a backbone's last block or in an encoder, is no classifier.

    Args:
        model: Any classifier.
        head: `auto`, or the path of the layer.

    Returns:
        The path, or None when `auto` finds none.

    Raises:
        OptionError: If `head` names no Linear and no 1x1 convolution of the model.
    """
    layers = {path: module for path, module in walk(model) if _can_be_head(module)}
    if head != "auto":
        if head not in layers:
            tail = nearest(head, list(layers)[-8:])
            raise OptionError(f"head={head!r} is not a Linear or 1x1 convolution of this model. {tail}")
        return head
    get_classifier = getattr(model, "get_classifier", None)  # timm's own answer, where there is one
    if callable(get_classifier):
        said = get_classifier()
        if isinstance(said, nn.Identity):
            return None
        for path, module in layers.items():
            if module is said:
                return path
    path, last = next(reversed(layers.items()), (None, None))
    if (
        isinstance(last, _ConvNd)
        and [module for _, module in walk(model) if kind_of(module) != "parameter"][-1] is not last
    ):
        return None
    return path


def site_of(layer: nn.Module, path: str) -> Site:
    """The site of one layer, without what only the whole model tells."""
    kind = kind_of(layer)
    return Site(
        path,
        kind,
        canonical_shape(layer),
        groups=int(getattr(layer, "groups", 1)) if kind == "conv" else 1,
        transposed=isinstance(layer, _ConvTransposeNd),
        bias=layer._parameters.get("bias") is not None,
        **_geometry(layer),
    )


def all_sites(model: nn.Module, *, head: str = "auto") -> tuple[Site, ...]:
    """Every layer and loose parameter of the model in order; blocks are found by `find_blocks`."""
    refuse_unsupported(model)
    head_path = find_head(model, head)
    modules = list(walk(model))
    stages = {path: _stage(path) for path, _ in modules}
    last = max((stage for stage in stages.values() if stage is not None), default=None)
    sites: list[Site] = []
    for path, module in modules:
        kind = kind_of(module)
        common: dict[str, Any] = {
            "stage": stages[path],
            "last_stage": last is not None and stages[path] == last,
        }
        layer = kind != "parameter"
        if layer and module._parameters["weight"] is not None:
            sites.append(dataclasses.replace(site_of(module, path), head=path == head_path, **common))
        sites += [  # what else the module holds, such as the gain of a scaled weight-standardised convolution
            Site(path, "parameter", tuple(tensor.shape), tensor=name, **common)
            for name, tensor in module._parameters.items()
            if tensor is not None and not (layer and name in ("weight", "bias"))
        ]
    return tuple(sites)


def _geometry(module: nn.Module) -> dict[str, Any]:
    """How a convolution moves over its input."""
    if not isinstance(module, _ConvNd):
        return {}
    return {
        "stride": tuple(module.stride),
        "padding": module.padding if isinstance(module.padding, str) else tuple(module.padding),
        "dilation": tuple(module.dilation),
        "output_padding": tuple(module.output_padding),
        "padding_mode": module.padding_mode,
    }


def kind_of(module: nn.Module) -> Kind:
    """What a module is to an adapter; anything that is no known layer holds loose parameters."""
    if isinstance(module, _ConvNd):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    return "norm" if isinstance(module, NORM_CLASSES) else "parameter"


def refuse_unsupported(model: nn.Module) -> None:
    """Raise for models and layers on which an adapter would be silently wrong.

    Raises:
        ModelError: For a TorchScript model, a data-parallel wrapper, a model without memory (meta device), or a lazy,
            parametrized or weight-normed layer.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("the model is TorchScript, whose layers cannot be adapted. Attach before scripting it.")
    for path, module in walk(model):
        wrapper = _WRAPPERS.intersection(cls.__name__ for cls in type(module).__mro__)
        if wrapper:
            name = min(wrapper)
            raise ModelError(f"{path or 'the model'!r} is wrapped in {name}. Attach to the model first, then wrap it.")
        if isinstance(module, LazyModuleMixin) and cast(Any, module).has_uninitialized_params():
            raise ModelError(f"layer {path!r} is lazy and has no shape yet. Run one forward pass before attaching.")
        if any(tensor is not None and tensor.is_meta for tensor in module._parameters.values()):
            raise ModelError(f"layer {path!r} is on the meta device and has no weights. Load them before attaching.")
        if kind_of(module) != "parameter" and "weight" not in module._parameters:
            raise ModelError(
                f"layer {path!r} ({type(module).__name__}) computes its weight (parametrized, weight-normed, pruned). "
                "Remove that first, for example with torch.nn.utils.parametrize.remove_parametrizations."
            )


def refuse_layer(path: str, layer: nn.Module) -> None:
    """Raise for a layer whose class cannot be swapped.

    Raises:
        ModelError: For a container, whose children would include the adapters, and for a layer whose forward was
            replaced on the instance, which would run past the adapter.
    """
    if isinstance(layer, nn.Sequential | nn.ModuleList | nn.ModuleDict | nn.ParameterList | nn.ParameterDict):
        raise ModelError(f"{path!r} is a container that runs all its children. Name a layer inside it.")
    if "forward" in layer.__dict__:
        raise ModelError(
            f"layer {path!r} ({type(layer).__name__}) has a forward of its own put on the instance, which would run "
            "past the adapter. Remove that hook or patch before attaching."
        )


def _can_be_head(module: nn.Module) -> bool:
    if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd):
        return module.groups == 1 and math.prod(module.kernel_size) == 1
    return isinstance(module, nn.Linear)


def _stage(path: str) -> int | None:
    found = _STAGE.search(path)
    return int(found.group(1)) if found else None
