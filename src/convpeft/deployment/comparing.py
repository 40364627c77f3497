"""Compare what an exported file answers with what PyTorch answers, at several batch sizes on given images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convpeft.errors import ModelError

ABSOLUTE_LIMIT = 1e-4  # of logits, max|a - b|
RELATIVE_LIMIT = 1e-3  # max|a - b| / max|b|
BATCHES = (1, 3, 8)
Run = Callable[[Tensor], Tensor]  # images (batch, channels, height, width) to logits (batch, classes)


@dataclass(frozen=True)
class Difference:
    """The largest differences over all batches that were compared.

    Attributes:
        absolute: max|a - b| of the logits.
        relative: max|a - b| / max|b|, the largest over the batches.
        batches: The batch sizes.
    """

    absolute: float
    relative: float
    batches: tuple[int, ...] = BATCHES

    def __str__(self) -> str:
        """The figures in words."""
        sizes = ", ".join(map(str, self.batches))
        return f"differs from PyTorch by {self.absolute:.1e} ({self.relative:.1e} relative) at batch {sizes}"


def answers_of(model: nn.Module, images: Tensor, *, batches: tuple[int, ...] = BATCHES) -> list[tuple[Tensor, Tensor]]:
    """Images of each batch and the model's logits for them; images are taken in turn, and again where they are few."""
    start, made = 0, list[tuple[Tensor, Tensor]]()
    with torch.no_grad():
        for size in batches:
            batch = images[torch.arange(start, start + size) % len(images)].contiguous()
            made.append((batch, model(batch).float().cpu()))
            start += size
    return made


def difference(run: Run, expected: list[tuple[Tensor, Tensor]]) -> Difference:
    """The largest differences between what a file answers and what was expected of each batch.

    Raises:
        ModelError: If the file answers in another shape.
    """
    absolute = relative = 0.0
    for images, wanted in expected:
        with torch.no_grad():
            found = run(images)
        if found.shape != wanted.shape:
            raise ModelError(
                f"the exported file answers {tuple(found.shape)} where PyTorch answers {tuple(wanted.shape)}. "
                "The network's shapes depend on the batch; nothing was written."
            )
        gap = float((found.double() - wanted.double()).abs().max())
        gap = gap if gap == gap else float("inf")  # NaN compares with nothing
        absolute = max(absolute, gap)
        relative = max(relative, gap / max(float(wanted.abs().max()), 1e-30))
    return Difference(absolute, relative, tuple(len(images) for images, _ in expected))


def check(run: Run, expected: list[tuple[Tensor, Tensor]]) -> Difference:
    """The differences, if they are within the limits.

    Raises:
        ModelError: If they are not.
    """
    found = difference(run, expected)
    if found.absolute > ABSOLUTE_LIMIT or found.relative > RELATIVE_LIMIT:
        raise ModelError(
            f"the exported file {found}; the limits are {ABSOLUTE_LIMIT:.0e} and {RELATIVE_LIMIT:.0e}. "
            "Nothing was written; `convpeft check` may say what in the network is unusual."
        )
    return found
