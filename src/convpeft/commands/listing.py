"""`convpeft inspect`, `methods` and `datasets`: show what a file holds and what there is."""

from __future__ import annotations

from pathlib import Path

from convpeft.console import plain, print_json, show_table


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
    """Print the methods with their options."""
    from convpeft.adapters import list_methods, method_info
    from convpeft.models.resnet50_sites import resnet50_sites
    from convpeft.planning import trainable_on

    records = [method_info(name) for name in list_methods()]
    sizes = {record.name: trainable_on(resnet50_sites(), record.name) for record in records}
    if as_json:
        print_json(
            [
                vars(record)
                | {"options": [vars(option) for option in record.options], "trainable_on_resnet50": sizes[record.name]}
                for record in records
            ]
        )
        return
    rows = [
        (
            r.name,
            r.summary,
            r.paper,
            r.mergeable,
            " | ".join(r.norm_policies),
            f"{sizes[r.name]:,}",
            f"{r.learning_rate:g}",
        )
        for r in records
    ]
    headers = ("method", "what it does", "paper", "mergeable", "norm policies", "on resnet50", "learning rate")
    show_table("methods (parameters trained on resnet50 with its own head)", headers, rows, numbers_from=5)
    options = [
        (record.name, f"--{option.name.replace('_', '-')}", plain(option.default), option.description)
        for record in records
        for option in record.options
    ]
    show_table("options", ("method", "option", "default", "meaning"), options, numbers_from=4)


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
