"""Options that bring out the differences of cp-tucker, lora-c, lokr and tt."""

from typing import Any

from hypothesis import strategies as st

RANK = {"rank": st.integers(1, 12)}
SCALE = {"alpha": st.floats(0.25, 16), "learned_scale": st.booleans()}
OPTIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "cp-tucker": st.fixed_dictionaries(RANK, optional=SCALE | {"core_rank": st.integers(1, 12)}),
    "lora-c": st.sampled_from(
        [
            {},
            {"setting": "rk"},
            {"setting": "r"},
            {"layout": "loralib"},
            {"layout": "loralib", "setting": "rk"},
            {"per": "kernel"},
        ]
    ).flatmap(lambda form: st.fixed_dictionaries(RANK | {key: st.just(form[key]) for key in form}, optional=SCALE)),
    "lokr": st.fixed_dictionaries(
        RANK, optional=SCALE | {"factor": st.sampled_from([-1, 1, 2, 3, 4, 6]), "decompose_both": st.booleans()}
    ),
    "tt": st.fixed_dictionaries(RANK, optional=SCALE),
}
