"""The canonical polyadic decomposition of a three-way tensor, by alternating least squares."""

from __future__ import annotations

import torch
from torch import Tensor

from convpeft.decompositions.sensitivity import Factors, balanced
from convpeft.errors import OptionError

ITERATIONS, TOLERANCE = 100, 1e-5
_PROXIMAL = 1e-10  # share of the mean eigenvalue; keeps a step solvable where terms coincide


def cpd(
    tensor: Tensor, rank: int, *, seed: int = 0, iterations: int = ITERATIONS, tolerance: float = TOLERANCE
) -> Factors:
    """Approximate K[i, j, k] by sum_r A[i, r] B[j, r] C[k, r].

    Each factor in turn is the least-squares solution for the other two fixed; a tiny proximal term keeps it so also
    where that problem is singular, and the error never grows. The start is the leading singular vectors of each
    unfolding, filled up with random columns.

    Args:
        tensor: (n1, n2, n3), in float64.
        rank: Number of terms, >= 1.
        seed: Of the random columns.
        iterations: Passes over the three factors at most.
        tolerance: Stop when a pass lowers the relative error by less.

    Returns:
        A (n1, rank), B (n2, rank), C (n3, rank), each term's length spread over its vectors.

    Raises:
        OptionError: If the rank is out of range.

    Source:
        Hitchcock 1927; Carroll and Chang 1970, Harshman 1970.
    """
    if rank < 1:
        raise OptionError(f"cpd: expected a rank of at least 1, got {rank}. Give a larger one.")
    scale = float(tensor.norm()) or 1.0
    unfolded = [unfold(tensor / scale, mode) for mode in range(3)]
    factors = _start(unfolded, rank, seed)
    whole, before = float(unfolded[0].square().sum()), float("inf")
    for _ in range(iterations):
        for mode in range(2):
            factors[mode], _ = _solve(unfolded[mode], factors, mode)
        factors[2], missing = _solve(unfolded[2], factors, 2)
        error = max(whole + missing, 0.0) ** 0.5
        if before - error < tolerance:
            break
        before = error
    a, b, c = factors
    return balanced((a * scale, b, c))


def reconstruct(factors: Factors) -> Tensor:
    """The tensor (n1, n2, n3) of these factors."""
    return torch.einsum("ir,jr,kr->ijk", *factors)


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """A matrix with a row for each index of one mode; the other two stay in their order."""
    return tensor.movedim(mode, 0).reshape(tensor.shape[mode], -1)


def khatri_rao(first: Tensor, second: Tensor) -> Tensor:
    """Column-wise Kronecker product, (rows of both, rank)."""
    return (first[:, None, :] * second[None, :, :]).reshape(-1, first.shape[1])


def matched(unfolded: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """K_(n) times the Khatri-Rao product of the other two factors, (n, rank); a large product is never built."""
    rows = len(unfolded)
    if rows >= len(second):
        return unfolded @ khatri_rao(first, second)
    inner = unfolded.reshape(-1, len(second)) @ second  # (n * rows of the first, rank)
    return (inner.reshape(rows, len(first), -1) * first).sum(1)


def others(factors: list[Tensor], mode: int) -> tuple[Tensor, Tensor]:
    """The two factors beside one, in order."""
    first, second = (factors[each] for each in range(3) if each != mode)
    return first, second


def _solve(unfolded: Tensor, factors: list[Tensor], mode: int) -> tuple[Tensor, float]:
    """The least-squares factor of one mode, and what its error squared has less than the tensor's norm squared."""
    first, second = others(factors, mode)
    gram = (first.T @ first) * (second.T @ second)  # (rank, rank)
    near = _PROXIMAL * float(gram.diagonal().mean()) + 1e-300
    target = matched(unfolded, first, second)
    right = target + near * factors[mode]
    damped = gram + near * torch.eye(len(gram), dtype=gram.dtype)
    lower, failed = torch.linalg.cholesky_ex(damped)
    inverse = torch.linalg.pinv(damped, hermitian=True) if int(failed) else None
    new = torch.cholesky_solve(right.T, lower).T if inverse is None else right @ inverse
    return new, float(((new @ gram - 2 * target) * new).sum())


def _start(unfolded: list[Tensor], rank: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    factors: list[Tensor] = []
    for matrix in unfolded:
        vectors = torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)[:, :rank]
        missing = rank - vectors.shape[1]
        extra = torch.randn(len(matrix), missing, generator=generator, dtype=torch.float64) / len(matrix) ** 0.5
        factors.append(torch.cat([vectors, extra.to(matrix)], dim=1))
    return factors
