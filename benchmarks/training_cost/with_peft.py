"""peft: `get_peft_model` on every convolution that it takes, the head in `modules_to_save`, `merge_and_unload`."""

from __future__ import annotations

import convpeft._torchvision  # noqa: F401  peft imports transformers, that torchvision, which fails beside CPU torch

# isort: split
import peft
from networks import build, convolution_paths, head_path, plain
from plan import MODES, Cell
from torch import nn
from trainee import Call, TorchTrainee, Trainee


class _Trainee(TorchTrainee):
    def __init__(self, cell: Cell, model: peft.PeftModel) -> None:
        super().__init__(cell, model)
        self._cell = cell

    def merged_and_plain(self) -> tuple[Call, Call]:
        return self.for_inference(self.model.eval().merge_and_unload()), plain(self._cell)


def make(cell: Cell) -> Trainee:
    method, model = MODES[cell.mode].method, build(cell)
    paths = convolution_paths(model)
    note = ""
    try:
        adapted = _adapt(model, method, cell.rank, paths)
    except (ValueError, NotImplementedError) as error:  # it may have changed the model on its way
        reason = " ".join(str(error).split())[:160]
        model = build(cell)
        kept = [path for path in paths if model.get_submodule(path).groups == 1]
        if len(kept) == len(paths):
            raise
        adapted = _adapt(model, method, cell.rank, kept)
        note = f"without the {len(paths) - len(kept)} grouped convolutions of {len(paths)}: {reason}"
    trainee = _Trainee(cell, adapted)
    trainee.note = note
    return trainee


def _adapt(model: nn.Module, method: str, rank: int, paths: list[str]) -> peft.PeftModel:
    common = {"r": rank, "target_modules": paths, "modules_to_save": [head_path(model)]}
    if method in ("lora", "dora"):
        config = peft.LoraConfig(lora_alpha=rank, use_dora=method == "dora", **common)
    else:
        config = (peft.LoHaConfig if method == "loha" else peft.LoKrConfig)(alpha=rank, **common)
    return peft.get_peft_model(model, config).train()
