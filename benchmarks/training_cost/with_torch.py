"""Plain PyTorch: full fine-tuning, and the head alone on a frozen network whose norms are in evaluation mode."""

from __future__ import annotations

from networks import build, head_path
from plan import MODES, Cell
from trainee import TorchTrainee, Trainee


def make(cell: Cell) -> Trainee:
    model, mode = build(cell), MODES[cell.mode]
    if mode.method == "head":
        model.requires_grad_(False).eval()
        model.get_submodule(head_path(model)).requires_grad_(True)
    return TorchTrainee(cell, model)
