"""Whether a layer that is being trained can be computed in a cheaper way, and which; then run it so."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from convpeft.adapters import Module
from convpeft.convolving import both_sides
from convpeft.kernels.hybrid import hybrid
from convpeft.kernels.operations import Convolution, Linear, Operation
from convpeft.low_rank import LowRank
from convpeft.sites import Site

Kernel = Literal["weight", "hybrid"]


def run_cheaply(part: Module, x: Tensor, weight: Tensor, bias: Tensor | None, *, asked: str = "auto") -> Tensor | None:
    """The output of a layer with one adapter, if a kernel other than the definition computes it for less.

    Args:
        part: The layer's only active adapter.
        x: Its input.
        weight: Its own weight, frozen.
        bias: Its own bias.
        asked: A kernel's name, or `auto` for the cheapest.

    Returns:
        The output; None where the definition is to be used.
    """
    if asked == "weight" or not isinstance(part, LowRank) or not part.is_product:
        return None
    if weight.requires_grad or _is_traced(x):
        return None
    site = part.site
    if site.groups > 1 or site.transposed or (site.kind == "conv" and x.ndim != len(site.kernel) + 2):
        return None
    factors = part.factors()
    if factors is None or not any(each.requires_grad for each in factors):
        return None
    if asked == "auto" and not _pays(site, factors[0].shape[1]):
        return None
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        x, operation = _operation(site, x)
        return hybrid(x, weight, bias, *factors, operation)


def _is_traced(x: Tensor) -> bool:
    """Whether something other than PyTorch's own autograd is looking."""
    return (
        type(x) is not Tensor
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] - torch.jit exports it
        or torch._C._are_functorch_transforms_active()
    )


def _pays(site: Site, rank: int) -> bool:
    """Whether rank-r work is less than a whole weight gradient."""
    return 4 * rank <= min(site.out_channels, site.fan_in)


def _operation(site: Site, x: Tensor) -> tuple[Tensor, Operation]:
    """The layer without its weight, and its input with whatever padding that cannot do itself."""
    if site.kind == "linear":
        return x, Linear()
    sides = both_sides(site)
    before, after = sides[0::2][::-1], sides[1::2][::-1]
    if site.padding_mode == "zeros" and before == after:
        return x, Convolution(site.stride, tuple(before), site.dilation)
    mode = "constant" if site.padding_mode == "zeros" else site.padding_mode
    return F.pad(x, sides, mode=mode), Convolution(site.stride, (0,) * len(before), site.dilation)
