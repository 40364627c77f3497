"""LoRA-Edge: a tensor train of which the output core alone is trained."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convpeft.adapters import check_positive
from convpeft.low_rank import LowRank
from convpeft.sites import Site


class TensorTrain(LowRank, name="tt"):
    r"""Add a tensor train: cores of the pretrained weight, frozen, behind a trained core for the output.

    delta[o, i, p, q] = scale * up[o] @ core_in[:, i] @ core_axis_1[:, p] @ core_axis_2[:, q]

    weight (out, in/groups, *kernel) frozen  | up (out, first rank) zeros, trained
    core_in (first rank, in/groups, next rank) | core_axis_n (rank before, size, rank after), one a kernel axis longer
    than 1, the last with one rank after it; all frozen and stored with the adapter

    The frozen cores are the right half of a TT-SVD of the layer's weight, as rows of orthonormal length: the directions
    of its inputs that it uses most. Where the weight has fewer of them (or is zero) random ones complete the set. Only
    out * rank numbers are trained.

    Args:
        rank: Rank of the train, >= 1. A rank between two axes is no larger than the sizes to its left or to its right
            allow, such as the out and in channels of a linear layer or the last side of a kernel; and all cores
            together hold no more numbers than the weight (see rank_policy).
        alpha: Step size, > 0: scale = alpha / rank, with the rank asked for, also where it was clamped.
            Default: what makes the scale 1, so that changing the rank keeps the step size.
        learned_scale: Train one more factor on the whole delta, starting at one.

    Raises:
        OptionError: If rank or alpha is out of range.

    Source:
        Kwak et al., LoRA-Edge: Tensor-Train-Assisted LoRA for Practical CNN Fine-Tuning on Edge Devices, 2025,
        arXiv 2511.03765; the decomposition: Oseledets, Tensor-Train Decomposition, 2011, SIAM J. Sci. Comput. 33(5).
        Differs: the decomposition runs from the kernel to the output, so that the size of the weight stays in the core
        that zeros replace and the step does not depend on it; ranks and scale, which we did not find, are options.
    """

    paper: ClassVar[str] = "Kwak et al. 2025, arXiv 2511.03765"
    learning_rate: ClassVar[float] = 4e-3

    def __init__(self, site: Site, *, rank: int = 8, alpha: float | None = None, learned_scale: bool = False) -> None:
        super().__init__(site, learned_scale=learned_scale)
        check_positive("tt", rank=rank, alpha=1.0 if alpha is None else alpha)
        self.scale = 1.0 if alpha is None else alpha / rank
        shapes = _core_shapes(site, min(rank, self.largest_rank(site)))
        axes = [axis for axis, size in enumerate(site.kernel, start=1) if size > 1]
        self.core_names = ("core_in", *(f"core_axis_{axis}" for axis in axes))
        self.up = nn.Parameter(torch.empty(site.out_channels, shapes[0][0]))
        for name, shape in zip(self.core_names, shapes, strict=True):
            self.register_buffer(name, torch.empty(shape))

    @classmethod
    def largest_rank(cls, site: Site, **options: Any) -> int:
        """The largest rank at which all cores, the frozen ones too, hold no more numbers than the weight."""

        def size(rank: int) -> int:
            shapes = _core_shapes(site, rank)
            return site.out_channels * shapes[0][0] + sum(math.prod(shape) for shape in shapes)

        numbers = math.prod(site.shape)
        return bisect_right(range(1, numbers + 1), numbers, key=size)

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero `up`, take the other cores from the weight, the last axis first."""
        nn.init.zeros_(self.up)
        rest = weight.double()
        for core in reversed(self._cores()):
            matrix = rest.reshape(-1, core[0].numel())  # (all axes to the left, size * rank after)
            rows = _main_directions(matrix, core.shape[0], generator)
            core.copy_(rows.view_as(core))
            rest = matrix @ rows.T

    def factors(self) -> tuple[Tensor, Tensor]:
        """`up` with the scale, and the frozen cores as one matrix."""
        *before, last = self._cores()
        down = last.flatten(1)
        for core in reversed(before):
            down = (core.flatten(0, 1) @ down).view(core.shape[0], -1)  # (rank before, size * all sizes after)
        return self.stepped(self.up, self.scale), down

    def _cores(self) -> list[Tensor]:
        return [self.get_buffer(name) for name in self.core_names]


def _core_shapes(site: Site, rank: int) -> list[tuple[int, int, int]]:
    """Shapes (rank before, size, rank after) of the frozen cores: in/groups, then kernel axes longer than 1."""
    sizes = (site.shape[1], *(size for size in site.kernel if size > 1))
    shapes: list[tuple[int, int, int]] = []
    after = 1
    for axis in reversed(range(len(sizes))):
        left = site.out_channels * math.prod(sizes[:axis])
        before = min(rank, left, sizes[axis] * after)
        shapes.insert(0, (before, sizes[axis], after))
        after = before
    return shapes


def _main_directions(matrix: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Orthonormal rows that span the first right singular vectors of a float64 matrix, completed at random."""
    wide = matrix.shape[0] < matrix.shape[1]
    values, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)  # many times faster than SVD
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    vectors = vectors[:, values > 1e-12 * values[0]]  # squares of singular values
    found = vectors.T @ matrix if wide else vectors.T
    drawn = torch.randn(count - len(found), matrix.shape[1], dtype=matrix.dtype, generator=generator)
    return torch.linalg.qr(torch.cat([found, drawn]).T).Q.T
