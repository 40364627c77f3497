"""Run one batch through several adapters: sort it by adapter, run it once, give every image its own outputs back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convpeft.errors import ModelError
from convpeft.heads import FreshHead
from convpeft.routing import Current, Parts, Route, Rows, follow

_ALONE = 1e-3  # of the largest output: what images may differ by when they run together, far above rounding


def run_all(model: nn.Module, current: Current, images: Tensor, adapter: Parts) -> Any:
    """Run a batch with one adapter for all images, whatever the network does with them."""
    with torch.no_grad(), follow(current, Route((Rows(adapter, 0, len(images)),))):
        return model(images)


def run_each(
    model: nn.Module,
    current: Current,
    images: Tensor,
    adapters: Sequence[Parts],
    which: Sequence[int],
    *,
    odd: frozenset[str],
) -> list[Tensor]:
    """Run each image with its own adapter.

    Args:
        model: A model with routed layers.
        current: Where they look their route up.
        images: Inputs (batch, channels, *space).
        adapters: The adapters in use.
        which: Number of each image's adapter among these.
        odd: Layers that `find_odd_layers` found.

    Returns:
        Each image's outputs, as long as its adapter's head has classes.

    Raises:
        ModelError: If the images cannot be told apart somewhere in the network.
    """
    if not which:
        return []
    order = sorted(range(len(which)), key=which.__getitem__)
    ends = [sum(number <= last for number in which) for last in range(len(adapters))]
    starts = [0, *ends[:-1]]
    groups = tuple(Rows(*each) for each in zip(adapters, starts, ends, strict=True))
    given = images if order == list(range(len(order))) else images[order]
    with torch.no_grad(), follow(current, Route(groups, odd=odd)):
        output: object = model(given)
    widths = _widths(adapters)
    rows = _rows_of(output, len(which), max(widths) if widths else None)
    result = rows.copy()
    for row, number in zip(rows, order, strict=True):
        result[number] = row[: widths[which[number]]] if widths else row
    return result


def find_odd_layers(model: nn.Module, current: Current, images: Tensor) -> frozenset[str]:
    """Paths of the layers that do not take one row an image, found on two images and the base.

    Raises:
        ModelError: If images that run together give other outputs than one by one.
    """
    seen: set[str] = set()
    base: Parts = {}
    with torch.no_grad(), follow(current, Route((Rows(base, 0, 2),), seen=seen)):
        together = torch.stack(_rows_of(model(images[:2]), 2))
    apart = torch.cat([torch.stack(_rows_of(run_all(model, current, each, base), 1)) for each in images[:2].split(1)])
    if not torch.allclose(together, apart, rtol=0, atol=_ALONE * float(apart.abs().max())):
        raise ModelError(
            "this network mixes the images of a batch: two images run together give other outputs than one by one. "
            "Run each adapter's images in a call of their own."
        )
    return frozenset(seen)


def _widths(adapters: Sequence[Parts]) -> list[int]:
    """Classes of each adapter's outputs, the base's own where it has no head; empty where all have as many."""
    heads = [
        next((part for parts in adapter.values() for part in parts if isinstance(part, FreshHead)), None)
        for adapter in adapters
    ]
    own = next((head.site.out_channels for head in heads if head is not None), 0)
    counts = [own if head is None else head.weight.shape[0] for head in heads]
    return counts if len(set(counts)) > 1 else []


def _rows_of(output: object, images: int, classes: int | None = None) -> list[Tensor]:
    """The outputs of a model image by image, if they are one tensor with a row for each and a column for each class."""
    if isinstance(output, Tensor) and output.shape[:1] == (images,) and classes in (None, *output.shape[1:2]):
        return list(output)
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ModelError(
        f"this network returns {found} for {images} images{'' if classes is None else f' and {classes} classes'}, "
        "which cannot be told apart image by image. Run each adapter's images in a call of their own."
    )
