"""The page of the experiment, written from the results and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from figure import draw
from plan import BASELINE, MARGIN, SEEDS, TASKS, VARIANTS, WHOLE
from store import read
from summary import Outcome, Row

from convpeft.reporting import format_bytes, format_count, save_figure

NAME = "methods"
NOTHING = "-"

# Why an entry does not reach the margin on a task, one clause each, by (task, entry); looked for, not guessed.
_RATE = "its head learns at 2e-3 like the rest of it, that of `probe` at 5e-3; compare the row `probe, lr 2e-3`"
REASONS: dict[tuple[str, str], str] = {
    ("oct", "chapter, serial copy"): f"{_RATE}; it has three numbers a layer to make up for it",
    ("oct", "colora"): _RATE,
    ("oct", "colora, merge_every epoch"): _RATE,
    ("oct", "residual-parallel"): _RATE,
    ("oct", "residual-serial"): _RATE,
    ("oct", "lora, init pissa"): "2e-3 is too fast for the largest singular directions; compare the row with `lr / 4`",
    ("oct", "lora, lwf"): "it also keeps what the base says of the images, and the loss shown is that of the new task",
    ("oct", "mlae"): "half of its experts are masked while the loss is measured",
    ("oct", "probe, lr 2e-3"): "it is the baseline at a lower rate",
    ("pneumonia", "probe, lr 2e-3"): "it is the baseline at a lower rate",
}


def write_page(results: Path, docs: Path) -> None:
    """Write the page and its plot below `docs`; equal results give equal bytes."""
    outcomes = {name: Outcome(results, name) for name in TASKS}
    save_figure(draw(outcomes), docs / NAME / "accuracy.png")
    measured = read(results / "cost.json")
    blocks = [
        *_head(outcomes),
        *_loss(outcomes),
        *(block for outcome in outcomes.values() for block in _table(outcome)),
        *_reading(outcomes),
        *_cost(measured),
        *_reproduce(outcomes, measured),
    ]
    (docs / f"{NAME}.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _head(outcomes: dict[str, Outcome]) -> Iterator[str]:
    yield "# Every method on two small tasks"
    yield (
        "Each registered method at its default options, and a few variants, trained on two data sets. The page shows "
        "whether every method learns on real images, and what it costs. It is no contest: nothing was tuned."
    )
    yield "## What was done"
    oct_, pneumonia = outcomes["oct"], outcomes["pneumonia"]
    lines = [
        f"Retinal OCT, four classes: {oct_.budget['train_each']} training images a class from an ImageNet "
        f"`{oct_.budget['network']}` at {oct_.budget['image_size']} pixels. Each seed tests on another fold "
        f"({_sizes(oct_)} images); {oct_.budget['val_each']} images a class of the next fold choose the epoch; no "
        "patient is in two splits.",
        f"PneumoniaMNIST, two classes: {pneumonia.budget['limit']} training images, in proportion to the classes, from "
        f"a `{pneumonia.budget['network']}` trained on CIFAR-10. Its own validation and test splits "
        f"({_sizes(pneumonia)} test images). Eight validation images are also training images in the published file.",
        f"Budget, the same for every method: {oct_.budget['epochs']} epochs on OCT and {pneumonia.budget['epochs']} on "
        f"PneumoniaMNIST in batches of {oct_.budget['batch_size']}, AdamW, cosine with warm-up, no augmentation, no "
        "early stopping. The epoch with the best validation accuracy is kept, and the test split is looked at once.",
        "Learning rates and norm policies are each method's own defaults. Every method trains a new head.",
        f"Seeds {_and(map(str, SEEDS))}; a seed fixes images, order and starting values, the same for every method.",
    ]
    yield "\n".join(f"- {line}" for line in lines)


def _loss(outcomes: dict[str, Outcome]) -> Iterator[str]:
    yield "## Training loss against the head alone"
    yield (
        "The margin was set before the runs: on both tasks the mean training loss of the last epoch, over the seeds, "
        f"is at least {100 * MARGIN:.0f} % below that of `{BASELINE}`, which trains the head alone. The training loss "
        "is the cross-entropy in training mode, with a method's own dropout and without what it adds to the objective."
    )
    named = {row.entry: row for outcome in outcomes.values() for row in outcome.by_size if row.entry != BASELINE}
    fails = {row.entry for outcome in outcomes.values() for row in outcome.missing}
    reached = [entry for entry in named if entry not in fails]
    yield f"{len(reached)} of {len(named)} reach it on both: {_and(f'`{entry}`' for entry in reached)}."
    if not fails:
        yield "None fails to reach it."
        return
    yield "These do not:"
    yield "\n".join(_shortfall(name, outcome, row) for name, outcome in outcomes.items() for row in outcome.missing)


def _shortfall(name: str, outcome: Outcome, row: Row) -> str:
    gain = outcome.gain(row)
    own, base = row.mean("train_loss"), outcome.baseline.mean("train_loss")
    where = f"{100 * abs(gain):.1f} % {'below' if gain >= 0 else 'above'}"
    reason = REASONS.get((name, row.entry), "the reason is not known")
    return f"- `{row.entry}` on {outcome.budget['title']}: {own:.4f} against {base:.4f}, {where}; {reason}."


def _table(outcome: Outcome) -> Iterator[str]:
    yield f"## {outcome.budget['title']}"
    yield (
        "Ordered by trained parameters. Training loss: mean over the seeds, ○ where the margin is not reached. Test "
        "accuracy: mean over the seeds, in brackets lowest and highest. Time and saved: one training step as a ratio "
        f"to `{WHOLE}`, see below."
    )
    headers = (
        "method",
        "trained",
        "adapter",
        "rate",
        "training loss",
        "test accuracy",
        "AUC",
        "step time",
        "saved",
    )
    yield _markdown(headers, [_cells(outcome, row) for row in outcome.by_size])


def _cells(outcome: Outcome, row: Row) -> tuple[str, ...]:
    accuracies = row.values("test_accuracy")
    mark = "" if row.entry == BASELINE or outcome.reaches(row) else " ○"
    return (
        f"`{row.entry}`",
        format_count(row.trainable),
        format_bytes(round(row.mean("adapter_bytes"))),
        f"{row.runs[0]['learning_rate']:g}",
        f"{row.mean('train_loss'):.4f}{mark}",
        f"{100 * row.mean('test_accuracy'):.1f} % [{100 * min(accuracies):.1f}, {100 * max(accuracies):.1f}]",
        f"{row.mean('auc'):.3f}",
        _time_cell(row),
        f"{row.cost['saved_ratio']:.2f}" if row.cost else NOTHING,
    )


def _time_cell(row: Row) -> str:
    if not row.cost:
        return NOTHING
    low, middle, high = statistics.quantiles(row.cost["time_ratios"], n=4, method="inclusive")
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _reading(outcomes: dict[str, Outcome]) -> Iterator[str]:
    yield f"![Test accuracy against trained parameters]({NAME}/accuracy.png)"
    yield "Dots are means, bars run from the lower to the higher seed."
    yield "## How to read it"
    lines = [
        f"{outcome.budget['title']}: the seeds of one method lie {_points(_typical(outcome))} apart in the median and "
        f"{_points(max(row.spread for row in outcome.rows))} at most. The 95 % Wilson interval of one run reaches "
        f"about {_points(_half_width(outcome))} to either side, from the number of test images alone "
        f"({_sizes(outcome)})."
        for outcome in outcomes.values()
    ]
    lines += [
        f"{len(SEEDS)} seeds and test splits of this size cannot tell methods apart that lie within a few points of "
        "each other. No ranking among them is claimed.",
        "Default options give the methods very different numbers of parameters, and default learning rates were not "
        "tuned to these tasks: a low row may be a poor rate.",
        "Not tested: other ranks, rates, networks or budgets; larger images; more seeds.",
    ]
    yield "\n".join(f"- {line}" for line in lines)


def _cost(measured: dict[str, object]) -> Iterator[str]:
    yield "## How cost was measured"
    if not measured:
        yield "Not yet."
        return
    rounds = {len(row["time_ratios"]) for name in TASKS for row in measured.get(name, [])}
    yield (
        f"One process and one thread, batches of noise. In each of {_and(map(str, sorted(rounds)))} rounds each method "
        f"in turn trains five steps, right after five of `{WHOLE}` on the same batches. The table has the quotient of "
        "the two times: its median and in brackets the quartiles. A step is loading, forward, loss, backward, "
        "clipping, optimiser and the method's own work; what it does at the end of an epoch counts once in five steps. "
        f"The row `{WHOLE}` is a second network measured like the others and shows the noise. *Saved* is the bytes "
        "that autograd keeps between forward and backward of one step, each storage once, parameters and buffers left "
        "out; it is counted, not estimated, and leaves out what the optimiser holds."
    )


def _reproduce(outcomes: dict[str, Outcome], measured: dict[str, object]) -> Iterator[str]:
    yield "## Command and versions"
    yield "\n".join(
        (
            "```bash",
            "python experiments/methods/run.py run --data DIR   # what the JSON files do not hold yet",
            "python experiments/methods/run.py cost --data DIR  # on a quiet machine",
            "python experiments/methods/run.py page             # this page and its plot, from the JSON files",
            "```",
        )
    )
    files = _and(f"`{budget[key]}`" for budget in (o.budget for o in outcomes.values()) for key in ("data", "weights"))
    yield f"DIR holds {files}. Variants: {_and(f'`{name}`' for name in VARIANTS)}; all else is default."
    runs = [run for outcome in outcomes.values() for row in outcome.rows for run in row.runs]
    minutes = sum(run["seconds"] for run in runs) / 60
    yield (
        f"{len(runs)} runs took {minutes:.0f} minutes in all, one thread each, on a machine that was doing other work; "
        "seconds are in the JSON files and are not compared."
    )
    versions = next(iter(outcomes.values())).versions
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items() if name != "threads") + "."


def _sizes(outcome: Outcome) -> str:
    return _and(sorted({format_count(run["test_images"]) for row in outcome.rows for run in row.runs}))


def _typical(outcome: Outcome) -> float:
    return statistics.median(row.spread for row in outcome.rows)


def _half_width(outcome: Outcome) -> float:
    intervals = [run["test_interval"] for row in outcome.rows for run in row.runs]
    return statistics.median((high - low) / 2 for low, high in intervals)


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f} points"


def _and(words: object) -> str:
    found = list(words)  # type: ignore[call-overload]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}" if found else "none"


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
