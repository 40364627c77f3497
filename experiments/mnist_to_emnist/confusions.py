"""The part of the page that says what is mistaken for what, and what look-alikes cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from common.text import table
from summary import Row, Summary, crossing_mistakes, groups_in, lookalike_mistakes, lookalike_pairs
from wording import inside, percent

from convpeft.evaluation.confusion import find_confused_pairs
from convpeft.reporting import format_count

_PAIRS = 12


def confusion_blocks(summary: Summary) -> Iterator[str]:
    """The matrix and the pairs of the last target, then the look-alikes of every target."""
    target = list(summary.targets)[-1]
    classes, chosen = summary.targets[target]["classes"], summary.chosen(target)
    yield "## What is mistaken for what"
    yield (
        f"`{target}`, {inside(chosen.name)} (the best LoRA arm on validation), all seeds together: "
        f"{format_count(_errors(chosen))} mistakes in {format_count(int(chosen.confusion.sum()))} answers."
    )
    yield "![Confusion matrix](mnist_to_emnist/confusion.png)"
    yield _pair_table(chosen, [row for row in summary.rows(target) if row.arm in ("head", "full")], classes)
    yield "### The pairs that were named before any mistake was seen"
    yield _named_table([row for row in summary.rows(target) if row in (chosen,) or row.rank is None], classes)
    if any(name.isdigit() for name in classes):
        yield _explain_origin(summary, target)
    yield "### If look-alikes counted as right"
    yield (
        "These groups were named before any mistake was seen; a mistake inside one is a mistake between drawings that "
        "hardly differ without context, the more so as a class holds both cases of its letter. The tables give the "
        "share of all errors that such mistakes are, and what the accuracy would be were they right."
    )
    for each in summary.targets:
        names = summary.targets[each]["classes"]
        digits = any(name.isdigit() for name in names)
        headers = ("arm", "accuracy", "look-alikes, of its errors", "accuracy were they right")
        yield f"`{each}`: {', '.join('/'.join(group) for group in groups_in(names))}"
        yield table(
            (*headers, "digit as letter or letter as digit, of its errors") if digits else headers,
            [_lookalike_row(row, names, digits=digits) for row in summary.rows(each)],
        )


def _pair_table(chosen: Row, others: Sequence[Row], classes: Sequence[str]) -> str:
    counts = [{(x.first, x.second): x.count for x in find_confused_pairs(y.confusion, tuple(classes))} for y in others]
    rows: list[tuple[str, ...]] = []
    running = 0
    for pair in find_confused_pairs(chosen.confusion, tuple(classes))[:_PAIRS]:
        running += pair.count
        theirs = [
            found.get((pair.first, pair.second), 0) / _errors(row) for row, found in zip(others, counts, strict=True)
        ]
        rows.append(
            (
                f"{pair.first} / {pair.second}",
                f"{pair.first_as_second} + {pair.second_as_first}",
                percent(pair.share),
                percent(running / _errors(chosen)),
                *map(percent, theirs),
            )
        )
    headers = ("pair", "first as second + second as first", "of its errors", "with those above")
    return table((*headers, *(f"of the errors of {inside(row.name)}" for row in others)), rows)


def _named_table(rows: Sequence[Row], classes: Sequence[str]) -> str:
    place = {name: index for index, name in enumerate(classes)}
    lines: list[tuple[str, ...]] = []
    for first, second in lookalike_pairs(classes):
        a, b = place[first], place[second]
        shares = [int(row.confusion[a, b] + row.confusion[b, a]) / _errors(row) for row in rows]
        lines.append((f"{first} / {second}", *map(percent, shares)))
    return table(("pair, of all errors of", *(row.name for row in rows)), lines)


def _explain_origin(summary: Summary, target: str) -> str:
    """Say how far digits and letters can be told apart by how they were cut out, and what the networks made of it."""
    found, rows = summary.targets[target], summary.rows(target)
    ink = dict(zip(found["classes"], found["ink_at_edge"], strict=True))
    digits, letters = ([ink[name] for name in ink if name.isdigit() == wanted] for wanted in (True, False))
    crossing = [
        f"{percent(crossing_mistakes(row.confusion, found['classes']) / _errors(row))} ({inside(row.name)})"
        for row in (*(row for row in rows if row.rank is None), summary.chosen(target))
    ]
    return (
        "Pairs of a digit and a letter must be read with care. The digits come from MNIST, the letters from EMNIST, "
        f"and the two were cut out differently: {percent(sum(digits) / len(digits))} of the digits have ink in the "
        f"outermost {found['edge']} pixels and {percent(sum(letters) / len(letters))} of the letters (means over "
        f"classes); of 0 {percent(ink['0'])}, of O {percent(ink['O'])}. A network that learns this margin need not "
        f"tell the shapes apart. Mistakes between a digit and a letter are of all errors: {', '.join(crossing)}. So "
        "this target cannot say what 0 and O cost where both were cut out alike, as in the document's EMNIST."
    )


def lookalike_share(row: Row, classes: Sequence[str]) -> float:
    """What part of a row's errors are mistakes inside the look-alike groups."""
    return lookalike_mistakes(row.confusion, classes, groups_in(classes)) / _errors(row)


def _lookalike_row(row: Row, classes: Sequence[str], *, digits: bool) -> tuple[str, ...]:
    alike = lookalike_mistakes(row.confusion, classes, groups_in(classes))
    total, errors = int(row.confusion.sum()), _errors(row)
    cells = (row.name, percent(1 - errors / total), percent(alike / errors), percent(1 - (errors - alike) / total))
    return (*cells, percent(crossing_mistakes(row.confusion, classes) / errors)) if digits else cells


def _errors(row: Row) -> int:
    return int(row.confusion.sum() - row.confusion.trace())
