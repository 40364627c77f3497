"""What is compressed, how, and with how many images, for each budget."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

METHODS = ("cpd-epc", "cpd", "tucker", "tucker-cpd")
WEIGHTS = {
    "cifar-resnet/20": "resnet20_cifar10.safetensors",
    "cifar-resnet/32": "resnet32_cifar10.safetensors",
    "torchvision/squeezenet1_1": "squeezenet1_1_imagenet.safetensors",
}
CIFAR, IMAGENET = "cifar10", "imagenet_sample1000_224"
RESTORING = ("full", "lora")


@dataclass(frozen=True)
class Budget:
    """How much is measured.

    Args:
        networks: The CIFAR networks.
        drops: Allowed drops in accuracy.
        shares: Of the largest rank that saves anything, for the comparison at equal ranks.
        imagenet: Methods and drops on SqueezeNet; none of them are trained again.
        candidates: Ranks of a layer to look at.
        choosing: CIFAR images that choose the ranks, from the training split.
        training: CIFAR images to restore with.
        testing: CIFAR test images.
        choosing_imagenet: Of the first half of the sample.
        epochs: Of restoring.
        seeds: Of images, decompositions and restoring.
    """

    networks: tuple[str, ...]
    drops: tuple[float, ...]
    shares: tuple[float, ...]
    imagenet: tuple[tuple[str, float], ...]
    candidates: int
    choosing: int
    training: int
    testing: int
    choosing_imagenet: int
    epochs: int
    seeds: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the file."""
        return asdict(self)


BUDGETS = {
    "small": Budget(
        networks=("cifar-resnet/20",),
        drops=(0.01, 0.05),
        shares=(0.15, 0.3),
        imagenet=(("cpd-epc", 0.02), ("tucker", 0.02)),
        candidates=8,
        choosing=400,
        training=2000,
        testing=2000,
        choosing_imagenet=200,
        epochs=2,
        seeds=(0,),
    ),
    "medium": Budget(
        networks=("cifar-resnet/20", "cifar-resnet/32"),
        drops=(0.0025, 0.005, 0.01, 0.02, 0.05, 0.1),
        shares=(0.1, 0.2, 0.3, 0.5),
        imagenet=tuple((method, drop) for method in METHODS for drop in (0.005, 0.02, 0.05)),
        candidates=32,
        choosing=2000,
        training=10_000,
        testing=10_000,
        choosing_imagenet=500,
        epochs=4,
        seeds=(0, 1, 2),
    ),
}


def cases(budget: Budget) -> list[dict[str, Any]]:
    """Everything that is measured, in order; the values name a line of the results."""
    found: list[dict[str, Any]] = []
    for seed in budget.seeds:
        for network in budget.networks:
            for share in budget.shares:
                found += [
                    {"kind": "equal ranks", "network": network, "method": method, "setting": share, "seed": seed}
                    for method in ("cpd", "cpd-epc")
                ]
            for drop in sorted(budget.drops, reverse=True):
                found += [
                    {"kind": "search", "network": network, "method": method, "setting": drop, "seed": seed}
                    for method in METHODS
                ]
        found += [
            {"kind": "search", "network": "torchvision/squeezenet1_1", "method": method, "setting": drop, "seed": seed}
            for method, drop in budget.imagenet
        ]
    return found


def cases_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases of a budget as it lies in the results."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    return cases(Budget(**values))
