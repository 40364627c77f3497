"""The page of the experiment, written from the results and nothing else."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from arms import ABOUT, AT_BUDGET, HEAD, LESS_CONV1, LESS_CONV2, PARALLEL, SERIAL, WHOLE
from claims import claim_blocks, stride_blocks
from common.blocks import earlier_lines, edges_told, steps_told, unfinished_lines
from common.comparison import Comparison
from common.text import NOTHING, listed, table, words
from common.wording import accuracy_cell, difference, difference_cell, over_images_cell
from effects import effect, mean_effect
from figure import draw_all
from made import made_block
from plan import BUDGETS, EARLIER, SCORED
from scores import Score, Share, parameters, scores_of, shares

from convpeft.evaluation import mean_interval
from convpeft.reporting import format_count

NAME = "arrangements"
Line = Mapping[str, Any]


def write_page(folder: Path, docs: Path) -> None:
    """Write the page and its plots below `docs` from the three files of a folder; equal files give equal bytes."""
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    beside = {name: _read(folder / f"{name}.json") for name in ("cost", "prepared")}
    begun = {name: _begun(task) for name, task in content["tasks"].items()}
    every = {name: Comparison(name, task) for name, task in begun.items() if _is_enough(name, task)}
    scored = [every[name] for name in SCORED if name in every]
    if not scored:
        raise SystemExit(f"{folder}: no transfer has every arm with one seed yet. Run it on.")
    lacking = [task.title for task in BUDGETS[content["budget"]].tasks if task.name not in every]
    times = {name: shares(measured) for name, measured in beside["cost"].items()}
    scores = scores_of(scored)
    last = scored[-1]
    drawn = draw_all(list(every.values()), scores, parameters(last), times.get(last.name, {}), docs / NAME)
    blocks = [
        *_head(scored, scores, times, lacking),
        *claim_blocks(scored, every, scores, times),
        *_done(every, beside["prepared"]),
        *_transfers(every, drawn),
        *_decathlon(scored, scores, drawn),
        *stride_blocks(every),
        *_time(every, times, beside["cost"]),
        *_limits(list(every.values()), content["budget"]),
        made_block(content["budget"], every),
    ]
    (docs / f"{NAME}.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _begun(task: Line) -> dict[str, Any]:
    """A transfer with the arms that have runs."""
    known = {run["arm"] for run in task["runs"]}
    return {**task, "arms": [arm for arm in task["arms"] if arm in known], "every": len(task["arms"])}


def _is_enough(name: str, task: Line) -> bool:
    """Whether there is something to tell: of the scored transfers every arm, of the other what its claims rest on."""
    whole = len(task["arms"]) == task["every"]
    return whole if name in SCORED else {*PARALLEL, *SERIAL, LESS_CONV1, LESS_CONV2, WHOLE} <= set(task["arms"])


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _head(
    scored: Sequence[Comparison],
    scores: Sequence[Score],
    times: Mapping[str, Mapping[str, Share]],
    lacking: Sequence[str],
) -> Iterator[str]:
    yield "# The map: which arrangement pays"
    yield (
        "A new layer in parallel or in series, with its channels matched by groups or by copies, with or without a "
        "learned scale; or the weight altered by a reshaped matrix, CPD, TKD or CPD-TKD; or biases alone: at equal "
        f"numbers of parameters on {words(len(scored))} transfers, "
        f"{listed(found.content['title'] for found in scored)}. In short:"
    )
    best = next(each for each in scores if each.arm in AT_BUDGET)
    means = {each.arm: f"{statistics.fmean(each.scores):.0f}" for each in scores}
    lines = [
        f"The highest decathlon score among the arms at the budget is that of `{best.arm}`, {means[best.arm]} points; "
        f"full fine-tuning has {means[WHOLE]} and a new head {means[HEAD]}.",
        *_short(scored),
    ]
    edges, cells = sum(len(found.at_edge()) for found in scored), sum(len(found.cells()) for found in scored)
    if edges:
        lines.append(
            f"{edges} of {cells} learning rates lie at an end of what was tried, and training is short, "
            f"{steps_told(scored)} steps: another range or a longer training may change what lies close together."
        )
    if times:
        low, high = _time_range(times)
        lines.append(
            f"An epoch of an arm at the budget takes {low:.2f} to {high:.2f} of the time of one of full fine-tuning: "
            "few parameters are no short training."
        )
    lines += [f"{title}: belongs to this budget and is not measured yet; the command below does." for title in lacking]
    yield "\n".join(f"- {line}" for line in lines)


def _short(scored: Sequence[Comparison]) -> Iterator[str]:
    from claims import CLAIMS

    for against in (WHOLE, HEAD):
        signs = {arm: mean_effect(scored, [arm], [against]).sign for arm in AT_BUDGET}
        more, less = (listed(f"`{arm}`" for arm in AT_BUDGET if signs[arm] == sign) for sign in (1, -1))
        yield (
            f"Of the {words(len(signs))} arms at the budget, one by one and on the mean of the transfers, more "
            f"accurate than `{against}` beyond noise: {more}; less accurate: {less}. Their mean by transfer (○: within "
            f"noise): {listed(_beside(each, against) for each in scored)} points."
        )
    for claim in CLAIMS[:6]:
        found = mean_effect(scored, claim.arms, claim.others)
        word = {1: "held", -1: "the other way round", 0: "within noise"}[found.sign]
        yield f"{claim.sentence}: {word}, {difference(found)} points, {over_images_cell(found)} over the test images."


def _beside(found: Comparison, against: str) -> str:
    return f"{found.content['title']} {difference_cell(effect(found, AT_BUDGET, [against]))}"


def _time_range(times: Mapping[str, Mapping[str, Share]]) -> tuple[float, float]:
    found = [share.mean for arms in times.values() for arm, share in arms.items() if arm in AT_BUDGET]
    return min(found), max(found)


def _done(every: Mapping[str, Comparison], prepared: Line) -> Iterator[str]:
    yield "## What was done"
    comparisons = list(every.values())
    first = comparisons[0]
    lines = [
        *map(_task_line, comparisons),
        *(
            f"The base `{each['model']}` was trained from random weights on {format_count(each['images'])} images of "
            f"`{each['data']}`, {each['epochs']} epochs; it reads {100 * each['test_accuracy']:.1f} % of "
            f"{format_count(each['test_images'])} test images."
            for each in prepared.get("bases", [])
        ),
        *unfinished_lines(comparisons),
        "The same for every arm: AdamW, cosine with warm-up, no augmentation. The epoch with the best validation "
        "accuracy is kept, and the test split is looked at once.",
        f"Learning rate: {words(first.content['trials'])} values for each arm and transfer, spread evenly over "
        f"{first.content['ranges']['train.lr']}, the same for all; the highest validation accuracy wins (seed "
        f"{first.content['tuning_seed']}, used for nothing else, with images of its own draw).",
        f"Then {words(max(len(found.seeds) for found in comparisons))} seeds. A seed draws training and validation "
        "images, order and starting values, the same for every arm, so that differences are paired by seed.",
        "Every adapter starts at zero and leaves the norms frozen; each arm has a new head.",
    ]
    yield "\n".join(f"- {line}" for line in lines)
    yield "### Equal budgets"
    networks = _networks(comparisons)
    yield table(
        ("arm", "what it trains", *(f"{title}" for title in networks)),
        [
            (f"`{arm}`", ABOUT[arm], *(_size_cell(parameters(found), arm) for found in networks.values()))
            for arm in first.arms
        ],
    )
    yield (
        "Parameters beside the new head, and their share of what `parallel, group` trains: it has the same three taps "
        "in every layer and no rank that could be chosen, so that it sets the budget. The others come as near to it as "
        "rank and sites allow. Three cannot: one filter copied to all channels of a layer has three numbers a layer; "
        "copies in parallel need one filter an input channel, fewer than groups where channels become more; and "
        "biases are as many as there are. On the bottleneck network `serial, group` leaves the three widest 1x1 layers "
        "out, and `lora`, `cp`, `tucker` and `cp-tucker` take some of the layers on both: their grids say which. So "
        "equal numbers of parameters are not equal sites."
    )


def _networks(comparisons: Sequence[Comparison]) -> dict[str, Comparison]:
    """One transfer for each network form that differs in size."""
    found: dict[str, Comparison] = {}
    for each in comparisons:
        found.setdefault("bottleneck" if "bottleneck" in each.content["grid"] else "ResNet-20", each)
    return found


def _size_cell(sizes: Mapping[str, int], arm: str) -> str:
    return f"{format_count(sizes[arm])} ({100 * sizes[arm] / sizes[PARALLEL[0]]:.0f} %)"


def _task_line(found: Comparison) -> str:
    content = found.content
    run = content["runs"][0]
    return (
        f"{content['title']}: `{content['source']}` from `{content['model']['source']}` "
        f"(`{content['model']['weights']}`): {format_count(run['images']['train'])} training, "
        f"{format_count(run['images']['val'])} validation and {format_count(run['images']['test'])} test images, "
        f"{run['epochs']} epochs in batches of {content['train']['batch_size']}."
    )


def _transfers(every: Mapping[str, Comparison], drawn: Sequence[str]) -> Iterator[str]:
    yield "## Accuracy"
    if "differences" in drawn:
        yield f"![Points more accurate than full fine-tuning, by transfer]({NAME}/differences.png)"
        yield (
            "Thick: 95 % interval over the draws of training images; thin: over the test images. Grey: at least one of "
            "them holds zero."
        )
    comparisons = list(every.values())
    yield table(
        ("arm", *(found.content["title"] for found in comparisons), "learning rates"),
        [
            (
                f"`{arm}`",
                *(
                    accuracy_cell(found.cell(arm, found.settings[0])) if arm in found.arms else NOTHING
                    for found in comparisons
                ),
                ", ".join(
                    f"{found.cell(arm, found.settings[0]).runs[0]['lr']:.2g}" if arm in found.arms else NOTHING
                    for found in comparisons
                ),
            )
            for arm in comparisons[0].arms
        ],
    )
    yield "Test accuracy: mean over the seeds ± standard deviation, in brackets the 95 % t-interval of the mean."


def _decathlon(scored: Sequence[Comparison], scores: Sequence[Score], drawn: Sequence[str]) -> Iterator[str]:
    yield "## Decathlon score"
    yield (
        f"The score of the Visual Decathlon over {listed(found.content['title'] for found in scored)}, with the mean "
        f"error of `{WHOLE}` as the baseline: {250 * len(scored)} points for its error on each, "
        f"{1000 * len(scored)} for no error. Mean over the seeds, in brackets the 95 % t-interval; then points above "
        "`full` with the same seed, ○: within noise."
    )
    if "scores" in drawn:
        yield f"![Decathlon score against parameters and time]({NAME}/scores.png)"
    yield table(("arm", "score", "above `full`"), [_score_row(each) for each in scores])


def _score_row(score: Score) -> tuple[str, ...]:
    told, lead = f"{statistics.fmean(score.scores):.0f}", f"{score.lead.mean:+.0f}"
    if len(score.scores) > 1:
        low, high = mean_interval(score.scores)
        told += f" [{low:.0f}, {high:.0f}]"
    if score.arm == WHOLE:
        lead = "-"
    elif score.lead.low is not None and score.lead.high is not None:
        lead += f" [{score.lead.low:+.0f}, {score.lead.high:+.0f}]" + " ○" * score.lead.within_noise
    return f"`{score.arm}`", told, lead


def _time(every: Mapping[str, Comparison], times: Mapping[str, Mapping[str, Share]], cost: Line) -> Iterator[str]:
    if not times:
        return
    yield "## Time"
    names = [name for name in times if name in every]
    rounds = len(next(iter(cost[names[0]]["arms"].values()))["ratios"])
    yield (
        f"One process and one thread. In each of {rounds} rounds each arm in turn trains an epoch of about "
        f"{cost[names[0]]['images']} images, right after one of `full` on the same images; the table has the "
        "geometric mean of the quotients, in brackets its 95 % t-interval over the rounds, and then the lowest and "
        f"highest quotient. The row `{WHOLE}` is a second network measured like the others and shows the noise. What "
        "lies before the first trained layer is computed once before, as a training does; that is not in the epoch. "
        "Times are those of the processor, as other work ran on the machine."
    )
    yield table(
        ("arm", *(each for name in names for each in (every[name].content["title"], "lowest to highest"))),
        [(f"`{arm}`", *(cell for name in names for cell in _share_cells(times[name][arm]))) for arm in times[names[0]]],
    )
    yield (
        "An adapter saves the gradients of the weights and the optimiser's work on them, not the way forward, nor the "
        "way back through the layers above the first that it changes: that is why a hundredth of the parameters does "
        "not take a hundredth of the time. A layer in series is one more to run, forward and back, which costs more "
        "than it saves. Equal epochs are compared; time to an equal accuracy was not measured."
    )


def _share_cells(share: Share) -> tuple[str, str]:
    return f"{share.mean:.2f} [{share.low:.2f}, {share.high:.2f}]", f"{share.least:.2f} to {share.most:.2f}"


def _edges_line(comparisons: Sequence[Comparison]) -> str:
    edges = [(found.content["title"], len(found.at_edge())) for found in comparisons]
    told = edges_told(sum(count for _, count in edges), sum(len(found.cells()) for found in comparisons))
    return (
        f"{told} ({listed(f'{count} on {title}' for title, count in edges)}); the table of accuracies has them all. A "
        "wider or finer range might do better there."
    )


def _coarse_line(comparisons: Sequence[Comparison]) -> str:
    """How the highest rate fares in draws that it was not chosen on."""
    counts = {True: [0, 0], False: [0, 0]}  # at the highest rate or below: runs, and those that lose to the head alone
    for found in [each for each in comparisons if HEAD in each.arms]:
        setting = found.settings[0]
        head = {run["seed"]: run["test_accuracy"] for run in found.cell(HEAD, setting).runs}
        for arm in [each for each in found.arms if each != HEAD]:
            highest = max(each["lr"] for each in found.tried(arm, setting))
            for run in found.cell(arm, setting).runs:
                told = counts[run["lr"] == highest]
                told[0] += 1
                told[1] += run["test_accuracy"] < head[run["seed"]]
    rates = [each["lr"] for each in comparisons[0].tried(HEAD, comparisons[0].settings[0])]
    apart = f"{rates[1] / rates[0]:.0f} times apart" if len(rates) > 1 else "alone"
    (high, lost), (low, beaten) = counts[True], counts[False]
    return (
        f"{words(len(rates)).capitalize()} rates, {apart}: an arm whose best rate lies between two of them "
        "takes one that is slow or one that breaks down in some draws. Of the runs at the highest rate "
        f"{lost} of {high} are less accurate than the new head alone with the same seed, of the others "
        f"{beaten} of {low}."
    )


def _limits(comparisons: Sequence[Comparison], budget: str) -> Iterator[str]:
    yield "## How far this goes"
    from claims import CLAIMS

    seeds = min(len(found.seeds) for found in comparisons)
    compared = len(CLAIMS) * (len(comparisons) + 1)
    lines = [
        f"{words(seeds).capitalize()} seeds: *found* says what the intervals over the draws could have missed. They "
        "hold nothing of the choice of a rate, which another draw may make otherwise. The claims were written down "
        "before the runs, with the groups of arms that they compare.",
        f"About {compared} differences are looked at at the 5 % level: {0.05 * compared:.0f} would be beyond noise by "
        "chance alone.",
        _edges_line(comparisons),
        _coarse_line(comparisons),
        "Budgets are equal in parameters, not in sites, and each arm has one rank: another rank on other layers with "
        "the same number of parameters may do better.",
        "One rate drives an adapter and the new head beside it: where the two want different ones the arm is worse off "
        "than the head alone, which has its own.",
        "Groups and copies differ in parallel only where a layer has other numbers of channels in and out: in three of "
        "nineteen layers of ResNet-20, in most of the bottleneck network.",
        "The residual adapters, 1x1 convolutions over all channels, are not on the map: one layer of 64 channels "
        "alone would be twice the budget. [Every method at its defaults](methods.md) has them, untuned.",
        f"Networks are small and training is short, {steps_told(comparisons)} steps; larger networks, more images or "
        "longer training may change the order.",
        "Not measured: ResNet-50, augmentation, live norms, memory, time to an equal accuracy.",
        *earlier_lines(EARLIER, budget),
    ]
    yield "\n".join(f"- {line}" for line in lines)
