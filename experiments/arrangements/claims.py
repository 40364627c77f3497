"""What is claimed of the arrangements, each claim beside its figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from arms import (
    ALTERED,
    AT_BUDGET,
    BESIDE,
    BIASES,
    HEAD,
    LESS_CONV1,
    LESS_CONV2,
    MATRIX,
    PARALLEL,
    PARALLEL_COPY,
    SCALED,
    SERIAL,
    SERIAL_COPY,
    STRIDED,
    TENSORS,
    UNSCALED,
    WHOLE,
    arm_on,
)
from common.comparison import Comparison
from common.contrasts import Contrast
from common.text import NOTHING, listed, table
from common.wording import detectable_cell, difference_cell, over_images_cell, verdict
from effects import change_of_effect, effect, mean_effect
from plan import LETTERS
from scores import Score, Share

MUCH_LESS = 0.1  # "<<" is read as a tenth at most; set before anything was timed


@dataclass(frozen=True)
class Claim:
    """That some arms are more accurate than others."""

    sentence: str
    arms: Sequence[str]
    others: Sequence[str]


CLAIMS = (
    Claim("Parallel is more accurate than serial", PARALLEL, SERIAL),
    Claim("In parallel, group convolution is more accurate than copies", PARALLEL, PARALLEL_COPY),
    Claim("In series, a filter a channel is more accurate than copies of one", SERIAL, SERIAL_COPY),
    Claim("A learned scale is more accurate than none", SCALED, UNSCALED),
    Claim("To alter the weight is more accurate than a separate layer", ALTERED, (*PARALLEL, *SERIAL)),
    Claim("CPD, TKD and CPD-TKD are more accurate than a reshaped matrix", TENSORS, MATRIX),
    Claim("The arms at the budget are more accurate than BitFit", AT_BUDGET, (BIASES,)),
    Claim("The arms at the budget are more accurate than a new head alone", AT_BUDGET, (HEAD,)),
    Claim("The arms at the budget are more accurate than full fine-tuning", AT_BUDGET, (WHOLE,)),
    Claim("Adapters pay on the layer of a block that has the stride", PARALLEL[:1], (STRIDED,)),
    Claim("They pay more there than on the layer beside it", (BESIDE,), (STRIDED,)),
)
_NOT_TESTABLE = (
    (
        "The order of arrangements on ResNet-50, v1 and v1.5",
        "no weights of a ResNet-50 are at hand, and it is too slow here; a small bottleneck network stands in below",
    ),
    (
        "Ten domains: 2118 (series), 2621 (with decay), 3412 (parallel) against 2500 for fine-tuning "
        "(Rebuffi et al. 2017 and 2018)",
        "ImageNet networks and ten data sets; three transfers below have a score of their own",
    ),
    (
        "CHAPTER: 91.56 against 64.56 for fine-tuning on speaker identification (Chen et al. 2022)",
        "a speech network; only its one-dimensional convolution is tried, on images",
    ),
)


def claim_blocks(
    scored: Sequence[Comparison],
    every: Mapping[str, Comparison],
    scores: Sequence[Score],
    times: Mapping[str, Mapping[str, Share]],
) -> Iterator[str]:
    """The table of claims, what each transfer says to them, and how to read both."""
    yield "## Claims"
    yield (
        f"Differences are in points, on the mean of {listed(found.content['title'] for found in scored)}, each counted "
        "alike: with the 95 % interval over the draws of training images and, beside it, over the test images. A claim "
        "is held where both are above zero; *found* is the difference that would have been found over the draws 8 "
        f"times in 10. *The arms at the budget* are the mean of {listed(f'`{arm}`' for arm in AT_BUDGET)}."
    )
    rows = [_row(claim.sentence, mean_effect(scored, claim.arms, claim.others)) for claim in CLAIMS]
    rows += _stride_rows(every)
    rows += [_score_row(scores), *_time_rows(times)]
    rows += [(sentence, *[NOTHING] * 3, f"not testable here: {why}") for sentence, why in _NOT_TESTABLE]
    yield table(("claim", "difference", "over test images", "found", "verdict"), rows)
    yield (
        "The same by transfer; ○: within noise, as one of the two intervals holds zero. The last column is no part of "
        "the mean: v1 learns the same letters as v1.5."
        if LETTERS[0] in every
        else "The same by transfer; ○: within noise, as one of the two intervals holds zero."
    )
    columns = [*scored, *(each for name, each in every.items() if each not in scored)]
    yield table(
        ("claim", *(found.content["title"] for found in columns)),
        [
            (
                claim.sentence,
                *(
                    difference_cell(effect(found, claim.arms, claim.others)) if has_arms(found, claim) else NOTHING
                    for found in columns
                ),
            )
            for claim in CLAIMS
        ],
    )


def stride_blocks(every: Mapping[str, Comparison]) -> Iterator[str]:
    """What the place of the stride changes."""
    if not all(name in every for name in LETTERS):
        return
    v1, v15 = (every[name] for name in LETTERS)
    yield "## Where strides matter: v1 against v1.5"
    yield (
        "A bottleneck of ResNet v1 has its stride in the first 1x1 convolution, one of v1.5 in the 3x3. An adapter in "
        "parallel takes the stride of its layer: on a 1x1 layer with a stride it sees one pixel of four and has one "
        "tap, on a 3x3 layer with a stride it has three. One in series comes after the stride and has none. Both forms "
        "learn the same draws of letters, so that their differences are paired by seed and by test image."
    )
    rows = [
        (
            claim.sentence,
            difference_cell(effect(v1, claim.arms, claim.others)),
            difference_cell(effect(v15, claim.arms, claim.others)),
            difference_cell(change_of_effect(v15, v1, claim.arms, claim.others)),
        )
        for claim in CLAIMS
        if has_arms(v1, claim)
    ]
    yield table(("difference", "v1", "v1.5", "v1.5 less v1"), rows)
    changed = [row[0] for row in rows if not row[-1].endswith("○")]
    told = "None of the differences changes" if not changed else f"{len(changed)} of {len(rows)} differences change"
    yield (
        f"{told} from v1 to v1.5 beyond noise. There is one base of each form: what sets the two apart may be two "
        "trainings as well as two forms."
    )


def _stride_rows(every: Mapping[str, Comparison]) -> Iterator[tuple[str, ...]]:
    if all(name in every for name in LETTERS):
        v1, v15 = (every[name] for name in LETTERS)
        yield _row(
            "Parallel leads serial by more in v1.5 than in v1 (letters)", change_of_effect(v15, v1, PARALLEL, SERIAL)
        )
        yield _row(
            "Adapters on the layer with the stride pay more in v1.5 than in v1 (letters)",
            change_of_effect(v15, v1, PARALLEL[:1], (STRIDED,)),
        )


def has_arms(found: Comparison, claim: Claim) -> bool:
    """Whether a transfer has what a claim is about; one that was cut off may lack arms."""
    return all(arm_on(found.name, arm) in found.arms for arm in (*claim.arms, *claim.others))


def _row(sentence: str, found: Contrast) -> tuple[str, ...]:
    return sentence, difference_cell(found), over_images_cell(found), detectable_cell(found), verdict(found)


def _score_row(scores: Sequence[Score]) -> tuple[str, ...]:
    budget = [each for each in scores if each.arm in AT_BUDGET]
    better = [each for each in budget if each.lead.low is not None and each.lead.low > 0]
    worse = [each for each in budget if each.lead.high is not None and each.lead.high < 0]
    best = budget[0]
    lead = f"{best.lead.mean:+.0f}"
    if best.lead.low is not None and best.lead.high is not None:
        lead += f" [{best.lead.low:+.0f}, {best.lead.high:+.0f}]"
    found = NOTHING if best.lead.detectable is None else f"{best.lead.detectable:.0f}"
    told = f"not held: {len(better)} of {len(budget)} score higher beyond noise, {len(worse)} lower"
    return (
        "Each arm at the budget has a higher decathlon score than full fine-tuning",
        f"{lead} of the best, `{best.arm}`",
        NOTHING,
        found,
        "held" if len(better) == len(budget) else told,
    )


def _time_rows(times: Mapping[str, Mapping[str, Share]]) -> Iterator[tuple[str, ...]]:
    if not times:
        why = "not measured yet; `run.py cost` does"
        yield ("T_PEFT << T_FFT (an epoch; read as a tenth at most)", *[NOTHING] * 3, why)
        return
    every = [
        (arm, share)
        for arms in times.values()
        for arm, share in arms.items()
        if arm not in (WHOLE, HEAD, LESS_CONV1, LESS_CONV2)
    ]
    low, high = (f(share.mean for _, share in every) for f in (min, max))
    for sentence, limit in (
        ("T_PEFT << T_FFT (an epoch; read as a tenth at most)", MUCH_LESS),
        ("T_PEFT < T_FFT (an epoch)", 1.0),
    ):
        under = sum(share.high < limit for _, share in every)
        word = "held" if under == len(every) else "not held"
        yield (
            sentence,
            f"{low:.2f} to {high:.2f} of its time",
            NOTHING,
            NOTHING,
            f"{word}: {under} of {len(every)} (arms on {len(times)} networks) surely below {limit:g}",
        )
