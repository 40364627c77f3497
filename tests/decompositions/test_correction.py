"""The correction keeps the error and takes the sensitivity down, where the plain decomposition cancels most of all."""

import numpy as np
import pytest
import torch

from convpeft.decompositions import balanced, corrected, cpd, reconstruct, sensitivity, term_norms


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(target: torch.Tensor, factors: tuple[torch.Tensor, ...]) -> float:
    return float(np.linalg.norm(target.numpy() - np.einsum("ir,jr,kr->ijk", *(f.numpy() for f in factors))))


@pytest.mark.parametrize("rank", [6, 20, 40])
def test_correction_lowers_the_sensitivity_within_the_error(rank):
    target = tensor(24, 16, 9)
    plain = cpd(target, rank)
    stable = corrected(target, plain)
    assert error(target, stable) <= 1.01 * error(target, plain) * (1 + 1e-6)
    assert sensitivity(stable) < 0.75 * sensitivity(plain)


def degenerate() -> torch.Tensor:
    """A tensor of border rank two and rank three: a CPD of two terms diverges."""
    a, b, c, d, e, f = (tensor(size, seed=seed) for seed, size in enumerate((10, 8, 9, 10, 8, 9)))
    terms = (("i,j,k->ijk", d, b, c), ("i,j,k->ijk", a, e, c), ("i,j,k->ijk", a, b, f))
    return sum((torch.einsum(form, *each) for form, *each in terms), torch.zeros(10, 8, 9, dtype=torch.float64))


def test_plain_cpd_of_a_degenerate_tensor_diverges_and_the_correction_takes_it_back():
    target = degenerate()
    early, late = (cpd(target, 2, iterations=count, tolerance=1e-12) for count in (100, 1000))
    assert error(target, late) < error(target, early)
    assert float(term_norms(late).max()) > 1.3 * float(term_norms(early).max())  # two terms that cancel each other
    stable = corrected(target, late, slack=1.0, sweeps=200, tolerance=1e-5)
    assert error(target, stable) <= 2 * error(target, late) * (1 + 1e-6)
    assert float(term_norms(stable).max()) < 0.8 * float(term_norms(late).max())
    assert sensitivity(stable) < 0.7 * sensitivity(late)


def test_correction_without_slack_still_helps_or_changes_nothing():
    target = tensor(12, 10, 9)
    plain = cpd(target, 15)
    stable = corrected(target, plain, slack=0.0)
    assert error(target, stable) <= error(target, plain) * (1 + 1e-6)
    assert sensitivity(stable) <= sensitivity(balanced(plain)) * (1 + 1e-9)


def test_more_slack_never_leaves_more_sensitivity():
    target = tensor(12, 10, 9)
    plain = cpd(target, 15)
    found = [sensitivity(corrected(target, plain, slack=slack, sweeps=60)) for slack in (0.0, 0.01, 0.05, 0.2)]
    assert found == sorted(found, reverse=True)


def test_exact_decomposition_stays_nearly_exact():
    factors = (tensor(10, 3), tensor(8, 3, seed=1), tensor(9, 3, seed=2))
    target = reconstruct(factors)
    assert error(target, corrected(target, factors)) < 1e-5 * float(target.norm())


def test_scale_of_the_tensor_does_not_matter():
    target = tensor(12, 10, 9)
    plain = cpd(target, 15)
    a, b, c = plain
    large = corrected(1e9 * target, (1e9 * a, b, c))
    torch.testing.assert_close(reconstruct(large) / 1e9, reconstruct(corrected(target, plain)), rtol=1e-5, atol=1e-7)
