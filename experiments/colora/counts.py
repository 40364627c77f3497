"""VGG16's parameter counts on the page: published against counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.text import NOTHING, table

from convpeft.reporting import format_count


def count_blocks(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The table and what follows from it."""
    yield "## VGG16 by its parameter counts"
    yield (
        "What is trained on VGG16 with the paper's head for four classes, head included, counted by convpeft on a "
        "network of that shape; nothing is trained. *Held*: the same, rounded or cut off after two decimals."
    )
    yield table(("trained", "published, millions", "counted", "verdict"), [_row(each) for each in rows])
    yield (
        "Two things follow. The row of the pointwise factors alone carries the count of the depthwise ones, so it was "
        "the depthwise factors that were trained alone, or the figure is a slip. The three sizes of the paper's "
        "*Conv-LoRA* are those of 1 x 1 convolutions of low rank. A k x k LoRA of the same ranks is larger, and CoLoRA "
        "was not set against it."
    )


def _row(each: Mapping[str, Any]) -> tuple[str, ...]:
    told, counted = each["published"], each["counted"]
    if told is None:
        return (each["what"], NOTHING, format_count(counted), NOTHING)
    held = abs(counted / 1e6 - float(told)) < 0.01
    return (each["what"], told, format_count(counted), "held" if held else "not held")
