"""FSF: move the few spatial atoms of which all kernels of a layer are made."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convpeft.adapters import Adapter, check_positive
from convpeft.errors import OptionError
from convpeft.sites import Site


class Fsf(Adapter, name="fsf"):
    r"""Move the spatial atoms of which all kernels of a layer are made, and leave alone how channels combine them.

    weight'[s] = weight[s] + sum_m code[s, m] * delta[m],  code[s, m] = shrink(weight[s] . dictionary[m])
    shrink(x) = sign(x) * max(|x| - sparsity, 0), s over all slices (out * in/groups), each of prod(kernel) positions

    weight (out, in/groups, *kernel) frozen, seen as a matrix (slices, positions)
    dictionary (atoms, positions) frozen, orthonormal: the directions in which the slices are largest, stored
    delta (atoms, positions) zeros
    with expansion: delta (atoms, expansion, positions) zeros | mixing (atoms, expansion, in/groups) Kaiming-uniform
        and delta[m] above becomes sum_e mixing[m, e, i] * delta[m, e], another one for each input channel i

    Layers with one position (pointwise, linear) have no spatial atoms: there a slice is one block x block square of
    the matrix (out, in/groups), and i counts the squares along the input.

    Args:
        atoms: Atoms that can move, >= 1. At most the positions of a slice, and the slices of the layer.
        sparsity: Codes are moved towards zero by this much and end there, >= 0; 0 represents the kernels exactly.
        expansion: Atoms of which each delta is mixed for each input channel, >= 0; the paper's overcomplete form
            has 3. 0: one delta for all channels.
        block: Side of the squares on layers with one position, >= 1. Where it does not divide out and in/groups, the
            next smaller number that divides both; 1 scales the layer.

    Raises:
        OptionError: If an option is out of range.

    Source:
        Chen, Miao, Qiu, Large Convolutional Model Tuning via Filter Subspace, 2025, arXiv 2403.00269. Differs: the
        released code learns dictionary and codes together by alternating sparse coding from a random start, and stores
        both; here the dictionary is the principal axes of the slices, for which the sparse code has the closed form
        above, so that equal weights give equal atoms and the codes follow from the weight. The base keeps what the
        atoms do not represent, as in the released code. Squares stand for kernels only where there are none.
    """

    paper: ClassVar[str] = "Chen et al. 2025, arXiv 2403.00269"
    learning_rate: ClassVar[float] = 3e-3
    dictionary: Tensor

    def __init__(
        self, site: Site, *, atoms: int = 9, sparsity: float = 1e-3, expansion: int = 0, block: int = 4
    ) -> None:
        super().__init__(site)
        check_positive("fsf", atoms=atoms, block=block)
        for option, value in {"sparsity": sparsity, "expansion": expansion}.items():
            if not math.isfinite(value) or value < 0:
                raise OptionError(f"method 'fsf': {option}={value!r} is out of range, it must be 0 or more.")
        out, inputs, positions = site.out_channels, site.shape[1], math.prod(site.kernel)
        self.sparsity = sparsity
        self.block = _fitting_block(block, out, inputs) if positions == 1 else 1
        slices, positions = out * inputs // self.block**2, positions * self.block**2
        width = min(atoms, positions, slices)
        self.register_buffer("dictionary", torch.empty(width, positions))
        self.delta = nn.Parameter(torch.empty(width, *([expansion] if expansion else []), positions))
        self.mixing = nn.Parameter(torch.empty(width, expansion, inputs // self.block)) if expansion else None

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Take the dictionary from the weight, zero `delta`, draw `mixing`."""
        slices = self._slices(weight)
        axes = torch.linalg.eigh((slices.T @ slices).double()).eigenvectors.T.flip(0)  # rows, largest first
        largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        self.dictionary.copy_((axes * largest.sign())[: self.dictionary.shape[0]])  # the sign is free, so fix it
        nn.init.zeros_(self.delta)
        if self.mixing is not None:
            nn.init.kaiming_uniform_(self.mixing.flatten(0, 1), a=math.sqrt(5), generator=generator)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight + codes @ delta, bias)."""
        slices = self._slices(weight)  # (slices, positions)
        codes = F.softshrink(slices @ self.dictionary.T, self.sparsity)  # (slices, atoms)
        if self.mixing is None:
            return self._kernels(torch.addmm(slices, codes, self.delta), weight), bias
        delta = torch.einsum("mei,mep->imp", self.mixing, self.delta)  # (inputs, atoms, positions)
        by_input = codes.view(-1, *delta.shape[:2]).transpose(0, 1)  # (inputs, outputs, atoms)
        return self._kernels(slices + torch.bmm(by_input, delta).transpose(0, 1).reshape_as(slices), weight), bias

    def _slices(self, weight: Tensor) -> Tensor:
        """The weight as (slices, positions)."""
        if self.block == 1:
            return weight.reshape(-1, self.dictionary.shape[1])
        side = self.block
        squares = weight.reshape(weight.shape[0] // side, side, -1, side)  # (outputs, side, inputs, side)
        return squares.transpose(1, 2).reshape(-1, side * side)

    def _kernels(self, slices: Tensor, weight: Tensor) -> Tensor:
        """Inverse of `_slices`."""
        if self.block == 1:
            return slices.view_as(weight)
        side = self.block
        squares = slices.view(weight.shape[0] // side, -1, side, side)  # (outputs, inputs, side, side)
        return squares.transpose(1, 2).reshape_as(weight)


def _fitting_block(block: int, out: int, inputs: int) -> int:
    """The largest number up to `block` that divides both."""
    return max(side for side in range(1, block + 1) if out % side == 0 and inputs % side == 0)
