"""Multiplications of one image through every convolution and linear layer."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd  # pyright: ignore[reportPrivateUsage]

from convpeft.errors import ModelError, one_line


def multiplications(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Run one blank image and count, layer by layer; norms, activations and sums are left out.

    Args:
        model: The network; it is left as it was.
        shape: Of the image, (channels, height, width).

    Raises:
        ModelError: If the network does not run on such an image.
    """
    found: dict[str, int] = {}
    handles = [
        layer.register_forward_hook(_counter(path, found))
        for path, layer in model.named_modules()
        if isinstance(layer, _ConvNd | nn.Linear)
    ]
    modes = [(module, module.training) for module in model.modules()]
    some = next(model.parameters(), torch.zeros(0))
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, *shape, dtype=some.dtype, device=some.device))
    except (RuntimeError, ValueError, AttributeError, TypeError) as error:
        size, why = "x".join(map(str, shape)), one_line(error, 160)
        raise ModelError(
            f"the model does not run on one image {size} ({why}). Give images of the size that it takes, or exclude "
            "the layers that its own code reads."
        ) from None
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return found


def _counter(path: str, found: dict[str, int]) -> Any:
    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = cast(Tensor, layer.weight)
        # each position of the output, or of a transposed convolution's input, meets the whole weight once
        positions = (
            inputs[0].numel() // inputs[0].shape[1]
            if isinstance(layer, _ConvTransposeNd)
            else (output.numel() // (output.shape[1] if isinstance(layer, _ConvNd) else output.shape[-1]))
        )
        found[path] = found.get(path, 0) + positions * weight.numel()

    return count
