"""What is compared in each budget: from which files, how many images, and what is set beside the grid."""

from __future__ import annotations

from dataclasses import dataclass

_OTHER_IMAGES = "weights/resnet20_tinyimagenet32.safetensors"
_OWN_IMAGES = "weights/resnet20_cifar10.safetensors"  # where the other is not there: no transfer, and the page says so
_WHOLE = (
    "base.data.per_class=100000",
    "base.data.val_per_class=100000",
    "base.train.epochs=100",
    "base.train.batch_size=128",
    "grid.seeds=[0, 1, 2, 3, 4]",
    "tune.trials=9",
)
_GENERATED = (
    "base.model.source=small-cnn",
    'base.data={source="npz:images.npz", per_class=10, val_per_class=5, augment="flip"}',
    "base.train.epochs=2",
    'arm=[{name="full", method={name="full"}}, '
    '{name="lora-c", method={name="lora-c", setting=["rk", "r"], rank=1, alpha_per_rank=[0.5, 2]}}, '
    '{name="full, augmix", method={name="full"}, data={augment="augmix"}}]',
    "grid.seeds=[0, 1]",
    "tune.trials=2",
)


@dataclass(frozen=True)
class Task:
    """One transfer in one budget.

    Args:
        name: Of its figures.
        title: On the page.
        images: Where they are from; {data} is the folder of the user's files.
        needs: Without these files and folders of it, the task is left out.
        weights: Files of the base's weights, the first that is there; none for a base from a random start.
        train_per_class: Images of each class that seeds draw theirs from, validation among them; None for all.
        test_per_class: Images of each class that are tested; None for all.
        parts: Each corrupted form is that of one test image in so many, another one each time.
        official: Folder of the published corrupted files, used where it is there.
        corrupted: Whether there is anything to measure beside the test images themselves.
        assign: What is set beside the grid.
    """

    name: str
    title: str
    images: str
    needs: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    train_per_class: int | None = None
    test_per_class: int | None = None
    parts: int = 1
    official: str = ""
    corrupted: bool = True
    assign: tuple[str, ...] = ()

    grid = "cifar.toml"


def _large(depth: int, *, of: str, official: str) -> Task:
    """A ResNet of torchvision at 128 pixels, where its own stem gives the 32 x 32 map of the paper's new one."""
    source = f'base.model={{source="torchvision/resnet{depth}", image_size=128}}'
    return Task(
        f"{of}-resnet{depth}",
        f"{of.upper().replace('CIFAR', 'CIFAR-')}, ResNet-{depth}",
        f"{of}:{{data}}/{of}",
        needs=(of, f"weights/resnet{depth}.pth"),
        weights=(f"weights/resnet{depth}.pth",),
        official=official,
        assign=(source, *_WHOLE),
    )


BUDGETS: dict[str, tuple[Task, ...]] = {
    "small": (
        Task(
            "glyphs",
            "Drawn digits",
            "glyphs:digits",
            train_per_class=30,
            test_per_class=10,
            parts=10,
            assign=_GENERATED,
        ),
    ),
    "medium": (
        Task(
            "cifar10",
            "CIFAR-10, ResNet-20",
            "cifar10:{data}/cifar10",
            needs=("cifar10", "weights"),
            weights=(_OTHER_IMAGES, _OWN_IMAGES),
            train_per_class=1000,
            test_per_class=100,
            parts=10,
            official="CIFAR-10-C",
        ),
    ),
    "full": (
        Task(
            "cifar10",
            "CIFAR-10, ResNet-20",
            "cifar10:{data}/cifar10",
            needs=("cifar10", "weights"),
            weights=(_OTHER_IMAGES, _OWN_IMAGES),
            official="CIFAR-10-C",
            assign=_WHOLE,
        ),
        *(
            _large(depth, of=of, official=official)
            for of, official in (("cifar10", "CIFAR-10-C"), ("cifar100", "CIFAR-100-C"))
            for depth in (34, 50, 101)
        ),
        Task(
            "icons50",
            "Icons-50, ResNet-34, one style held out",
            "folder:{data}/icons50",
            needs=("icons50", "weights/resnet34.pth"),
            weights=("weights/resnet34.pth",),
            corrupted=False,
            assign=('base.model={source="torchvision/resnet34", image_size=128}', *_WHOLE),
        ),
    ),
}
