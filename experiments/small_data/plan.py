"""What is compared in each budget: a grid for `convpeft compare`, and what is set beside it."""

from __future__ import annotations

from common.collecting import Task

_TEN = "grid.seeds=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"
_GENERATED = (
    'base.model={source="small-cnn"}',
    'base.data={source="glyphs:digits"}',
    'arm=[{name="probe", method={name="probe"}}, {name="lora", method={name="lora", rank=2}}, '
    '{name="full", method={name="full"}}]',
    "grid.seeds=[0, 1]",
    "grid.setting=[{data={per_class=1, val_per_class=1}, train={epochs=2}}, "
    "{data={per_class=3, val_per_class=3}, train={epochs=1}}]",
    "tune.trials=2",
)


def _settings(*rows: tuple[int, int, int]) -> str:
    """Training images a class, validation images a class, and epochs."""
    tables = (f"{{data={{per_class={n}, val_per_class={val}}}, train={{epochs={epochs}}}}}" for n, val, epochs in rows)
    return f"grid.setting=[{', '.join(tables)}]"


BUDGETS: dict[str, tuple[Task, ...]] = {
    "small": (Task("glyphs", "Drawn digits", "pneumonia.toml", _GENERATED),),
    "medium": (
        Task("pneumonia", "PneumoniaMNIST", "pneumonia.toml"),
        Task("oct", "Retinal OCT", "oct.toml"),
    ),
    "full": (
        Task(
            "pneumonia",
            "PneumoniaMNIST",
            "pneumonia.toml",
            (_TEN, "tune.trials=15", _settings((5, 5, 200), (10, 10, 100), (50, 20, 60), (200, 20, 30))),
        ),
        Task(
            "oct",
            "Retinal OCT",
            "oct.toml",
            (
                _TEN,
                "tune.trials=15",
                "base.model.image_size=224",
                _settings((5, 5, 100), (10, 10, 50), (50, 20, 30), (100, 20, 30)),
            ),
        ),
    ),
}
EARLIER = {  # what has become of a run whose figures were known when this one was set up
    "medium": "It was of PneumoniaMNIST alone."
}
