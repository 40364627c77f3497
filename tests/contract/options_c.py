"""Options that bring out the differences of the residual adapters, chapter, conv-adapter and lite-residual."""

from typing import Any

from hypothesis import strategies as st

SCALE = {"learned_scale": st.booleans()}
DECAY = {"weight_decay": st.sampled_from([None, 0.0, 0.1])}
OPTIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "residual-parallel": st.fixed_dictionaries({}, optional=SCALE | DECAY),
    "residual-serial": st.fixed_dictionaries({"own_norm": st.booleans()}, optional=SCALE | DECAY),
    "chapter": st.fixed_dictionaries(
        {
            "arrangement": st.sampled_from(["parallel", "serial"]),
            "matching": st.sampled_from(["group", "copy"]),
            "kernel": st.integers(1, 5),
        },
        optional=SCALE,
    ),
    "conv-adapter": st.fixed_dictionaries(
        {
            "scheme": st.sampled_from(["conv-parallel", "conv-sequential", "residual-parallel", "residual-sequential"]),
            "gamma": st.integers(1, 8),
        }
    ),
    "lite-residual": st.fixed_dictionaries(
        {"kernel": st.sampled_from([1, 3, 5]), "standardise": st.booleans()}, optional={"width": st.integers(1, 12)}
    ),
}
