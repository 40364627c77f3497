"""`convpeft check`: what an adapter promises, tried on a network."""

from __future__ import annotations

from pathlib import Path

from convpeft.console import print_json, say, show_table, warnings_as_lines
from convpeft.errors import OptionError


def check_model(
    source: str | None,
    *,
    weights: Path | None,
    adapter: Path | None,
    method: str | None,
    pretrained: bool,
    force: bool,
    as_json: bool,
) -> bool:
    """Check a network, print a line for each claim, and say whether all hold.

    Raises:
        OptionError: If neither a model nor an adapter is named, or the options exclude each other.
    """
    if source is None and adapter is None:
        raise OptionError("nothing to check. Name a MODEL, or an adapter with --adapter RUN.")
    if method is not None and adapter is not None:
        raise OptionError("--method and --adapter exclude each other: the adapter's file says which method it is.")
    if force and adapter is None:
        raise OptionError("--force loads an adapter onto another base. Name one with --adapter RUN, or leave it out.")
    if method is not None:
        from convpeft.planning import read_requests

        read_requests(method, {})  # a misspelt name is told before anything is fetched
    if adapter is not None and not pretrained:
        raise OptionError(
            "--random-weights and --adapter exclude each other: an adapter belongs to its base's weights."
        )
    from convpeft.checking import check
    from convpeft.models import from_adapter, load_model
    from convpeft.storage import load

    with warnings_as_lines() as told:
        if source is None:
            assert adapter is not None
            model, file = from_adapter(adapter, weights=weights, force=force), None
        else:
            model, file = load_model(source, weights=weights, pretrained=pretrained), adapter
            if adapter is not None and force:
                model, file = load(model, adapter, force=True), None
    report = check(model, method=method, adapter=file)
    if as_json:
        print_json(report.to_dict() | ({"forced": told} if force else {}))
        return report.passed
    shown = {"fail": "FAIL"}
    rows = [
        (each.name, shown.get(each.status, each.status), each.measured, each.allowed, each.remark)
        for each in report.findings
    ]
    shapes = ", ".join("x".join(map(str, shape)) for shape in report.shapes)
    on = f" on {source or adapter}" + (f", input {shapes}" if shapes else "")
    show_table(f"{report.method}{on}", ("check", "result", "figure", "limit", "what it says"), rows, numbers_from=5)
    say(report.sentence)
    return report.passed
