"""Which of several processes this is, under `accelerate launch`; alone, it is the main one."""

from __future__ import annotations

import torch
from torch import nn

from convpeft.injection import adapted_layers, slots_of


def on_cpu() -> bool:
    """Whether there is nothing faster; accelerate joins CPU processes only when it is told so."""
    return not torch.accelerator.is_available()


def is_main() -> bool:
    """Whether this process writes files and prints."""
    from accelerate import PartialState

    return bool(PartialState(cpu=on_cpu()).is_main_process)


def wait_for_all() -> None:
    """Wait until every process is here."""
    from accelerate import PartialState

    PartialState(cpu=on_cpu()).wait_for_everyone()


def share_buffers(model: nn.Module) -> None:
    """Give every process the main one's adapter buffers: norm statistics move apart, each on its own images."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    for _, layer in adapted_layers(model):
        for buffer in slots_of(layer).buffers():
            torch.distributed.broadcast(buffer, src=0)
