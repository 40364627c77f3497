"""What is compared: ways to compute a training, each against the definition with the same trained parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SEEDS = (0, 1, 2)
NETWORK, WEIGHTS, IMAGES = "cifar-resnet/20", "weights/resnet20_tinyimagenet32.safetensors", "cifar10"
TRAIN, VAL, TEST = 2000, 500, 4000  # images, as many of each class
EPOCHS, BATCH_SIZE, RANK = 4, 64, 8
LAST_STAGE = "layer3"

_DEFINITION = {"kernel": "weight", "layout": "contiguous", "fold": False}
_STAGE = [f"{LAST_STAGE}.*.conv1", f"{LAST_STAGE}.*.conv2"]


@dataclass(frozen=True)
class Mode:
    """One way; `against` is the mode whose accuracy it has to keep, empty for a definition."""

    title: str
    against: str
    method: str = "lora"
    train: dict[str, Any] = field(default_factory=dict[str, Any])
    include: tuple[str, ...] = ("conv",)


MODES = {
    "weight": Mode("LoRA, kernel `weight`, contiguous, not folded", "", train=_DEFINITION),
    "side": Mode("kernel `side`", "weight", train={"kernel": "side"}),
    "hybrid": Mode("kernel `hybrid`", "weight", train={"kernel": "hybrid"}),
    "default": Mode("default: kernel `auto`, channels_last, folded", "weight"),
    "bf16": Mode("default, in bf16", "weight", train={"precision": "bf16"}),
    "lora-fa weight": Mode("LoRA-FA, kernel `weight`, contiguous, not folded", "", "lora-fa", _DEFINITION),
    "lean": Mode("LoRA-FA, default (`lean`)", "lora-fa weight", "lora-fa"),
    "stage weight": Mode("LoRA in the last stage, kernel `weight`", "", train=_DEFINITION, include=tuple(_STAGE)),
    "prefix": Mode(
        "LoRA in the last stage, from the prefix cache",
        "stage weight",
        train={"prefix_cache": "on"},
        include=tuple(_STAGE),
    ),
}


def recipe(mode: Mode, *, data: Path, root: Path, out: Path, seed: int) -> dict[str, Any]:
    """Values of the recipe of one run on an .npz file."""
    return {
        "model": {"source": NETWORK, "weights": str(root / WEIGHTS)},
        "data": {"source": f"npz:{data}"},
        "method": {"name": mode.method, "rank": RANK, "include": list(mode.include)},
        "train": {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "seed": seed, "prefix_cache": "off"} | mode.train,
        "out": str(out),
    }


def budget() -> dict[str, Any]:
    """All that the results depend on besides versions."""
    return {
        "network": NETWORK,
        "weights": WEIGHTS,
        "images": IMAGES,
        "train": TRAIN,
        "val": VAL,
        "test": TEST,
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "rank": RANK,
        "seeds": list(SEEDS),
    }
