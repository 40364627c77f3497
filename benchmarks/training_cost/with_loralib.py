"""loralib: its layers put in by hand, as its README says; `eval()` merges."""

from __future__ import annotations

import loralib
from networks import build, convolution_paths, head_path, plain
from plan import Cell
from torch import nn
from trainee import Call, TorchTrainee, Trainee


class _Trainee(TorchTrainee):
    def __init__(self, cell: Cell, model: nn.Module) -> None:
        super().__init__(cell, model)
        self._cell = cell

    def merged_and_plain(self) -> tuple[Call, Call]:
        return self.for_inference(self.model), plain(self._cell)


def make(cell: Cell) -> Trainee:
    model = build(cell)
    paths = convolution_paths(model)
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, _twin(model.get_submodule(path), cell.rank))
    loralib.mark_only_lora_as_trainable(model)
    model.get_submodule(head_path(model)).requires_grad_(True)
    return _Trainee(cell, model.train())


def _twin(layer: nn.Conv2d, rank: int) -> nn.Module:
    twin = loralib.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size[0],
        r=rank,
        lora_alpha=rank,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
    )
    twin.conv.load_state_dict(layer.state_dict())
    return twin
