"""Whether a layer that is being trained can be computed in a cheaper way, and which; then run it so."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from convpeft.adapters import Module
from convpeft.convolving import both_sides
from convpeft.kernels.hybrid import hybrid
from convpeft.kernels.operations import Convolution, Linear, Operation
from convpeft.low_rank import LowRank
from convpeft.sites import Site

_LANES = 16  # numbers in a vector register, and in a block of a convolution's channels
_WORTH = 0.8  # a smaller gain is lost in moving data
_LEAST = 5_000_000  # multiplications; fewer take less time than a few more calls


def run_cheaply(part: Module, x: Tensor, weight: Tensor, bias: Tensor | None, *, asked: str = "auto") -> Tensor | None:
    """The output of a layer with one adapter, if a kernel other than the definition computes it for less.

    Args:
        part: The layer's only active adapter.
        x: Its input.
        weight: Its own weight, frozen.
        bias: Its own bias.
        asked: `weight` or `hybrid`, or `auto` for the cheaper one.

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
    if asked == "auto" and not _pays(site, factors[0].shape[1], x):
        return None
    operation, sides = _operation(site)
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return hybrid(_padded(x, site, sides), weight, bias, *factors, operation)
    x = x.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return hybrid(_padded(x, site, sides), weight, bias, *factors, operation)


def _is_traced(x: Tensor) -> bool:
    """Whether something other than PyTorch's own autograd is looking."""
    return (
        type(x) is not Tensor
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] - torch.jit exports it
        or torch._C._are_functorch_transforms_active()
    )


def _pays(site: Site, rank: int, x: Tensor) -> bool:
    """Whether the work in `rank` channels is clearly less than that for the gradient of a whole weight.

    At each position of the output, two convolutions into rank channels and two products with `up` stand against one of
    out * n; fewer than 16 channels take as long as 16. Measured on CPU from 16 to 512 channels, the ratio is right
    within a fifth.
    """
    width = math.ceil(rank / _LANES) * _LANES
    whole, narrow = site.out_channels * site.fan_in, 2 * width * (site.fan_in + site.out_channels)
    positions = x.numel() // site.shape[1] // math.prod(site.stride)
    return narrow < _WORTH * whole and (whole - narrow) * positions > _LEAST


@functools.lru_cache(maxsize=4096)
def _operation(site: Site) -> tuple[Operation, list[int]]:
    """The layer without its weight, and the padding that it cannot do itself, as `F.pad` takes it."""
    if site.kind == "linear":
        return Linear(), []
    sides = both_sides(site)
    before, after = sides[0::2][::-1], sides[1::2][::-1]
    if site.padding_mode == "zeros" and before == after:
        return Convolution(site.stride, tuple(before), site.dilation), []
    return Convolution(site.stride, (0,) * len(before), site.dilation), sides


def _padded(x: Tensor, site: Site, sides: list[int]) -> Tensor:
    if not sides:
        return x
    return F.pad(x, sides, mode="constant" if site.padding_mode == "zeros" else site.padding_mode)
