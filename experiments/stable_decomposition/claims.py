"""What is claimed of stable decompositions, and what the results say to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from common.text import NOTHING, points
from plan import BOTH, EQUAL, PLAIN, RESTORING, SEARCH, STABLE
from summary import Contrast, Ratio, Summary, contrast, layer_ratios, operations, over_rates, ratio
from wording import difference_cells

HELD, ROUND, NOISE, NOT_HERE = "held", "not held: the other way round", "not held: within noise", "not testable here"
SLACK = 1.01  # how much larger the corrected error may be, as the method has it
MARGIN = 0.01  # how much less accurate than full fine-tuning still counts as well, set before the runs
PUBLISHED = (
    ("VGG-16", "vgg16", 0.005, "5.26 times fewer operations, -0.92 points top-1"),
    ("ResNet-18", "resnet18", 0.00325, "3.09 times fewer operations, -0.69 points top-1"),
    ("ResNet-50", "resnet50", 0.0028, "2.64 times fewer operations, -1.47 points top-1"),
)


@dataclass(frozen=True)
class Claim:
    """One row of the table.

    Args:
        sentence: What is claimed.
        where: Network and setting.
        figure: The figure, with its unit where it is no difference in points.
        seeds: Interval over the seeds.
        images: Interval over the test images.
        detectable: Difference that would have been found.
        verdict: Held, not held, or not testable here.
    """

    sentence: str
    where: str
    figure: str
    seeds: str
    images: str
    detectable: str
    verdict: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row."""
        return self.sentence, self.where, self.figure, self.seeds, self.images, self.detectable, self.verdict


def judge(summary: Summary) -> list[Claim]:
    """Every claim, those that the results can tell first."""
    found = [
        *_sensitivity(summary),
        *_accuracy(summary),
        *_unstable(summary),
        *_within(summary),
        *_adapters(summary),
        *_fewest(summary),
    ]
    nothing = (NOTHING,) * 3
    published = [
        Claim(
            f"{network} on ImageNet: {figures} within a drop of {100 * drop:g} points (Phan et al.)",
            "the ImageNet validation set",
            *(NOTHING, *nothing),
            f"{NOT_HERE}: ImageNet is not at hand; the command is below",
        )
        for network, _, drop, figures in PUBLISHED
    ]
    return found + published


def _sensitivity(summary: Summary) -> Iterator[Claim]:
    """At equal ranks, layer by layer: the factors with the correction against those without."""
    for network in summary.networks(EQUAL):
        pairs = summary.pairs(EQUAL, STABLE, PLAIN, network=network)
        found, error = (ratio(pairs, layer_ratios(key)) for key in ("sensitivity", "error"))
        if found is None or error is None:
            continue
        worst = max(each for a, b in pairs for each in layer_ratios("error")(a, b))
        lower = found.sign < 0 or (found.low is None and found.mean < 1)
        verdict = HELD if lower and worst <= SLACK + 1e-4 else ROUND if found.sign > 0 else NOISE
        yield Claim(
            "The correction lowers the sensitivity at equal rank and about equal error",
            network,
            f"sensitivity {found.mean:.2f} times, error {error.mean:.3f} times (at most {worst:.3f})",
            _ratio_interval(found),
            NOTHING,
            NOTHING,
            _marked(verdict, found.low),
        )


def _accuracy(summary: Summary) -> Iterator[Claim]:
    stages = ("thin", *RESTORING)
    names = {"thin": "thin, before anything is trained", **{arm: f"restored by `{arm}`" for arm in RESTORING}}
    for stage in stages:
        for network in summary.networks(EQUAL):
            pairs = summary.pairs(EQUAL, STABLE, PLAIN, network=network)
            found = contrast([((a, stage), (b, stage)) for a, b in pairs])
            if found is not None:
                yield _difference(
                    f"Corrected CPD is more accurate than plain at equal ranks, {names[stage]}", network, found
                )


def _unstable(summary: Summary) -> Iterator[Claim]:
    """In the trials, with every rate alike: one seed, so that the images alone give an interval."""
    plain, stable = (summary.tuned(method) for method in (PLAIN, STABLE))
    if plain is not None and stable is not None:
        for arm in RESTORING:
            found = over_rates(stable, plain, arm)
            if found is not None:
                sentence = "Corrected CPD bears learning rates better than plain (mean over all rates that were tried)"
                yield _difference(sentence, f"{stable['network']}, `{arm}`", found)


def _within(summary: Summary) -> Iterator[Claim]:
    """The drop on the test images against the drop that was allowed on those that chose, all methods together."""
    for network in summary.networks(SEARCH):
        for drop in reversed(summary.settings(SEARCH, network)):
            found = contrast(
                [((line, "before"), (line, "thin")) for line in summary.of(SEARCH, network=network, setting=drop)]
            )
            if found is not None:
                side = found.above(drop)
                verdict = {-1: HELD, 1: "not held: the drop is larger", 0: NOISE}[side]
                mean, *rest = difference_cells(found)
                where = f"{network}, {100 * drop:g} allowed"
                sentence = "The drop on new images stays within what was allowed on those that chose"
                yield Claim(sentence, where, f"{mean} lost", *rest, _marked(verdict, found.seeds.low))


def _adapters(summary: Summary) -> Iterator[Claim]:
    for network in dict.fromkeys((*summary.networks(EQUAL), *summary.networks(SEARCH))):
        found = contrast([((line, "lora"), (line, "full")) for line in summary.restored_lines(network)])
        if found is not None:
            verdict = {1: HELD, -1: "not held: they restore less", 0: NOISE}[found.above(-MARGIN)]
            sentence = f"Adapters restore as well as full fine-tuning, to within {100 * MARGIN:g} point"
            yield Claim(sentence, network, *difference_cells(found), _marked(verdict, found.seeds.low))


def _fewest(summary: Summary) -> Iterator[Claim]:
    """Multiplications of one method over those of another, at equal allowed drop."""
    sentences = {
        (BOTH, STABLE): f"`{BOTH}` needs the fewest operations at equal allowed drop: fewer than `{STABLE}`",
        (BOTH, "tucker"): f"`{BOTH}` needs the fewest operations at equal allowed drop: fewer than `tucker`",
        (STABLE, "tucker"): f"`{STABLE}` needs fewer operations than `tucker` at equal allowed drop",
    }
    for (one, other), sentence in sentences.items():
        for network in summary.networks(SEARCH):
            pairs = summary.pairs(SEARCH, one, other, network=network)
            found, gap = ratio(pairs, operations), contrast([((a, "thin"), (b, "thin")) for a, b in pairs])
            if found is None or gap is None:
                continue
            verdict = {-1: HELD, 1: ROUND, 0: NOISE}[found.sign]
            yield Claim(
                sentence,
                network,
                f"{found.mean:.2f} times, accuracy {points(gap.mean)}",
                _ratio_interval(found),
                NOTHING,
                NOTHING,
                verdict if found.low is not None else "one seed: not told",
            )


def _difference(sentence: str, where: str, found: Contrast) -> Claim:
    verdict = {1: HELD, -1: ROUND, 0: NOISE}[found.above()]
    return Claim(sentence, where, *difference_cells(found), _marked(verdict, found.seeds.low))


def _marked(verdict: str, low: float | None) -> str:
    return verdict if low is not None else f"{verdict} (one seed)"


def _ratio_interval(found: Ratio) -> str:
    return NOTHING if found.low is None or found.high is None else f"[{found.low:.2f}, {found.high:.2f}] times"
