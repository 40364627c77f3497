"""LoRA-C: one low-rank matrix with a kernel side on either hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from convpeft.adapters import Additive, check_positive
from convpeft.errors import OptionError
from convpeft.sites import Site

_RESNET50 = 23_400_000  # just below the 23,446,080 body weights of the smallest ResNet-50 (3x3 stem, grey images)


class LoraC(Additive, name="lora-c"):
    r"""Add a low-rank matrix between (output, one kernel side) and (input, the other side).

    delta[o, i, a, b] = scale * sum_r up[(o, a), r] * down[r, (i, b)]

    weight (out, in/groups, *kernel) frozen, seen as a matrix (out * first, in/groups * others): first is the first
    kernel side longer than 1, others the product of those after it
    up (out * first, width) zeros | down (width, in/groups * others) Kaiming-uniform, a = sqrt(5)

    The width is rank * k or rank (see setting), with k the longest kernel side: on a square kernel these are the
    paper's shapes. Where only one side is longer than 1 (1-d kernels, 1x7, 7x1) it goes with the input and first is 1;
    1x1 kernels and linear layers get LoRA.

    Args:
        rank: The paper's r, >= 1. At most what keeps the factors as small as the weight (see rank_policy); a layer too
            small for rank * k at rank 1 gets the width that fits.
        alpha: Step size, > 0: scale = alpha / rank, with the rank asked for, also where it was clamped.
            Default: 2 * rank, hence scale 2, the best ratio in the paper's sweeps on CIFAR-10, -100 and CIFAR-10-C.
        setting: Width of the matrix: `rk` for rank * k, or `r` for rank, with k times fewer numbers. `auto` is the
            paper's rule by the size of the whole network, settled when attaching: `rk` below ResNet-50, `r` from it on.
        layout: `aligned` is the formula above. `loralib` is the released code: it reads the product as
            (out, in/groups, *kernel) without moving axes, which mixes rows and columns, and keeps groups on the input
            side: up (out/groups * first, width), down (width, in * others). It knows `rk` only, which `auto` is then.
        per: `layer`, or `kernel` for the paper's comparison of one pair a filter: up (out, first, rank),
            down (out, rank, in/groups * others). It knows `r` only, which `auto` is then, and skips layers whose
            kernel has fewer than two sides longer than 1.
        learned_scale: Train one more factor on the whole delta, starting at one.

    Raises:
        OptionError: If rank or alpha is out of range, or layout, per and setting do not go together.

    Source:
        Ding et al., LoRA-C: Parameter-Efficient Fine-Tuning of Robust CNN for IoT Devices, 2024, arXiv 2410.16954 v2,
        equation 5 and the two settings of R; released code: ConvLoRA of loralib. Differs: works on any kernel, on
        groups and on small layers; leaves pretrained biases alone; statistics of norms, which moved in the released
        training, move under the norm policy `adapt`; an adapter built outside of `attach` takes `auto` for `rk`.
    """

    paper: ClassVar[str] = "Ding et al. 2024, arXiv 2410.16954"
    learning_rate: ClassVar[float] = 2e-3

    def __init__(
        self,
        site: Site,
        *,
        rank: int = 16,
        alpha: float | None = None,
        setting: Literal["auto", "rk", "r"] = "auto",
        layout: Literal["aligned", "loralib"] = "aligned",
        per: Literal["layer", "kernel"] = "layer",
        learned_scale: bool = False,
    ) -> None:
        super().__init__(site, learned_scale=learned_scale)
        check_positive("lora-c", rank=rank, alpha=1.0 if alpha is None else alpha)
        options = {"setting": setting, "layout": layout, "per": per}
        _refuse_unreleased(options)
        self.scale = 2.0 if alpha is None else alpha / rank
        self.first = _first_side(site)
        self.aligned = layout == "aligned" and self.first > 1  # else the product has the order of the weight
        rows, columns = _matrix_shape(site, options)
        width = min(rank * _width_of_rank_one(site, options), _widest(rows, columns))
        pairs = (site.out_channels,) if per == "kernel" else ()
        self.up = nn.Parameter(torch.empty(*pairs, rows, width))
        self.down = nn.Parameter(torch.empty(*pairs, width, columns))

    @classmethod
    def settle(cls, options: dict[str, Any], sites: Sequence[Site], known: Sequence[Site]) -> list[dict[str, Any]]:
        """Replace `auto` by the paper's choice for a network of this size."""
        body = sum(math.prod(site.shape) for site in known if site.kind in ("conv", "linear") and not site.head)
        return [options | {"setting": _setting(options, large=body >= _RESNET50)} for _ in sites]

    @classmethod
    def largest_rank(cls, site: Site, **options: Any) -> int:
        """The largest rank at which the factors hold no more numbers than the weight; 1 where any width at all fits."""
        widest = _widest(*_matrix_shape(site, options))
        return max(widest // _width_of_rank_one(site, options), min(widest, 1))

    def start(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
        """Zero `up`, draw `down`."""
        bound = 1 / math.sqrt(self.down.shape[-1])  # Kaiming-uniform with a = sqrt(5), each pair by itself
        nn.init.zeros_(self.up)
        nn.init.uniform_(self.down, -bound, bound, generator=generator)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (weight, bias) to (weight + delta, bias)."""
        up = self.scaled(self.up)
        if not self.aligned:
            matrix = weight.reshape(up.shape[0], self.down.shape[1])
            return torch.addmm(matrix, up, self.down, alpha=self.scale).view_as(weight), bias
        split = (weight.shape[0], self.first, weight.shape[1], -1)  # (out, first, in/groups, others)
        delta = (up @ self.down).view(split).transpose(1, 2)  # (out, in/groups, first, others)
        return torch.add(weight.reshape(delta.shape), delta, alpha=self.scale).reshape(weight.shape), bias


def _first_side(site: Site) -> int:
    """Size of the kernel side that goes with the output: the first longer than 1, if it is not the only one."""
    sides = [size for size in site.kernel if size > 1]
    return sides[0] if len(sides) > 1 else 1


def _matrix_shape(site: Site, options: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of the low-rank matrix, or of each of them."""
    first, others = _first_side(site), math.prod(site.kernel) // _first_side(site)
    if options.get("per") == "kernel":
        return first, site.shape[1] * others
    if options.get("layout") == "loralib":
        return site.out_channels // site.groups * first, site.shape[1] * site.groups * others
    return site.out_channels * first, site.shape[1] * others


def _widest(rows: int, columns: int) -> int:
    """The largest width at which two factors hold no more numbers than the matrix."""
    return rows * columns // (rows + columns)


def _width_of_rank_one(site: Site, options: Mapping[str, Any]) -> int:
    return max(site.kernel, default=1) if _setting(options, large=False) == "rk" else 1


def _setting(options: Mapping[str, Any], *, large: bool) -> str:
    """What a setting of `auto` stands for; the others stand for themselves."""
    if options.get("setting", "auto") != "auto":
        return options["setting"]
    if options.get("layout") == "loralib":
        return "rk"
    return "r" if large or options.get("per") == "kernel" else "rk"


def _refuse_unreleased(options: Mapping[str, Any]) -> None:
    if options["layout"] == "loralib" and options["per"] == "kernel":
        raise OptionError(
            "method 'lora-c': layout='loralib' does not exist with per='kernel', the released code has no such pairs. "
            "Use per='layer' or layout='aligned'."
        )
    for name, only in (("layout", "rk"), ("per", "r")):
        if options[name] in ("loralib", "kernel") and options["setting"] not in ("auto", only):
            raise OptionError(
                f"method 'lora-c': {name}={options[name]!r} has no setting={options['setting']!r}. "
                f"Use setting={only!r} or 'auto'."
            )
