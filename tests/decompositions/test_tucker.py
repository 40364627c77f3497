"""Tucker-2 beside another library's, and the two decompositions together."""

import numpy as np
import pytest
import tensorly.decomposition
import torch

from convpeft.decompositions import METHODS, Thin, decompose, size_of, tucker
from convpeft.decompositions.tucker_cpd import tucker_cpd
from convpeft.errors import OptionError


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(target: torch.Tensor, up: torch.Tensor, core: torch.Tensor, down: torch.Tensor) -> float:
    rebuilt = np.einsum("oa,abs,ib->ois", up.numpy(), core.numpy(), down.numpy())
    return float(np.linalg.norm(target.numpy() - rebuilt) / np.linalg.norm(target.numpy()))


def test_full_ranks_are_exact():
    target = tensor(6, 5, 9)
    assert error(target, *tucker(target, (6, 5))) < 1e-12


def test_tensor_of_exact_ranks_is_recovered():
    target = torch.einsum("oa,abs,ib->ois", tensor(12, 3), tensor(3, 4, 9, seed=1), tensor(10, 4, seed=2))
    assert error(target, *tucker(target, (3, 4))) < 1e-7


def test_error_is_that_of_tensorly():
    target = tensor(12, 10, 9)
    (core, factors), _ = tensorly.decomposition.partial_tucker(
        target.numpy(), rank=[5, 4], modes=[0, 1], n_iter_max=50, tol=1e-9
    )
    theirs = np.einsum("oa,abs,ib->ois", factors[0], core, factors[1])
    wanted = np.linalg.norm(target.numpy() - theirs) / np.linalg.norm(target.numpy())
    assert error(target, *tucker(target, (5, 4), sweeps=50, tolerance=1e-10)) == pytest.approx(wanted, rel=2e-3)


def test_bases_are_orthonormal():
    up, _, down = tucker(tensor(12, 10, 9), (5, 4))
    for base in (up, down):
        torch.testing.assert_close(base.T @ base, torch.eye(base.shape[1], dtype=torch.float64))


@pytest.mark.parametrize("ranks", [(0, 1), (7, 1), (1, 6)])
def test_rank_out_of_range_is_refused(ranks):
    with pytest.raises(OptionError, match=r"tucker: expected ranks from 1 to \(6, 5\)"):
        tucker(tensor(6, 5, 9), ranks)


def test_tucker_cpd_with_full_ranks_approaches_the_tensor():
    target = tensor(6, 5, 4)
    found = tucker_cpd(target, (6, 5, 20))
    assert float((found.reconstruct() - target).norm()) < 0.02 * float(target.norm())


@pytest.mark.parametrize(
    ("method", "ranks"), [("cpd", (7,)), ("cpd-epc", (7,)), ("tucker", (4, 3)), ("tucker-cpd", (4, 3, 6))]
)
def test_reported_error_is_that_of_the_weights(method, ranks):
    weight = tensor(8, 6, 3, 3)
    found = decompose(weight, method, ranks)
    parts = [part.numpy().reshape(*part.shape[:2], -1) for part in found.weights]
    match METHODS[method]:
        case "cp":
            rebuilt = np.einsum("ri,rs,or->ois", parts[0][..., 0], parts[1][:, 0], parts[2][..., 0])
        case "tucker":
            rebuilt = np.einsum("bi,abs,oa->ois", parts[0][..., 0], parts[1], parts[2][..., 0])
        case _:
            rebuilt = np.einsum(
                "bi,rb,rs,ar,oa->ois", *(p[..., 0] for p in parts[:2]), parts[2][:, 0], *(p[..., 0] for p in parts[3:])
            )
    exact = weight.numpy().reshape(8, 6, 9)
    assert found.error == pytest.approx(np.linalg.norm(exact - rebuilt) / np.linalg.norm(exact), abs=1e-9)
    assert sum(part.numel() for part in found.weights) == size_of((8, 6, 3, 3), Thin(METHODS[method], ranks))


def test_unknown_method_is_refused():
    with pytest.raises(OptionError, match=r"method='cdp' does not exist\. Did you mean 'cpd'\?"):
        decompose(tensor(3, 3, 3, 3), "cdp", (1,))
