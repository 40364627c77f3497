"""What is compressed, how, and with how many images, for each budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

METHODS = ("cpd-epc", "cpd", "tucker", "tucker-cpd")
PLAIN, STABLE, BOTH = "cpd", "cpd-epc", "tucker-cpd"
SQUEEZENET, GENERATED = "torchvision/squeezenet1_1", "small-cnn"
WEIGHTS = {
    "cifar-resnet/20": "resnet20_cifar10.safetensors",
    "cifar-resnet/32": "resnet32_cifar10.safetensors",
    "cifar-resnet/44": "resnet44_cifar10.safetensors",
    "cifar-resnet/56": "resnet56_cifar10.safetensors",
    SQUEEZENET: "squeezenet1_1_imagenet.safetensors",
}
CIFAR, IMAGENET = "cifar10", "imagenet_sample1000_224"
RESTORING: dict[str, Mapping[str, Any]] = {
    "full": {"name": "full"},
    "lora": {"name": "lora", "rank": 4, "norm": "train"},
}
RATES = (0.0001, 0.001, 0.01, 0.1)  # of restoring, the same for all
TUNING_SEED = 1000  # its images are used for nothing else
EQUAL, SEARCH, TUNE = "equal ranks", "search", "rates"  # kinds of cases
KEY = ("kind", "network", "method", "setting", "seed")

Case = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """One network through the search.

    Args:
        network: Its name.
        methods: Ways to decompose.
        drops: Allowed drops in accuracy.
        seeds: Of images, decompositions and restoring.
    """

    network: str
    methods: tuple[str, ...]
    drops: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Level:
    """One network with plain and corrected CPD of equal ranks.

    Args:
        network: Its name.
        shares: Of the largest rank of a layer that saves anything.
        seeds: As above.
    """

    network: str
    shares: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Budget:
    """How much is measured.

    Args:
        equal: What is compared at equal ranks; the rates are tried on the first, with its last share.
        sweeps: What is searched.
        last: What is searched after all seeds of the rest.
        restored: Allowed drops after which the thin network is trained again.
        candidates: Ranks of a layer to look at.
        choosing: Images that choose the ranks and the epoch, from the training split.
        training: Images to restore with, from the training split.
        testing: Test images of a seed; no two seeds share one.
        choosing_imagenet: Of the first half of the sample.
        epochs: Of restoring.
    """

    equal: tuple[Level, ...]
    sweeps: tuple[Sweep, ...]
    last: tuple[Sweep, ...]
    restored: tuple[float, ...]
    candidates: int
    choosing: int
    training: int
    testing: int
    choosing_imagenet: int
    epochs: int

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed but the one that tunes, ascending."""
        return tuple(sorted({seed for part in (*self.equal, *self.searched) for seed in part.seeds}))

    @property
    def searched(self) -> tuple[Sweep, ...]:
        """Everything that is searched."""
        return (*self.sweeps, *self.last)

    def described(self) -> dict[str, Any]:
        """Plain values, for the file."""
        return asdict(self)


BUDGETS = {
    "small": Budget(
        equal=(Level(GENERATED, (0.3,), (0, 1)),),
        sweeps=(Sweep(GENERATED, METHODS, (0.1, 0.02), (0, 1)),),
        last=(),
        restored=(0.1,),
        candidates=4,
        choosing=200,
        training=200,
        testing=200,
        choosing_imagenet=0,
        epochs=1,
    ),
    "medium": Budget(
        equal=(Level("cifar-resnet/20", (0.15, 0.3), (0, 1, 2)), Level("cifar-resnet/32", (0.3,), (0,))),
        sweeps=(
            Sweep("cifar-resnet/20", METHODS, (0.05, 0.02, 0.005), (0, 1, 2)),
            Sweep(SQUEEZENET, (STABLE, "tucker"), (0.05, 0.02), (0,)),
        ),
        last=(Sweep("cifar-resnet/32", (STABLE, BOTH), (0.05, 0.02, 0.005), (0,)),),
        restored=(0.05,),
        candidates=6,
        choosing=500,
        training=960,
        testing=2000,
        choosing_imagenet=200,
        epochs=2,
    ),
    "full": Budget(
        equal=tuple(
            Level(f"cifar-resnet/{depth}", (0.1, 0.15, 0.2, 0.5, 0.3), (0, 1, 2, 3, 4)) for depth in (20, 32, 56)
        ),
        sweeps=(
            *(
                Sweep(f"cifar-resnet/{depth}", METHODS, (0.1, 0.05, 0.02, 0.01, 0.005, 0.0025), (0, 1, 2, 3, 4))
                for depth in (20, 32, 44, 56)
            ),
            Sweep(SQUEEZENET, METHODS, (0.05, 0.02, 0.005), (0, 1, 2, 3, 4)),
        ),
        last=(),
        restored=(0.1, 0.05, 0.02, 0.01, 0.005, 0.0025),
        candidates=32,
        choosing=2000,
        training=20_000,
        testing=1600,
        choosing_imagenet=500,
        epochs=5,
    ),
}


def cases(budget: Budget) -> list[Case]:
    """Everything that is measured, in order: the rates, then all with the first seed, then all with the next.

    The drops of one search follow each other: they share their decompositions and trials.
    """
    first = budget.equal[0]
    found = [_case(TUNE, first.network, method, first.shares[-1], TUNING_SEED) for method in (PLAIN, STABLE)]
    for seed in budget.seeds:
        found += [
            _case(EQUAL, level.network, method, share, seed)
            for level in budget.equal
            if seed in level.seeds
            for share in level.shares
            for method in (PLAIN, STABLE)
        ]
        found += _searches(budget.sweeps, seed)
    return found + [case for seed in budget.seeds for case in _searches(budget.last, seed)]


def budget_of(record: Mapping[str, Any]) -> Budget:
    """The budget as it lies in the results."""
    parts = {"equal": Level, "sweeps": Sweep, "last": Sweep}
    made = {key: tuple(kind(**_tuples(each)) for each in record[key]) for key, kind in parts.items()}
    return Budget(**{**_tuples(record), **made})


def key_of(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """What names a case, and the line of its results."""
    return tuple(line[name] for name in KEY)


def _case(kind: str, network: str, method: str, setting: float, seed: int) -> Case:
    return dict(zip(KEY, (kind, network, method, setting, seed), strict=True))


def _searches(sweeps: tuple[Sweep, ...], seed: int) -> list[Case]:
    return [
        _case(SEARCH, sweep.network, method, drop, seed)
        for sweep in sweeps
        if seed in sweep.seeds
        for method in sweep.methods
        for drop in sweep.drops
    ]


def _tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
