"""The eight measurements: on a whole network, and on a single layer."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from library import Adapted, Library, one_ulp, snapshot
from outcomes import ABSENT, REFUSED, RIGHT, WRONG, NotOfferedError, WrongError, compared, outcome_of, relative
from torch import Tensor, nn

from contract.networks import BATCH_NORMS, Geometry, Plan, perturb

RANKS = (1, 2, 4)  # the number of the network chooses; alpha is twice the rank
IMAGES = 8
EVERY = 3  # every third layer has its gradients checked
CLOSE = 1e-6


def rank_of(number: int) -> int:
    return RANKS[number % len(RANKS)]


class NetMeasures:
    """A whole network: adapted, trained for a step, merged, switched off, saved and loaded."""

    def __init__(self, library: Library, method: str, plan: Plan, number: int) -> None:
        self._library, self._method, self._plan, self._number = library, method, plan, number
        self._rank = rank_of(number)
        generator = torch.Generator().manual_seed(plan.seed + 1)
        self._x = torch.randn((IMAGES, *plan.input_shape[1:]), generator=generator)

    def run(self) -> dict[str, Any]:
        base = self._plan.build()
        with tempfile.TemporaryDirectory() as folder:
            self._folder = Path(folder)
            measures: dict[str, Callable[[], dict[str, Any]]] = {
                "fresh": lambda: self._fresh(base),
                "merge": lambda: self._merge(base),
                "batch norm": lambda: self._batch_norm(base),
                "restored": lambda: self._restored(base),
                "saved": lambda: self._saved(base),
                "wrong base, one ulp": lambda: self._refuses(one_ulp(base)),
                "wrong base, other weights": lambda: self._refuses(self._other()),
            }
            record = {name: outcome_of(measure, self._library.package) for name, measure in measures.items()}
        record["convolutions"] = len(self._plan.blocks)
        record["offered"] = self._library.adapted_convolutions(base, self._method, self._rank)
        return record

    def _adapt(self, base: nn.Module) -> Adapted:
        torch.manual_seed(self._number)
        return self._library.adapt(copy.deepcopy(base), self._method, self._rank)

    def _fresh(self, base: nn.Module) -> dict[str, Any]:
        return _same(self._adapt(base).outputs(self._x), _outputs(base, self._x))

    def _merge(self, base: nn.Module) -> dict[str, Any]:
        adapted = self._adapt(base)
        perturb(adapted.tensors(), self._number)
        expected = adapted.outputs(self._x).clone()
        return compared(adapted.merged(self._x), expected) | {"effect": relative(expected, _outputs(base, self._x))}

    @cached_property
    def _stepped(self) -> tuple[Adapted, bool]:
        """Adapted and trained for one step, and whether the base's own BatchNorm buffers are what they were."""
        model = self._plan.build()
        norms = [module for module in model.modules() if isinstance(module, tuple(BATCH_NORMS.values()))]
        before = [_buffers(norm) for norm in norms]
        torch.manual_seed(self._number)
        adapted = self._library.adapt(model, self._method, self._rank)
        adapted.step(self._x)
        same = all(
            torch.equal(new, old)
            for norm, olds in zip(norms, before, strict=True)
            for new, old in zip(_buffers(norm), olds, strict=True)
        )
        return adapted, same

    def _batch_norm(self, base: nn.Module) -> dict[str, Any]:
        if not any(isinstance(module, tuple(BATCH_NORMS.values())) for module in base.modules()):
            return {"outcome": ABSENT}
        return {"outcome": RIGHT if self._stepped[1] else WRONG}

    def _restored(self, base: nn.Module) -> dict[str, Any]:
        expected, before = _outputs(base, self._x), snapshot(base)
        adapted, _ = self._stepped
        try:
            off = torch.equal(adapted.disabled(self._x), expected)
        except NotOfferedError:
            off = None
        plain = adapted.unloaded()
        after = plain.state_dict()
        tensors = list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
        outputs = torch.equal(_outputs(plain, self._x), expected)
        whole = off is not False and tensors and outputs
        return {"outcome": RIGHT if whole else WRONG, "disabled": off, "tensors": tensors, "outputs": outputs}

    @cached_property
    def _expected(self) -> Tensor:
        """What an adapter gives that was trained for a step, perturbed and saved."""
        adapted = self._adapt(self._plan.build())
        adapted.step(self._x)
        perturb(adapted.tensors(), self._number)
        expected = adapted.outputs(self._x)
        adapted.save(self._folder)
        return expected

    def _saved(self, base: nn.Module) -> dict[str, Any]:
        expected = self._expected
        found = self._library.load(copy.deepcopy(base), self._method, self._folder).outputs(self._x)
        flips = int((found.argmax(1) != expected.argmax(1)).sum())
        counts = {"flips": flips, "predictions": len(found) if self._plan.classes > 1 else 0}
        return compared(found, expected) | counts | {"bits": torch.equal(found, expected)}

    def _refuses(self, other: nn.Module) -> dict[str, Any]:
        _ = self._expected  # or the error of saving: there is no file to refuse then
        answer = outcome_of(
            lambda: {"done": bool(self._library.load(other, self._method, self._folder))}, self._library.package
        )
        if "done" in answer:
            raise WrongError("loaded without a word")
        return answer | {"outcome": RIGHT if answer["outcome"] == REFUSED else answer["outcome"]}

    def _other(self) -> nn.Module:
        torch.manual_seed(self._plan.seed + 7)
        other = self._plan.build()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return other


class LayerMeasures:
    """A single layer: against its merged self, the formula of the method, and finite differences."""

    def __init__(self, library: Library, method: str, geometry: Geometry, number: int) -> None:
        self._library, self._method, self._geometry, self._number = library, method, geometry, number
        self._rank = rank_of(number)

    def run(self) -> dict[str, Any]:
        measures = {"fresh": self._fresh, "merge": self._merge, "formula": self._formula}
        if self._number % EVERY == 0:
            measures["gradient"] = self._gradient
        measures |= self._library.extra_measures(self._method, self._geometry, self._number, self._rank)
        if not self._library.offers(self._geometry.build(), self._method):
            return {name: {"outcome": ABSENT} for name in measures}
        return {name: outcome_of(measure, self._library.package) for name, measure in measures.items()}

    def _base(self, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
        base = self._library.layer_model(self._geometry, self._number, dtype)
        generator = torch.Generator().manual_seed(self._number + 1)
        x = torch.randn(2, self._geometry.in_channels, *self._geometry.space, generator=generator, dtype=torch.float64)
        return base, x.to(dtype)

    def _adapt(self, base: nn.Module) -> Adapted:
        torch.manual_seed(self._number)
        return self._library.adapt(copy.deepcopy(base), self._method, self._rank)

    def _perturbed(self, base: nn.Module) -> Adapted:
        adapted = self._adapt(base)
        perturb(adapted.tensors(), self._number)
        return adapted

    def _fresh(self) -> dict[str, Any]:
        base, x = self._base()
        return _same(self._adapt(base).outputs(x), self._library.plain_outputs(base, x))

    def _merge(self) -> dict[str, Any]:
        base, x = self._base()
        adapted = self._perturbed(base)
        expected = adapted.outputs(x).clone()
        return compared(adapted.merged(x), expected)

    def _formula(self) -> dict[str, Any]:
        base, x = self._base()
        adapted = self._perturbed(base)
        found = adapted.outputs(x)
        return compared(found, self._library.expected(adapted, self._method, self._rank, self._geometry, base, x))

    def _gradient(self) -> dict[str, Any]:
        """Slopes along a random direction of each tensor and of the input, against central differences in float64."""
        base, x = self._base(torch.float64)
        adapted = self._perturbed(base)
        adapted.outputs(x)  # brings the network into the mode in which it is not merged
        named = [(name, tensor) for name, tensor in adapted.tensors() if tensor.requires_grad]
        x.requires_grad_()
        generator = torch.Generator().manual_seed(self._number)
        result = adapted.model(x)
        weights = torch.randn(result.shape, generator=generator, dtype=torch.float64)
        inputs = [("input", x), *named]
        gradients = torch.autograd.grad((result * weights).sum(), [tensor for _, tensor in inputs], allow_unused=True)
        worst, where = 0.0, ""
        for (name, tensor), gradient in zip(inputs, gradients, strict=True):
            error = self._slope_error(adapted, x, weights, tensor, gradient, generator)
            worst, where = max((worst, where), (error, name))
        right = worst <= self._library.gradient_tolerance
        return {"outcome": RIGHT if right else WRONG, "relative": worst, "tensor": where}

    def _slope_error(
        self,
        adapted: Adapted,
        x: Tensor,
        weights: Tensor,
        tensor: Tensor,
        gradient: Tensor | None,
        generator: torch.Generator,
    ) -> float:
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
        told = 0.0 if gradient is None else float((gradient.double() * direction).sum())
        length = float(direction.norm()) * (0.0 if gradient is None else float(gradient.norm()))
        errors = []
        for step in self._library.step_sizes:
            with torch.no_grad():
                sums = []
                for sign in (1, -2):
                    tensor.add_(direction, alpha=sign * step)
                    sums.append(float((adapted.model(x) * weights).sum()))
                tensor.add_(direction, alpha=step)
            slope = (sums[0] - sums[1]) / (2 * step)
            errors.append(abs(slope - told) / max(abs(slope), abs(told), 0.01 * length, 1e-3))
            if errors[-1] <= self._library.gradient_tolerance:
                break
        return min(errors)


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def _same(found: Tensor, expected: Tensor) -> dict[str, Any]:
    """A fresh adapter: bit for bit, or within 1e-6, or not at all."""
    if found.shape != expected.shape:
        return {"outcome": WRONG, "relative": None, "bits": False}
    error = relative(found, expected)
    return {"outcome": RIGHT if error <= CLOSE else WRONG, "relative": error, "bits": torch.equal(found, expected)}


def _buffers(norm: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in norm._buffers.values() if value is not None]
