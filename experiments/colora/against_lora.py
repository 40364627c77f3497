"""CoLoRA against a LoRA of the full kernel, which the paper did not compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from arms import COLORA, LORA, LORA_ALL, forms_of
from common.comparison import Comparison, Setting
from common.text import NOTHING, listed, points, table
from common.wording import detectable_cell, difference, difference_cell, over_images_cell
from measures import TIE, auc_difference, outcome, varies_less
from stability import Ratio

_HEADERS = (
    "CoLoRA",
    "less",
    "transfer",
    "images",
    "size",
    "difference",
    "over test images",
    "found",
    "AUC",
    "deviation",
    "outcome",
)


def lora_blocks(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """The table and how to read it."""
    yield "## Against a k x k LoRA"
    everywhere = ""
    if any(LORA_ALL in found.arms for found in comparisons):
        everywhere = f" `{LORA_ALL}` is LoRA as it is mostly used, in the pointwise layers too."
    yield (
        f"`{LORA}` is LoRA on the whole kernel, seen as a matrix, in the layers that CoLoRA has and about as large "
        "(where the layers allow it; *size* is CoLoRA's trained numbers over the other's, heads included)."
        f"{everywhere} Differences are in points of accuracy, paired by draw: the 95 % interval over the draws, the "
        "one over the test images, and what would have been found over the draws 8 times in 10; then AUC in "
        "hundredths, and the ratio of the standard deviations over the draws, below one where CoLoRA varies less. "
        "CoLoRA *wins* or *loses* where both intervals leave zero "
        f"out, *ties* where both lie within {100 * TIE:.0f} points, and otherwise it is *open*."
    )
    rows = [
        _row(found, arm, other, setting)
        for found in comparisons
        for setting in found.settings
        for arm, other in _pairs(found)
    ]
    yield table(_HEADERS, rows)


def in_short(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """A sentence for each outcome of `colora` against `lora`."""
    told: dict[str, list[str]] = {}
    for found in comparisons:
        for setting in found.settings:
            gap = found.contrast([COLORA], [LORA], setting)
            where = f"{found.content['title']}, {setting} ({difference(gap)} points)"
            told.setdefault(outcome(gap), []).append(where)
    words = {
        "wins": "CoLoRA wins against a k x k LoRA of its layers on",
        "ties": "They tie on",
        "loses": "CoLoRA loses against a k x k LoRA of its layers on",
        "open": "CoLoRA and a k x k LoRA of its layers cannot be told apart on",
    }
    for each, where in told.items():
        yield f"{words[each]} {listed(where)}."


def _pairs(found: Comparison) -> list[tuple[str, str]]:
    pairs = [(arm, LORA) for arm in forms_of(found)]
    return pairs + ([(COLORA, LORA_ALL)] if LORA_ALL in found.arms else [])


def _row(found: Comparison, arm: str, other: str, setting: Setting) -> tuple[str, ...]:
    gap = found.contrast([arm], [other], setting)
    trained = [found.cell(each, setting).runs[0]["trainable"] for each in (arm, other)]
    return (
        f"`{arm}`",
        f"`{other}`",
        found.content["title"],
        str(setting),
        f"{trained[0] / trained[1]:.2f}",
        difference_cell(gap),
        over_images_cell(gap),
        detectable_cell(gap),
        _auc_cell(found, arm, other, setting),
        _ratio_cell(varies_less([(found, setting)], arm, other)),
        outcome(gap),
    )


def _auc_cell(found: Comparison, arm: str, other: str, setting: Setting) -> str:
    gap = auc_difference(found, arm, other, setting)
    if gap is None:
        return NOTHING
    if gap.low is None or gap.high is None:
        return f"{points(gap.mean)} ○"
    return f"{points(gap.mean)} [{points(gap.low)}, {points(gap.high)}]{' ○' if gap.within_noise else ''}"


def _ratio_cell(ratio: Ratio | None) -> str:
    if ratio is None:
        return NOTHING
    return f"{ratio.value:.1f} [{ratio.low:.1f}, {ratio.high:.1f}]{'' if ratio.sign else ' ○'}"
