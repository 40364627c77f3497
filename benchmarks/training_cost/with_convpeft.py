"""convpeft: `attach` on every convolution, a fresh head, and a plain loop; a mode may force how it is computed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from networks import build, convolution_paths, plain
from plan import CLASSES, MODES, SEED, Cell
from torch import nn
from trainee import Call, TorchTrainee, Trainee, batch_of

import convpeft
from convpeft.training.recomputing import Recomputing

_NOTES = {
    "autotune": "the peak is too low: measuring the kernels has grown the process before the first step",
    "checkpointing": "the input of a block, which is kept, is not among the saved bytes; it is in the peak",
}


class _Trainee(TorchTrainee):
    def __init__(self, cell: Cell, model: nn.Module) -> None:
        super().__init__(cell, model)
        self._cell = cell

    def chosen(self) -> dict[str, Any]:
        """What the last forward in training took: how many layers each kernel has, and how many norms are folded."""
        plan = convpeft.kernels_of(self.model)
        kernels = dict(sorted(Counter(plan.sites.values()).items()))
        return {"layout": plan.layout, "kernels": kernels, "folded": len(plan.folded), "unfolded": len(plan.unfolded)}

    def merged_and_plain(self) -> tuple[Call, Call]:
        return self.for_inference(convpeft.merge(self.model)), plain(self._cell)


def make(cell: Cell) -> Trainee:
    model, mode = build(cell), MODES[cell.mode]
    include = convolution_paths(model, cell.first) if cell.first else ["conv"]
    generator = torch.Generator().manual_seed(SEED)
    words: dict[str, Any] = {"rank": cell.rank, "include": include, "num_classes": CLASSES, "generator": generator}
    convpeft.attach(model, mode.method, **words)
    convpeft.set_kernels(model, **mode.words)
    if mode.extra == "autotune":
        convpeft.autotune(model.to(cell.device), batch_of(cell)[0])
    if mode.extra == "checkpointing":
        Recomputing(model)
    trainee = _Trainee(cell, model)
    trainee.note = _NOTES.get(mode.extra, "")
    return trainee
