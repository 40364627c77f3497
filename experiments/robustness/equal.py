"""Are the two settings of LoRA-C different at equal size? Train one of each alike, and compare every trained number."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from images import BASE, IMAGES
from safetensors.torch import load_file

from convpeft.comparing import Grid
from convpeft.comparing.cells import with_keys
from convpeft.training.runs import train

_SIDE = 3  # of the kernels: rank r of `rk` is as wide as rank 3 r of `r`
_RATIO = 2.0
_KEYS = {"train.epochs": 1, "train.lr": 0.005, "train.seed": 0, "data.augment": "none"}


def compare_settings(grid: Grid, folder: Path, work: Path) -> dict[str, Any] | None:
    """Ranks, how many numbers were trained and how many differ; None where the two differ in size already.

    Args:
        grid: Names the network and the images.
        folder: Of its files.
        work: Where the two runs are put, and taken away again.
    """
    trained = [_trained(grid, rank, setting, folder, work) for setting, rank in (("rk", 1), ("r", _SIDE))]
    shapes = [{name: tensor.shape for name, tensor in each.items()} for each in trained]
    if shapes[0] != shapes[1]:
        return None
    pairs = [(tensor, trained[1][name]) for name, tensor in trained[0].items()]
    return {
        "ranks": [1, _SIDE],
        "numbers": sum(a.numel() for a, _ in pairs),
        "differing": sum(int((a != b).sum()) for a, b in pairs),
    }


def _trained(grid: Grid, rank: int, setting: str, folder: Path, work: Path) -> Mapping[str, torch.Tensor]:
    """The adapter file's tensors after an epoch."""
    out = work.resolve() / f"equal-{setting}"
    shutil.rmtree(out, ignore_errors=True)
    cell = next(cell for cell in grid.cells if cell.recipe.method.options.get("setting") == setting)
    options = {"method.rank": rank, "method.alpha": _RATIO * rank, "out": str(out)}
    files = {"data.source": f"npz:{folder / IMAGES}"}
    if cell.recipe.model.weights is not None:
        files["model.weights"] = str(folder / BASE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order
    try:
        train(with_keys(cell.recipe, {**_KEYS, **options, **files}))
    finally:
        torch.set_num_threads(threads)
    tensors = load_file(out / "adapter" / "adapter_model.safetensors")
    shutil.rmtree(out)
    return tensors
