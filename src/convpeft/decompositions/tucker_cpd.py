"""The Tucker-2 decomposition of a kernel with a corrected CPD of its core."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convpeft.decompositions.correction import corrected
from convpeft.decompositions.cpd import cpd
from convpeft.decompositions.sensitivity import Factors
from convpeft.decompositions.tucker import tucker


@dataclass(frozen=True)
class TuckerCPD:
    """K[o, i, s] as sum_abr U[o, a] A[a, r] B[b, r] C[s, r] V[i, b].

    Args:
        up: U, (n1, a).
        down: V, (n2, b).
        plain: A, B, C as alternating least squares left them.
        core: A, B, C after the correction.
    """

    up: Tensor
    down: Tensor
    plain: Factors
    core: Factors

    def reconstruct(self) -> Tensor:
        """The tensor (n1, n2, n3)."""
        return torch.einsum("oa,ar,br,sr,ib->ois", self.up, *self.core, self.down)


def tucker_cpd(tensor: Tensor, ranks: tuple[int, int, int], *, seed: int = 0) -> TuckerCPD:
    """Decompose a tensor (n1, n2, n3) with ranks (a, b, r); the correction keeps the error of the core's CPD.

    Source:
        Phan et al. 2020, arXiv 2008.05441, section 4.
    """
    up, core, down = tucker(tensor, ranks[:2])
    plain = cpd(core, ranks[2], seed=seed)
    return TuckerCPD(up, down, plain, corrected(core, plain))
