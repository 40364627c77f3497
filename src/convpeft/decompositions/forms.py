"""The ways to compress a kernel: what each is called, its ranks, its size, and the weights it makes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from convpeft.decompositions.correction import corrected
from convpeft.decompositions.cpd import cpd, reconstruct
from convpeft.decompositions.sensitivity import Factors, sensitivity, term_norms
from convpeft.decompositions.tucker import tucker
from convpeft.decompositions.tucker_cpd import tucker_cpd
from convpeft.errors import OptionError, nearest

Form = Literal["cp", "tucker", "tucker-cp"]
METHODS: dict[str, Form] = {"cpd-epc": "cp", "cpd": "cp", "tucker": "tucker", "tucker-cpd": "tucker-cp"}
RANKS: dict[Form, int] = {"cp": 1, "tucker": 2, "tucker-cp": 3}  # how many a form has


@dataclass(frozen=True)
class Thin:
    """The shape of the thin convolutions that stand for one layer.

    Args:
        form: `cp`: 1x1, depthwise, 1x1. `tucker`: 1x1, kernel, 1x1. `tucker-cp`: 1x1, 1x1, depthwise, 1x1, 1x1.
        ranks: (r,) terms; (a, b) columns on the output and the input side; or all three, (a, b, r).
    """

    form: Form
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Decomposed:
    """The weights of the thin convolutions, first to last, and how good they are.

    Args:
        weights: One for each convolution.
        error: Frobenius norm of what is missing, as a share of the kernel's.
        plain_sensitivity: Sensitivity of the plain CPD in it; None where there is none.
        sensitivity: The same of the factors that are used.
        plain_largest: Norm of the largest rank-one term of the plain CPD, as a share of the kernel's.
        largest: The same of the factors that are used.
    """

    weights: tuple[Tensor, ...]
    error: float
    plain_sensitivity: float | None = None
    sensitivity: float | None = None
    plain_largest: float | None = None
    largest: float | None = None


def shapes_of(shape: tuple[int, ...], thin: Thin) -> tuple[tuple[int, ...], ...]:
    """Shapes of the thin weights for a kernel of a shape (out, in, *kernel)."""
    out, into, *kernel = shape
    ones = [1] * len(kernel)
    if thin.form == "cp":
        (r,) = thin.ranks
        return (r, into, *ones), (r, 1, *kernel), (out, r, *ones)
    if thin.form == "tucker":
        a, b = thin.ranks
        return (b, into, *ones), (a, b, *kernel), (out, a, *ones)
    a, b, r = thin.ranks
    return (b, into, *ones), (r, b, *ones), (r, 1, *kernel), (a, r, *ones), (out, a, *ones)


def size_of(shape: tuple[int, ...], thin: Thin) -> int:
    """Numbers in the thin weights.

    >>> size_of((64, 64, 3, 3), Thin("cp", (10,))), 64 * 64 * 9
    (1370, 36864)
    """
    return sum(math.prod(each) for each in shapes_of(shape, thin))


def decompose(weight: Tensor, method: str, ranks: tuple[int, ...], *, seed: int = 0) -> Decomposed:
    """Decompose a kernel (out, in, *kernel) in float64; the weights have its type.

    Raises:
        OptionError: If there is no such method, or a rank is out of range.
    """
    if method not in METHODS:
        raise OptionError(f"method={method!r} does not exist. {nearest(method, METHODS)}")
    thin = Thin(METHODS[method], ranks)
    exact = weight.detach().double().cpu()
    tensor = exact.flatten(2)  # (out, in, taps)
    if thin.form == "tucker":
        up, core, down = tucker(tensor, (ranks[0], ranks[1]))
        parts = (down.T, core, up)
        norm = float(tensor.norm()) or 1.0
        # the bases are orthonormal, so the norms of core and remainder add up
        return _finished(weight, thin, parts, max(norm**2 - float(core.norm()) ** 2, 0.0) ** 0.5 / norm)
    if thin.form == "cp":
        plain = cpd(tensor, ranks[0], seed=seed)
        used = corrected(tensor, plain) if method == "cpd-epc" else plain
        a, b, c = used
        return _finished(weight, thin, (b.T, c.T, a), _missing(tensor, reconstruct(used)), plain, used)
    found = tucker_cpd(tensor, (ranks[0], ranks[1], ranks[2]), seed=seed)
    a, b, c = found.core
    parts = (found.down.T, b.T, c.T, a, found.up)
    return _finished(weight, thin, parts, _missing(tensor, found.reconstruct()), found.plain, found.core)


def _finished(
    weight: Tensor,
    thin: Thin,
    parts: tuple[Tensor, ...],
    error: float,
    plain: Factors | None = None,
    used: Factors | None = None,
) -> Decomposed:
    shapes = shapes_of(tuple(weight.shape), thin)
    weights = tuple(part.reshape(shape).to(weight) for part, shape in zip(parts, shapes, strict=True))
    if plain is None or used is None:
        return Decomposed(weights, error)
    norm = float(weight.detach().double().norm()) or 1.0
    plain_largest, largest = (float(term_norms(each).max()) / norm for each in (plain, used))
    return Decomposed(weights, error, sensitivity(plain), sensitivity(used), plain_largest, largest)


def _missing(tensor: Tensor, approximation: Tensor) -> float:
    return float((tensor - approximation).norm()) / (float(tensor.norm()) or 1.0)
