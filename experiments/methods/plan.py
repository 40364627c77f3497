"""What is run: two tasks with one budget each, every method at its defaults, and a few named variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import convpeft

SEEDS = (0, 1)
ROUNDS = 9  # of the cost measurement
BASELINE, WHOLE = "probe", "full"  # what the training loss and the cost are compared with
MARGIN = 0.05  # how far below the baseline's training loss a method has to come; set before any of the runs


@dataclass(frozen=True)
class Task:
    """One data set with its network and budget; files are below the folder that `--data` names."""

    name: str
    title: str
    network: str
    weights: str
    kind: str  # of the data spec
    data: str
    epochs: int
    batch_size: int
    image_size: int | None = None  # pixels; None: the network's own
    folds: bool = False  # the seed is the fold that is tested
    limit: int | None = None  # training images, in proportion to the classes
    train_each: int | None = None  # training images a class
    val_each: int | None = None  # validation images a class

    def budget(self) -> dict[str, Any]:
        """Everything that makes runs comparable."""
        return asdict(self)

    def recipe(self, root: Path, extra: Mapping[str, Mapping[str, Any]], seed: int) -> dict[str, Any]:
        """The values of one run's recipe; `extra` adds to its sections."""
        own: dict[str, dict[str, Any]] = {
            "model": {"source": self.network, "weights": str(root / self.weights)},
            "data": {"source": f"{self.kind}:{root / self.data}"},
            "method": {},
            "train": {"seed": seed, "epochs": self.epochs, "batch_size": self.batch_size},
        }
        if self.image_size is not None:
            own["model"]["image_size"] = self.image_size
        if self.folds:
            own["data"]["fold"] = seed
        if self.limit is not None:
            own["data"]["limit"] = self.limit
        return {section: values | dict(extra.get(section, {})) for section, values in own.items()}


TASKS = {
    task.name: task
    for task in (
        Task(
            name="oct",
            title="Retinal OCT",
            network="mobilenetv1/0.75",
            weights="weights/mobilenetv1_075_imagenet.safetensors",
            kind="folder",
            data="oct_kermany_test1000",
            epochs=15,
            batch_size=16,
            image_size=96,
            folds=True,
            train_each=20,
            val_each=25,
        ),
        Task(
            name="pneumonia",
            title="PneumoniaMNIST",
            network="cifar-resnet/20",
            weights="weights/resnet20_cifar10.safetensors",
            kind="npz",
            data="pneumoniamnist.npz",
            epochs=5,
            batch_size=16,
            limit=600,
        ),
    )
}

# What a variant adds to the sections of the recipe; keys of `train` may stand beside those of `method`.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "lora, init pissa": {"method": {"name": "lora", "init": "pissa"}},
    "lora, init pissa, lr / 4": {"method": {"name": "lora", "init": "pissa"}, "train": {"lr": 5e-4}},
    "lora, plus_ratio 16, lr / 4": {"method": {"name": "lora", "plus_ratio": 16.0}, "train": {"lr": 5e-4}},
    "lora, lwf": {"method": {"name": "lora"}, "train": {"objective": "lwf"}},
    "probe, lr 2e-3": {"method": {"name": "probe"}, "train": {"lr": 2e-3}},  # the head at the rate of lora and others
    "colora, merge_every epoch": {"method": {"name": "colora", "merge_every": "epoch"}},
    "chapter, parallel copy": {"method": {"name": "chapter", "arrangement": "parallel", "matching": "copy"}},
    "chapter, serial group": {"method": {"name": "chapter", "arrangement": "serial", "matching": "group"}},
    "chapter, serial copy": {"method": {"name": "chapter", "arrangement": "serial", "matching": "copy"}},
}


def entries() -> dict[str, dict[str, dict[str, Any]]]:
    """Every row of the tables by its name: the registered methods at their defaults, each followed by its variants."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for method in convpeft.list_methods():
        found[method] = {"method": {"name": method}}
        found |= {name: extra for name, extra in VARIANTS.items() if extra["method"]["name"] == method}
    return found
