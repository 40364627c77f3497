"""What is run: three transfers, the arms, the budgets, and the sequences of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FULL, FROZEN, LORA, HEAD = "full", "full-frozen", "lora-8", "head"
WISE = "wise-ft"  # made from the runs of `full`, without training
COEFFICIENTS = (0.25, 0.5, 0.75)  # of WiSE-FT, between the base and the fine-tuned network
TUNING_SEED = 100  # used for nothing else
MATCH = 0.03  # how far apart in validation accuracy matched settings may be: one deviation of 400 images is 0.025


@dataclass(frozen=True)
class Arm:
    """One way to adapt; its learning rates are those of its group, times the transfer's pace."""

    name: str
    title: str
    group: str  # arms of one group share the rate that was tuned for the first of them
    method: Mapping[str, Any]
    train: Mapping[str, Any]


ARMS = {
    arm.name: arm
    for arm in (
        Arm("head", "head only", "head", {"name": "probe"}, {}),
        Arm("lora-8", "LoRA, rank 8", "lora", {"name": "lora", "rank": 8}, {}),
        Arm("lora-2", "LoRA, rank 2", "lora", {"name": "lora", "rank": 2}, {}),
        Arm("lora-32", "LoRA, rank 32", "lora", {"name": "lora", "rank": 32}, {}),
        Arm("full", "full fine-tuning", "full", {"name": "full"}, {}),
        Arm("full-frozen", "full, norms frozen", "full-frozen", {"name": "full", "norm": "frozen"}, {}),
        Arm("l2-sp", "L2-SP", "l2-sp", {"name": "full"}, {"objective": "l2-sp", "l2sp_weight": 0.1}),
        Arm("lwf", "LwF", "lwf", {"name": "full"}, {"objective": "lwf", "lwf_weight": 1.0}),
    )
}
RATES = {
    "head": (0.004, 0.016, 0.064, 0.256),
    "lora": (0.001, 0.004, 0.016, 0.064),
    "full": (0.0005, 0.002, 0.008, 0.032),
    "full-frozen": (0.0005, 0.002, 0.008, 0.032),
    "l2-sp": (0.0005, 0.002, 0.008, 0.032),
    "lwf": (0.0005, 0.002, 0.008, 0.032),
}


@dataclass(frozen=True)
class Transfer:
    """From a source task to a target; files are below the folder that `--data` names."""

    name: str
    title: str
    network: str
    weights: str  # below the data; "" where the base is trained on the source first
    source: str  # data spec of the source with {root}; "imagenet" is a folder of one image a class
    target: str
    pace: float = 1.0  # what the rates are multiplied with
    image_size: int | None = None  # pixels; None: the network's own
    folds: bool = False  # of a labels.csv: the first is tested, the second chooses, with every seed
    pool: int = 1000  # training images, of which a fraction is taken
    val: int = 500
    test: int = 2000
    source_test: int = 2000
    source_fit: int = 1000  # images of the source that a new linear classifier is fitted on; 0: none
    identity: int = 256  # images of the source whose logits are compared bit by bit
    batch_size: int = 32


@dataclass(frozen=True)
class Sequence:
    """Tasks learned one after the other on the base of the first transfer."""

    groups: int = 5  # tasks of as many letters each, a head for each task
    turns: int = 4  # tasks of the same letters, turned by a quarter more, one head for all
    images: int = 500  # training images a task
    test: int = 500
    epochs: int = 4


@dataclass(frozen=True)
class Budget:
    """How much of it is run."""

    transfers: tuple[Transfer, ...]
    epochs: Mapping[str, int]  # by the fraction of the pool that is trained on
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    trials: int  # learning rates an arm
    base_images: int
    base_epochs: int
    sequence: Sequence

    def described(self) -> dict[str, Any]:
        """Everything that makes runs comparable, as JSON has it."""
        return asdict(self) | {"arms": list(self.arms), "seeds": list(self.seeds), "rates": RATES}

    @property
    def fractions(self) -> tuple[float, ...]:
        """Shares of the pool, smallest first."""
        return tuple(sorted(map(float, self.epochs)))

    def rates(self, transfer: Transfer, arm: str) -> tuple[float, ...]:
        """The learning rates that are tried for an arm; fewer trials take the middle ones."""
        every = RATES[ARMS[arm].group]
        skip = (len(every) - self.trials) // 2
        return tuple(rate * transfer.pace for rate in every[skip : skip + self.trials])


LETTERS = Transfer(
    name="letters",
    title="MNIST to EMNIST letters",
    network="small-cnn",
    weights="",
    source="mnist:{root}",
    target="emnist-letters:{root}",
    pool=2000,
    val=400,
    test=1500,
    source_test=1500,
)
PNEUMONIA = Transfer(
    name="pneumonia",
    title="CIFAR-10 to PneumoniaMNIST",
    network="cifar-resnet/20",
    weights="weights/resnet20_cifar10.safetensors",
    source="cifar10:{root}/cifar10",
    target="npz:{root}/pneumoniamnist.npz",
    pace=0.5,
    pool=400,
    val=200,
    test=500,
    source_test=800,
    source_fit=800,
    batch_size=16,
)
OCT = Transfer(
    name="oct",
    title="ImageNet to retinal OCT",
    network="mobilenetv1/0.75",
    weights="weights/mobilenetv1_075_imagenet.safetensors",
    source="imagenet",
    target="folder:{root}/oct_kermany_test1000",
    pace=0.25,
    image_size=112,
    folds=True,
    pool=200,
    val=80,
    test=150,
    source_test=300,
    source_fit=0,
    identity=64,
    batch_size=16,
)
GLYPHS = Transfer(
    name="glyphs",
    title="Rendered digits to rendered letters",
    network="small-cnn",
    weights="",
    source="glyphs:digits",
    target="glyphs:letters",
    pool=260,
    val=60,
    test=120,
    source_test=120,
    source_fit=100,
)

BUDGETS = {
    "small": Budget(
        transfers=(GLYPHS,),
        epochs={"0.1": 2, "1.0": 2},
        seeds=(0, 1),
        arms=tuple(ARMS),
        trials=1,
        base_images=2000,
        base_epochs=3,
        sequence=Sequence(groups=2, turns=2, images=40, test=40, epochs=1),
    ),
    "medium": Budget(
        transfers=(LETTERS, PNEUMONIA, OCT),
        epochs={"0.05": 8, "0.1": 6, "1.0": 3},
        seeds=(0, 1, 2),
        arms=tuple(ARMS),
        trials=4,
        base_images=12000,
        base_epochs=5,
        sequence=Sequence(),
    ),
    "full": Budget(
        transfers=(
            Transfer(**{**asdict(LETTERS), "pool": 60000, "val": 2000, "test": 20800, "source_test": 10000}),
            Transfer(**{**asdict(PNEUMONIA), "pool": 4708, "val": 524, "test": 624, "source_test": 10000}),
            Transfer(**{**asdict(OCT), "pool": 1000, "val": 250, "test": 250, "source_test": 1000, "image_size": 224}),
        ),
        epochs={"0.05": 30, "0.1": 20, "1.0": 10},
        seeds=(0, 1, 2, 3, 4),
        arms=tuple(ARMS),
        trials=4,
        base_images=60000,
        base_epochs=10,
        sequence=Sequence(images=4000, test=4000, epochs=10),
    ),
}
