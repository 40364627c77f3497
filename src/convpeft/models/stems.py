"""Change how many channels a network takes, keeping what its first convolution has learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convpeft.errors import ModelError
from convpeft.models.preprocessing import MAX_CHANNELS


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Return the path and the module of the first two-dimensional convolution, or None where there is none."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return path, module
    return None


def input_channels(model: nn.Module) -> int | None:
    """Return how many channels the first convolution takes, or None where it sees no image of 1 to 4 channels."""
    found = first_convolution(model)
    if found is None or found[1].groups != 1 or found[1].in_channels > MAX_CHANNELS:
        return None
    return found[1].in_channels


def adapt_weight(weight: Tensor, channels: int) -> Tensor:
    r"""Give a first convolution's weight another number of input channels.

    One channel: the sum over the old channels, so that a grey image gives what its three equal channels gave.
    More: new[:, i] = weight[:, i mod old] * old / channels, which keeps the size of the response (timm's rule).

    Args:
        weight: (out, old, \*kernel), any floating dtype.
        channels: New number of input channels, at least 1.

    Returns:
        (out, channels, \*kernel) of the same dtype; the weight itself when nothing changes.

    >>> adapt_weight(torch.ones(8, 3, 5, 5), 1)[0, 0, 0, 0].item()
    3.0
    """
    old = weight.shape[1]
    if channels == old:
        return weight
    exact = weight.float()
    if channels == 1:
        return exact.sum(dim=1, keepdim=True).to(weight.dtype)
    cyclic = torch.arange(channels, device=weight.device) % old
    return (exact[:, cyclic] * (old / channels)).to(weight.dtype)


def set_input_channels(model: nn.Module, channels: int, *, source: str) -> None:
    """Make the model take this many channels by adapting its first convolution in place.

    Args:
        model: The model; its first convolution (in the order of registration) must be the one that sees the image.
        channels: Number of input channels, 1 to 4.
        source: The name that an error begins with.

    Raises:
        ModelError: If the network has no plain first convolution (a grouped one, or one over rearranged pixels).
    """
    found = first_convolution(model)
    if found is None or input_channels(model) is None:
        raise ModelError(
            f"{source}: its first layer is no plain convolution over 1 to {MAX_CHANNELS} channels, so its input "
            f"cannot be set to {channels} channels; leave in_channels out."
        )
    convolution = found[1]
    if convolution.in_channels == channels:
        return
    weight = adapt_weight(convolution.weight.detach(), channels).clone()
    convolution.weight = nn.Parameter(weight, requires_grad=convolution.weight.requires_grad)
    convolution.in_channels = channels
