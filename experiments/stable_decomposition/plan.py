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
class Level:
    """One network with plain and corrected CPD of equal ranks; each is restored.

    Args:
        network: Its name.
        shares: Of the largest rank of a layer that saves anything.
        seeds: Of images, decompositions and restoring.
    """

    network: str
    shares: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Sweep:
    """One network through the search.

    Args:
        network: Its name.
        methods: Ways to decompose.
        drops: Allowed drops in accuracy.
        restored: Those of them after which the thin network is trained again.
        seeds: Of images, decompositions and restoring.
    """

    network: str
    methods: tuple[str, ...]
    drops: tuple[float, ...]
    restored: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Budget:
    """How much is measured.

    Args:
        parts: In the order in which they are measured; the rates are tried on the first, with its last share.
        candidates: Ranks of a layer to look at.
        choosing: Images that choose the ranks and the epoch, from the training split.
        training: Images to restore with, from the training split.
        testing: Test images of a seed; no two seeds share one.
        choosing_imagenet: Of the first half of the sample.
        epochs: Of restoring.
    """

    parts: tuple[Level | Sweep, ...]
    candidates: int
    choosing: int
    training: int
    testing: int
    choosing_imagenet: int
    epochs: int

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed but the one that tunes, ascending."""
        return tuple(sorted({seed for part in self.parts for seed in part.seeds}))

    @property
    def levels(self) -> tuple[Level, ...]:
        """What is compared at equal ranks."""
        return tuple(part for part in self.parts if isinstance(part, Level))

    @property
    def sweeps(self) -> tuple[Sweep, ...]:
        """What is searched."""
        return tuple(part for part in self.parts if isinstance(part, Sweep))

    def described(self) -> dict[str, Any]:
        """Plain values, for the file."""
        return asdict(self)


_20, _32 = "cifar-resnet/20", "cifar-resnet/32"
_DROPS, _MANY, _FIVE = (0.05, 0.02, 0.005), (0.1, 0.05, 0.02, 0.01, 0.005, 0.0025), (0, 1, 2, 3, 4)
BUDGETS = {
    "small": Budget(
        parts=(Level(GENERATED, (0.3,), (0, 1)), Sweep(GENERATED, METHODS, (0.1, 0.02), (0.1,), (0, 1))),
        candidates=4,
        choosing=200,
        training=200,
        testing=200,
        choosing_imagenet=0,
        epochs=1,
    ),
    "medium": Budget(
        parts=(
            Level(_20, (0.15, 0.3), (0,)),
            Level(_32, (0.3,), (0,)),
            Sweep(_20, METHODS, _DROPS, (0.05,), (0,)),
            Level(_20, (0.15, 0.3), (1, 2)),
            Sweep(SQUEEZENET, (STABLE, "tucker"), (0.05, 0.02), (), (0,)),
            Sweep(_20, (STABLE, "tucker"), _DROPS, (), (1, 2)),
            Sweep(_20, (BOTH, PLAIN), _DROPS, (), (1, 2)),
            Level(_32, (0.3,), (1, 2)),
        ),
        candidates=6,
        choosing=500,
        training=960,
        testing=2000,
        choosing_imagenet=120,
        epochs=2,
    ),
    "full": Budget(
        parts=(
            *(Level(f"cifar-resnet/{depth}", (0.1, 0.15, 0.2, 0.5, 0.3), _FIVE) for depth in (20, 32, 56)),
            *(Sweep(f"cifar-resnet/{depth}", METHODS, _MANY, _MANY, _FIVE) for depth in (20, 32, 44, 56)),
            Sweep(SQUEEZENET, METHODS, _DROPS, (), _FIVE),
        ),
        candidates=32,
        choosing=2000,
        training=20_000,
        testing=1600,
        choosing_imagenet=500,
        epochs=5,
    ),
}


def cases(budget: Budget) -> list[Case]:
    """Everything that is measured, in order: the rates, then part by part, seed by seed.

    The drops of one search follow each other: they share their decompositions and trials.
    """
    first = budget.levels[0]
    found = [_case(TUNE, first.network, method, first.shares[-1], TUNING_SEED) for method in (PLAIN, STABLE)]
    for part in budget.parts:
        kind, settings, methods = (
            (EQUAL, part.shares, (PLAIN, STABLE)) if isinstance(part, Level) else (SEARCH, part.drops, part.methods)
        )
        for seed in part.seeds:
            if kind == EQUAL:
                pairs = [(method, setting) for setting in settings for method in methods]
            else:
                pairs = [(method, setting) for method in methods for setting in settings]
            found += [_case(kind, part.network, method, setting, seed) for method, setting in pairs]
    return found


def is_restored(budget: Budget, case: Mapping[str, Any]) -> bool:
    """Whether the thin network of a case is trained again."""
    if case["kind"] != SEARCH:
        return True
    return any(
        case["setting"] in sweep.restored
        for sweep in budget.sweeps
        if sweep.network == case["network"] and case["method"] in sweep.methods and case["seed"] in sweep.seeds
    )


def budget_of(record: Mapping[str, Any]) -> Budget:
    """The budget as it lies in the results."""
    parts = (Level(**_tuples(each)) if "shares" in each else Sweep(**_tuples(each)) for each in record["parts"])
    return Budget(**{**record, "parts": tuple(parts)})


def key_of(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """What names a case, and the line of its results."""
    return tuple(line[name] for name in KEY)


def _case(kind: str, network: str, method: str, setting: float, seed: int) -> Case:
    return dict(zip(KEY, (kind, network, method, setting, seed), strict=True))


def _tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
