"""Whether a layer that is being trained can be computed in a cheaper way, and which; then run it so."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from convpeft.adapters import Adapter, Module
from convpeft.convolving import both_sides
from convpeft.kernels.frozen import frozen
from convpeft.kernels.fused import fused
from convpeft.kernels.hybrid import hybrid
from convpeft.kernels.lean import lean
from convpeft.kernels.operations import Convolution, Linear, Operation, Pointwise
from convpeft.kernels.rebuilt import Build, Pull, rebuilt
from convpeft.kernels.side import side
from convpeft.kernels.weights import has_channels_last
from convpeft.low_rank import LowRank
from convpeft.sites import Site

_LANES = 16  # numbers in a vector register, and in a block of a convolution's channels
_WORTH = 0.8  # a smaller gain is lost in moving data
_LARGE = 16_384  # numbers of a weight that is worth building twice
_LEAST = 5_000_000  # multiplications; fewer take less time than a few more calls


@dataclass(frozen=True)
class Product:
    """A layer's weight plus up @ down, and the kernel that computes it for less than the definition."""

    kernel: Literal["side", "hybrid", "lean", "fused"]
    site: Site
    up: Tensor
    down: Tensor

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
        """The layer's output.

        Args:
            x: Its input.
            weight: Its own weight, frozen.
            bias: Its own bias, or with a scale that of the folded layer.
            scale: Constant factor for each filter of the adapted weight (out), where a norm is folded into the layer.
        """
        x, operation = _prepared(self.site, x)
        with torch.autocast(x.device.type, enabled=False):
            up = self.up
            if scale is not None and self.kernel != "fused":
                up = up * scale.to(up.dtype).unsqueeze(1)
            return _RUN[self.kernel](x, weight, bias, up, self.down, scale, operation)


_RUN = {"side": side, "hybrid": hybrid, "lean": lean, "fused": fused}


def find_cheaper(part: Module, x: Tensor, weight: Tensor, *, asked: str = "auto") -> Product | None:
    """The kernel other than the definition that computes a layer for less; None where the definition is to be used.

    Args:
        part: The layer's only active adapter.
        x: Its input.
        weight: Its own weight.
        asked: `weight`, `side`, `hybrid` or `fused`, or `auto` for the cheaper one. Where `down` is not trained, `lean`
            stands for `hybrid`.
    """
    if asked in ("weight", "rebuilt") or not isinstance(part, LowRank) or not part.is_product:
        return None
    if weight.requires_grad or not _fits(part.site, x):
        return None
    factors = part.factors()
    if factors is None or not any(each.requires_grad for each in factors):
        return None
    up, down = factors
    if asked == "auto" and x.is_cuda and down.requires_grad:
        asked = "fused"  # the gradient of a whole weight is cheap there, and every further launch is not
    if asked == "auto" and not _pays(part.site, up.shape[1], x, keeps_down=not down.requires_grad):
        return None
    if asked in ("side", "fused"):
        return Product("side" if asked == "side" else "fused", part.site, up, down)
    return Product("hybrid" if down.requires_grad else "lean", part.site, up, down)


def run_frozen(site: Site, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """The output of a layer whose effective weight is not trained, without keeping its input; None if it cannot."""
    if weight.requires_grad or site.transposed or not x.requires_grad or not _has_batch(site, x):
        return None
    x, operation = _prepared(site, x)
    with torch.autocast(x.device.type, enabled=False):
        return frozen(x, weight, bias, operation)


def can_rebuild(site: Site, parts: Sequence[Adapter], x: Tensor, asked: str) -> bool:
    """Whether a layer may build its effective weight twice and keep its input alone; for a small weight, why bother.

    That a map gives the same weight again before the next step is known of our own methods without hooks.
    """
    large = math.prod(site.shape) >= _LARGE and not x.is_cuda  # building it twice is many launches
    if not (asked == "rebuilt" or (asked == "auto" and large)) or site.transposed or not _has_batch(site, x):
        return False
    pure = all(not part.hooks and type(part).__module__.startswith("convpeft.methods.") for part in parts)
    return pure and any(part.maps_weight and any(p.requires_grad for p in part.parameters()) for part in parts)


def run_rebuilt(site: Site, x: Tensor, build: Build, trained: Sequence[Tensor], pull: Pull | None) -> Tensor:
    """The output of a layer whose weight is built once more for the backward pass."""
    x, operation = _prepared(site, x)
    with torch.autocast(x.device.type, enabled=False):
        return rebuilt(x, build, trained, operation, pull)


def is_traced(x: object) -> bool:
    """Whether something other than PyTorch's own autograd is looking at a tensor."""
    return (
        type(x) is not Tensor
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] - torch.jit exports it
        or torch._C._are_functorch_transforms_active()
    )


def in_checkpoint() -> bool:
    """Whether PyTorch's checkpointing runs this forward; it runs it again later and must find the same kept."""
    hooks = cast(Any, torch._C)._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"


def _fits(site: Site, x: Tensor) -> bool:
    return site.groups == 1 and not site.transposed and _has_batch(site, x)


def _has_batch(site: Site, x: Tensor) -> bool:
    return site.kind != "conv" or x.ndim == len(site.kernel) + 2


def _prepared(site: Site, x: Tensor) -> tuple[Tensor, Operation]:
    """The input as the layer's operation takes it: in autocast's type, with the padding it cannot do itself."""
    operation, sides = _operation(site)
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    x = _padded(x, site, sides)
    single = isinstance(operation, Convolution) and operation.is_pointwise(site.kernel)
    if single and has_channels_last(x) and not x.is_cuda:  # there, float32 products of matrices know no TF32 by default
        operation = Pointwise()
    return x, operation


def _pays(site: Site, rank: int, x: Tensor, *, keeps_down: bool) -> bool:
    """Whether the work in `rank` channels is clearly less than that for the gradient of a whole weight.

    At each position of the output, two convolutions into rank channels and as many products with `up` (one each, where
    `down` is not trained) stand against one of out * n; fewer than 16 channels take as long as 16. Measured on CPU from
    16 to 512 channels, the ratio is right within a fifth. Where `down` is not trained, little work is enough of a
    reason: the input need not be kept.
    """
    width = math.ceil(rank / _LANES) * _LANES
    whole = site.out_channels * site.fan_in
    narrow = (1 if keeps_down else 2) * width * (site.fan_in + site.out_channels)
    positions = x.numel() // site.shape[1] // math.prod(site.stride)
    return narrow < _WORTH * whole and (keeps_down or (whole - narrow) * positions > _LEAST)


@functools.lru_cache(maxsize=4096)
def _operation(site: Site) -> tuple[Operation, list[int]]:
    """The layer without its weight, and the padding that it cannot do itself, as `F.pad` takes it."""
    if site.kind == "linear":
        return Linear(), []
    sides = both_sides(site)
    before, after = sides[0::2][::-1], sides[1::2][::-1]
    if site.padding_mode == "zeros" and before == after:
        return Convolution(site.stride, tuple(before), site.dilation, site.groups), []
    return Convolution(site.stride, (0,) * len(before), site.dilation, site.groups), sides


def _padded(x: Tensor, site: Site, sides: list[int]) -> Tensor:
    if not sides:
        return x
    return F.pad(x, sides, mode="constant" if site.padding_mode == "zeros" else site.padding_mode)
