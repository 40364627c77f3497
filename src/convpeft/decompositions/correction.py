"""The error-preserving correction: other rank-one terms with the same error that are far less sensitive."""

from __future__ import annotations

import torch
from torch import Tensor

from convpeft.decompositions.cpd import khatri_rao, matched, others, reconstruct, unfold
from convpeft.decompositions.sensitivity import Factors, balanced, sensitivity

SLACK, SWEEPS, TOLERANCE = 0.01, 30, 1e-3
_LEAST_BOUND = 1e-6  # of the tensor's norm: what float64 tells from zero in a difference of squares
_HALVINGS = 50


def corrected(
    tensor: Tensor, factors: Factors, *, slack: float = SLACK, sweeps: int = SWEEPS, tolerance: float = TOLERANCE
) -> Factors:
    """Minimise the sensitivity of the factors subject to ||K - [[A, B, C]]|| <= (1 + slack) times their error.

    For one factor U with the other two fixed, the sensitivity is sum_r w_r ||u_r||^2 and a constant, with
    w_r = n_q ||p_r||^2 + n_p ||q_r||^2. The solution is U = Y (G + mu diag(w))^-1, Y = K_(n) Z, G = Z'Z, with Z the
    Khatri-Rao product of the others. The largest mu that keeps the bound is found by bisection on the secular equation
    in the eigenvalues of diag(w)^-1/2 G diag(w)^-1/2. The factors are visited in turn; after each round the lengths
    are balanced. Neither step raises the sensitivity.

    Args:
        tensor: K, (n1, n2, n3), in float64.
        factors: A decomposition of it; its error sets the bound.
        slack: How much larger the error may be, as a share of it, >= 0.
        sweeps: Rounds at most.
        tolerance: Stop when a round lowers the sensitivity by a smaller share.

    Returns:
        Factors of the same rank.

    Source:
        Phan et al. 2020, arXiv 2008.05441; the correction is that of Phan et al. 2017, arXiv 1709.08349, with the
        sensitivity in place of the terms' norms. They solve the same problem as a quadratic program on a sphere.
    """
    scale = float(tensor.norm()) or 1.0
    bound = max((1 + slack) * float((tensor - reconstruct(factors)).norm()) / scale, _LEAST_BOUND)
    unfolded = [unfold(tensor / scale, mode) for mode in range(3)]
    share = scale ** (-1 / 3)
    a, b, c = balanced(factors)
    best = (a * share, b * share, c * share)  # of the tensor of norm one
    for _ in range(sweeps):
        current = list(best)
        for mode in range(3):
            current[mode] = _least_sensitive(unfolded[mode], current, mode, bound)
        a, b, c = current
        candidate = balanced((a, b, c))
        before, after = sensitivity(best), sensitivity(candidate)
        if after < before:
            best = candidate
        if after > (1 - tolerance) * before:
            break
    a, b, c = best
    return a / share, b / share, c / share


def _least_sensitive(unfolded: Tensor, factors: list[Tensor], mode: int, bound: float) -> Tensor:
    """The factor of one mode with the least weighted length within the bound; the old one where none is found."""
    first, second = others(factors, mode)
    weights = len(second) * first.square().sum(0) + len(first) * second.square().sum(0)
    roots = weights.clamp_min(float(weights.max()) * 1e-24 + 1e-300).sqrt()  # (rank,)
    gram = (first.T @ first) * (second.T @ second) / (roots[:, None] * roots)
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp_min(0)
    turned = (matched(unfolded, first, second) / roots) @ vectors  # Y diag(w)^-1/2 Q, (n, rank)
    whole = float(unfolded.square().sum())
    powers, places = turned.square().sum(0).numpy(), values.numpy()  # short: numpy asks many times in less time

    def excess(mu: float) -> float:
        return whole - float((powers * (places + 2 * mu) / (places + mu) ** 2).sum()) - bound**2

    low, high = 1e-14 * float(values[-1]) + 1e-300, 1e6 * float(values[-1]) + 1e-300
    if excess(low) > 0:
        return factors[mode]
    if excess(high) <= 0:
        low = high
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5  # mu spans many decades
        low, high = (middle, high) if excess(middle) <= 0 else (low, middle)
    new = (turned / (values + low)) @ vectors.T / roots
    old = factors[mode]
    fits = float((unfolded - new @ khatri_rao(first, second).T).norm()) <= bound * (1 + 1e-9)
    lighter = float((weights * new.square().sum(0)).sum()) <= float((weights * old.square().sum(0)).sum())
    return new if fits and lighter else old
