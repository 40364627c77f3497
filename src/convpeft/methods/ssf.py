"""SSF: scale and shift the output of each layer."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from convpeft.adapters import Adapter, NormPolicy
from convpeft.sites import Kind, Site

_SPREAD = 0.02  # standard deviation of the released code's starting values


class SSF(Adapter, name="ssf"):
    r"""Scale and shift every output channel of each convolution, linear layer and norm.

    weight'[o] = gamma[o] * weight[o], bias' = gamma * bias + beta

    weight (out, ...) and bias (out) frozen, a missing bias counts as zero | gamma (out) ones | beta (out) zeros

    Args:
        init: Starting values: `zero` changes nothing; `paper` draws gamma from N(1, 0.02) and beta from N(0, 0.02), so
            that the fresh adapter is not the identity.

    Source:
        Lian et al., Scaling and Shifting Your Features, 2022, arXiv 2210.08823, equations 2 and 3. Differs: starts at
        one and zero exactly unless asked; a norm gets scale and shift through its own affine parameters.
    """

    paper: ClassVar[str] = "Lian et al. 2022, arXiv 2210.08823"
    kinds: ClassVar[tuple[Kind, ...]] = ("conv", "linear", "norm")
    default_sites: ClassVar[tuple[str, ...]] = ("conv", "linear", "norm")
    norm_policies: ClassVar[tuple[NormPolicy, ...]] = ("frozen", "adapt")
    learning_rate: ClassVar[float] = 5e-3

    def __init__(self, site: Site, *, init: Literal["zero", "paper"] = "zero") -> None:
        super().__init__(site)
        self.init = init
        channels = site.shape if site.kind == "norm" else site.shape[:1]
        self.gamma = nn.Parameter(torch.empty(channels))
        shifts = site.kind != "norm" or site.bias  # some norms have no place for a bias
        self.beta = nn.Parameter(torch.empty(channels)) if shifts else None

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Set the scale to one and the shift to zero, or near them."""
        spread = _SPREAD if self.init == "paper" else 0.0
        nn.init.normal_(self.gamma, mean=1.0, std=spread, generator=generator)
        if self.beta is not None:
            nn.init.normal_(self.beta, std=spread, generator=generator)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (gamma * weight, gamma * bias + beta)."""
        scaled = self.gamma.view(*self.gamma.shape, *[1] * (weight.ndim - self.gamma.ndim)) * weight
        if bias is None:
            return scaled, self.beta
        moved = self.gamma * bias
        return scaled, moved if self.beta is None else moved + self.beta
