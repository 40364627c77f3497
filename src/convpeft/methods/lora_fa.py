"""LoRA-FA: LoRA with the down projection frozen."""

from __future__ import annotations

from typing import ClassVar

from convpeft.methods.lora import Lora
from convpeft.sites import Site


class LoraFA(Lora, name="lora-fa"):
    r"""Add a low-rank matrix of which only the output side is trained.

    delta = scale * reshape(up @ down)

    weight (out, in/groups, *kernel) frozen, seen as a matrix (out, n) with n = in/groups * prod(kernel)
    up (out, rank) zeros, trained | down (rank, n) Kaiming-uniform, frozen, stored with the adapter

    Its gradient needs only the rank-wide activation, not the layer's input.

    Args:
        rank: Width of the bottleneck, >= 1. Where out * n / (out + n) is smaller, that is taken (see rank_policy).
        alpha: Step size, > 0: scale = alpha / rank, with the rank asked for, also where it was clamped.
            Default: what makes the scale 1, so that changing the rank keeps the step size.
        rslora: Rank-stabilised scale alpha / sqrt(rank) instead.
        learned_scale: Train one more factor on the whole delta, starting at one.

    Raises:
        OptionError: If rank or alpha is out of range.

    Source:
        Zhang et al., LoRA-FA: Memory-efficient Low-rank Adaptation, 2023, arXiv 2308.03303, section 3.
    """

    paper: ClassVar[str] = "Zhang et al. 2023, arXiv 2308.03303"
    learning_rate: ClassVar[float] = 4e-3
    keeps_down: ClassVar[bool] = True

    def __init__(
        self,
        site: Site,
        *,
        rank: int = 8,
        alpha: float | None = None,
        rslora: bool = False,
        learned_scale: bool = False,
    ) -> None:
        super().__init__(site, rank=rank, alpha=alpha, rslora=rslora, learned_scale=learned_scale)
        down = self.down.detach()
        del self.down
        self.register_buffer("down", down)
