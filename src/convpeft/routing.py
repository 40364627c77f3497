"""Which images of a batch take which adapter: layers that look it up while they run, each thread for itself.

A routed layer holds no adapter. Its class is swapped once; what it adds is found by the layer's path in the route that
the running thread follows. So nothing of the model changes when adapters come, go or act.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from convpeft.adapters import Adapter, Module
from convpeft.branching import run_beside
from convpeft.composing import composed, has_joint_bias
from convpeft.errors import ModelError
from convpeft.heads import FreshHead
from convpeft.sharing import Group, add_products, split_runs
from convpeft.sites import refuse_layer, walk
from convpeft.slots import STATISTICS, NormStatistics

Parts = Mapping[str, tuple[Module | NormStatistics, ...]]  # an adapter: its parts by the path of their layer, in order
_LEFT_ALONE = (  # containers, whose children are routed, and what has no class of its own to swap
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.ParameterList,
    nn.ParameterDict,
    torch.jit.ScriptModule,
)
_PLACE = "_convpeft_place"


@dataclass(frozen=True)
class Rows:
    """The images of one adapter in a sorted batch: from one row to the one before another."""

    adapter: Parts
    first: int
    end: int


@dataclass
class Route:
    """What one forward in one thread follows."""

    groups: tuple[Rows, ...]
    running: dict[int, Mapping[str, Tensor | None]] = field(default_factory=dict[int, Mapping[str, Tensor | None]])
    odd: frozenset[str] = frozenset()  # paths of layers whose rows are known to be no images
    seen: set[str] | None = None  # paths of those that are found to be; None: nobody asks

    @property
    def size(self) -> int:
        """Images in the batch."""
        return self.groups[-1].end


class Current(threading.local):
    """The route of the running thread."""

    route: Route | None = None


@contextlib.contextmanager
def follow(current: Current, route: Route) -> Generator[None]:
    """Have this thread follow a route inside the block."""
    before, current.route = current.route, route
    try:
        yield
    finally:
        current.route = before


def route_layers(model: nn.Module) -> Current:
    """Swap the class of every module that an adapter could sit on, in place.

    Returns:
        Where the layers look their route up.

    Raises:
        ModelError: For a layer whose forward was replaced on the instance, which would run past its adapters.
    """
    current = Current()
    for path, module in list(walk(model)):
        if isinstance(module, _LEFT_ALONE):
            continue
        refuse_layer(path, module)
        tensors = {name for name, value in module._parameters.items() if value is not None}
        if has_joint_bias(module):
            tensors |= {"weight", "bias"}
        tensors |= {name for name in STATISTICS if name in module._buffers}
        module.__dict__[_PLACE] = (path, current)
        cast(Any, module).__class__ = _routed_class(type(module), tuple(sorted(tensors)))
    return current


class RoutedLayer(nn.Module):
    """Behaviour of every swapped class; always mixed in before the module's own class."""

    _convpeft_base: type[nn.Module]

    def _convpeft_run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module for each group of images with what the group's adapter makes of it."""
        path, current = self.__dict__[_PLACE]
        route: Route | None = current.route
        run = self._convpeft_base.forward
        if route is None:
            return run(self, *args, **kwargs)
        if route.seen is not None and not (args and _has_rows(args[0], route.size)):
            route.seen.add(path)
        if not any(path in group.adapter for group in route.groups):
            return run(self, *args, **kwargs)
        if len(route.groups) == 1:
            return self._convpeft_alone(route.groups[0].adapter[path], route, args, kwargs)
        others = any(isinstance(each, Tensor) for each in (*args[1:], *kwargs.values()))
        if path in route.odd or not args or not _has_rows(args[0], route.size) or others:
            raise ModelError(
                f"layer {path!r} does not take one row an image, so images of different adapters cannot be told apart "
                "there. Run each adapter's images in a call of their own."
            )
        return self._convpeft_mixed(path, current, route, args, kwargs)

    def _convpeft_alone(
        self, parts: tuple[Module | NormStatistics, ...], route: Route, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run the module with one adapter for all images, by definition."""
        tensors = _replaced(self, parts)

        def run(*given: Any, **named: Any) -> Any:
            route.running[id(self)] = tensors
            try:
                return self._convpeft_base.forward(self, *given, **named)
            finally:
                del route.running[id(self)]

        modules = [part for part in parts if isinstance(part, Module)]
        if any(part.runs_beside for part in modules):
            return run_beside(run, self._convpeft_base.__name__, modules, args, kwargs)
        return run(*args, **kwargs)

    def _convpeft_mixed(
        self, path: str, current: Current, route: Route, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Run the module group by group; groups whose images can share the module's own work run it together."""
        x: Tensor = args[0]
        groups = [Group(row.first, row.end, row.adapter.get(path, ())) for row in route.groups]
        outputs: list[Any] = []
        for first, last, shared in split_runs(self, self._convpeft_base, groups, x):
            start, end = groups[first].first, groups[last].end
            rows = x if end - start == len(x) else x[start:end]
            if shared:
                route.running[id(self)] = {}  # its own tensors
                try:
                    output = self._convpeft_base.forward(self, rows, *args[1:], **kwargs)
                finally:
                    del route.running[id(self)]
                outputs.append(add_products(output, rows, groups[first : last + 1]))
                continue
            inner = Route((Rows(route.groups[first].adapter, 0, end - start),))
            with follow(current, inner):
                outputs.append(self._convpeft_run(rows, *args[1:], **kwargs))
        if not all(isinstance(output, Tensor) for output in outputs):
            raise ModelError(
                f"layer {path!r} does not return one tensor, so the images of a batch cannot be put together again. "
                "Run each adapter's images in a call of their own."
            )
        heads = [part for group in groups for part in group.parts if isinstance(part, FreshHead)]
        return torch.cat(_filled(outputs, 1 if heads[0].site.kind == "conv" else -1) if heads else outputs)


def _has_rows(x: object, size: int) -> bool:
    return isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == size


def _filled(outputs: list[Tensor], axis: int) -> list[Tensor]:
    """Outputs of heads with as many classes each: what a head lacks is -inf, which no softmax sees."""
    most = max(output.shape[axis] for output in outputs)
    lacking = [[*output.shape] for output in outputs]
    for shape in lacking:
        shape[axis] = most - shape[axis]
    return [
        torch.cat([output, output.new_full(shape, -torch.inf)], axis) if shape[axis] else output
        for output, shape in zip(outputs, lacking, strict=True)
    ]


def _replaced(layer: nn.Module, parts: tuple[Module | NormStatistics, ...]) -> dict[str, Tensor | None]:
    """The tensors of a module that an adapter's parts put in place of its own."""
    found: dict[str, Tensor | None] = {}
    adapters = [part for part in parts if isinstance(part, Adapter) and not part.runs_beside]
    for tensor in dict.fromkeys(part.site.tensor for part in adapters):
        acting = [part for part in adapters if part.site.tensor == tensor]
        found[tensor], bias = composed(layer, acting, tensor)
        if tensor == "weight" and has_joint_bias(layer):
            found["bias"] = bias
    for part in parts:
        if isinstance(part, NormStatistics):
            found |= part._buffers
    return found


def _property(name: str) -> property:
    """The property that stands for one tensor of a routed module."""

    def read(layer: RoutedLayer) -> Any:
        own = layer._parameters.get(name) if name not in layer._buffers else layer._buffers[name]
        path, current = layer.__dict__[_PLACE]
        route: Route | None = current.route
        if route is None:
            return own
        running = route.running.get(id(layer))
        if running is not None:
            return running.get(name, own)
        acting = [group.adapter[path] for group in route.groups if path in group.adapter]
        if not acting:
            return own
        if len(route.groups) == 1:
            return _replaced(layer, acting[0]).get(name, own)
        raise ModelError(
            f"another module reads the {name} of layer {path!r} past its forward, where images of different adapters "
            "cannot be told apart. Run each adapter's images in a call of their own."
        )

    return property(read)


@functools.cache
def _routed_class(base: type[nn.Module], tensors: tuple[str, ...]) -> type[nn.Module]:
    @functools.wraps(base.forward)
    def forward(self: RoutedLayer, *args: Any, **kwargs: Any) -> Any:
        return self._convpeft_run(*args, **kwargs)

    body: dict[str, Any] = {name: _property(name) for name in tensors}
    body |= {"forward": forward, "_convpeft_base": base, "__doc__": base.__doc__, "__module__": base.__module__}
    return cast(Callable[..., type[nn.Module]], type)(f"Routed{base.__name__}", (RoutedLayer, base), body)
