"""An update that is a product of two matrices: all that the cheaper kernels have to know of it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from convpeft.adapters import Additive


class LowRank(Additive):
    """Add `up @ down`, reshaped to the kernel, to each weight; a kernel may run the factors instead."""

    keeps_down: ClassVar[bool] = False  # whether `down` stays as it is
    is_product: ClassVar[bool] = True  # not so in a subclass with a map of its own and no factors of its own

    def __init_subclass__(cls, *, name: str | None = None, **arguments: Any) -> None:
        super().__init_subclass__(name=name, **arguments)
        if "forward" in cls.__dict__ or "factors" in cls.__dict__:
            cls.is_product = "factors" in cls.__dict__

    @abstractmethod
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """`up` (out, rank) and `down` (rank, in/groups * prod(kernel)), every scale included; None for another map."""

    def stepped(self, factor: Tensor, scale: float) -> Tensor:
        """One factor times the step size and, where there is one, the trained scale."""
        return self.scaled(factor) if scale == 1 else scale * self.scaled(factor)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight + up @ down, bias).

        Raises:
            NotImplementedError: If a subclass without factors does not bring a map of its own.
        """
        factors = self.factors()
        if factors is None:
            raise NotImplementedError
        return torch.addmm(weight.flatten(1), *factors).view_as(weight), bias
