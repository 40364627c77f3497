"""`convpeft inspect`, `methods` and `datasets`: show what a file holds and what there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from convpeft.console import plain, print_json, say, show_table

if TYPE_CHECKING:
    from convpeft.adapters import MethodInfo


def inspect_adapter(path: Path, *, as_json: bool) -> None:
    """Print what an adapter file holds."""
    from convpeft.adapter_file import read_adapter

    file = read_adapter(path)
    config = file.config
    shapes = {key: "x".join(map(str, tensor.shape)) for key, tensor in file.tensors.items()}
    types = {key: str(tensor.dtype).removeprefix("torch.") for key, tensor in file.tensors.items()}
    stored = sum(tensor.numel() for tensor in file.tensors.values())
    size = sum(each.stat().st_size for each in file.path.iterdir())
    if as_json:
        print_json(config | {"shapes": shapes, "types": types, "stored": stored, "bytes": size})
        return
    classes, source = config["classes"] or [], config["model"] or {}
    options = ", ".join(f"{key}={plain(value)}" for key, value in config["options"].items())
    more = "..." if len(classes) > 12 else ""
    base = str(source.get("source", "not recorded"))
    rows = [
        ("method", f"{config['method']} ({options})"),
        ("norm policy", config["norm"]),
        ("layers", str(len({part["path"] for part in config["parts"]}))),
        ("numbers stored", f"{stored:,} in {len(shapes)} tensors"),
        ("size", f"{size:,} bytes"),
        (
            "classes",
            f"{len(classes)}: {', '.join(classes[:12])}{more}" if classes else "-",
        ),
        ("base", f"{base}, weights {source['weights']}" if source.get("weights") else base),
        ("base fingerprint", config["base"]["fingerprint"]),
        ("preprocessing", ", ".join(f"{key}={plain(value)}" for key, value in (config["preprocessing"] or {}).items())),
        ("versions", ", ".join(f"{name} {version}" for name, version in config["versions"].items())),
    ]
    show_table(str(file.path), ("", "value"), rows, numbers_from=2)
    rows = [(key, shapes[key], types[key]) for key in shapes]
    show_table("tensors", ("tensor", "shape", "type"), rows)


def show_methods(*, as_json: bool) -> None:
    """Print the table of methods."""
    from convpeft.adapters import list_methods, method_info
    from convpeft.models.resnet50_sites import resnet50_sites
    from convpeft.planning import trainable_on

    records = [method_info(name) for name in list_methods()]
    sizes = {record.name: trainable_on(resnet50_sites(), record.name) for record in records}
    if as_json:
        print_json([_as_json(record) | {"trainable_on_resnet50": sizes[record.name]} for record in records])
        return
    rows = [
        (
            record.name,
            record.summary,
            record.paper,
            record.mergeable,
            " | ".join(record.norm_policies),
            f"{sizes[record.name]:,}",
            f"{record.learning_rate:g}",
        )
        for record in records
    ]
    headers = ("method", "what it does", "paper", "mergeable", "norm policies", "on resnet50", "learning rate")
    show_table("methods (parameters trained on resnet50 with its own head)", headers, rows, numbers_from=5)
    say("`convpeft methods NAME` shows the options of one.")


def show_method(name: str, *, as_json: bool) -> None:
    """Print the options of one method."""
    from convpeft.adapters import method_info

    record = method_info(name)
    if as_json:
        print_json(_as_json(record))
        return
    say(f"{record.name}: {record.summary} {record.paper}.")
    options = [
        (f"--{option.name.replace('_', '-')}", option.type, plain(option.default), option.description)
        for option in record.options
    ]
    if options:
        show_table(f"options of {record.name}", ("option", "type", "default", "meaning"), options, numbers_from=4)
    else:
        say("It has no options.")


def _as_json(record: MethodInfo) -> dict[str, Any]:
    return vars(record) | {"options": [vars(option) for option in record.options]}


def show_datasets(*, as_json: bool) -> None:
    """Print the forms of --data and --model."""
    from convpeft.data import list_sources
    from convpeft.models import model_sources

    data = list_sources()
    if as_json:
        print_json({"data": [vars(each) for each in data], "model": [list(each) for each in model_sources()]})
        return
    rows = [(each.pattern, each.description) for each in data]
    show_table("--data", ("form", "what it is"), rows, numbers_from=2)
    show_table("--model", ("form", "what it is"), list(model_sources()), numbers_from=2)
