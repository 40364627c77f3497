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
RATES = (0.0003, 0.003, 0.03)  # of restoring, the same for all
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
class Budget:
    """How much is measured.

    Args:
        equal: Networks compared at equal ranks.
        shares: Of the largest rank that saves anything, for that; the last is also where the rates are tried.
        equal_seeds: Seeds of that.
        sweeps: What is searched.
        restored: Allowed drops after which the thin network is trained again.
        candidates: Ranks of a layer to look at.
        choosing: Images that choose the ranks and the epoch, from the training split.
        training: Images to restore with, from the training split.
        testing: Test images of a seed; no two seeds share one.
        choosing_imagenet: Of the first half of the sample.
        epochs: Of restoring.
    """

    equal: tuple[str, ...]
    shares: tuple[float, ...]
    equal_seeds: tuple[int, ...]
    sweeps: tuple[Sweep, ...]
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
        return tuple(sorted({*self.equal_seeds, *(seed for sweep in self.sweeps for seed in sweep.seeds)}))

    def described(self) -> dict[str, Any]:
        """Plain values, for the file."""
        return asdict(self)


BUDGETS = {
    "small": Budget(
        equal=(GENERATED,),
        shares=(0.3,),
        equal_seeds=(0, 1),
        sweeps=(Sweep(GENERATED, METHODS, (0.1, 0.02), (0, 1)),),
        restored=(0.1,),
        candidates=4,
        choosing=200,
        training=200,
        testing=200,
        choosing_imagenet=0,
        epochs=1,
    ),
    "medium": Budget(
        equal=("cifar-resnet/20", "cifar-resnet/32"),
        shares=(0.15, 0.3),
        equal_seeds=(0, 1, 2),
        sweeps=(
            Sweep("cifar-resnet/20", METHODS, (0.05, 0.02, 0.005), (0, 1, 2)),
            Sweep(SQUEEZENET, (STABLE, "tucker"), (0.02,), (0,)),
            Sweep("cifar-resnet/32", (STABLE, BOTH), (0.05, 0.02, 0.005), (0,)),
        ),
        restored=(0.05,),
        candidates=8,
        choosing=500,
        training=1280,
        testing=2000,
        choosing_imagenet=250,
        epochs=2,
    ),
    "full": Budget(
        equal=("cifar-resnet/20", "cifar-resnet/32", "cifar-resnet/56"),
        shares=(0.1, 0.15, 0.2, 0.3, 0.5),
        equal_seeds=(0, 1, 2, 3, 4),
        sweeps=(
            *(
                Sweep(f"cifar-resnet/{depth}", METHODS, (0.1, 0.05, 0.02, 0.01, 0.005, 0.0025), (0, 1, 2, 3, 4))
                for depth in (20, 32, 44, 56)
            ),
            Sweep(SQUEEZENET, METHODS, (0.05, 0.02, 0.005), (0, 1, 2, 3, 4)),
        ),
        restored=(0.1, 0.05, 0.02, 0.01, 0.005, 0.0025),
        candidates=32,
        choosing=2000,
        training=20_000,
        testing=2000,
        choosing_imagenet=500,
        epochs=5,
    ),
}


def cases(budget: Budget) -> list[Case]:
    """Everything that is measured, in order: the rates, then all with the first seed, then all with the next.

    The drops of one search follow each other, the largest first: they share their decompositions and trials.
    """
    found = [_case(TUNE, budget.equal[0], method, budget.shares[-1], TUNING_SEED) for method in (PLAIN, STABLE)]
    for seed in budget.seeds:
        if seed in budget.equal_seeds:
            found += [
                _case(EQUAL, network, method, share, seed)
                for network in budget.equal
                for share in budget.shares
                for method in (PLAIN, STABLE)
            ]
        found += [
            _case(SEARCH, sweep.network, method, drop, seed)
            for sweep in budget.sweeps
            if seed in sweep.seeds
            for method in sweep.methods
            for drop in sweep.drops
        ]
    return found


def budget_of(record: Mapping[str, Any]) -> Budget:
    """The budget as it lies in the results."""
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    plain["sweeps"] = tuple(
        Sweep(**{key: tuple(value) if isinstance(value, list) else value for key, value in sweep.items()})
        for sweep in record["sweeps"]
    )
    return Budget(**plain)


def key_of(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """What names a case, and the line of its results."""
    return tuple(line[name] for name in KEY)


def _case(kind: str, network: str, method: str, setting: float, seed: int) -> Case:
    return dict(zip(KEY, (kind, network, method, setting, seed), strict=True))
