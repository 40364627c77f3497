"""LyCORIS: `create_lycoris` on every convolution, `apply_to`, and `merge_to`; the head is trained beside it."""

from __future__ import annotations

import logging

from lycoris import create_lycoris
from lycoris.config import PRESET
from lycoris.logging import logger
from networks import build, head_path, plain
from plan import MODES, Cell
from torch import nn
from trainee import Call, TorchTrainee, Trainee

logger.setLevel(logging.CRITICAL)
PRESET["convolutions"] = {"enable_conv": True, "target_module": ["Conv2d"], "target_name": []}


class _Trainee(TorchTrainee):
    def __init__(self, cell: Cell, model: nn.Module, network: nn.Module) -> None:
        self._cell, self._base, self._network = cell, model, network
        super().__init__(cell, nn.ModuleList([model, network]))
        self.model.forward = model.forward

    def merged_and_plain(self) -> tuple[Call, Call]:
        self._network.restore()
        self._network.merge_to(1.0)
        return self.for_inference(self._base), plain(self._cell)


def make(cell: Cell) -> Trainee:
    model = build(cell)
    model.requires_grad_(False)
    network = create_lycoris(
        model,
        1.0,
        linear_dim=cell.rank,
        linear_alpha=float(cell.rank),
        algo=MODES[cell.mode].method,
        preset="convolutions",
    )
    network.apply_to()
    model.get_submodule(head_path(model)).requires_grad_(True)
    return _Trainee(cell, model.train(), network.train().requires_grad_(True))
