"""The part of the page that says what is mistaken for what, and what look-alikes cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from summary import Row, Summary, crossing_mistakes, groups_in, lookalike_mistakes
from wording import inside, percent, table

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
    yield "### If look-alikes counted as right"
    yield (
        "These groups were named before training; a mistake inside one is a mistake between drawings that hardly "
        "differ without context, the more so as a class holds both cases of its letter. The tables give the share of "
        "all errors that such mistakes are, and what the accuracy would be were they right."
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
