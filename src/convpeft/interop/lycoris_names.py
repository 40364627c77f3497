"""LyCORIS's tensors of LoHa and LoKr, which peft has too, and ours: the Tucker form is multiplied out, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from convpeft.sites import Site

_HADAMARD = {
    "up_first": "hada_w1_a",
    "down_first": "hada_w1_b",
    "up_second": "hada_w2_a",
    "down_second": "hada_w2_b",
}
_KRONECKER = {
    "first": "lokr_w1",
    "up_first": "lokr_w1_a",
    "down_first": "lokr_w1_b",
    "second": "lokr_w2",
    "up_second": "lokr_w2_a",
    "down_second": "lokr_w2_b",
}


def hadamard(tensors: Mapping[str, Tensor], site: Site) -> tuple[dict[str, Tensor], int]:
    """Our tensors of LoHa, and the rank.

    Raises:
        KeyError: If one is missing or unknown.
    """
    left = dict(tensors)
    found: dict[str, Tensor] = {}
    rank = _width(left["hada_w1_b"])
    for factor, word in (("1", "first"), ("2", "second")):
        up, down, core = (
            left.pop(f"hada_w{factor}_a"),
            left.pop(f"hada_w{factor}_b"),
            left.pop(f"hada_t{factor}", None),
        )
        found[f"up_{word}"], found[f"down_{word}"] = (up, down) if core is None else opened(core, up, down, site)
    _refuse_rest(left)
    return found, rank


def kronecker(tensors: Mapping[str, Tensor], site: Site) -> tuple[dict[str, Tensor], int | None]:
    """Our tensors of LoKr, and the rank where a factor has one.

    Raises:
        KeyError: If one is missing or unknown.
    """
    left = dict(tensors)
    found: dict[str, Tensor] = {}
    rank: int | None = None
    for factor, word in (("1", "first"), ("2", "second")):
        core = left.pop(f"lokr_t{factor}", None)
        if f"lokr_w{factor}" in left:
            whole = left.pop(f"lokr_w{factor}")
            found[word] = whole.flatten(1)
            continue
        up, down = left.pop(f"lokr_w{factor}_a"), left.pop(f"lokr_w{factor}_b")
        rank = _width(down)
        found[f"up_{word}"], found[f"down_{word}"] = (up, down) if core is None else opened(core, up, down, site)
    _refuse_rest(left)
    return found, rank


def renamed_hadamard(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LyCORIS's names of our LoHa."""
    return {_HADAMARD[key]: value for key, value in tensors.items()}


def renamed_kronecker(tensors: Mapping[str, Tensor], site: Site) -> dict[str, Tensor]:
    """LyCORIS's names of our LoKr; a whole second factor has the kernel's axes there."""
    found = {_KRONECKER[key]: value for key, value in tensors.items()}
    if "lokr_w2" in found:
        found["lokr_w2"] = found["lokr_w2"].reshape(len(found["lokr_w2"]), -1, *site.kernel)
    return found


def multiplied_out(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LoKr with both factors whole."""
    return {
        word: tensors[word] if word in tensors else tensors[f"up_{word}"] @ tensors[f"down_{word}"]
        for word in ("first", "second")
    }


def sides(tensors: Mapping[str, Tensor], site: Site) -> tuple[int, int]:
    """The longer side of each factor of LoKr, by which the width of low-rank factors is judged."""
    whole, kernel = multiplied_out(tensors), math.prod(site.kernel)
    return max(whole["first"].shape), max(len(whole["second"]), whole["second"].shape[1] // kernel)


def opened(core: Tensor, up: Tensor, down: Tensor, site: Site) -> tuple[Tensor, Tensor]:
    """Two matrices with the product of a Tucker form: core (rank, rank, *kernel), up (rank, out), down (rank, in).

    Raises:
        ValueError: If they do not belong together, or the product were larger than the layer's.
    """
    if core.ndim < 2 or core.shape[:2] != (len(up), len(down)) or math.prod(core.shape[2:]) != math.prod(site.kernel):
        raise ValueError(f"a core {tuple(core.shape)} beside {tuple(up.shape)} and {tuple(down.shape)}")
    if down.ndim != 2 or down.shape[1] > site.shape[1]:
        raise ValueError(f"a factor {tuple(down.shape)} for {site.shape[1]} inputs")
    return up.T, torch.einsum("ij...,jp->ip...", core, down).flatten(1)


def _refuse_rest(left: Mapping[str, Tensor]) -> None:
    if left:
        raise KeyError(f"unknown tensor {min(left)}")


def _width(down: Tensor) -> int:
    if down.ndim != 2 or not len(down):
        raise ValueError(f"a factor of shape {tuple(down.shape)}")
    return len(down)
