"""Every method, interrupted and resumed, ends in the same bytes: its masks, budgets and sums go on where they were."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convpeft
from convpeft.training.checkpoints import adapter_tensors
from convpeft.training.loop import fit
from convpeft.training.recipe import TrainSection
from tiny import Points

EPOCHS = 4
# Methods that keep something between steps, with options that bring it out in few of them.
OPTIONS = {
    "adalora": {"rank": 4, "target_rank": 2.0, "every": 1, "warmup": 0.2, "fixed": 0.3},
    "mlae": {"rank": 4},
    "colora": {"merge_every": "epoch"},
}
METHODS = sorted({*convpeft.list_methods()} - {"norm-tuning"})


def images(count: int) -> Points:
    """Batches of made-up images of three classes."""
    labels = torch.arange(count) % 3
    noise = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))
    return Points(noise + labels[:, None, None, None], labels, batch_size=6, shuffle=True)


class Stop:
    """Stops the training after two epochs."""

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        pass

    def epoch(self, epoch: object) -> None:
        if epoch.epoch == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt


def adapted(method: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    return convpeft.attach(model, method, num_classes=3, **OPTIONS.get(method, {}))


def run(method: str, folder: Path, *, stop: bool = False, resume: bool = False) -> dict[str, Tensor]:
    model = adapted(method)
    settings = TrainSection(epochs=EPOCHS, batch_size=6, lr=0.02)
    watcher = Stop() if stop else None
    fit(model, images(24), images(12), settings, checkpoints=folder, resume=resume, watcher=watcher)
    return {key: value.clone() for key, value in adapter_tensors(model).items()}


@pytest.mark.promise("F01")
@pytest.mark.parametrize("method", METHODS)
def test_interrupted_training_ends_in_the_same_bytes(method: str, tmp_path: Path) -> None:
    whole = run(method, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(method, tmp_path / "cut", stop=True)
    torch.manual_seed(99)  # nothing may depend on what the process did before
    resumed = run(method, tmp_path / "cut", resume=True)
    assert list(resumed) == list(whole)
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    fresh = adapter_tensors(adapted(method))
    assert any(not torch.equal(whole[key], fresh[key]) for key in whole)
