"""What is checked: copies of a network with and without adapters, an input, and how outputs are compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from convpeft.adapters import Module
from convpeft.attachment import detach, require_state
from convpeft.errors import ModelError, one_line
from convpeft.injection import adapted_layers
from convpeft.norms import norms_with_statistics
from convpeft.slots import State, slots_of
from convpeft.trials import try_inputs

Answer = TypeVar("Answer")

_SCALES = (0.1, 0.01, 1e-3, 1e-4)  # of the noise on adapters; smaller where the network would overflow
_GROWTH = 1e3  # how much larger than the base's an output with noise may be
_BATCH = 2


class Subject:
    """A network, its base and an input; every copy is made here, so that no check sees what another one did."""

    def __init__(self, adapted: nn.Module, inputs: tuple[Tensor, ...], *, fresh: bool, seed: int) -> None:
        self._adapted, self.inputs, self.fresh, self._seed = adapted.eval(), inputs, fresh, seed
        self._known: dict[Any, Any] = {}
        # A pattern: read, never changed. Frozen like the adapted one: torch picks some kernels by requires_grad.
        self.base = detach(copy.deepcopy(adapted)).eval().requires_grad_(False)

    @property
    def state(self) -> State:
        """What is attached."""
        return require_state(self._adapted)

    def adapted(self) -> nn.Module:
        """A copy as it was given, in evaluation."""
        return copy.deepcopy(self._adapted)

    def perturbed(self) -> nn.Module:
        """A copy whose every adapter tensor was moved, in evaluation."""
        model = self.adapted()
        perturb(model, self._scale, self.generator())
        return model

    def generator(self) -> torch.Generator:
        """The same numbers each time."""
        return torch.Generator().manual_seed(self._seed)

    def run(self, model: nn.Module, *, seeded: bool = True) -> list[Tensor]:
        """Outputs without gradient, for one random state."""
        if seeded:
            torch.manual_seed(self._seed)
        with torch.no_grad():
            return tensors_of(model(*(each.clone() for each in self.inputs)))

    def once(self, compute: Callable[[Subject], Answer]) -> Answer:
        """What `compute` finds out about this subject, worked out at the first call."""
        if compute not in self._known:
            self._known[compute] = compute(self)
        return cast(Answer, self._known[compute])

    @cached_property
    def base_output(self) -> list[Tensor]:
        """What the base says in evaluation."""
        return self.run(copy.deepcopy(self.base))

    @cached_property
    def perturbed_output(self) -> list[Tensor]:
        """What the perturbed adapter says in evaluation."""
        return self.run(self.perturbed())

    @cached_property
    def _scale(self) -> float:
        largest = max(float(each.abs().max()) for each in floats(self.base_output))
        for scale in _SCALES[:-1]:
            model = self.adapted()
            perturb(model, scale, self.generator())
            moved = floats(self.run(model))
            if all(torch.isfinite(each).all() and each.abs().max() <= _GROWTH * largest for each in moved):
                return scale
        return _SCALES[-1]


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        ModelError: If the model cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, AttributeError) as error:
        text = one_line(error, 200)
        raise ModelError(f"the model cannot be copied, and a check works on copies ({text}).") from None


def choose_inputs(base: nn.Module, example: Tensor | Sequence[Tensor] | None, generator: torch.Generator) -> Any:
    """The inputs that were given, or a random batch of a size that the base (a copy to use up) takes, as a tuple.

    Raises:
        ModelError: If the base runs on neither, or returns no tensor of floating-point numbers.
    """
    if example is not None:
        inputs = (example,) if isinstance(example, Tensor) else tuple(example)
        try:
            _try_run(base, *inputs)
        except RuntimeError as error:
            raise ModelError(f"the model does not run on the example ({error}). Give another example=...") from None
        return inputs

    def trial(blank: Tensor) -> Tensor:
        _try_run(base, blank)
        return blank

    blank = try_inputs(
        base,
        trial,
        batch=_BATCH,
        task="the model cannot be checked",
        remedy="Give an input: convpeft.check(model, example=...).",
    )
    return (torch.randn(blank.shape, generator=generator).to(blank),)


def _try_run(model: nn.Module, *inputs: Tensor) -> None:
    """Run a model, which may be changed by it, in evaluation and in training with its norms frozen.

    Raises:
        RuntimeError: Whatever the model raises, or if it returns nothing to compare.
    """
    for training in (False, True):
        model.train(training)
        for _, norm in norms_with_statistics(model):
            norm.eval()
        try:
            with torch.no_grad():
                output = tensors_of(model(*(each.clone() for each in inputs)))
        except Exception as error:  # a stranger's forward may raise anything
            raise RuntimeError(one_line(error, 200)) from error
        if not any(each.numel() for each in floats(output)):
            raise RuntimeError("it returns no tensor of floating-point numbers")


def perturb(model: nn.Module, scale: float, generator: torch.Generator) -> None:
    """Move every adapter tensor by noise of this standard deviation; variances stay positive."""
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            slots = slots_of(layer)
            for name, tensor in [*slots.named_parameters(), *slots.named_buffers()]:
                if not tensor.is_floating_point():
                    continue
                noise = scale * torch.randn(tensor.shape, generator=generator).to(tensor)
                tensor.copy_(tensor * noise.exp() if name.endswith("running_var") else tensor + noise)
            for part in slots.children():
                if isinstance(part, Module):
                    part.forget_steps()


def tensors_of(output: Any) -> list[Tensor]:
    """Every tensor in what a network returned, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [each for value in cast(Mapping[Any, Any], output).values() for each in tensors_of(value)]
    if isinstance(output, list | tuple):
        return [each for value in cast(Sequence[Any], output) for each in tensors_of(value)]
    return []


def floats(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Those of floating-point numbers."""
    return [each for each in tensors if each.is_floating_point()]


def values_that_differ(found: Sequence[Tensor], expected: Sequence[Tensor]) -> int:
    """How many numbers are not equal bit for bit; all of them where the shapes are not."""
    if [each.shape for each in found] != [each.shape for each in expected]:
        return sum(each.numel() for each in expected) or 1
    pairs = zip(found, expected, strict=True)
    return sum(int(((a != b) & ~(a.isnan() & b.isnan())).sum()) for a, b in pairs)


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """max|a - b| / max|b| of the worst output; infinite where the shapes differ."""
    if [each.shape for each in found] != [each.shape for each in expected]:
        return float("inf")
    errors = [
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-300))
        for a, b in zip(floats(found), floats(expected), strict=True)
        if b.numel()
    ]
    return max(errors, default=0.0)


def projected(output: Any, generator: torch.Generator) -> Tensor:
    """One number from all outputs: the sum of each times fixed noise."""
    parts = [
        (each * torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each)).sum()
        for each in floats(tensors_of(output))
    ]
    return torch.stack([part.double() for part in parts]).sum()
