"""Split a network in two where nothing before is trained: a prefix that can be computed once, and the rest.

Both halves are graphs over the very modules of the network, found by torch.fx in training mode, so that training the
rest trains the network. What is random, keeps statistics of batches, or depends on anything trained is in the rest.
"""

from __future__ import annotations

import copy
import dataclasses
import operator
import random
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.instancenorm import _InstanceNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils.flop_counter import FlopCounterMode

from convpeft.attachment import disabled
from convpeft.errors import one_line
from convpeft.injection import AdaptedLayer
from convpeft.sites import walk
from convpeft.slots import slots_of
from convpeft.training.checkpoints import adapter_tensors
from convpeft.training.objective import logits_of

_KEPT = 0.98  # share of the frozen work that a cut keeps; the smallest such cut is taken
_CLOSE = 1e-5  # relative to the largest number
_ALONE, _ALONE_HALF = 1e-3, 0.05  # the same between batches of different sizes, whose sums are ordered differently


class CannotSplit(Exception):  # noqa: N818 - never leaves the package
    """Why a network has no prefix that can be computed once, without a full stop."""


@dataclass(frozen=True)
class Feature:
    """One tensor at the cut: shape without the batch, type, and its axes in the order in which they lie in memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    order: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many numbers it has for one image."""
        return int(torch.Size(self.shape).numel())

    def to_rows(self, value: Tensor) -> Tensor:
        """Numbers of a batch (batch, numbers) as they lie in memory."""
        return value.permute(0, *(axis + 1 for axis in self.order)).reshape(len(value), -1)

    def from_rows(self, rows: Tensor) -> Tensor:
        """The batch in its own shape and layout again; shares the rows' memory."""
        inverse = sorted(range(len(self.order)), key=lambda axis: self.order[axis])
        value = rows.unflatten(1, [self.shape[axis] for axis in self.order]) if self.shape else rows.squeeze(1)
        return value.permute(0, *(axis + 1 for axis in inverse))


@dataclass(frozen=True)
class Halves:
    """A network cut in two.

    Attributes:
        prefix: Maps images to the tuple of features.
        rest: Maps those to what the network answers.
        features: What lies between them.
        place: The last module before the cut, for people.
        share: Multiplications before the cut, as a share of a forward pass.
        evaluates: Whether the halves are the network in evaluation mode too.
    """

    prefix: fx.GraphModule
    rest: fx.GraphModule
    features: tuple[Feature, ...]
    place: str
    share: float
    evaluates: bool

    @property
    def numbers(self) -> int:
        """Numbers at the cut for one image."""
        return sum(feature.numbers for feature in self.features)

    def pack(self, values: Sequence[Tensor]) -> Tensor:
        """Features of a batch as rows (batch, numbers)."""
        return torch.cat([f.to_rows(value) for f, value in zip(self.features, values, strict=True)], dim=1)

    def serve(self, rows: Tensor, *, shaped: bool = False) -> Tensor:
        """What stands for the images of a batch: its rows, or where asked the only feature in its own shape.

        What has the shape of images the model's hooks may turn into another layout; rows they leave alone.
        """
        return self._unpack(rows)[0] if shaped and len(self.features) == 1 else rows

    def run_rest(self, served: Tensor) -> Any:
        """What the network answers to a batch that is served."""
        shaped = served.ndim > 2 and len(self.features) == 1
        return self.rest.forward(*((served,) if shaped else self._unpack(served)))  # a call prints code at an error

    def _unpack(self, rows: Tensor) -> tuple[Tensor, ...]:
        parts = rows.split([feature.numbers for feature in self.features], dim=1)
        return tuple(f.from_rows(part).to(f.dtype) for f, part in zip(self.features, parts, strict=True))

    def to(self, device: torch.device) -> None:
        """Follow the network to its device."""
        self.prefix.to(device)
        self.rest.to(device)


@contextmanager
def running(model: nn.Module, forward: Callable[[Tensor], Any]) -> Generator[None]:
    """Have calls of the model run something else in place of its forward, between the same hooks.

    What the model's own hooks do to a batch, they do to images and to features: this is where a layout is chosen and
    where norms are allowed to fold.
    """
    before = model.__dict__.get("forward")
    model.__dict__["forward"] = forward
    try:
        yield
    finally:
        del model.__dict__["forward"]
        if before is not None:
            model.__dict__["forward"] = before


def share_before_training(model: nn.Module, image: Tensor) -> float:
    """Multiplications before the first module that is trained, as a share of a forward pass; nothing is traced.

    Args:
        model: A model with adapters; it is left as it was.
        image: One image or more (batch, channels, height, width).
    """
    reached: list[int] = []
    counter = FlopCounterMode(display=False)

    def note(*_: Any) -> None:
        reached.append(counter.get_total_flops())

    trained = [module for _, module in walk(model) if _trains(module, inside=False)]
    handles = [module.register_forward_pre_hook(note) for module in trained]
    try:
        with _in_mode(model, training=False), torch.no_grad(), disabled(model), counter:
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    total = counter.get_total_flops()
    return min(reached, default=0) / total if total else 0.0


def split_network(model: nn.Module, images: Tensor, *, half: torch.dtype | None = None) -> Halves:
    """Cut a network behind the last of what no training changes, and try on real images that the halves are it.

    Args:
        model: A model with adapters; it is left as it was.
        images: A batch (batch, channels, height, width), best of more than one image.
        half: Type of autocast; None for none.

    Returns:
        The halves.

    Raises:
        CannotSplit: Saying why.
    """
    before = {key: value.clone() for key, value in adapter_tensors(model).items()}
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.autocast("cpu", half, enabled=half is not None):
            with _in_mode(model, training=True):
                halves = _cut(model, _trace(model), images)
                _verify(model, halves, images)
            with _in_mode(model, training=False):
                return dataclasses.replace(halves, evaluates=_is_same(model, halves, images))
    finally:
        for key, value in adapter_tensors(model).items():
            if not torch.equal(value, before[key]):  # statistics of norms; a parameter written to would look trained
                value.copy_(before[key])


class _Tracer(fx.Tracer):
    """Goes into modules with children only: what a single layer does in Python stays as it is."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not m._modules


def _trace(model: nn.Module) -> fx.Graph:
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    state = random.getstate()
    try:  # tracing runs the network's own Python, which may keep what it meets: it meets a copy
        graph = _Tracer().trace(copy.deepcopy(model, memo))
        graph = fx.GraphModule(model, graph).graph
    except Exception as error:  # and it may fail in any way on what is no tensor
        raise CannotSplit(f"the network does not trace ({one_line(error, 120)})") from None
    finally:
        random.setstate(state)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if any(node.users for node in inputs[1:]):
        raise CannotSplit("the network takes more than images")
    return graph


@dataclass
class _Seen:
    """What running a node has shown. Its value is left out where it is no batch of numbers."""

    work: int
    feature: Feature | None
    random: bool


class _Trial(fx.Interpreter):
    """Runs a graph once and notes of each node its multiplications, its value and whether it drew random numbers."""

    def __init__(self, module: fx.GraphModule, images: Tensor) -> None:
        super().__init__(module)
        self.seen: dict[str, _Seen] = {}
        self._batch, self._counter = len(images), FlopCounterMode(display=False)
        with self._counter:
            self.run(images)

    def run_node(self, n: fx.Node) -> Any:
        work, state = self._counter.get_total_flops(), torch.get_rng_state()
        value = super().run_node(n)
        drew = not torch.equal(state, torch.get_rng_state())
        self.seen[n.name] = _Seen(self._counter.get_total_flops() - work, _feature_of(value, self._batch), drew)
        return value


def _feature_of(value: Any, batch: int) -> Feature | None:
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.ndim or len(value) != batch:
        return None
    axes = sorted(range(value.ndim - 1), key=lambda axis: -value.stride(axis + 1))  # stable: ties stay in order
    return Feature(tuple(value.shape[1:]), value.dtype, tuple(axes))


def _cut(model: nn.Module, graph: fx.Graph, images: Tensor) -> Halves:
    """Find the cut that keeps nearly all of the frozen work with the fewest numbers, the later of equal ones."""
    whole = fx.GraphModule(model, graph)
    try:
        seen = _Trial(whole, images).seen
        with disabled(model):  # effective weights are built once a batch: they are no work on an image
            cost = {name: each.work for name, each in _Trial(whole, images).seen.items()}
    except Exception as error:  # see _trace
        raise CannotSplit(f"the traced network does not run ({one_line(error, 120)})") from None
    frozen = _frozen_nodes(whole, seen)
    found: list[tuple[int, int, set[fx.Node], list[fx.Node]]] = []
    done: set[fx.Node] = {node for node in graph.nodes if node.op == "placeholder"}
    work = 0
    for node in frozen:
        done.add(node)
        work += cost[node.name]
        frontier = [each for each in graph.nodes if each in done and any(user not in done for user in each.users)]
        features = [seen[each.name].feature for each in frontier]
        if work and all(features):
            numbers = sum(cast(Feature, each).numbers for each in features)
            found.append((work, numbers, set(done), frontier))
    if not found:
        raise CannotSplit("the first layer is trained already, or what follows it needs more than numbers of an image")
    most = max(work for work, *_ in found)
    kept = [each for each in found if each[0] >= _KEPT * most]
    work, _, inside, frontier = min(reversed(kept), key=lambda each: each[1])
    features = tuple(cast(Feature, seen[each.name].feature) for each in frontier)
    prefix, rest = _halve(whole, inside, frontier)
    return Halves(prefix, rest, features, _place(frontier[-1]), work / sum(cost.values()), evaluates=False)


def _frozen_nodes(whole: fx.GraphModule, seen: dict[str, _Seen]) -> list[fx.Node]:
    """Nodes in order whose value is the same in every epoch; those of parameters alone go with their users."""
    changing: set[fx.Node] = set()
    frozen: list[fx.Node] = []
    for node in whole.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        trained = node.op == "call_module" and _trains(whole.get_submodule(str(node.target)), inside=True)
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(whole)
            trained = isinstance(value, Tensor) and value.requires_grad
        if trained or seen[node.name].random or any(each in changing for each in node.all_input_nodes):
            changing.add(node)
        elif node.op != "get_attr":
            frozen.append(node)
    return frozen


def _trains(module: nn.Module, *, inside: bool) -> bool:
    """Whether training changes what a module computes from its input, or mixes the images of a batch into it.

    Args:
        module: Any module.
        inside: Look at the modules in it too.
    """
    parts = [part for _, part in walk(module)] if inside else [module]
    for part in parts:
        if isinstance(part, AdaptedLayer):
            slots = slots_of(part)
            if any(True for _ in slots.parts(slots.state.training or "")):
                return True
        elif isinstance(part, _NormBase) and not isinstance(part, _InstanceNorm):
            return True  # frozen ones are adapted layers
        if any(parameter is not None and parameter.requires_grad for parameter in part._parameters.values()):
            return True
    return False


def _halve(whole: fx.GraphModule, inside: set[fx.Node], frontier: list[fx.Node]) -> tuple[fx.GraphModule, ...]:
    """Two graphs over the same modules; parameters that both use stand in both."""
    first, second = fx.Graph(), fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    taken: dict[fx.Node, fx.Node] = {}
    for node in frontier:
        taken[node] = second.placeholder(f"feature_{len(taken)}")
    for node in whole.graph.nodes:
        if node.op == "get_attr" or node in inside:
            copied[node] = first.node_copy(node, lambda each: copied[each])
        if node.op == "get_attr" or (node not in inside and node.op != "placeholder"):
            taken[node] = second.node_copy(node, lambda each: taken[each])
    first.output(tuple(copied[node] for node in frontier))
    for graph in (first, second):
        for node in reversed(list(graph.nodes)):
            if node.op == "get_attr" and not node.users:
                graph.erase_node(node)
    return fx.GraphModule(whole, first, "Prefix"), fx.GraphModule(whole, second, "Rest")


def _place(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    around = cast(dict[str, Any], node.meta.get("nn_module_stack", {}))
    return next((name for name in reversed(list(around)) if name), node.name)


def _verify(model: nn.Module, halves: Halves, images: Tensor) -> None:
    """Try the halves in training mode."""
    once = halves.pack(halves.prefix.forward(images))
    if not torch.equal(once, halves.pack(halves.prefix.forward(images))):
        raise CannotSplit("what comes before the first trained layer is not the same twice")
    close = _ALONE if all(each.dtype == torch.float32 for each in halves.features) else _ALONE_HALF
    if len(images) > 1 and not _is_close(halves.pack(halves.prefix.forward(images[:1])), once[:1], close):
        raise CannotSplit("the features of an image depend on the other images of the batch")
    if not _is_same(model, halves, images):
        raise CannotSplit("the two halves of the network do not add up to it")


def _is_same(model: nn.Module, halves: Halves, images: Tensor) -> bool:
    """Whether the halves answer as the network does, with the same masks and dropout."""
    answers: list[Tensor] = []
    served = halves.serve(halves.pack(halves.prefix.forward(images)))
    torch.manual_seed(0)
    answers.append(logits_of(model(images)))
    with running(model, halves.run_rest):
        torch.manual_seed(0)
        answers.append(logits_of(model(served)))
    return _is_close(answers[1], answers[0], _CLOSE)


def _is_close(one: Tensor, other: Tensor, share: float) -> bool:
    if one.shape != other.shape or not bool(torch.isfinite(other).all()):
        return False
    return bool((one - other).abs().max() <= share * other.abs().max())


@contextmanager
def _in_mode(model: nn.Module, *, training: bool) -> Generator[None]:
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, flag in modes.items():
            module.training = flag
