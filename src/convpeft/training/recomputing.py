"""Gradient checkpointing: of each block only the input is kept, and the backward pass computes the rest again."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from convpeft.blocks import find_blocks
from convpeft.errors import ModelError
from convpeft.sparing import spare_buffers


class Recomputing:
    """The blocks of a model, each with a forward that keeps its input only, until `remove`.

    Raises:
        ModelError: If the model has no blocks.
    """

    def __init__(self, model: nn.Module) -> None:
        self._blocks = blocks_of(model)
        for block in self._blocks:
            block.__dict__["forward"] = _Recomputed(block, block.__dict__.get("forward"))

    def remove(self) -> None:
        """Give every block its own forward back."""
        for block in self._blocks:
            own = block.__dict__.pop("forward").own
            if own is not None:
                block.__dict__["forward"] = own


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks that are computed again, each as a whole.

    Raises:
        ModelError: If there are none.
    """
    blocks = [model.get_submodule(site.path) for site in find_blocks(model)]
    if not blocks:
        raise ModelError(
            f"train.checkpointing=true: {type(model).__name__} has no blocks from one tensor to one. "
            "Set it to false; a smaller train.batch_size with train.accumulate saves memory too."
        )
    return blocks


class _Recomputed:
    """A block's forward. An object and no closure, so that a copy of the model runs the copy of the block."""

    def __init__(self, block: nn.Module, own: Any) -> None:
        self.block, self.own = block, own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.block.training and torch.is_grad_enabled()):
            return self._run(*args, **kwargs)
        return checkpoint(self._run, *args, use_reentrant=False, context_fn=self._contexts, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self.own is not None:
            return self.own(*args, **kwargs)
        return type(self.block).forward(self.block, *args, **kwargs)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Around the forward, and around computing it again: running statistics have moved by then."""
        return nullcontext(), spare_buffers(self.block)
