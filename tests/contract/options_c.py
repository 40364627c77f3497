"""Options that bring out the differences of the residual adapters, chapter, conv-adapter and lite-residual."""

from typing import Any

from hypothesis import strategies as st

SCALE = {"learned_scale": st.booleans()}
DECAY = {"weight_decay": st.sampled_from([None, 0.0, 0.1])}
OPTIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "residual-parallel": st.fixed_dictionaries({}, optional=SCALE | DECAY),
    "residual-serial": st.fixed_dictionaries({"own_norm": st.booleans()}, optional=SCALE | DECAY),
}
