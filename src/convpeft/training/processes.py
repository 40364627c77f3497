"""Which of several processes this is, under `accelerate launch`; alone, it is the main one."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from convpeft.errors import RunError
from convpeft.injection import adapted_layers
from convpeft.slots import slots_of


def on_cpu() -> bool:
    """Whether there is nothing faster; accelerate joins CPU processes only when it is told so."""
    return not torch.accelerator.is_available()


def is_main() -> bool:
    """Whether this process writes files and prints.

    Raises:
        RunError: If more processes were started than there are GPUs.
    """
    return bool(_state().is_main_process)


def wait_for_all() -> None:
    """Wait until every process is here."""
    _state().wait_for_everyone()


def agree(*wishes: int, device: torch.device) -> list[int]:
    """The largest of each wish over all processes, so that all do the same at the same batch."""
    if not _several():
        return list(wishes)
    told = torch.tensor(wishes, device=device)
    torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
    return told.tolist()


def from_all(tensor: Tensor, *, device: torch.device) -> list[Tensor]:
    """The tensors of all processes in the order of their numbers, each on the CPU; equal in shape and type."""
    if not _several():
        return [tensor.cpu()]
    own = tensor.to(device)
    found = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(found, own)
    return [each.cpu() for each in found]


def count_processes() -> int:
    """How many processes train together."""
    return torch.distributed.get_world_size() if _several() else 1


def share_buffers(model: nn.Module) -> None:
    """Give every process the main one's adapter buffers: norm statistics move apart, each on its own images."""
    if not _several():
        return
    for _, layer in adapted_layers(model):
        for buffer in slots_of(layer).buffers():
            torch.distributed.broadcast(buffer, src=0)


def _state() -> Any:
    from accelerate import PartialState

    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if torch.cuda.is_available() and here > gpus:
        raise RunError(
            f"{here} processes were started on a machine with {gpus} GPU{'' if gpus == 1 else 's'}. Start one for "
            "each, or set CUDA_VISIBLE_DEVICES= to train on CPU."
        )
    return PartialState(cpu=on_cpu())


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
