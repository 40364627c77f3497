"""The arms by what they are: the head alone, the whole network, the adapters."""

from __future__ import annotations

from common.comparison import Comparison

HEAD, WHOLE, FROZEN = "probe", "full", "full, norms frozen"


def adapters_of(found: Comparison) -> list[str]:
    """The arms that are neither the head alone nor the whole network."""
    return [arm for arm in found.arms if arm not in (HEAD, WHOLE, FROZEN)]
