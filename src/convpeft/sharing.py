"""The work that images of different adapters share in one layer: its own convolution once, then low-rank updates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convpeft.convolving import convolve
from convpeft.injection import is_torch_convolution
from convpeft.low_rank import LowRank

_LANES = 16  # fewer channels of a convolution take as long as so many
_MOVED = 64  # multiplications in the time that a number of a new weight takes to be written and reordered


@dataclass(frozen=True)
class Group:
    """The images of one adapter, in a row, and what the adapter has on one layer."""

    first: int
    end: int
    parts: tuple[nn.Module, ...]


def split_runs(
    layer: nn.Module, base: type[nn.Module], groups: Sequence[Group], x: Tensor
) -> Iterator[tuple[int, int, bool]]:
    """Which groups next to each other run the layer together: (first group, last group, whether they share it).

    A group can share where its adapter has nothing on the layer, or a product of two matrices that costs less beside
    the layer than a weight of its own. A group that would share with nobody runs by definition.
    """
    leaf = next(layer.children(), None) is None  # the modules inside another look their parts up themselves
    plain = is_torch_convolution(base) or base.forward is nn.Linear.forward
    able = [leaf and (not group.parts or (plain and _pays(layer, group, x))) for group in groups]
    first = 0
    while first < len(groups):
        last = first
        while able[first] and last + 1 < len(groups) and able[last + 1]:
            last += 1
        yield first, last, last > first
        first = last + 1


def add_products(output: Tensor, rows: Tensor, groups: Sequence[Group]) -> Tensor:
    """Add to the output of a layer what the low-rank updates of each group make of its rows, in place."""
    start = groups[0].first
    for group in groups:
        for part in group.parts:
            product = part.factors() if isinstance(part, LowRank) else None
            if product is not None and isinstance(part, LowRank):
                up, down = product
                own = slice(group.first - start, group.end - start)
                if part.site.kind == "linear":
                    output[own] += F.linear(F.linear(rows[own], down), up)
                    continue
                filters = down.view(-1, *part.site.shape[1:])
                narrow = convolve(part.site, rows[own], filters, groups=1)  # (images, rank, *space)
                added = torch.matmul(up, narrow.flatten(2))  # (images, out, positions)
                output[own] += added.view(-1, up.shape[0], *narrow.shape[2:])
    return output


def _pays(layer: nn.Module, group: Group, x: Tensor) -> bool:
    """Whether one product of two matrices is all that a group has here, and beside the layer is where it costs less.

    Beside the layer it is work at each position of each image; in a weight of the group's own it is work for each
    number of the weight, however many images there are.
    """
    part = group.parts[0]
    if len(group.parts) > 1 or not isinstance(part, LowRank) or not part.is_product or part.site.tensor != "weight":
        return False
    site, weight = part.site, layer._parameters["weight"]
    if site.groups > 1 or site.transposed or weight is None or weight.dtype != x.dtype or x.dtype.itemsize < 4:
        return False
    if (site.kind == "conv" and x.ndim != len(site.kernel) + 2) or torch.is_autocast_enabled(x.device.type):
        return False
    factors = part.factors()
    if factors is None or any(factor.dtype != x.dtype for factor in factors):
        return False
    rank = factors[0].shape[1]
    positions = (group.end - group.first) * (x[0].numel() // site.shape[1] // math.prod(site.stride))
    beside = positions * math.ceil(rank / _LANES) * _LANES * (site.out_channels + site.fan_in)
    return beside < math.prod(site.shape) * (rank + _MOVED)
