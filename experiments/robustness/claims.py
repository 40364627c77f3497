"""What document 004 says of LoRA-C, each claim beside its figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from common.text import NOTHING, table
from common.wording import detectable_cell, difference_cell, over_images_cell, verdict
from summary import CLEAN, HEAD, MCA_19, NORMS, SCRATCH, WHOLE, Summary

BEYOND = 8.0  # the ratio above the paper's
_PUBLISHED = {  # by the task of the full budget that tests it
    "cifar10-resnet101": "LoRA-C-ResNet-101 has 83.44 % on CIFAR-10-C, 9.5 points more than its standard network",
    "cifar10-resnet50": "With ResNet-50, 7.81 points more on CIFAR-10-C, and setting `r` is no worse than `rk`",
    "cifar10-resnet34": "LoRA-C-ResNet-34 has 78.45 % on CIFAR-10-C, 5.9 points more than its standard network",
    "cifar100-resnet34": "On CIFAR-100, 4.11 points more than the standard network (ResNet-34), 5.29 (ResNet-50)",
    "icons50": "On Icons-50, 96.90 % and 8.48 points more than the standard network (ResNet-34)",
}
Claim = tuple[str, str, list[str], list[str]]  # claim, measure, the arms that should be ahead, the others


def claim_blocks(summary: Summary, *, tasks: Sequence[str]) -> Iterator[str]:
    """The table of claims of a task and how to read it; what another task tests is not called untestable."""
    yield f"## Claims: {summary.content['title']}"
    yield (
        "Differences are in points, with the 95 % interval over the draws of training images and, beside it, over the "
        "test images, each with all its corrupted forms. A claim is held where both are above zero; *found* is the "
        "difference that would have been found over the draws 8 times in 10. LoRA-C is "
        f"`{summary.named}` where it is compared with others, named before anything was trained. *As validation "
        f"chooses it* is `{summary.chosen}`, by its trials the best of {len(summary.lora_c())} arms, after many more "
        "trials than a baseline has. †: the learning rate of an arm compared is the lowest or the highest that was "
        "tried, so that a wider range may change the outcome."
    )
    rows = [_row(summary, *claim) for claim in claims(summary)]
    rows += [row for row in (_equal_row(summary),) if row]
    untested = [claim for task, claim in _PUBLISHED.items() if task not in tasks]
    rows += [(claim, *[NOTHING] * 4, "not testable here: this network and data are not at hand") for claim in untested]
    yield table(("claim", "measure", "difference", "over test images", "found", "verdict"), rows)


def _row(summary: Summary, claim: str, measure: str, arms: list[str], others: list[str]) -> tuple[str, ...]:
    found = summary.contrast(arms, others, measure)
    at_edge = {arm for arm, _, _ in summary.at_edge()}
    told = verdict(found) + (" †" if at_edge & {*arms, *others} else "")
    return claim, measure, difference_cell(found), over_images_cell(found), detectable_cell(found), told


def claims(summary: Summary) -> Iterator[Claim]:
    """Every claim that is a difference, as far as the task has its arms."""
    measures = [measure for measure in (CLEAN, MCA_19) if measure in summary.measures]
    for measure in measures:
        yield from _of_ratios(summary, measure)
    for measure in measures:
        yield from _of_settings(summary, measure)
    for measure in reversed(measures):
        yield from _of_baselines(summary, measure)
    for measure in reversed(measures):
        yield from _of_augmix(summary, measure)


def _of_ratios(summary: Summary, measure: str) -> Iterator[Claim]:
    two, half = summary.matched("ratio", 2.0, 0.5)
    if two:
        claim = f"alpha/r = 2 is better than 0.5 (mean of {len(two)} pairs)"
        yield claim, measure, two, half
    two, beyond = summary.matched("ratio", 2.0, BEYOND)
    if two:
        yield f"alpha/r = 2 is better than {BEYOND:g}", measure, two, beyond


def _of_settings(summary: Summary, measure: str) -> Iterator[Claim]:
    wide, narrow = summary.matched("setting", "rk", "r")
    if wide:
        claim = f"At equal rank, setting `rk` is better than `r` (mean of {len(wide)} pairs; more parameters)"
        yield claim, measure, wide, narrow


def _of_baselines(summary: Summary, measure: str) -> Iterator[Claim]:
    word = "more robust" if measure == MCA_19 else "more accurate on clean images"
    against = {
        SCRATCH: "the standard network, trained from a random start",
        HEAD: "a new head alone",
        NORMS: "norm-tuning",
        WHOLE: "full fine-tuning",
    }
    for who, ours in (("LoRA-C", summary.named), ("LoRA-C as validation chooses it", summary.chosen)):
        for arm, title in against.items():
            if arm in summary.arms:
                yield f"{who} is {word} than {title}", measure, [ours], [arm]


def _of_augmix(summary: Summary, measure: str) -> Iterator[Claim]:
    word = "more robust" if measure == MCA_19 else "more accurate on clean images"
    whole, own = f"{WHOLE}, augmix", "lora-c, augmix"
    if whole in summary.arms:
        claim = f"LoRA-C is {word} than full fine-tuning with AugMix"
        yield claim, measure, [summary.named], [whole]
    if {whole, own} <= set(summary.arms):
        claim = f"With AugMix for both, LoRA-C is {word} than full fine-tuning"
        yield claim, measure, [own], [whole]
        claim = f"LoRA-C is {word} with AugMix than without"
        yield claim, measure, [own], [summary.named]


def _equal_row(summary: Summary) -> tuple[str, ...] | None:
    """What two adapters of equal size came to, number by number."""
    equal = summary.content["equal"]
    if equal is None:
        return None
    claim = f"At equal size (rank {equal['ranks'][0]} of `rk`, rank {equal['ranks'][1]} of `r`) one setting is better"
    told = f"not held: the same adapter, {equal['differing']:,} of {equal['numbers']:,} trained numbers differ"
    if equal["differing"]:
        told = f"not tested: {equal['differing']:,} of {equal['numbers']:,} trained numbers differ"
    return claim, *[NOTHING] * 4, told
