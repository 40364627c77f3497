"""What is compared in each budget: transfers with their grids, and the files that are made for them first."""

from __future__ import annotations

from dataclasses import dataclass

from common.collecting import Task

LETTERS = ("letters-v1", "letters-v15")  # the same images from the two forms of one network
SCORED = ("letters-v15", "pneumonia", "cifar10")  # of the decathlon score
TIMED = ("letters-v15", "cifar10")  # one of each network


@dataclass(frozen=True)
class Base:
    """A network that is trained from random weights before anything is adapted.

    Args:
        file: Of its weights.
        model: Its source string.
        data: Spec of its images, {data} being the folder of data sets.
        images: For training.
        epochs: Over them.
    """

    file: str
    model: str
    data: str
    images: int
    epochs: int


@dataclass(frozen=True)
class Drawing:
    """A part of a public data set, drawn once with seed 0, from which every run draws its own images.

    Args:
        file: That it is written to.
        source: Spec of the images, {data} being the folder of data sets.
        train: Images of each class.
        val: Images of each class.
        test: Images of each class, at most.
    """

    file: str
    source: str
    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Budget:
    """How much is run.

    Args:
        tasks: The transfers.
        seeds: Of every arm, in this order.
        bases: What is trained first.
        drawings: What is drawn first.
        copies: Files that are taken as they are from the folder of data sets.
        rounds: Of the measurement of time.
    """

    tasks: tuple[Task, ...]
    seeds: tuple[int, ...]
    bases: tuple[Base, ...]
    drawings: tuple[Drawing, ...]
    copies: tuple[str, ...] = ()
    rounds: int = 5


_V1 = ('base.model.source="bottleneck:v1"', 'base.model.weights="mnist-v1.safetensors"')
_CIFAR10 = ('base.model.weights="resnet20_tinyimagenet32.safetensors"', 'base.data.source="npz:cifar10.npz"')
_COPIES = (
    "pneumoniamnist.npz",
    "weights/resnet20_cifar10.safetensors",
    "weights/resnet20_tinyimagenet32.safetensors",
)


def _bases(data: str, images: int, epochs: int) -> tuple[Base, ...]:
    return tuple(
        Base(f"mnist-{form}.safetensors", f"bottleneck:{form}", data, images, epochs) for form in ("v1", "v15")
    )


def _tasks(
    letters: tuple[str, ...] = (), pneumonia: tuple[str, ...] = (), cifar: tuple[str, ...] = ()
) -> tuple[Task, ...]:
    return (
        Task("letters-v15", "EMNIST letters (v1.5)", "bottleneck.toml", letters),
        Task("pneumonia", "PneumoniaMNIST", "resnet20.toml", pneumonia),
        Task("cifar10", "CIFAR-10", "resnet20.toml", (*_CIFAR10, *cifar)),
        Task("letters-v1", "EMNIST letters (v1)", "bottleneck.toml", (*_V1, *letters)),
    )


def _sizes(per_class: int, val: int, epochs: int) -> tuple[str, ...]:
    return (f"base.data.per_class={per_class}", f"base.data.val_per_class={val}", f"base.train.epochs={epochs}")


_SMALL = (*_sizes(2, 1, 1), "tune.trials=1")
BUDGETS: dict[str, Budget] = {
    "small": Budget(
        tasks=(
            Task("letters-v15", "Drawn letters (v1.5)", "bottleneck.toml", _SMALL),
            Task("letters-v1", "Drawn letters (v1)", "bottleneck.toml", (*_V1, *_SMALL)),
        ),
        seeds=(0, 1),
        bases=_bases("glyphs:digits", 300, 2),
        drawings=(Drawing("letters.npz", "glyphs:letters", 10, 3, 2),),
        rounds=2,
    ),
    "medium": Budget(
        tasks=_tasks(pneumonia=("base.model.image_size=28",), cifar=_sizes(20, 12, 8)),
        seeds=(0, 1, 2, 3, 4),
        bases=_bases("mnist:{data}", 6000, 4),
        drawings=(
            Drawing("letters.npz", "emnist-letters:{data}", 400, 100, 40),
            Drawing("cifar10.npz", "cifar10:{data}/cifar10", 1000, 250, 100),
        ),
        copies=_COPIES,
    ),
    "full": Budget(
        tasks=_tasks(
            ("tune.trials=9", *_sizes(400, 100, 20)),
            ("tune.trials=9", "base.model.image_size=28", *_sizes(1000, 130, 20)),
            ("tune.trials=9", *_sizes(1000, 250, 20)),
        ),
        seeds=(0, 1, 2, 3, 4),
        bases=_bases("mnist:{data}", 60000, 10),
        drawings=(
            Drawing("letters.npz", "emnist-letters:{data}", 2000, 400, 800),
            Drawing("cifar10.npz", "cifar10:{data}/cifar10", 4000, 400, 1000),
        ),
        copies=_COPIES,
        rounds=31,
    ),
}
EARLIER = {  # what has become of a run whose figures were known when this one was set up
    "medium": "It had three seeds, and intervals several times as wide. The one verdict on arrangements that it called "
    "held, a filter a channel in series, did not last."
}
