"""What is compared in each budget: grids for `convpeft compare`, in the order in which they are run."""

from __future__ import annotations

from common.collecting import Task

FOLDS = (0, 1, 2, 3, 4)
FOLD = "-fold"  # between the name of a transfer and the fold that is tested on
_GENERATED = (
    'base.model={source="small-cnn"}',
    'base.data={source="glyphs:digits"}',
    'arm=[{name="probe", method={name="probe"}}, {name="lora", method={name="lora", rank=2}}, '
    '{name="colora", method={name="colora"}}, '
    '{name="colora, merged each epoch", method={name="colora", merge_every="epoch"}}, '
    '{name="full", method={name="full"}}]',
    "grid.seeds=[0, 1]",
    "grid.setting=[{data={per_class=2, val_per_class=2}, train={epochs=2}}]",
    "tune.trials=2",
)
_LONG = (
    "tune.trials=7",
    "base.model.image_size=224",
    "grid.setting=[{data={per_class=10, val_per_class=10}, train={epochs=50}}, {train={epochs=20}}]",
)


def _oct(fold: int, *assign: str, name: str = "oct", title: str = "Retinal OCT", grid: str = "oct.toml") -> Task:
    """One fold to test on, with the seed of its number."""
    return Task(f"{name}{FOLD}{fold}", title, grid, (f"grid.seeds=[{fold}]", f"base.data.fold={fold}", *assign))


def _pneumonia(count: int, *assign: str) -> Task:
    """The first seeds; run again with more, it goes on."""
    seeds = ", ".join(map(str, range(count)))
    return Task("pneumonia", "PneumoniaMNIST", "pneumonia.toml", (f"grid.seeds=[{seeds}]", *assign))


_SQUEEZED = {"name": "squeezenet", "title": "Retinal OCT from SqueezeNet", "grid": "squeezenet.toml"}
BUDGETS: dict[str, tuple[Task, ...]] = {
    "small": (Task("glyphs", "Drawn digits", "pneumonia.toml", _GENERATED),),
    # The first draw of everything comes first, so that a run that is cut off is of use.
    "medium": (
        _oct(0),
        _pneumonia(1),
        _oct(1),
        _pneumonia(3),
        _oct(2),
        _pneumonia(5),
        _oct(3),
        _oct(4),
    ),
    "full": (
        *(_oct(fold, *_LONG) for fold in FOLDS),
        *(_oct(fold, *_LONG, **_SQUEEZED) for fold in FOLDS),
        _pneumonia(
            10,
            "tune.trials=7",
            "grid.setting=[{data={per_class=10, val_per_class=10}, train={epochs=60}}, {train={epochs=20}}]",
        ),
    ),
    # Where the files are given: 28 pixels by the recipe of PneumoniaMNIST, 224 by that of the retinal scans.
    "octmnist": (
        Task(
            "octmnist",
            "OCTMNIST, 28 pixels",
            "pneumonia.toml",
            (
                "base.data.source=npz:octmnist.npz",
                "grid.setting=[{data={per_class=100, val_per_class=50}, train={epochs=5}}, "
                "{data={fraction=0.1}, train={epochs=5}}]",
            ),
        ),
        Task(
            "octmnist-224",
            "OCTMNIST, 224 pixels",
            "oct.toml",
            (
                'base.data={source="npz:octmnist_224.npz"}',
                "base.model.image_size=224",
                "grid.seeds=[0, 1, 2, 3, 4]",
                "grid.setting=[{data={per_class=100, val_per_class=50}, train={epochs=10}}, "
                "{data={fraction=0.1}, train={epochs=5}}]",
            ),
        ),
    ),
}


def draws_planned(budget: str) -> dict[str, tuple[str, int]]:
    """For each transfer its title, and how many folds or seeds belong to the budget."""
    found: dict[str, tuple[str, int]] = {}
    for task in BUDGETS[budget]:
        name, fold, _ = task.name.partition(FOLD)
        before = found.get(name, ("", 0))[1]
        seeds = next((each.count(",") + 1 for each in task.assign if each.startswith("grid.seeds")), len(FOLDS))
        found[name] = (task.title, before + 1 if fold else seeds)
    return found


def setting_of(recipe: dict) -> str:
    """What the page calls an amount of training images."""
    data = recipe["data"]
    if "per_class" in data:
        return f"{data['per_class']} a class"
    return f"{100 * data['fraction']:.0f} %" if "fraction" in data else "all images"
