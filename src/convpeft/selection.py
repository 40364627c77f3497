"""Which sites are meant: paths, globs and kind words."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import nn

from convpeft.blocks import find_blocks
from convpeft.errors import OptionError, nearest
from convpeft.sites import Site, all_sites


def select(
    model: nn.Module,
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
    *,
    head: str = "auto",
) -> tuple[Site, ...]:
    """List the sites that `include` names and `exclude` does not; nothing is changed.

    Args:
        model: The network.
        include: Paths, globs of paths (`layer4.*.conv1`) and kind words (`conv`, `linear`, `norm`, `parameter`,
            `depthwise`, `grouped`, `pointwise`, `spatial`, `transposed`, `head`, `stage:3`, `stage:last`, `block`).
            Default: every convolution and linear layer except the head.
        exclude: The same words; what they name is left out.
        head: Path of the classifier, or `auto`.

    Returns:
        The sites in the order of the model's modules.

    Raises:
        OptionError: If a pattern names nothing.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
    >>> [site.path for site in select(net)]
    ['0']
    >>> [site.path for site in select(net, include=["norm", "head"])]
    ['1', '3']
    """
    sites = all_sites(model, head=head)
    if include is not None:
        if "block" in as_tuple(include):
            sites += find_blocks(model)
        return choose(sites, include, exclude)
    return choose(sites, ("conv", "linear"), exclude, without=("head",), lenient=True)


def choose(
    sites: Sequence[Site],
    include: Sequence[str] | str,
    exclude: Sequence[str] | str | None,
    *,
    without: Sequence[str] = (),
    lenient: bool = False,
) -> tuple[Site, ...]:
    """Filter sites by patterns; a pattern that names nothing is an error (`lenient`: unless it is in `include`)."""
    wanted, unwanted = as_tuple(include), as_tuple(exclude or ())
    for where, patterns in (("include", () if lenient else wanted), ("exclude", unwanted)):
        for pattern in patterns:
            if not any(site.matches(pattern) for site in sites):
                known = {site.path for site in sites} | {word for site in sites for word in site.tags}
                tail = nearest(pattern, known) if len(known) <= 40 else _short(pattern, known)
                raise OptionError(f"{where}={pattern!r} names no layer of this model. {tail}")
    unwanted += tuple(without)
    return tuple(
        site
        for site in sites
        if any(site.matches(pattern) for pattern in wanted) and not any(site.matches(p) for p in unwanted)
    )


def as_tuple(patterns: Sequence[str] | str) -> tuple[str, ...]:
    """One pattern or several, as several."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _short(pattern: str, known: set[str]) -> str:
    """Offer the nearest few of many names."""
    close = difflib.get_close_matches(pattern, sorted(known), n=5, cutoff=0.3) or sorted(known)[:5]
    return f"Near it: {', '.join(close)}; `convpeft.select(model)` lists them all."
