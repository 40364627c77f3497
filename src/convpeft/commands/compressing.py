"""`convpeft compress`: search the ranks, write the thin network and a report, and print what was saved."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convpeft.console import Steps, command_line, plain, print_json, say, show_table, warnings_as_lines
from convpeft.errors import OptionError, RunError

if TYPE_CHECKING:
    from torch import nn

    from convpeft.compression import Compression
    from convpeft.data import Dataset
    from convpeft.models import Preprocessing


def compress_model(
    model: str,
    *,
    data: str,
    out: Path,
    weights: Path | None,
    method: str,
    drop: float,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
    images: int,
    candidates: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Compress a network on its validation images, and judge it once on the test images."""
    from convpeft.data import load_data
    from convpeft.decompositions import METHODS
    from convpeft.errors import nearest

    files = _targets(out)
    if method not in METHODS:
        raise OptionError(f"--method {method}: does not exist. {nearest(method, METHODS)}")
    dataset = load_data(data, seed=seed)
    with warnings_as_lines():
        network, preprocessing, notes = _load(model, weights)
    if not as_json:
        for note in (*notes, *dataset.notes):
            say(f"note: {note}")
    from convpeft.compression import compress
    from convpeft.compression.judging import Judge, choosing_images

    chosen = choosing_images(dataset, images, seed=seed)
    judge = Judge(chosen, preprocessing, classes=len(dataset.classes))
    judge.predictions(network)  # other classes or sizes are found out before the search
    with Steps("searching ranks", quiet=as_json) as steps:
        done = compress(
            network,
            judge.accuracy,
            method=method,
            drop=drop,
            include=include,
            exclude=exclude,
            candidates=candidates,
            seed=seed,
            progress=steps.show,
        )
    facts = done.to_dict() | {"model": model, "data": data, "seed": seed, "choosing_images": len(chosen)}
    facts |= _operations(network, done, preprocessing) | _tested(network, done, dataset, preprocessing)
    facts |= {"command": shlex.join(command_line()), "notes": [*notes, *dataset.notes]}
    with _naming(out):
        done.save(files["network"])
    _write(files, facts, done)
    if as_json:
        print_json(facts)
        return
    _show(facts, done)
    say(f"network: {files['network']} (compressed:{files['network']} as --model)")
    say(f"report:  {files['page']}")


def _targets(out: Path) -> dict[str, Path]:
    """The files to write, none of which is there."""
    if out.suffix != ".safetensors":
        raise OptionError(f"--out {out}: expected a name that ends in .safetensors.")
    files = {"network": out, "figures": out.with_suffix(".json"), "page": out.with_suffix(".html")}
    for file in files.values():
        if file.exists():
            raise OptionError(f"--out {out}: {file.name} exists already. Give another name.")
    return files


def _load(source: str, weights: Path | None) -> tuple[nn.Module, Preprocessing, tuple[str, ...]]:
    import torch

    from convpeft.models import load_model, notes_of, preprocessing_of

    model = load_model(source, weights=weights)
    preprocessing = preprocessing_of(model)
    assert preprocessing is not None  # load_model notes one on every model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().to(device), preprocessing, notes_of(model)


def _operations(network: nn.Module, done: Compression, preprocessing: Preprocessing) -> dict[str, Any]:
    """Multiplications of one image, of each layer and in all, before and after."""
    from convpeft.compression import multiplications

    shape = (preprocessing.channels, *preprocessing.size)
    before, after = multiplications(network, shape), multiplications(done.model, shape)
    thin = set(done.thin)
    layers = {
        each.path: (
            before.get(each.path, 0),
            sum(n for path, n in after.items() if path == each.path or path.rpartition(".")[0] in thin & {each.path}),
        )
        for each in done.layers
    }
    return {"multiplications": (sum(before.values()), sum(after.values())), "layer_multiplications": layers}


def _tested(network: nn.Module, done: Compression, dataset: Dataset, preprocessing: Preprocessing) -> dict[str, Any]:
    """Accuracy on the test images, which have chosen nothing."""
    from convpeft.compression.judging import Judge
    from convpeft.evaluation import describe_difference, paired_difference, wilson_interval

    judge = Judge(dataset.test, preprocessing, classes=len(dataset.classes))
    before, after = (judge.predictions(each).correct for each in (network, done.model))
    difference = paired_difference(after, before, seed=0)

    def figures(correct: Any) -> dict[str, Any]:
        return {"accuracy": float(correct.mean()), "interval": wilson_interval(int(correct.sum()), len(correct))}

    return {
        "test": {
            "images": len(before),
            "before": figures(before),
            "after": figures(after),
            "difference": [difference.delta, difference.low, difference.high],
            "sentence": describe_difference(difference, a="compressed", b="the network before"),
        }
    }


@contextmanager
def _naming(out: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise RunError(f"--out {out}: cannot be written ({why}). Free space or give another name.") from None


_HEADERS = (
    "layer",
    "kernel",
    "ranks",
    "alone",
    "error",
    "sensitivity, plain CPD",
    "sensitivity",
    "parameters",
    "then",
    "multiplications",
    "then ",
)


def _layer_rows(facts: dict[str, Any], done: Compression) -> list[tuple[str, ...]]:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    rows: list[tuple[str, ...]] = []
    for each in done.layers:
        own, (before, after) = each.found, facts["layer_multiplications"][each.path]
        rows.append(
            (
                each.path,
                "x".join(map(str, each.shape)),
                plain(each.ranks) if each.ranks else f"whole ({each.reason})",
                plain(each.alone),
                number(None if own is None else own.error, ".3f"),
                number(None if own is None else own.plain_sensitivity, ".3g"),
                number(None if own is None else own.sensitivity, ".3g"),
                f"{each.parameters[0]:,}",
                f"{each.parameters[1]:,}",
                f"{before:,}",
                f"{after:,}",
            )
        )
    return rows


def _total_rows(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    from convpeft.reporting import format_interval

    def ratio(pair: Sequence[int]) -> str:
        return f"{pair[0] / max(pair[1], 1):.2f} times fewer"

    chosen, test = facts["choosing_accuracy"], facts["test"]
    show: Callable[[str], str] = lambda when: format_interval(test[when]["accuracy"], test[when]["interval"])  # noqa: E731
    moved, low, high = (100 * value for value in test["difference"])
    return [
        ("parameters", *(f"{value:,}" for value in facts["parameters"]), ratio(facts["parameters"])),
        ("multiplications", *(f"{value:,}" for value in facts["multiplications"]), ratio(facts["multiplications"])),
        (
            f"accuracy, {facts['choosing_images']:,} choosing images",
            *(f"{value:.2%}" for value in chosen),
            f"{100 * (chosen[1] - chosen[0]):+.2f} points",
        ),
        (
            f"accuracy, {test['images']:,} test images",
            show("before"),
            show("after"),
            f"{moved:+.2f} points [{low:+.2f}, {high:+.2f}]",
        ),
    ]


def _show(facts: dict[str, Any], done: Compression) -> None:
    show_table(f"{facts['model']}, {done.method}, drop of at most {done.drop:g}", _HEADERS, _layer_rows(facts, done))
    show_table("in all", ("", "before", "after", ""), _total_rows(facts))
    say(facts["test"]["sentence"])


def _write(files: dict[str, Path], facts: dict[str, Any], done: Compression) -> None:
    from convpeft.reporting import Code, ReportContent, Table, write_report, write_whole

    with _naming(files["network"]):
        write_whole(files["figures"], (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())
        write_report(
            files["page"],
            ReportContent(
                title=f"{facts['model']}, compressed by {done.method}",
                subtitle=f"{facts['data']} · drop of at most {done.drop:g} on the choosing images",
                summary=facts["test"]["sentence"],
                sections=(
                    Table("In all", ("", "before", "after", "change"), tuple(_total_rows(facts))),
                    Table("Layers", _HEADERS, tuple(_layer_rows(facts, done))),
                    Code("Command", facts["command"]),
                ),
            ),
        )
