"""Run a model as it is trained and leave no trace of it: modes, buffers and random state are as before."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def in_training(model: nn.Module) -> Generator[None]:
    """Put a model into training mode for the time of the block; nothing that moves in a forward stays moved."""
    modes = {module: module.training for module in model.modules()}
    devices = sorted({each.device.index for each in model.parameters() if each.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=devices), spare_buffers(model), torch.enable_grad():
            model.train()
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def spare_buffers(model: nn.Module) -> Generator[None]:
    """Give a model copies of its buffers, such as running statistics, for the time of the block."""
    kept = [(module, dict(module._buffers)) for module in model.modules()]
    for module, buffers in kept:
        module._buffers.update({name: None if each is None else each.clone() for name, each in buffers.items()})
    try:
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)
