"""Options that bring out the differences of glora, fsf, loca and tsa."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

_MATRIX = st.sampled_from(["lora", "vector", "scalar", "none"])
_PROMPT = st.sampled_from(["lora", "vector", "none"])
_VECTOR = st.sampled_from(["vector", "scalar", "none"])
_RANK = {"rank": st.integers(1, 12)}

OPTIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "glora": st.fixed_dictionaries(
        _RANK,
        optional={"alpha": st.floats(0.25, 16), "a": _MATRIX, "b": _MATRIX, "c": _PROMPT, "d": _VECTOR, "e": _VECTOR},
    ).filter(lambda options: not options.get("a") == options.get("b") == "none"),  # something of the weight moves
    "fsf": st.fixed_dictionaries(
        {},
        optional={
            "atoms": st.integers(1, 12),
            "sparsity": st.sampled_from([0.0, 1e-3, 0.05]),
            "expansion": st.integers(0, 3),
            "block": st.integers(1, 6),
        },
    ),
    "loca": st.one_of(
        st.fixed_dictionaries(_RANK, optional={"learned_scale": st.booleans()}),
        st.fixed_dictionaries(  # the reference knows one rank, and the scale alpha / rank needs that of the layer
            _RANK | {"hierarchical": st.just(False)},
            optional={"alpha": st.floats(0.25, 16), "learned_scale": st.booleans()},
        ),
    ),
    "tsa": st.fixed_dictionaries(  # init="paper" is no identity at the start
        {},
        optional={
            "form": st.sampled_from(["matrix", "channel"]),
            "align": st.booleans(),
            "learned_scale": st.booleans(),
        },
    ),
}
