"""The page of the experiment, written from the results and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from claims import NOT_MEASURED, judge
from common.lines import RESULTS
from common.text import NOTHING, listed, table
from figures import draw_all
from plan import ARMS, FULL, LORA, MATCH, WISE
from sequences import MODES, SCENARIOS
from store import select
from summary import Row, Summary, best_rate
from wording import detectable, difference, measured, percent, share

from convpeft.evaluation import mean_interval, sequence_scores
from convpeft.reporting.provenance import Provenance, provenance_markdown

NAME = "retention"


def write_page(results: Path, docs: Path) -> None:
    """Write the page and its plots below `docs`; equal results give equal bytes."""
    summary = Summary(results)
    docs.mkdir(parents=True, exist_ok=True)
    plots = draw_all(summary, docs / NAME) if summary.transfers else []
    parts = (_head, _claims, _done, _plane, _matched, _tables, _sequences, _not_measured, _made)
    blocks = [block for part in parts for block in part(summary, plots)]
    (docs / f"{NAME}.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _head(summary: Summary, _: list[str]) -> Iterator[str]:
    yield "# What a network keeps of its old task"
    yield (
        "Document 003 says that LoRA preserves pre-trained knowledge and that ordinary fine-tuning destroys it. It "
        "gives figures without data, model or measure. This page measures three things that knowledge kept can mean: "
        "the base is there again with the adapter off (structural), the source's own head still works with the adapter "
        "on (functional), and a newly fitted linear classifier still finds the source's classes in the adapted "
        "features (linear probe). LoRA stands beside full fine-tuning at several learning rates, with and without "
        "frozen norms, and beside the three usual remedies, L2-SP, WiSE-FT and LwF. How to use "
        "them: [Keeping what the network knew](../retention.md)."
    )


def _claims(summary: Summary, _: list[str]) -> Iterator[str]:
    yield "## What document 003 says"
    yield table(
        ("sentence", "verdict", "figures"), [(x.sentence, f"**{x.verdict}**", x.figures) for x in judge(summary)]
    )
    yield (
        "Where a sentence gives no measure, the reading in brackets was fixed before the runs. *Held*: in every "
        "transfer that is named; *in part*: in some; a figure whose 95 % interval holds the limit counts for neither."
    )
    yield "Out of scope:"
    yield table(("sentence", "why"), NOT_MEASURED)


def _done(summary: Summary, _: list[str]) -> Iterator[str]:
    budget = summary.budget
    yield "## What was done"
    lines = [_transfer_line(summary, name) for name in summary.transfers]
    fractions = [
        f"{share(float(part))} ({epochs} epoch{'s' * (epochs > 1)})"
        for part, epochs in sorted(budget["epochs"].items())
    ]
    pace = "the head, LoRA (at rank 8, for every rank), full fine-tuning, the same with frozen norms, L2-SP and LwF"
    lines += [
        f"Amounts of data: {listed(fractions)} of the training images, drawn by the seed in proportion to the classes. "
        "Validation keeps its size at every amount, which is more than one has who has so few images.",
        f"Learning rates: {budget['trials']} for each of {pace}, compared on validation at every amount with a seed "
        "used for nothing else. The test split and the source chose nothing. Full fine-tuning was then run at every "
        "rate with every seed, to draw its curve.",
        "Full fine-tuning, L2-SP and LwF train every weight and the norms with their statistics; LoRA and the head "
        "alone freeze the norms. *Full, norms frozen* trains every other weight and tells how much is the norms'; it "
        "was added when the figures of the other arms were known. AdamW, cosine with warm-up, no augmentation; the "
        "epoch with the best validation accuracy.",
        "L2-SP has strength 0.1 and LwF weight 1 at temperature 2; neither was tuned. WiSE-FT takes the networks of "
        "full fine-tuning at its chosen rate, with the weights and statistics moved "
        f"{listed([share(1 - x) for x in _coefficients(summary)])} of the way back to the base, the new head as it "
        "was trained.",
        "Retention is the accuracy on the source's test images, adapter on and under the source's own head, over that "
        "of the base. Intervals are Student's at 95 % over the seeds; differences are paired by seed. With "
        f"{len(summary.seeds)} seeds they are wide; *found* is the difference that would be found 8 times in 10. No "
        "correction is made for the number of comparisons.",
    ]
    yield "\n".join(f"- {line}" for line in lines)


def _coefficients(summary: Summary) -> list[float]:
    run = next(run for run in select(summary.lines, "run", arm=FULL) if "wise" in run)
    return [each["coefficient"] for each in run["wise"]]


def _transfer_line(summary: Summary, name: str) -> str:
    transfer, base = summary.transfers[name], summary.bases[name]
    runs = select(summary.lines, "run", transfer=name)
    size = f" at {transfer['image_size']} pixels" if transfer["image_size"] else ""
    most, tests = (max(run[field] for run in runs) for field in ("train_images", "test_images"))
    probe = (
        f"; a linear classifier fitted on the features of {transfer['source_fit']:,} other images of it reaches "
        f"{percent(base['probe_accuracy'])}"
        if base["probe_accuracy"] is not None
        else "; there is one image a class, so no linear classifier can be fitted and judged"
    )
    folds = " of one fold; another chooses, and no patient is in two" if transfer["folds"] else ""
    trained = (
        ""
        if transfer["weights"]
        else f", trained here for {summary.budget['base_epochs']} epochs on {summary.budget['base_images']:,} images"
    )
    return (
        f"{transfer['title']} (`{name}`): `{transfer['network']}`{size}{trained}; the base reaches "
        f"{percent(base['source_accuracy'])} of {base['source_images']:,} source images{probe}. At most {most:,} "
        f"training images of the target, {tests:,} test images{folds}."
    )


def _plane(summary: Summary, plots: list[str]) -> Iterator[str]:
    if "plane" not in plots:
        return
    yield "## The learning-forgetting plane"
    yield f"![Target accuracy against what is kept of the source]({NAME}/plane.png)"
    yield (
        "Up is learned, right is kept. Marks are means, lines through them reach from the lowest seed to the highest. "
        "Joined: full fine-tuning over its rates (filled: the chosen one), WiSE-FT from the fine-tuned network towards "
        "the base, LoRA over its ranks (larger marks, higher rank). The dashed line is the base."
    )
    yield f"![Kept of the source by amount of data]({NAME}/amounts.png)"


def _matched(summary: Summary, _: list[str]) -> Iterator[str]:
    if not summary.transfers:
        return
    yield "## At equal accuracy on the target"
    yield (
        "An arm that learned less also forgot less. So each way to train weights is taken at the one of its measured "
        "settings (rates of full fine-tuning, coefficients of WiSE-FT, the one setting of the others) whose "
        f"validation accuracy is nearest to that of {ARMS[LORA].title}; *none near* where that is more than "
        f"{100 * MATCH:g} points away. That limit was one point before the first runs, which is less than chance moves "
        "the accuracy of so small a validation split. Differences are LoRA less the other, in points; ○ holds zero."
    )
    rows: list[tuple[str, ...]] = []
    for name in summary.transfers:
        for fraction in summary.fractions_of(name):
            lora = summary.row(name, fraction, LORA)
            for nearest, near in summary.matched(name, fraction):
                kept, learned = (lora.minus(nearest, field) for field in ("retention", "test_accuracy"))
                gap = lora.mean("val_accuracy") - nearest.mean("val_accuracy")
                rows.append(
                    (
                        name,
                        share(fraction),
                        f"{nearest.title}, {nearest.setting}" + ("" if near else " (none near)"),
                        f"{100 * gap:+.1f}",
                        difference(learned),
                        difference(kept),
                        detectable(kept),
                    )
                )
    headers = ("transfer", "data", "the other", "validation", "target", "kept of the source", "found")
    yield table(headers, rows, right=3)


def _tables(summary: Summary, _: list[str]) -> Iterator[str]:
    yield "## Every arm"
    yield (
        "Percent, mean over the seeds [95 % interval]. *Kept* is functional retention; *agrees* the share of source "
        "images put in the same class as by the base; *probe* the accuracy of a newly fitted linear classifier, as a "
        "share of that on the base's features. *To full*: target accuracy less that of full fine-tuning, in points, "
        "and what difference would have been found."
    )
    for name, transfer in summary.transfers.items():
        yield f"### {transfer['title']}"
        rows: list[tuple[str, ...]] = []
        for fraction in summary.fractions_of(name):
            whole = summary.row(name, fraction, FULL)
            for row in summary.rows(name, fraction):
                if row.chosen or row.arm in (FULL, WISE):
                    rows.append(_arm_row(summary, name, fraction, row, whole))
        headers = ("data", "arm", "setting", "trained", "target", "to full", "found", "kept", "agrees", "probe")
        yield table(headers, rows, right=3)


def _arm_row(summary: Summary, name: str, fraction: float, row: Row, whole: Row) -> tuple[str, ...]:
    gap = row.minus(whole, "test_accuracy")
    base = summary.bases[name]["probe_accuracy"]
    probes = [run["probe_accuracy"] for run in row.runs]
    probe = NOTHING if base is None or None in probes else percent(statistics.fmean(probes) / base)
    mark = " (chosen)" if row.arm in (FULL, WISE) and row.chosen else ""
    return (
        share(fraction),
        row.title,
        f"{row.setting}{mark}",
        f"{row.runs[0]['trainable']:,}",
        measured(row, "test_accuracy"),
        "" if row.arm == FULL else difference(gap),
        "" if row.arm == FULL else detectable(gap),
        measured(row, "retention"),
        f"{100 * row.mean('source_agreement'):.1f}",
        probe,
    )


def _sequences(summary: Summary, plots: list[str]) -> Iterator[str]:
    if "sequences" not in plots:
        return
    plan, first = summary.budget["sequence"], summary.budget["transfers"][0]
    yield "## Tasks one after the other"
    yield (
        f"From the base of `{first['name']}`, {plan['images']} images and {plan['epochs']} epochs a task. *Groups*: "
        f"{plan['groups']} tasks of as many letters each; each task has rows of its own in the head, and an image's "
        f"task is told. *Turns*: {plan['turns']} tasks of all letters, each turned a quarter further, with one head. "
        "One network fine-tuned whole, one LoRA adapter trained on and on, one LoRA adapter a task, and one head a "
        f"task. Rates are those that validation chose in `{first['name']}` with all images."
    )
    yield f"![Mean accuracy on the tasks learned so far]({NAME}/sequences.png)"
    rows: list[tuple[str, ...]] = []
    for scenario in SCENARIOS:
        for mode in MODES:
            lines = summary.sequences.get((scenario, mode), [])
            if lines:
                scores = [sequence_scores(line["matrix"], line["untrained"]) for line in lines]
                cells = [_over_seeds([getattr(x, f) for x in scores]) for f in ("accuracy", "backward", "forward")]
                rows.append((scenario, mode, *cells))
    yield table(("scenario", "way", "ACC", "BWT", "FWT"), rows, right=2)
    yield (
        "ACC is the mean accuracy on all tasks at the end, BWT what tasks gained or lost (below 0) since they were "
        "learned, FWT the gain on a task before it is learned over the untrained network; percent and points, mean "
        "[95 % interval]. With one adapter or head a task BWT is 0 by construction, and so is FWT here, because a task "
        "that is to come has no adapter yet. In *groups* the rows of a task that is to come are untrained, so FWT says "
        "next to nothing there."
    )


def _over_seeds(values: list[float]) -> str:
    reach = ""
    if len(values) > 1 and len(set(values)) > 1:
        low, high = mean_interval(values)
        reach = f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * statistics.fmean(values):.1f}{reach}"


def _not_measured(summary: Summary, _: list[str]) -> Iterator[str]:
    yield "## What was not measured"
    lines = [f"`{name}` at {share(fraction)}: the runs are not made yet." for name, fraction in summary.missing]
    if not summary.sequences:
        lines.append("The sequences: not run yet.")
    lines += [
        "One base a transfer, one optimiser, one number of epochs for each amount. Seeds vary images, order and "
        "starting values, not the base.",
        _edges(summary),
        "The strengths of L2-SP and LwF were set, not tuned, so each is one point of a curve; a stronger one keeps "
        "more and learns less. Nor was alpha / rank varied, or a remedy put beside LoRA.",
        f"The budget is `{summary.name}`: small pools of images, few epochs. `--budget full` is the larger one.",
        "Large networks and large sources: the share of parameters that a rank of 8 trains is large on networks this "
        "small.",
        "The images of ImageNet are probably among those that the network was trained on, and it saw them at 224 "
        "pixels; the base's accuracy here is no measure of it.",
        "The published PneumoniaMNIST has eight validation images that are training images too; they are left in.",
        "Time: other work may run on the same cores, so seconds are recorded but not compared.",
    ]
    yield "\n".join(f"- {line}" for line in lines)


def _edges(summary: Summary) -> str:
    """How many chosen rates lie at an end of what was tried."""
    at_end: list[str] = []
    count = 0
    for name in summary.transfers:
        for fraction in summary.fractions_of(name):
            for arm in dict.fromkeys(line["arm"] for line in select(summary.lines, "tune")):
                tried, best = summary.rates(name, arm, fraction), best_rate(summary.lines, name, arm, fraction)
                count += 1
                if len(tried) > 1 and best in (tried[0], tried[-1]):
                    at_end.append(f"{ARMS[arm].title} in `{name}` at {share(fraction)}")
    found = f": {'; '.join(at_end)}" if at_end else ""
    return (
        f"Rates beyond those tried: {len(at_end)} of {count} chosen ones lie at an end of their range{found}. LoRA of "
        "ranks 2 and 32 took the rate of rank 8; a failure at rank 32 may be that rate's and not the rank's."
    )


def _made(summary: Summary, _: list[str]) -> Iterator[str]:
    data = {
        f"{name}, {part}": digest for name, line in summary.bases.items() for part, digest in line["digests"].items()
    }
    made = Provenance(
        command=f"python experiments/retention/run.py run --budget {summary.name} --data DIR",
        page_command="python experiments/retention/run.py page  # this page and its plots, from " + RESULTS,
        base={name: f"sha256 {line['sha256']}" for name, line in summary.bases.items()},
        data=data,
        trials=summary.budget["trials"],
        ranges={"learning rate": "listed below, the chosen one bold"},
        seeds=tuple(summary.seeds),
        effects=("Effects, intervals and what would have been found are in the tables above.",),
        versions=summary.versions,
    )
    yield provenance_markdown(made)
    seconds = sum(line.get("seconds", 0) for line in summary.lines)
    yield (
        f"{len(select(summary.lines, 'tune'))} trials, {len(select(summary.lines, 'run'))} runs and "
        f"{len(select(summary.lines, 'sequence'))} sequences took {seconds / 60:.0f} minutes, summed over processes of "
        "one thread each. Digests of a target are of seed 0's images."
    )
    rows = [_rate_row(summary, name, fraction) for name in summary.transfers for fraction in summary.fractions_of(name)]
    groups = list(dict.fromkeys(ARMS[arm].group for arm in summary.budget["arms"]))
    yield table(("transfer", "data", *groups), rows)


def _rate_row(summary: Summary, name: str, fraction: float) -> tuple[str, ...]:
    cells: list[str] = []
    for group in dict.fromkeys(ARMS[arm].group for arm in summary.budget["arms"]):
        arm = next(arm for arm in summary.budget["arms"] if ARMS[arm].group == group)
        best = best_rate(summary.lines, name, arm, fraction)
        cells.append(", ".join(f"**{x:g}**" if x == best else f"{x:g}" for x in summary.rates(name, arm, fraction)))
    return (name, share(fraction), *cells)
