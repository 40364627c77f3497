"""How much a sum of rank-one terms moves when its factors do."""

from __future__ import annotations

from torch import Tensor

Factors = tuple[Tensor, Tensor, Tensor]


def sensitivity(factors: Factors) -> float:
    """Expected squared change of the tensor for factor noise of unit variance, to first order.

    ss = n3 tr(A'A * B'B) + n1 tr(B'B * C'C) + n2 tr(A'A * C'C), where * is the elementwise product

    Large where terms are large and cancel each other: then a small step of training, or rounding, moves the kernel far.

    Args:
        factors: A (n1, rank), B (n2, rank), C (n3, rank).

    Source:
        Phan et al. 2020, arXiv 2008.05441, section 3.
    """
    sizes = [len(each) for each in factors]
    a, b, c = (each.double().square().sum(0) for each in factors)
    return float((sizes[2] * a * b + sizes[0] * b * c + sizes[1] * a * c).sum())


def term_norms(factors: Factors) -> Tensor:
    """Frobenius norm of each rank-one term, (rank,)."""
    a, b, c = (each.norm(dim=0) for each in factors)
    return a * b * c


def balanced(factors: Factors) -> Factors:
    """The same terms, with the lengths of their three vectors chosen so that the sensitivity is least.

    For a term of norm p the lengths a, b, c with abc = p that minimise p^2 (n1/a^2 + n2/b^2 + n3/c^2) have
    a^2/n1 = b^2/n2 = c^2/n3.
    """
    sizes = [len(each) for each in factors]
    shared = (term_norms(factors).square() / (sizes[0] * sizes[1] * sizes[2])) ** (1 / 6)  # (rank,)
    tiny = 1e-150
    a, b, c = (
        each * (shared * size**0.5 / each.norm(dim=0).clamp_min(tiny))
        for each, size in zip(factors, sizes, strict=True)
    )
    return a, b, c
