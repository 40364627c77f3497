"""What is claimed of adapters and few images, each claim beside its figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from arms import FROZEN, HEAD, WHOLE, adapters_of
from common.comparison import Comparison
from common.contrasts import Contrast
from common.text import NOTHING, listed, table
from common.wording import detectable_cell, difference_cell, over_images_cell, verdict


def claim_blocks(summaries: Sequence[Comparison]) -> Iterator[str]:
    """The table of claims and how to read it."""
    yield "## Claims"
    adapters = listed(f"`{arm}`" for arm in dict.fromkeys(arm for each in summaries for arm in adapters_of(each)))
    yield (
        f"*The adapters* are the mean of {adapters}, those that a transfer has. Differences are in points, with the "
        "95 % interval over the draws of training images and, beside it, over the test images. A claim is held where "
        "both are above zero; *found* is the difference that would have been found over the draws 8 times in 10."
    )
    rows = [row for each in summaries for row in _rows(each)]
    rows.append(
        (
            "Conv-Adapter is 3.39 points more accurate than full fine-tuning with few images (its authors' figure)",
            *[NOTHING] * 5,
            "not testable here: its networks and data sets are not at hand",
        )
    )
    headers = ("claim", "transfer", "images a class", "difference", "over test images", "found", "verdict")
    yield table(headers, rows)


def _rows(summary: Comparison) -> Iterator[tuple[str, ...]]:
    claims = {
        WHOLE: "The adapters are more accurate than full fine-tuning",
        FROZEN: "The adapters are more accurate than full fine-tuning with frozen norms",
        HEAD: "The adapters are more accurate than a new head alone",
    }
    for against, claim in claims.items():
        if against in summary.arms:
            for size in summary.settings:
                yield _row(summary, claim, str(size), summary.contrast(adapters_of(summary), [against], size))
    if FROZEN in summary.arms:
        for size in summary.settings:
            claim = "Full fine-tuning is more accurate with frozen norms"
            yield _row(summary, claim, str(size), summary.contrast([FROZEN], [WHOLE], size))
    sizes = f"{summary.settings[0]} less {summary.settings[-1]}"
    claim = "The fewer the images, the larger the lead of the adapters over full fine-tuning"
    yield _row(summary, claim, sizes, summary.change(adapters_of(summary), [WHOLE]))


def _row(summary: Comparison, claim: str, size: str, found: Contrast) -> tuple[str, ...]:
    cells = (difference_cell(found), over_images_cell(found), detectable_cell(found), verdict(found))
    return (claim, summary.content["title"], size, *cells)
