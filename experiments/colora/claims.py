"""What the paper claims of CoLoRA, each claim beside its figures here and there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from arms import AFTER, BESIDE, BIASES, COLORA, DEPTHWISE, DEPTHWISE_MERGED, HEAD, MERGED, WHOLE
from common.comparison import Comparison, Setting
from common.text import NOTHING, points, table
from common.wording import detectable_cell, difference, difference_cell, over_images_cell, relation, verdict
from measures import auc_difference, epoch_ratio, varies_less
from published import UNTESTED
from stability import Ratio

# (claim, arm, against, published difference in points)
_ACCURACY = (
    ("CoLoRA is more accurate than a new head alone", COLORA, HEAD, "+6.5"),
    ("CoLoRA is more accurate than full fine-tuning", COLORA, WHOLE, "+4.1"),
    ("CoLoRA is more accurate than BitFit", COLORA, BIASES, "+5.8"),
    ("CoLoRA is more accurate than a 1 x 1 convolution beside each layer", COLORA, BESIDE, "+0.5 to +1.1 (low rank)"),
    ("CoLoRA is more accurate than residual adapters after each layer", COLORA, AFTER, "-0.3 (adapters)"),
    ("Merging and drawing anew after each epoch gains accuracy", MERGED, COLORA, NOTHING),
    ("So it does with the depthwise factor first", DEPTHWISE_MERGED, DEPTHWISE, NOTHING),
    ("Pointwise first (second version) is more accurate than depthwise first", COLORA, DEPTHWISE, NOTHING),
)
_AUC = (
    ("CoLoRA has a higher AUC than a new head alone", COLORA, HEAD, "+1.5"),
    ("CoLoRA has a higher AUC than full fine-tuning", COLORA, WHOLE, NOTHING),
)
_STABLE = (
    ("CoLoRA varies less from draw to draw than full fine-tuning", COLORA, WHOLE, "0.6 (0.003 over 0.005)"),
    ("CoLoRA varies less from draw to draw than a new head alone", COLORA, HEAD, "0.4 (0.003 over 0.007)"),
)
_HEADERS = ("claim", "transfer", "images", "published", "here", "over test images", "found", "verdict")
Row = tuple[str, ...]


def claim_blocks(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """The table of claims and how to read it."""
    yield "## What the paper claims"
    yield (
        "Differences are in points: of accuracy, or of AUC in hundredths, with the 95 % interval over the draws and, "
        "beside it, over the test images with patients whole. A claim about accuracy is *held* where both are above "
        "zero. *Found* is the difference that would have been found over the draws 8 times in 10. Claims were put to "
        "the arm `colora` before anything was trained. Published figures are those of VGG16 on OCTMNIST: accuracy "
        "against head and full are means of the table of placements, the others come from a balanced part of it."
    )
    rows = [row for found in comparisons for row in _accuracy_rows(found)]
    rows += [row for found in comparisons for row in _auc_rows(found)]
    rows.sort(key=_place)
    yield table(_HEADERS, rows)
    yield "### Stable, fast and small"
    yield (
        "Ratios, with their 95 % interval; below one is in favour of CoLoRA. The first rows are ratios of standard "
        "deviations over the draws (Pitman and Morgan's interval for paired draws; pooled in the last line of each, "
        "where every cell counts alike). "
        "*Found* is the ratio above one, or one over it, that would have been found about 8 times in 10: a few draws "
        "tell very different deviations apart, no others. An epoch is training alone, without validation, draw by "
        "draw over that of `full`."
    )
    yield table(("claim", "transfer", "images", "published", "ratio", "found", "verdict"), _ratio_rows(comparisons))
    yield "### Not testable here"
    rows = [(claim, told, f"not testable here: {why}") for claim, told, why in UNTESTED]
    yield table(("claim", "published", "verdict"), rows)


def _accuracy_rows(found: Comparison) -> Iterator[Row]:
    for claim, arm, other, told in _ACCURACY:
        if arm in found.arms and other in found.arms:
            for setting in found.settings:
                gap = found.contrast([arm], [other], setting)
                cells = (difference_cell(gap), over_images_cell(gap), detectable_cell(gap), verdict(gap))
                yield (claim, found.content["title"], str(setting), told, *cells)


def _auc_rows(found: Comparison) -> Iterator[Row]:
    for claim, arm, other, told in _AUC:
        for setting in found.settings if arm in found.arms and other in found.arms else ():
            gap = auc_difference(found, arm, other, setting)
            if gap is None:
                continue
            cells = (f"{points(gap.mean)} ○", NOTHING, NOTHING, "not held: within noise")
            if gap.low is not None and gap.high is not None and gap.detectable is not None:
                mark = " ○" if gap.within_noise else ""
                word = "within noise" if gap.within_noise else "the other way round"
                told_here = "held" if not gap.within_noise and gap.mean > 0 else f"not held: {word}"
                cells = (
                    f"{points(gap.mean)} [{points(gap.low)}, {points(gap.high)}]{mark}",
                    NOTHING,
                    f"{100 * gap.detectable:.1f}",
                    told_here,
                )
            yield (claim, found.content["title"], str(setting), told, *cells)


def _ratio_rows(comparisons: Sequence[Comparison]) -> list[Row]:
    every = [(found, setting) for found in comparisons for setting in found.settings]
    rows: list[Row] = []
    for claim, arm, other, told in _STABLE:
        for found, setting in every:
            place = (found.content["title"], str(setting))
            rows += _ratio_row(claim, place, told, varies_less([(found, setting)], arm, other))
        if len(every) > 1:
            rows += _ratio_row(claim, ("all", "pooled"), told, varies_less(every, arm, other))
    for found, setting in every:
        place = (found.content["title"], str(setting))
        claim = "An epoch of CoLoRA takes less time than one of full fine-tuning"
        rows += _ratio_row(claim, place, "0.92", epoch_ratio(found, COLORA, WHOLE, setting))
    for found in comparisons:
        trained = [found.cell(arm, found.settings[0]).runs[0]["trainable"] for arm in (COLORA, WHOLE)]
        share = trained[0] / trained[1]
        claim = "CoLoRA trains far fewer parameters than full fine-tuning"
        place = (claim, found.content["title"], "any", "0.16")
        rows.append((*place, f"{share:.2f}", NOTHING, "held" if share < 0.5 else "not held"))
    return rows


def _ratio_row(claim: str, place: tuple[str, str], told: str, ratio: Ratio | None) -> list[Row]:
    if ratio is None:
        return [(claim, *place, told, NOTHING, NOTHING, "not testable here: too few draws")]
    word = {1: "held", 0: "not held: within noise", -1: "not held: the other way round"}[ratio.sign]
    cell = f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]{'' if ratio.sign else ' ○'}"
    return [(claim, *place, told, cell, f"{ratio.detectable:.2f}", word)]


def _place(row: Row) -> int:
    """Rows of a claim together, in the order of the claims."""
    return [claim for claim, *_ in (*_ACCURACY, *_AUC)].index(row[0])


def short_verdict(found: Comparison, other: str, setting: Setting) -> str:
    """One clause on CoLoRA against another arm."""
    gap = found.contrast([COLORA], [other], setting)
    return f"{relation(gap)} `{other}` ({difference(gap)} points)"
