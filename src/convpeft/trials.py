"""Inputs to try a model on: the size it is known to take, then the usual ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from convpeft.errors import ModelError, one_line
from convpeft.sites import walk

# Sizes to try, in pixels a side (samples for a sequence); the first that the model runs on is taken.
_SIZES = {1: (16000, 4096, 1024, 256, 64), 2: (224, 32, 64, 96, 128, 28, 256, 299, 384, 512), 3: (16, 32, 64, 112)}

Answer = TypeVar("Answer")


def try_inputs(model: nn.Module, run: Callable[[Tensor], Answer], *, batch: int, task: str, remedy: str) -> Answer:
    """Call `run` on blank inputs of likely sizes, the model in evaluation mode, until one of them goes through.

    Args:
        model: A model with a convolution or a linear layer; it is left in the modes it was in.
        run: What to try; the sizes that make it raise RuntimeError, ValueError or AssertionError are passed over.
        batch: Images in the input, >= 1.
        task: What cannot be done when no size goes through; begins the error.
        remedy: What to do then; ends the error.

    Returns:
        What `run` returned.

    Raises:
        ModelError: If no size goes through.
    """
    modes = {module: module.training for module in model.modules()}
    refusals = ["it has neither a convolution nor a linear layer"]
    model.eval()
    try:
        for blank in _likely_inputs(model, batch):
            try:
                return run(blank)
            except (RuntimeError, ValueError, AssertionError) as error:
                refusals.append(one_line(error, 120))
    finally:
        for module, training in modes.items():
            module.training = training
    refusal = refusals[min(1, len(refusals) - 1)]
    raise ModelError(f"{task}, because it runs on no blank image of the usual sizes ({refusal}). {remedy}")


def _likely_inputs(model: nn.Module, batch: int) -> Iterator[Tensor]:
    """Zeros `(batch, channels, *space)` for the first convolution, or `(batch, in)` where there is none."""
    convolution = next((module for _, module in walk(model) if isinstance(module, _ConvNd)), None)
    if convolution is not None:
        reference, dims = convolution._parameters["weight"], len(convolution.kernel_size)
        known = getattr(model.__dict__.get("_convpeft_preprocessing"), "size", None)
        sizes = [(size,) * dims for size in _SIZES[dims]]
        sizes = [tuple(cast(tuple[int, ...], known)), *sizes] if known is not None and dims == 2 else sizes
        shapes = [(convolution.in_channels, *size) for size in sizes]
    else:
        linear = next((module for _, module in walk(model) if isinstance(module, nn.Linear)), None)
        reference = None if linear is None else linear._parameters["weight"]
        shapes = [] if linear is None else [(linear.in_features,)]
    for shape in shapes:
        assert reference is not None
        yield torch.zeros(batch, *shape, dtype=reference.dtype, device=reference.device)
