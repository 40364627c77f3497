"""The Tucker-2 decomposition: the channels of a kernel through two narrow bases, its taps as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from convpeft.decompositions.cpd import unfold
from convpeft.errors import OptionError

SWEEPS, TOLERANCE = 20, 1e-6


def tucker(
    tensor: Tensor, ranks: tuple[int, int], *, sweeps: int = SWEEPS, tolerance: float = TOLERANCE
) -> tuple[Tensor, Tensor, Tensor]:
    """Approximate K[o, i, s] by sum_ab U[o, a] G[a, b, s] V[i, b].

    The start is the higher-order singular value decomposition (HOSVD); orthogonal iterations (HOOI) improve it.

    Args:
        tensor: (n1, n2, n3), in float64.
        ranks: Columns of U and V, at most n1 and n2.
        sweeps: Rounds at most.
        tolerance: Stop when a round raises the kept share of the norm by less.

    Returns:
        U (n1, a) and V (n2, b) with orthonormal columns around the core: U, G (a, b, n3), V.

    Raises:
        OptionError: If a rank is out of range.

    Source:
        De Lathauwer, De Moor, Vandewalle 2000; for kernels Kim et al. 2016, arXiv 1511.06530.
    """
    for rank, size in zip(ranks, tensor.shape, strict=False):
        if not 1 <= rank <= size:
            raise OptionError(f"tucker: expected ranks from 1 to {tuple(tensor.shape[:2])}, got {ranks}. Change them.")
    up, down = (_leading(unfold(tensor, mode), ranks[mode]) for mode in range(2))
    core, before, whole = _core(tensor, up, down), 0.0, float(tensor.norm()) or 1.0
    for _ in range(sweeps):
        up = _leading(unfold(torch.einsum("ois,ib->obs", tensor, down), 0), ranks[0])
        down = _leading(unfold(torch.einsum("ois,oa->ais", tensor, up), 1), ranks[1])
        core = _core(tensor, up, down)
        kept = float(core.norm()) / whole
        if kept - before < tolerance:
            break
        before = kept
    return up, core, down


def _core(tensor: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return torch.einsum("ois,oa,ib->abs", tensor, up, down)


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """Left singular vectors of the largest singular values, the largest first."""
    return torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)[:, :rank]
