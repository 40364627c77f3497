"""What can be told of a network before it runs: which norm follows a convolution, and whether a layout can change."""

from __future__ import annotations

import copy
import inspect
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_leaves, tree_map

from convpeft.errors import one_line
from convpeft.folding import can_fold

# They ask how numbers lie in memory, or fail where channels are nearest.
_OF_STORAGE = frozenset(
    {"as_strided", "data_ptr", "is_contiguous", "numpy", "resize_", "set_", "storage", "stride", "untyped_storage"}
    | {"view", "view_as"}
)


@dataclass
class Graph:
    """What was found.

    Args:
        followers: Path of the norm that is all that reads a convolution's output, by the convolution's path.
        reasons: Why another convolution has none.
        stays: Why the layout of images cannot be changed; None where it can.
        pools: Whether there is any max-pooling of images.
    """

    followers: dict[str, str] = field(default_factory=dict[str, str])
    reasons: dict[str, str] = field(default_factory=dict[str, str])
    stays: str | None = None
    pools: bool = False


def read_graph(model: nn.Module) -> Graph:
    """Trace a model with fx, without running it and without leaving a mark on it."""
    try:
        copied = _copied(model)
        nodes = list(_trace(copied).nodes)
    except Exception as error:  # a forward is anybody's code, and tracing may fail in any way
        why = f"the network cannot be traced ({one_line(error, 120)})"
        convolutions = [path for path, layer in model.named_modules() if isinstance(layer, _ConvNd)]
        return Graph({}, dict.fromkeys(convolutions, why), why)
    modules = dict(model.named_modules(remove_duplicate=False))
    names = {id(layer): path for path, layer in model.named_modules()}  # one path for a layer with several
    runs = Counter(id(modules[str(node.target)]) for node in nodes if node.op == "call_module")
    graph = Graph(stays=_what_asks_for_storage(nodes), pools=any(_pools(node, modules) for node in nodes))
    kept = _kept_by_modules(copied)
    for node in nodes:
        layer = modules[str(node.target)] if node.op == "call_module" else None
        if not isinstance(layer, _ConvNd):
            continue
        found = _follower(node, modules)
        path = names[id(layer)]
        if isinstance(found, str):
            graph.reasons[path] = found
        elif node.name in kept:
            graph.reasons[path] = "the network keeps its output"
        elif runs[id(layer)] > 1 or runs[id(found)] > 1:
            graph.reasons[path] = "it or its norm runs more than once"
        else:
            graph.followers[path] = names[id(found)]
    return graph


def _follower(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | str:
    """The norm that alone reads the output of a convolution; else what does."""
    users = list(node.users)
    if len(users) != 1:
        return f"{len(users)} operations read its output" if users else "nothing reads its output"
    (user,) = users
    norm = modules[str(user.target)] if user.op == "call_module" else None
    if norm is None or not can_fold(norm) or user.args != (node,) or user.kwargs:
        what = type(norm).__name__.removeprefix("Adapted") if norm is not None else _name(user)
        return f"no norm with fixed statistics follows, but {what}"
    return norm


def _kept_by_modules(traced: nn.Module) -> set[str]:
    """Names of the nodes whose results the forward has put into attributes, for somebody to read."""
    values = [value for module in traced.modules() for value in module.__dict__.values()]
    return {leaf.node.name for leaf in tree_leaves(values) if isinstance(leaf, fx.Proxy)}


def _what_asks_for_storage(nodes: list[fx.Node]) -> str | None:
    for node in nodes:
        if node.op in ("call_method", "call_function") and _name(node) in _OF_STORAGE:
            return f"its forward calls {_name(node)}"
    return None


def _pools(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.MaxPool2d)
    return node.op == "call_function" and _name(node) in ("max_pool2d", "boolean_dispatch")


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _copied(model: nn.Module) -> nn.Module:
    """A model with modules and buffers of its own and the same parameters, so that tracing can change nothing."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, memo)


def _trace(model: nn.Module) -> fx.Graph:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(type(model).forward).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return fx.Tracer().trace(model, concrete_args=defaults)
    finally:
        random.setstate(state)


def made_contiguous(output: Any) -> Any:
    """A model's output in the layout that it has without a change of layout inside."""

    def turned(each: Any) -> Any:
        return each.contiguous() if isinstance(each, Tensor) and each.ndim == 4 else each

    return tree_map(turned, output)
