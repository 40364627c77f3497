"""What a step of training costs: operations and kept bytes, layer by layer, beside those of full fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

from convpeft.attachment import detach, require_state
from convpeft.errors import ModelError, one_line
from convpeft.injection import adapted_layers
from convpeft.sparing import in_training
from convpeft.speed import kernels_of


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs in training.

    Args:
        path: Its path.
        kernel: How it is computed.
        norm: Path of the frozen norm that is folded into it.
        unfolded: Why none is; None where one is, and where the layer is no convolution.
        multiplications: In its forward pass, those of its adapter included.
        kept: Bytes that it keeps for the backward pass; what it shares with another layer counts in both.
    """

    path: str
    kernel: str
    norm: str | None
    unfolded: str | None
    multiplications: int
    kept: int


@dataclass(frozen=True)
class StepCost:
    """What a forward and a backward pass cost: multiplications, kept bytes (each once), numbers that are trained."""

    forward: int
    backward: int
    kept: int
    trained: int

    @property
    def multiplications(self) -> int:
        """Of both passes."""
        return self.forward + self.backward


@dataclass(frozen=True)
class TrainingCost:
    """What training a model with its adapters costs.

    Args:
        layers: Convolutions and linear layers that carry an adapter or could, in the order in which they run.
        adapted: A step of the model as it is.
        full: A step of full fine-tuning, of the base in plain PyTorch.
        layout: How images lie in memory inside the network.
        stays: Why that cannot be changed; None where it can.
    """

    layers: tuple[LayerCost, ...]
    adapted: StepCost
    full: StepCost
    layout: str
    stays: str | None

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values, for a file."""
        return asdict(self)


def training_cost(model: nn.Module, images: Tensor) -> TrainingCost:
    """Run a step of training on a batch and count what it costs; the model is left as it was.

    Multiplications are those of convolutions, products of matrices and attention, by the formulas of PyTorch's counter.

    Args:
        model: A model with adapters.
        images: A batch (batch, channels, height, width), of any numbers.

    Raises:
        ModelError: If no adapter is attached, or the model cannot be trained on such a batch.
    """
    computing = require_state(model).computing
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    step, parts = _run(model, images, trained, dict(adapted_layers(model)))
    plan = kernels_of(model)
    layers = [
        LayerCost(
            path,
            plan.sites[path],
            plan.folded.get(path),
            plan.unfolded.get(path),
            part.operations // 2,
            sum(part.sizes.values()),
        )
        for path, part in parts.items()
        if path in plan.sites
    ]
    return TrainingCost(tuple(layers), step, _full(model, images), plan.layout, computing.stays)


@dataclass
class _Part:
    """What was counted while one layer ran: operations, and the size of each kept storage by its address."""

    operations: int = 0
    sizes: dict[int, int] = field(default_factory=dict[int, int])


def _full(model: nn.Module, images: Tensor) -> StepCost:
    """A step of the base, all of it trained."""
    base = detach(copy.deepcopy(model)).requires_grad_(True)
    return _run(base, images, list(base.parameters()), {})[0]


def _run(
    model: nn.Module, images: Tensor, trained: list[nn.Parameter], layers: Mapping[str, nn.Module]
) -> tuple[StepCost, dict[str, _Part]]:
    """Count a step, and what of it falls to each of some layers."""
    if not trained:
        raise ModelError("nothing of this model is trained, so there is no step to count. Attach an adapter.")
    forward, backward = _Operations(), _Operations()
    try:
        with in_training(model):
            keeping = _Keeping([*model.parameters(), *model.buffers()])
            with _noted(layers, forward, keeping) as parts, forward, keeping:
                loss = _loss(model(images))
            with backward:
                torch.autograd.grad(loss, trained, allow_unused=True)
    except (RuntimeError, ValueError) as error:
        shape = "x".join(map(str, images.shape))
        why = one_line(error, 160)
        raise ModelError(
            f"the model cannot be trained on images {shape} ({why}). Give another batch or size."
        ) from None
    numbers = sum(parameter.numel() for parameter in trained)
    return StepCost(forward.total // 2, backward.total // 2, sum(keeping.sizes.values()), numbers), parts


def _loss(output: Any) -> Tensor:
    """A number that every output has a part in."""
    from torch.utils._pytree import tree_leaves

    found = [each.float().square().mean() for each in tree_leaves(output) if isinstance(each, Tensor)]
    return torch.stack(found).sum()


class _Operations(TorchDispatchMode):
    """Counts multiplications and additions without the hooks of PyTorch's own counter, which would change what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See TorchDispatchMode."""
        output = func(*args, **(kwargs or {}))
        formula = flop_registry.get(_NAMES.get(func._overloadpacket, func._overloadpacket))
        if func is torch.ops.aten.convolution_backward.default:
            self.total += _of_convolution_backward(*args)
        elif formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=output)
        return output


# PyTorch's counter knows no operation in place.
_NAMES = {torch.ops.aten.addmm_: torch.ops.aten.addmm}


def _of_convolution_backward(*args: Any) -> int:
    """As much as the forward for each of input and weight; PyTorch's own formula overlooks groups."""
    grad, x, weight, transposed, wanted = *args[:3], args[7], args[10]
    return sum(wanted[:2]) * conv_flop_count(x.shape, weight.shape, grad.shape, transposed=transposed)


class _Keeping(saved_tensors_hooks):
    """Notes what autograd keeps, but for what is there anyway."""

    def __init__(self, own: Iterable[Tensor]) -> None:
        self.sizes: dict[int, int] = {}
        self.of_layer: dict[int, int] | None = None  # of the layer that is running
        self._own = {tensor.untyped_storage().data_ptr() for tensor in own}
        super().__init__(self._keep, lambda kept: kept)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            for sizes in (self.sizes, self.of_layer):
                if sizes is not None:
                    sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # keeps the storage, so that no other gets its address


@contextmanager
def _noted(layers: Mapping[str, nn.Module], operations: _Operations, keeping: _Keeping) -> Generator[dict[str, _Part]]:
    """Have layers note what is counted while they run. Hooks would be seen, and norms not folded."""
    parts: dict[str, _Part] = {}
    before = {path: layer.__dict__.get("forward") for path, layer in layers.items()}
    for path, layer in layers.items():
        layer.__dict__["forward"] = _Noted(layer, before[path], _Counter(path, parts, operations, keeping))
    try:
        yield parts
    finally:
        for path, layer in layers.items():
            del layer.__dict__["forward"]
            if before[path] is not None:
                layer.__dict__["forward"] = before[path]


@dataclass
class _Counter:
    path: str
    parts: dict[str, _Part]
    operations: _Operations
    keeping: _Keeping

    def __deepcopy__(self, memo: Any) -> _Counter:
        """Tracing copies the model; its copy counts nothing of its own."""
        return self

    @contextmanager
    def running(self) -> Generator[None]:
        part = self.parts.setdefault(self.path, _Part())
        before, outer = self.operations.total, self.keeping.of_layer
        self.keeping.of_layer = part.sizes
        try:
            yield
        finally:
            self.keeping.of_layer = outer
            part.operations += self.operations.total - before


class _Noted:
    """A layer's forward. An object and no closure, so that a copy of the model runs the copy of the layer."""

    def __init__(self, layer: nn.Module, own: Any, counter: _Counter) -> None:
        self.layer, self.own, self.counter = layer, own, counter

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.counter.running():
            if self.own is not None:
                return self.own(*args, **kwargs)
            return cast(Any, type(self.layer)).forward(self.layer, *args, **kwargs)
