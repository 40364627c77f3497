"""Alternating least squares: it recovers what is exact, never gets worse, and is no worse than another library's."""

import itertools
import warnings

import numpy as np
import pytest
import tensorly.decomposition
import torch

from convpeft.decompositions import balanced, cpd, reconstruct, sensitivity, term_norms
from convpeft.decompositions.cpd import ITERATIONS, matched, unfold
from convpeft.errors import OptionError


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(rank: int, *shape: int) -> torch.Tensor:
    factors = [tensor(size, rank, seed=number).numpy() for number, size in enumerate(shape)]
    return torch.from_numpy(np.einsum("ir,jr,kr->ijk", *factors))


def relative_error(target: torch.Tensor, approximation: torch.Tensor) -> float:
    return float((target - approximation).norm() / target.norm())


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_tensor_of_exact_rank_is_recovered(rank):
    target = exact(rank, 12, 10, 9)
    found = cpd(target, rank, iterations=2000, tolerance=1e-14)
    assert relative_error(target, reconstruct(found)) < 1e-6


def test_error_never_grows_with_the_iterations():
    target = tensor(12, 10, 9)
    errors = [relative_error(target, reconstruct(cpd(target, 20, iterations=n, tolerance=-1.0))) for n in range(1, 30)]
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(errors))
    assert errors[-1] < errors[0] - 0.01


def test_error_is_that_of_tensorly():
    """Two local minima differ a little; a wrong step would be far off."""
    target = tensor(16, 12, 9, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it fills missing singular vectors, as is done here, and says so
        weights, factors = tensorly.decomposition.parafac(
            target.numpy(), 12, n_iter_max=300, init="svd", random_state=0, tol=1e-8
        )
    theirs = np.einsum("r,ir,jr,kr->ijk", weights, *factors)
    own = relative_error(target, reconstruct(cpd(target, 12, iterations=300, tolerance=1e-8)))
    assert own == pytest.approx(np.linalg.norm(target.numpy() - theirs) / np.linalg.norm(target.numpy()), rel=0.03)


@pytest.mark.parametrize("shape", [(12, 10, 9), (4, 10, 9), (12, 3, 9), (3, 4, 5)])
@pytest.mark.parametrize(("mode", "form"), [(0, "ijk,jr,kr->ir"), (1, "ijk,ir,kr->jr"), (2, "ijk,ir,jr->kr")])
def test_product_with_the_other_two_factors_is_the_sum_of_the_definition(shape, mode, form):
    target, rest = tensor(*shape), [tensor(size, 5, seed=size) for n, size in enumerate(shape) if n != mode]
    wanted = np.einsum(form, target.numpy(), *(each.numpy() for each in rest))
    np.testing.assert_allclose(matched(unfold(target, mode), *rest).numpy(), wanted, rtol=1e-12, atol=1e-12)


def test_scale_of_the_tensor_changes_nothing_but_the_scale():
    target = tensor(8, 6, 9)
    small = reconstruct(cpd(1e-6 * target, 5))
    torch.testing.assert_close(small * 1e6, reconstruct(cpd(target, 5)), rtol=1e-6, atol=1e-9)


def test_tensor_of_zeros_gives_nothing_of_any_size():
    assert reconstruct(cpd(torch.zeros(3, 4, 5, dtype=torch.float64), 2)).abs().max() < 1e-50


def test_same_seed_gives_the_same_bits():
    first, second = (cpd(tensor(8, 6, 9), 12, seed=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_rank_of_zero_is_refused():
    with pytest.raises(OptionError, match="cpd: expected a rank of at least 1, got 0"):
        cpd(tensor(3, 3, 3), 0)


def test_balancing_keeps_the_tensor_and_gives_the_least_sensitivity():
    factors = (tensor(8, 5), 3 * tensor(6, 5, seed=1), tensor(9, 5, seed=2) / 7)
    even = balanced(factors)
    torch.testing.assert_close(reconstruct(even), reconstruct(factors), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(term_norms(even), term_norms(factors), rtol=1e-12, atol=1e-12)
    least = sensitivity(even)
    for share in (0.9, 1.1):
        a, b, c = even
        assert sensitivity((a * share, b / share, c)) > least
        assert sensitivity((a, b * share, c / share)) > least


def test_sensitivity_is_the_change_under_small_noise():
    """Monte Carlo: the expected squared change for each unit of the noise's variance."""
    factors = (tensor(8, 5), tensor(6, 5, seed=1), tensor(9, 5, seed=2))
    rng, deviation, changes = np.random.default_rng(0), 1e-4, []
    plain = np.einsum("ir,jr,kr->ijk", *(each.numpy() for each in factors))
    for _ in range(3000):
        moved = [each.numpy() + deviation * rng.standard_normal(each.shape) for each in factors]
        changes.append(np.square(np.einsum("ir,jr,kr->ijk", *moved) - plain).sum() / deviation**2)
    spread = np.std(changes) / np.sqrt(len(changes))
    assert sensitivity(factors) == pytest.approx(np.mean(changes), abs=4 * spread)
    assert spread < 0.01 * np.mean(changes)


def test_default_iterations_are_bounded():
    assert ITERATIONS <= 200
