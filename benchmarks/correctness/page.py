"""The page and the table on the terminal, from the JSON file and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from roster import LABELS, LIBRARIES, SHARED

NOTHING = "-"
Row = Mapping[str, Any]

# Looked for in the sources of each library, not guessed.
CAUSES = (
    "peft, LoRA and DoRA: the update is a second convolution that takes over stride and padding of the layer, but "
    "neither its dilation nor its padding mode. With some dilations the two outputs differ in size and torch crashes, "
    "or broadcasts one over the other. Merging a grouped layer is refused.",
    "peft, DoRA: on a grouped layer the length of a filter is taken of another product than the one that is added. "
    "The length counts as a constant in the gradient, as the paper suggests; that is not the gradient of the function "
    "that is computed, and is why gradients of a plain layer count as wrong here.",
    "peft, LoHa and LoKr, and all of LyCORIS: the update is convolved with zeros around the image, whatever the "
    "padding mode of the layer.",
    "peft, LoKr on 1-d layers: where the second factor is whole, `torch.kron` meets one factor with two axes and one "
    "with three, and pairs other axes than the method does. Merging does the same, so that only the formula tells.",
    "LyCORIS, LoHa and LoKr: merging applies alpha / rank twice. The rows with alpha = rank, where that is 1, show "
    "what is left. LyCORIS has no switch: `restore` takes an adapter off, and stands under *taken out*.",
    "peft, norms in `modules_to_save`: the advice of its documentation for BatchNorm. Statistics are then trained in a "
    "copy, which is saved; `unload` leaves the trained copies in the network.",
    "loralib: taking an adapter out is `train()`, which subtracts from the weight what `eval()` added. Where that "
    "rounds, the weight is not the old one.",
    "BatchNorm moves in every library that leaves the frozen network in training mode. It is then neither switched "
    "off with the adapter nor in its file, so that the same file gives other predictions on a fresh base.",
)


def write_page(content: Mapping[str, Any], path: Path) -> None:
    """Equal results give equal bytes."""
    blocks = [
        *_head(content),
        *_silent(content),
        *_base(content),
        *_worst(content),
        *_errors(content),
        *_classes(content),
        *_reproduce(content),
    ]
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def show(content: Mapping[str, Any]) -> None:
    """Both tables on the terminal."""
    console = Console(width=None if sys.stdout.isatty() else 240)
    for title, (headers, rows) in {
        "Silent failures": _silent_table(content),
        "The base, and the file of the adapter": _base_table(content),
    }.items():
        table = Table(*headers, title=title)
        for row in rows:
            table.add_row(*(cell.replace("`", "") for cell in row))
        console.print(table)


def _head(content: Mapping[str, Any]) -> Iterator[str]:
    yield "# Rivals under the same attack"
    own = [row for row in content["rows"] if row["library"] == "convpeft"]
    others = [row for row in content["rows"] if row["library"] != "convpeft"]
    drawn = content["drawn"]
    yield (
        f"The same {content['nets']} generated networks and {content['layers']} single convolutions, adapted by "
        f"{_and([LIBRARIES[name]['title'] for name in _libraries(content)])}: is the merged network the adapted one, "
        "is the adapted one what the formula of the method says, is the base left alone, and does a saved adapter "
        "give the same predictions on the right base and refuse a wrong one?"
    )
    yield "\n".join(
        (
            f"- convpeft, {len(own)} methods: {_silently_wrong(own)} silently wrong results in {_compared(own):,} "
            "comparisons.",
            f"- The others, {len(others)} rows: {_silently_wrong(others):,} silently wrong results in "
            f"{_compared(others):,} comparisons.",
        )
    )
    yield "## What was done"
    yield "\n".join(
        f"- {line}"
        for line in (
            f"Networks: one to four convolutions with or without a norm, residual links, a block that runs twice, a "
            f"linear head; {drawn['nets with BatchNorm']} of {content['nets']} have a BatchNorm. Kernels 1 to 7, "
            "stride and dilation 1 to 3, groups up to depthwise, every padding and padding mode, 1-d, 2-d and 3-d. "
            f"{_kinds('Of their', drawn['nets'])} {_kinds('Of the single', drawn['layers'])}",
            "Hypothesis draws them, with fixed seeds, by the strategies of the contract tests. They are legal and "
            "hostile: more grouped, dilated and oddly padded layers than public networks have. The shares below are "
            "shares of such layers, not of layers that people use.",
            f"Ranks {_and([str(rank) for rank in content['ranks']])} in turn, and alpha = 2 rank, the same for every "
            "library; peft gets the next multiple of the groups, which it asks for on grouped layers. Every adapter "
            "tensor is perturbed (standard deviation 0.1; variances stay positive) before anything is compared.",
            "Each library is used as its documentation says, on every convolution and linear layer that it says it "
            "supports; other layers stay as they are. `A of B` under *adapted* counts the convolutions of the "
            "networks that got an adapter; convpeft leaves out those on which even rank 1 has more numbers than the "
            "layer.",
            "convpeft's methods that no rival has are added up, each on the first third of the networks and layers.",
            "Keras has no networks of torch: its row is single layers, those that its `valid` and `same` padding can "
            "express, with `enable_lora`, its only method; BatchNorm is one that is frozen by `trainable = False` "
            "behind the layer. loralib's README offers linear layers and 2-d convolutions, whose kernels have to be "
            "square.",
        )
    )


def _kinds(start: str, counts: Mapping[str, int]) -> str:
    parts = [f"{number} are {kind}" for kind, number in counts.items() if kind != "convolutions"]
    return f"{start} {counts['convolutions']} convolutions {_and(parts)}."


def _silent(content: Mapping[str, Any]) -> Iterator[str]:
    yield "## Silent failures"
    yield (
        "*Merged*: whole networks, merged by the library against adapted, evaluation mode. *Formula*: single layers, "
        "adapted against the textbook formula of the method, computed in float64 from the library's own tensors. "
        f"*Gradients*: against finite differences in float64, every {_ordinal(content['gradients every'])} layer."
    )
    yield _markdown(*_silent_table(content))


def _silent_table(content: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    headers = (
        "library",
        "method",
        "adapted",
        "merged: right",
        "silently wrong",
        "refused",
        "crashed",
        "formula: right",
        "silently wrong",
        "refused",
        "crashed",
        "not offered",
        "gradients wrong",
    )
    rows = []
    for title, label, group in _groups(content):
        merged = _sum(group, "nets", "merge")
        by_formula = _sum(group, "layers", "formula")
        adapted = f"{_add(group, 'offered'):,} of {_add(group, 'convolutions'):,}"
        rows.append(
            (
                title,
                label,
                adapted if _add(group, "convolutions") else NOTHING,
                *_cells(merged, ("right", "wrong", "refused", "crashed")),
                *_cells(by_formula, ("right", "wrong", "refused", "crashed", "not offered")),
                _share(_sum(group, "layers", "gradient")),
            )
        )
    return headers, rows


def _base(content: Mapping[str, Any]) -> Iterator[str]:
    yield "## The base, and the file of the adapter"
    yield (
        "Failures of the cases that came to an end without an error. *Fresh*: an untrained adapter changes the output "
        "by more than a relative 1e-6. *Switched off* and *taken out*: after one training step, output, parameters or "
        "buffers are not those of the base, bit for bit; in brackets the networks without BatchNorm. *Loaded*: on a "
        f"fresh base the saved adapter gives another output; *flips*: other classes of {content['images']} images. "
        "*Accepted*: loaded without a word on a base with one weight changed by one unit in the last place, and on "
        "one with other weights."
    )
    yield _markdown(*_base_table(content))
    equal = [row for row in content["rows"] if row["library"] == "convpeft"]
    loaded = sum(sum(row["nets"]["saved"].get(key, 0) for key in ("right", "wrong")) for row in equal)
    fresh = sum(sum(row["nets"]["fresh"].get(key, 0) for key in ("right", "wrong")) for row in equal)
    yield (
        f"convpeft's outputs are equal in every bit: {_add(equal, 'fresh and equal in every bit'):,} of {fresh:,} "
        f"fresh adapters, {_add(equal, 'saved and equal in every bit'):,} of {loaded:,} loaded ones."
    )


def _base_table(content: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    headers = (
        "library",
        "method",
        "fresh changes",
        "switched off, not the base",
        "taken out, not the base",
        "BatchNorm moved",
        "loaded differs",
        "flips",
        "one ulp accepted",
        "other weights accepted",
    )
    rows = []
    for title, label, group in _groups(content):
        on_layers = not LIBRARIES[group[0]["library"]]["networks"]
        kind = "layers" if on_layers else "nets"
        flips, predictions = _add(group, "flips"), _add(group, "predictions")
        rows.append(
            (
                title,
                label,
                _share(_sum(group, kind, "fresh")),
                _two_shares(group, "disabled"),
                _two_shares(group, "unloaded"),
                _share(_sum(group, kind, "batch norm")),
                _share(_sum(group, "nets", "saved")),
                f"{flips:,} of {predictions:,}" if predictions else NOTHING,
                _share(_sum(group, "nets", "wrong base, one ulp")),
                _share(_sum(group, "nets", "wrong base, other weights")),
            )
        )
    return headers, rows


def _worst(content: Mapping[str, Any]) -> Iterator[str]:
    yield "## The smallest layer that fails silently"
    yield "Of the single layers, the one with the fewest special arguments, then the fewest numbers; and its input."
    lines = []
    for row in content["rows"]:
        name = f"{LIBRARIES[row['library']]['title']} {_label(row)}"
        worst = row["worst"]
        if worst is None:
            if row["library"] != "convpeft":
                lines.append(f"- {name}: none")
            continue
        against = "the formula" if worst["measure"] == "formula" else "its merged self"
        error = "an output of another size" if worst["relative"] is None else f"{worst['relative']:.2g} off {against}"
        shape = tuple(worst["input"])
        lines.append(f"- {name}: `{worst['layer']}` on `{shape}` at rank {worst['rank']}: {error}")
    yield "\n".join(lines)
    yield "Causes, found in the sources:"
    yield "\n".join(f"- {cause}" for cause in CAUSES)


def _errors(content: Mapping[str, Any]) -> Iterator[str]:
    yield "## What was refused, and what crashed"
    yield (
        "The most frequent of each row, with one message as an example; the count is of networks and layers. convpeft "
        "refuses where a method finds nothing to adapt: no bias to train, no norm to tune, or layers on which even "
        "rank 1 has more numbers than the layer itself."
    )
    lines = []
    for title, label, group in _groups(content):
        kinds: dict[tuple[str, str, str], list[Any]] = {}
        for error in (each for row in group for each in row["errors"]):
            known = kinds.setdefault((error["outcome"], error["error"], error["where"]), [0, error["example"]])
            known[0] += error["count"]
        for (outcome, error, where), (count, example) in sorted(kinds.items(), key=lambda item: -item[1][0])[:2]:
            said = f': "{example}"' if example else ""
            place = f" in {where}" if where else ""
            lines.append(f"- {title} {label}: {count:,} {outcome}, {error}{place}{said}")
    yield "\n".join(lines) if lines else "Nothing."


def _classes(content: Mapping[str, Any]) -> Iterator[str]:
    yield "## How outcomes are told apart"
    patience = content["seconds for one network at most"]
    yield "\n".join(
        f"- {line}"
        for line in (
            f"*right*: max|a - b| / max|b| of the outputs is at most {content['tolerance']:g}, in float32.",
            "*silently wrong*: larger, another size, or not a number, and no error was raised.",
            "*refused*: the library's own source raised an error that says a sentence. *crashed*: any other error, "
            f"such as one from inside torch; a process that died, or took more than {patience} seconds.",
            "*not offered*: the library does not say that it takes such a layer, or has no such feature. It counts "
            "neither for it nor against it.",
            "Each method of each library has a process of its own, with one thread.",
        )
    )


def _reproduce(content: Mapping[str, Any]) -> Iterator[str]:
    yield "## Command and versions"
    yield "\n".join(
        (
            "```bash",
            f"{content['command']}  # goes on where it stopped",
            "python benchmarks/correctness/run.py page  # this page from the JSON file",
            "```",
        )
    )
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    yield (
        f"Seeds from {content['seed']} on; digest of the draws {content['digest of the draws']}. Versions: {versions}. "
        "Counts are in [correctness.json](correctness.json)."
    )


def _groups(content: Mapping[str, Any]) -> Iterator[tuple[str, str, list[Row]]]:
    """Rows as the tables have them: convpeft's methods that no rival has are added up."""
    rows = content["rows"]
    own = [row for row in rows if row["library"] == "convpeft" and row["method"] not in SHARED]
    branches = [row for row in own if not row["merges"]]
    others = [row for row in own if row["merges"]]
    for row in rows:
        if row["library"] == "convpeft" and row["method"] in SHARED:
            yield "convpeft", _label(row), [row]
    if others:
        yield "convpeft", f"{len(others)} more that merge", others
    if branches:
        yield "convpeft", f"{len(branches)} that do not merge, by design", branches
    for row in rows:
        if row["library"] != "convpeft":
            yield LIBRARIES[row["library"]]["title"], _label(row), [row]


def _label(row: Row) -> str:
    return LABELS.get((row["library"], row["method"]), f"`{row['method']}`")


def _libraries(content: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["library"] for row in content["rows"]))


def _sum(rows: Sequence[Row], kind: str, measure: str) -> dict[str, int]:
    total: dict[str, int] = {}
    for row in rows:
        for outcome, number in row[kind][measure].items():
            total[outcome] = total.get(outcome, 0) + number
    return total


def _add(rows: Sequence[Row], key: str) -> int:
    return sum(row[key] for row in rows)


def _silently_wrong(rows: Sequence[Row]) -> int:
    return sum(_sum(rows, kind, measure).get("wrong", 0) for kind, measure in _COMPARISONS)


def _compared(rows: Sequence[Row]) -> int:
    counts = [_sum(rows, kind, measure) for kind, measure in _COMPARISONS]
    return sum(each.get("right", 0) + each.get("wrong", 0) for each in counts)


_COMPARISONS = (("nets", "merge"), ("layers", "merge"), ("layers", "formula"))


def _cells(counts: Mapping[str, int], outcomes: Sequence[str]) -> tuple[str, ...]:
    if not counts:
        return (NOTHING,) * len(outcomes)
    return tuple(
        f"**{counts['wrong']:,}**" if o == "wrong" and counts.get(o) else f"{counts.get(o, 0):,}" for o in outcomes
    )


def _share(counts: Mapping[str, int]) -> str:
    """Failures of those that came to an end."""
    total = counts.get("right", 0) + counts.get("wrong", 0)
    return f"{counts.get('wrong', 0):,} of {total:,}" if total else NOTHING


def _two_shares(rows: Sequence[Row], way: str) -> str:
    without = _sum(rows, "nets", f"{way}, without BatchNorm")
    whole = dict(without)
    for outcome, number in _sum(rows, "nets", f"{way}, with BatchNorm").items():
        whole[outcome] = whole.get(outcome, 0) + number
    return f"{_share(whole)} ({_share(without)})" if _share(whole) != NOTHING else NOTHING


def _ordinal(number: int) -> str:
    return {1: "single", 2: "second", 3: "third"}.get(number, f"{number}th")


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---", "---", *["---:"] * (len(headers) - 2)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
