"""What is claimed of adapters and few images, each claim beside its figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from summary import FROZEN, HEAD, WHOLE, Contrast, Summary
from wording import NOTHING, detectable_cell, difference_cell, listed, over_images_cell, table, verdict


def claim_blocks(summaries: Sequence[Summary]) -> Iterator[str]:
    """The table of claims and how to read it."""
    yield "## Claims"
    adapters = listed(f"`{arm}`" for arm in dict.fromkeys(arm for each in summaries for arm in each.adapters))
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


def _rows(summary: Summary) -> Iterator[tuple[str, ...]]:
    claims = {
        WHOLE: "The adapters are more accurate than full fine-tuning",
        FROZEN: "The adapters are more accurate than full fine-tuning with frozen norms",
        HEAD: "The adapters are more accurate than a new head alone",
    }
    for against, claim in claims.items():
        if against in summary.arms:
            for size in summary.sizes:
                yield _row(summary, claim, str(size), summary.contrast(summary.adapters, [against], size))
    if FROZEN in summary.arms:
        for size in summary.sizes:
            claim = "Full fine-tuning is more accurate with frozen norms"
            yield _row(summary, claim, str(size), summary.contrast([FROZEN], [WHOLE], size))
    sizes = f"{summary.sizes[0]} less {summary.sizes[-1]}"
    claim = "The fewer the images, the larger the lead of the adapters over full fine-tuning"
    yield _row(summary, claim, sizes, summary.change(summary.adapters, [WHOLE]))


def _row(summary: Summary, claim: str, size: str, found: Contrast) -> tuple[str, ...]:
    cells = (difference_cell(found), over_images_cell(found), detectable_cell(found), verdict(found))
    return (claim, summary.content["title"], size, *cells)
