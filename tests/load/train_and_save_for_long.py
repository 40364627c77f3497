"""Train many steps, then save, load and merge many times; prints the resident memory after each as JSON."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import convpeft
from convpeft.data import ImageBatches
from convpeft.data.datasets import array_split
from convpeft.models import preprocessing_of
from convpeft.training.history import Epoch
from convpeft.training.loop import fit
from convpeft.training.recipe import TrainSection

BATCH, BATCHES_AN_EPOCH = 4, 20


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class Watch:
    """Notes the memory after every step."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def step(self, *_: object) -> None:
        self.steps.append(resident())

    def epoch(self, _: Epoch) -> None:
        pass


def train(model: torch.nn.Module, folder: Path, steps: int) -> list[int]:
    rng, watch = np.random.default_rng(0), Watch()
    pictures = rng.integers(0, 256, (BATCH * BATCHES_AN_EPOCH, 32, 32, 3), dtype=np.uint8)
    split = array_split("train", pictures, np.arange(len(pictures)) % 4)
    preprocessing = preprocessing_of(model)
    assert preprocessing is not None
    batches = ImageBatches(split, preprocessing, batch_size=BATCH, shuffle=True, augment="light")
    settings = TrainSection(epochs=-(-steps // BATCHES_AN_EPOCH), batch_size=BATCH, lr=1e-3)
    fit(model, batches, ImageBatches(split, preprocessing, batch_size=40), settings, checkpoints=folder, watcher=watch)
    return watch.steps


def cycle(model: torch.nn.Module, folder: Path) -> int:
    convpeft.save(model, folder / "adapter", classes=["a", "b", "c", "d"])
    convpeft.detach(model)
    convpeft.load(model, folder / "adapter")
    merged = convpeft.merged(model)
    with torch.no_grad():
        merged.eval()(torch.zeros(1, 3, 32, 32))
    return resident()


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = convpeft.attach(convpeft.load_model("cifar-resnet/20", pretrained=False), "lora", num_classes=4)
    with tempfile.TemporaryDirectory() as place:
        seen = train(net, Path(place), int(sys.argv[1]))
        told = {"steps": seen, "cycles": [cycle(net, Path(place)) for _ in range(int(sys.argv[2]))]}
    print(json.dumps(told))  # noqa: T201
